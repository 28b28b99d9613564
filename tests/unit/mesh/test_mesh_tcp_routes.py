"""TCP routes: weights over subsets, and what the kernel cannot tell apart."""

from __future__ import annotations

import pytest

from tests.builders import (
    Mesh,
    destination_rule,
    endpoint,
    endpoint_slice,
    host,
    route,
    service,
    subset,
    tcp_route,
    tcp_to,
    to,
    virtual_service,
    workload,
)
from xdsbpf.mesh.tcp_routes import tcp_destinations
from xdsbpf.model.kube import ServicePort
from xdsbpf.model.meta import Manifest
from xdsbpf.model.virtual_service import L4MatchAttributes

DB = host("db")
PARTS: tuple[Manifest, ...] = (
    service("db", ServicePort(5432, "tcp-db")),
    workload("db", "v1", "10.0.0.1"),
    workload("db", "v2", "10.0.0.2"),
    endpoint_slice("db", endpoint("10.0.0.1", "db-v1"), endpoint("10.0.0.2", "db-v2"), ports=(("tcp-db", 5432),)),
    destination_rule("db", "db", subset("v1"), subset("v2")),
)


def shares(mesh: Mesh, port: int = 5432) -> list[tuple[str, int]]:
    return [(target.subset, target.weight) for target in tcp_destinations(mesh.db, DB, port)]


def test_weights_and_subsets_of_the_first_route_count() -> None:
    routes = (
        tcp_route(tcp_to("db", "v1", weight=90), tcp_to("db", "v2", weight=10)),
        tcp_route(tcp_to("db", "v2")),
    )
    assert shares(Mesh(*PARTS, virtual_service("db", "db", tcp=routes))) == [("v1", 90), ("v2", 10)]


def test_without_a_tcp_route_there_are_no_destinations() -> None:
    assert shares(Mesh(*PARTS)) == []
    assert shares(Mesh(*PARTS, virtual_service("db", "db", route(to("db", "v1"))))) == []


def test_a_port_match_selects() -> None:
    routes = (
        tcp_route(tcp_to("db", "v1"), match=(L4MatchAttributes(port=1),)),
        tcp_route(tcp_to("db", "v2"), match=(L4MatchAttributes(port=5432),)),
    )
    assert shares(Mesh(*PARTS, virtual_service("db", "db", tcp=routes))) == [("v2", 1)]


@pytest.mark.parametrize(
    ("match", "field"),
    [
        (L4MatchAttributes(source_namespace="a"), "sourceNamespace"),
        (L4MatchAttributes(source_labels=(("a", "b"),)), "sourceLabels"),
        (L4MatchAttributes(destination_subnets=("10.0.0.0/8",)), "destinationSubnets"),
        (L4MatchAttributes(gateways=("gw",)), "gateways"),
    ],
)
def test_what_depends_on_the_client_is_left_out_with_a_finding(match: L4MatchAttributes, field: str) -> None:
    routes = (tcp_route(tcp_to("db", "v1"), match=(match,)), tcp_route(tcp_to("db", "v2")))
    mesh = Mesh(*PARTS, virtual_service("db", "db", tcp=routes))
    assert shares(mesh) == [("v2", 1)]
    assert [found.path for found in mesh.findings("XB2037")] == [f"spec.tcp[0].match[0].{field}"]


def test_a_private_tcp_route_is_not_applied_to_everybody() -> None:
    mesh = Mesh(*PARTS, virtual_service("db", "db", tcp=(tcp_route(tcp_to("db", "v1")),), export_to=(".",)))
    assert shares(mesh) == []
    assert [found.path for found in mesh.findings("XB2037")] == ["spec.exportTo"]


def test_an_http_port_has_no_tcp_destinations() -> None:
    mesh = Mesh(service("web"), virtual_service("web", "web", tcp=(tcp_route(tcp_to("db")),)))
    assert tcp_destinations(mesh.db, host("web"), 9080) == ()


def test_an_unknown_subset_is_reported_with_its_path() -> None:
    mesh = Mesh(*PARTS, virtual_service("db", "db", tcp=(tcp_route(tcp_to("db", "v3")),)))
    assert [found.path for found in mesh.findings("XB2032")] == ["spec.tcp[0].route[0].destination.subset"]
