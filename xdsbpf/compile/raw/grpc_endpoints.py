"""Endpoints of a raw assignment as gRPC clients take them: what they refuse or misread is put right, and said.

One field that a gRPC client does not like costs it the whole assignment (spec rule 57, gRFC A27); Envoy is more
patient, and gets every assignment as it is written. Pure: message in, message and repairs out; called by `checks`
for the findings and by `resources` for what gRPC clients are sent.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

import msgspec
from envoy.config.core.v3.address_pb2 import SocketAddress
from envoy.config.endpoint.v3.endpoint_components_pb2 import LbEndpoint, LocalityLbEndpoints
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

MAXIMUM: Final = 0xFFFFFFFF
"""The weights of a priority's localities add up to this at most."""


class Repair(msgspec.Struct, frozen=True):
    """A field that gRPC clients do not take, why, and what they get instead; `is_odd`: it is one for Envoys, too."""

    path: str
    message: str
    hint: str = ""
    is_odd: bool = True


def for_grpc(message: ClusterLoadAssignment) -> tuple[ClusterLoadAssignment, tuple[Repair, ...]]:
    """The assignment for gRPC clients, and what was changed in it.

    Localities that have no name or weight, which is usual for Envoys, get an empty one and the sum of their
    endpoints' weights; that changes no meaning and is not among the repairs.
    """
    result = ClusterLoadAssignment()
    result.CopyFrom(message)
    del result.endpoints[:]
    repairs: list[Repair] = []
    groups: dict[tuple[int, bytes], LocalityLbEndpoints] = {}
    seen: dict[tuple[str, int], tuple[tuple[int, bytes], LbEndpoint]] = {}
    for index, group in enumerate(message.endpoints):
        path = f"endpoints[{index}]"
        key = (group.priority, group.locality.SerializeToString(deterministic=True))
        kept = groups.get(key)
        if kept is None:
            kept = groups[key] = result.endpoints.add()
            kept.CopyFrom(group)
            kept.locality.SetInParent()
            del kept.lb_endpoints[:]
        else:
            text = f"the locality comes twice in priority {group.priority}: gRPC clients get both as one"
            repairs.append(Repair(path, text, "put all endpoints of a locality into one entry"))
            if group.HasField("load_balancing_weight"):
                weight = kept.load_balancing_weight.value + group.load_balancing_weight.value
                kept.load_balancing_weight.value = min(weight, MAXIMUM)
        for position, endpoint in enumerate(group.lb_endpoints):
            where = f"{path}.lb_endpoints[{position}]"
            if endpoint.HasField("load_balancing_weight") and not endpoint.load_balancing_weight.value:
                repairs.append(Repair(where, "a weight is at least 1: gRPC clients do not get this endpoint"))
                continue
            place = _place(endpoint)
            if place is None:
                text = "this is no IP address with a TCP port: gRPC clients do not get this endpoint"
                repairs.append(Repair(where, text, is_odd=False))
                continue
            if place in seen:
                repairs.append(Repair(where, "the address comes twice: gRPC clients get it once", "give it a weight"))
                home, first = seen[place]
                if home == key:
                    first.load_balancing_weight.value = min(_weight(first) + _weight(endpoint), MAXIMUM)
                continue
            kept.lb_endpoints.append(endpoint)
            seen[place] = (key, kept.lb_endpoints[-1])
    _weigh(result)
    return result, (*repairs, *_without_gaps(result), *_without_overflow(result))


def _place(entry: LbEndpoint) -> tuple[str, int] | None:
    """IP address and TCP port of an endpoint, the only kind that gRPC clients know; None for any other."""
    address = entry.endpoint.address.socket_address
    try:
        host = str(ipaddress.ip_address(address.address))
    except ValueError:
        return None
    return (host, address.port_value) if address.port_value and address.protocol == SocketAddress.TCP else None


def _weight(entry: LbEndpoint) -> int:
    return entry.load_balancing_weight.value if entry.HasField("load_balancing_weight") else 1


def _weigh(message: ClusterLoadAssignment) -> None:
    """Give every locality without a weight that of its endpoints; 0 says that it gets no traffic."""
    for group in message.endpoints:
        if not group.HasField("load_balancing_weight"):
            group.load_balancing_weight.value = min(sum(map(_weight, group.lb_endpoints)), MAXIMUM)


def _without_gaps(message: ClusterLoadAssignment) -> Iterator[Repair]:
    priorities = sorted({group.priority for group in message.endpoints})
    if priorities == list(range(len(priorities))):
        return
    listed = ", ".join(map(str, priorities))
    yield Repair("endpoints", f"the priorities have a gap ({listed}): for gRPC clients they are counted from 0")
    for group in message.endpoints:
        group.priority = priorities.index(group.priority)


def _without_overflow(message: ClusterLoadAssignment) -> Iterator[Repair]:
    for priority in sorted({group.priority for group in message.endpoints}):
        groups = [group for group in message.endpoints if group.priority == priority]
        total = sum(group.load_balancing_weight.value for group in groups)
        if total > MAXIMUM:
            text = f"the weights of priority {priority} add up to {total}: gRPC clients get them in proportion"
            yield Repair("endpoints", text, f"they add up to {MAXIMUM} at most")
            for group in groups:
                group.load_balancing_weight.value = group.load_balancing_weight.value * MAXIMUM // total
