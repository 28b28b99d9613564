"""Every violation of rule 57 that a raw assignment may have, and what gRPC clients get instead of it."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from google.protobuf.json_format import MessageToDict, ParseDict

from xdsbpf.compile.raw.grpc_endpoints import MAXIMUM, for_grpc

NORTH, SOUTH = {"zone": "north"}, {"zone": "south"}


def at(port: int, host: str = "127.0.0.1", **fields: Any) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}, **fields}


def group(*endpoints: Any, locality: Any = None, weight: int | None = None, priority: int = 0) -> dict[str, Any]:
    found = {"locality": NORTH if locality is None else locality, "priority": priority, "lb_endpoints": [*endpoints]}
    return found | ({} if weight is None else {"load_balancing_weight": weight})


def repaired(*groups: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The groups that gRPC clients get, and the places of the repairs."""
    message = ParseDict({"cluster_name": "a", "endpoints": [*groups]}, ClusterLoadAssignment())
    result, repairs = for_grpc(message)
    assert for_grpc(result) == (result, ())
    found = MessageToDict(result, preserving_proto_field_name=True)
    return found.get("endpoints", []), [repair.path for repair in repairs]


def expected(*groups: dict[str, Any]) -> list[dict[str, Any]]:
    message = ParseDict({"endpoints": [*groups]}, ClusterLoadAssignment())
    found: list[dict[str, Any]] = MessageToDict(message, preserving_proto_field_name=True)["endpoints"]
    return found


def test_what_is_right_stays_as_it_is() -> None:
    right = (
        group(at(1), at(2, load_balancing_weight=7, health_status="DRAINING"), weight=9),
        group(at(3), locality=SOUTH, weight=1),
        group(at(4), weight=1, priority=1),
    )
    assert repaired(*right) == (expected(*right), [])


def test_a_locality_without_name_or_weight_gets_both_without_a_word() -> None:
    endpoints = (at(1), at(2, load_balancing_weight=4))
    assert repaired({"lb_endpoints": [*endpoints]}) == (expected(group(*endpoints, locality={}, weight=5)), [])


def test_a_weight_of_zero_of_a_locality_stays() -> None:
    assert repaired(group(at(1), weight=0)) == (expected(group(at(1), weight=0)), [])


@pytest.mark.parametrize(
    "refused",
    [
        at(2, load_balancing_weight=0),
        at(2, host="localhost"),
        at(0),
        {"endpoint": {"address": {"pipe": {"path": "/run/x"}}}},
        {},
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 2, "protocol": "UDP"}}}},
    ],
)
def test_an_endpoint_that_no_grpc_client_takes_is_left_out(refused: dict[str, Any]) -> None:
    found, places = repaired(group(refused, at(1), weight=2))
    assert (found, places) == (expected(group(at(1), weight=2)), ["endpoints[0].lb_endpoints[0]"])


def test_an_address_that_comes_twice_comes_once_with_both_weights() -> None:
    found, places = repaired(group(at(1), at(1, load_balancing_weight=2), weight=1))
    assert found == expected(group(at(1, load_balancing_weight=3), weight=1))
    assert places == ["endpoints[0].lb_endpoints[1]"]
    found, places = repaired(group(at(1, host="::1"), weight=1), group(at(1, host="0::1"), locality=SOUTH, weight=1))
    assert found == expected(group(at(1, host="::1"), weight=1), group(locality=SOUTH, weight=1))
    assert places == ["endpoints[1].lb_endpoints[0]"]


def test_a_locality_that_comes_twice_in_a_priority_is_one() -> None:
    found, places = repaired(group(at(1), weight=1), group(at(2), weight=2), group(at(3), weight=1, priority=1))
    assert found == expected(group(at(1), at(2), weight=3), group(at(3), weight=1, priority=1))
    assert places == ["endpoints[1]"]


def test_priorities_are_counted_from_zero_without_gaps() -> None:
    found, places = repaired(group(at(1), weight=1, priority=5), group(at(2), weight=1, priority=2))
    assert [entry.get("priority", 0) for entry in found] == [1, 0]
    assert places == ["endpoints"]


def test_weights_that_overflow_keep_their_proportion() -> None:
    found, places = repaired(group(at(1), weight=MAXIMUM), group(at(2), locality=SOUTH, weight=MAXIMUM))
    weights = [entry["load_balancing_weight"] for entry in found]
    assert weights == [MAXIMUM // 2] * 2
    assert places == ["endpoints"]


def test_weights_of_a_locality_that_comes_twice_do_not_overflow() -> None:
    found, places = repaired(group(at(1), weight=MAXIMUM), group(at(2), weight=MAXIMUM))
    assert found == expected(group(at(1), at(2), weight=MAXIMUM))
    assert places == ["endpoints[1]"]
