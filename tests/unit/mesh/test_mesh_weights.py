"""Weights of endpoints: shares of subsets, split evenly, as whole numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import (
    Mesh,
    destination_rule,
    endpoint,
    endpoint_slice,
    host,
    pod,
    service,
    subset,
    tcp_route,
    tcp_to,
    virtual_service,
)
from xdsbpf.mesh.endpoints import Endpoint
from xdsbpf.mesh.weights import MAX_WEIGHT, spread, weighted_endpoints
from xdsbpf.model.kube import ServicePort
from xdsbpf.model.meta import Manifest


def database(v1: int, v2: int) -> tuple[Manifest, ...]:
    """A TCP service with so many endpoints of each version."""
    versions = ["v1"] * v1 + ["v2"] * v2
    pods = [pod(f"db-{i}", f"10.0.0.{i + 1}", labels={"version": version}) for i, version in enumerate(versions)]
    entries = (endpoint(one.status.pod_ip, one.name) for one in pods)
    return (
        service("db", ServicePort(5432, "tcp-db")),
        *pods,
        endpoint_slice("db", *entries, ports=(("tcp-db", 5432),)),
        destination_rule("db", "db", subset("v1"), subset("v2")),
    )


def split(v1: int, v2: int) -> Manifest:
    route = tcp_route(tcp_to("db", "v1", weight=v1), tcp_to("db", "v2", weight=v2))
    return virtual_service("db", "db", tcp=(route,))


def weights(mesh: Mesh) -> dict[str, int]:
    return {entry.endpoint.address: entry.weight for entry in weighted_endpoints(mesh.db, host("db"), 5432)}


def test_without_routes_every_endpoint_weighs_the_same() -> None:
    assert weights(Mesh(*database(2, 1))) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 1}


def test_a_share_is_split_over_the_endpoints_of_its_subset() -> None:
    # 90 over three is 30 each; 10 over one is 10: three to one.
    assert weights(Mesh(*database(3, 1), split(90, 10))) == {
        "10.0.0.1": 3,
        "10.0.0.2": 3,
        "10.0.0.3": 3,
        "10.0.0.4": 1,
    }


def test_a_weight_of_zero_takes_a_subset_out() -> None:
    assert weights(Mesh(*database(1, 1), split(0, 100))) == {"10.0.0.2": 1}


def test_a_share_without_endpoints_goes_to_the_others_and_is_reported() -> None:
    mesh = Mesh(*database(2, 0), split(50, 50))
    assert weights(mesh) == {"10.0.0.1": 1, "10.0.0.2": 1}
    assert [found.path for found in mesh.findings("XB2039")] == ["spec.tcp[0].route[1].destination"]


def test_without_any_endpoint_there_are_no_weights() -> None:
    assert weights(Mesh(*database(0, 0), split(50, 50))) == {}


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 1000)), min_size=1, max_size=6))
def test_shares_are_kept_to_a_rounding_error(shares: list[tuple[int, int]]) -> None:
    parts = []
    for number, (size, share) in enumerate(shares):
        parts.append((tuple(Endpoint(f"10.{number}.0.{i}", 80) for i in range(size)), share))
    found = spread(tuple(parts))
    assert all(1 <= entry.weight <= MAX_WEIGHT for entry in found)
    total = sum(entry.weight for entry in found)
    for number, (_, share) in enumerate(shares):
        got = sum(entry.weight for entry in found if entry.endpoint.address.startswith(f"10.{number}."))
        assert abs(got / total - share / sum(share for _, share in shares)) < 0.01


def test_an_endpoint_in_two_shares_has_both() -> None:
    one, two = Endpoint("10.0.0.1", 80), Endpoint("10.0.0.2", 80)
    found = spread((((one, two), 50), ((one,), 50)))
    assert [(entry.endpoint.address, entry.weight) for entry in found] == [("10.0.0.1", 3), ("10.0.0.2", 1)]
