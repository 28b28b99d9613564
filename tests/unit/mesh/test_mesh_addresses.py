"""Virtual addresses of services without a clusterIP, and the addresses that are refused."""

from __future__ import annotations

import ipaddress
import random

import pytest

from tests.builders import Mesh, host, service
from xdsbpf.mesh.addresses import packed, refusal, service_at, virtual_addresses
from xdsbpf.mesh.inputs import MeshSettings, object_id
from xdsbpf.mesh.services import service as mesh_service

SMALL = MeshSettings(service_cidr="240.240.0.0/28")


def addresses(mesh: Mesh) -> dict[tuple[str, str], str]:
    return dict(virtual_addresses(mesh.db))


def test_addresses_do_not_depend_on_the_order_of_arrival() -> None:
    services = [service(f"s{i}") for i in range(14)]
    expected = addresses(Mesh(*services, settings=SMALL))
    for seed in range(5):
        random.Random(seed).shuffle(services)
        mesh = Mesh(settings=SMALL)
        for manifest in services:
            mesh.put(manifest)
            addresses(mesh)
        assert addresses(mesh) == expected
    assert len(set(expected.values())) == 14


def test_the_first_and_last_address_of_the_range_are_not_used() -> None:
    found = addresses(Mesh(*(service(f"s{i}") for i in range(14)), settings=SMALL)).values()
    assert {"240.240.0.0", "240.240.0.15"}.isdisjoint(found)


def test_adding_a_service_leaves_the_others_where_they_are_unless_hashes_collide() -> None:
    mesh = Mesh(*(service(f"s{i}") for i in range(20)))
    before = addresses(mesh)
    mesh.put(service("newcomer"))
    after = addresses(mesh)
    assert {name: after[name] for name in before} == before


def test_an_explicit_cluster_address_inside_the_range_is_left_free() -> None:
    lone = addresses(Mesh(service("reviews")))[("default", "reviews")]
    mesh = Mesh(service("reviews"), service("squatter", address=lone))
    assert addresses(mesh)[("default", "reviews")] != lone
    found = mesh_service(mesh.db, host("squatter"))
    assert found is not None
    assert found.address == lone


def test_a_full_range_is_reported_and_the_service_has_no_frontend() -> None:
    mesh = Mesh(*(service(f"s{i:02}") for i in range(15)), settings=SMALL)
    assert len(addresses(mesh)) == 14
    assert [found.object for found in mesh.findings("XB2006")] == [object_id("Service", "default", "s14")]
    assert mesh_service(mesh.db, host("s14")) is None


def test_a_service_is_found_by_its_address() -> None:
    mesh = Mesh(service("reviews"), service("ratings", address="10.0.0.7"))
    for name in ("reviews", "ratings"):
        found = mesh_service(mesh.db, host(name))
        assert found is not None
        assert service_at(mesh.db, found.address) == ("default", name)
    assert service_at(mesh.db, "10.0.0.8") is None


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "169.254.169.254", "0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "fd00::1", "db.local", ""],
)
def test_addresses_that_reach_the_node_itself_or_nothing_are_refused(text: str) -> None:
    assert refusal(text)


@pytest.mark.parametrize("text", ["10.1.2.3", "192.168.1.1", "240.240.0.1", "8.8.8.8"])
def test_usable_addresses_are_not_refused(text: str) -> None:
    assert refusal(text) == ""
    assert ipaddress.ip_address(text)


@pytest.mark.parametrize(
    "text", ["1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "+1.2.3.4", " 1.2.3.4", "1_0.2.3.4", "١.2.3.4"]
)
def test_only_the_canonical_form_is_an_address(text: str) -> None:
    assert refusal(text) == "is not an IP address"
    with pytest.raises(ValueError, match="does not appear"):
        packed(text)


def test_packed_addresses_are_in_network_order_and_sort_as_numbers() -> None:
    assert packed("10.0.0.1") == b"\x0a\x00\x00\x01"
    assert packed("fd00::1") == b"\xfd" + bytes(14) + b"\x01"
    assert sorted(("10.0.0.10", "9.0.0.1", "10.0.0.9"), key=packed) == ["9.0.0.1", "10.0.0.9", "10.0.0.10"]
