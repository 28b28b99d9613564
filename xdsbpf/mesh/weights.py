"""Where the kernel sends the connections of a service port: endpoints with whole-number weights.

Without a TCP VirtualService every endpoint weighs the same; with one, its weights are shares of whole
subsets. `compile.datapath` encodes the result.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from xdsbpf.incremental import Database, query
from xdsbpf.mesh.codes import warn
from xdsbpf.mesh.endpoints import Endpoint, endpoints, subset_endpoints
from xdsbpf.mesh.services import PortInfo, service
from xdsbpf.mesh.tcp_routes import tcp_destinations
from xdsbpf.mesh.virtual_services import owners

MAX_WEIGHT: Final = 65535
"""Largest weight of an endpoint; shares are rounded to fit."""


class WeightedEndpoint(msgspec.Struct, frozen=True, gc=False):
    """An endpoint and its weight relative to the others, at least 1."""

    endpoint: Endpoint
    weight: int


def weighted_endpoints(db: Database, host: str, port: int) -> tuple[WeightedEndpoint, ...]:
    """Endpoints of a service port with their weights, sorted by share, then address.

    A share whose destination has no endpoints goes to the others (reported): the kernel has no
    backend that refuses.
    """
    owner = service(db, host)
    info = owner.port(port) if owner is not None else None
    if info is not None and is_shared_out(db, host, info):
        return _shared_endpoints(db, host, port)
    return tuple([WeightedEndpoint(endpoint, 1) for endpoint in endpoints(db, host, port)])


def is_shared_out(db: Database, host: str, info: PortInfo) -> bool:
    """Whether routes may give the endpoints of a service port different weights; else each has weight 1."""
    return not info.is_http and bool(owners(db, host))


@query
def _shared_endpoints(db: Database, host: str, port: int) -> tuple[WeightedEndpoint, ...]:
    targets = tcp_destinations(db, host, port)
    if not targets:
        return tuple(WeightedEndpoint(endpoint, 1) for endpoint in endpoints(db, host, port))
    shares = []
    for target in targets:
        members = subset_endpoints(db, target.host, target.port, target.subset) if target.is_known else ()
        if members:
            shares.append((members, target.weight))
            continue
        for owner in owners(db, host):
            if not owner.namespaces:
                text = f"{target.host}:{target.port} has no endpoints: its share of connections goes to the others"
                warn(db, "XB2039", owner.virtual_service.id, target.path, text)
    return spread(tuple(shares))


def spread(shares: tuple[tuple[tuple[Endpoint, ...], int], ...]) -> tuple[WeightedEndpoint, ...]:
    """Split each share evenly over its members; an endpoint in several shares gets the sum.

    Weights are whole numbers from 1 to MAX_WEIGHT. The order is that of first appearance.
    """
    common = math.lcm(*(len(members) for members, _ in shares))
    weights: dict[tuple[str, int], int] = {}
    found: dict[tuple[str, int], Endpoint] = {}
    for members, share in shares:
        for endpoint in members:
            key = (endpoint.address, endpoint.port)
            found.setdefault(key, endpoint)
            weights[key] = weights.get(key, 0) + share * (common // len(members))
    divisor = math.gcd(*weights.values()) or 1
    largest = max(weights.values(), default=0) // divisor
    scale = max(1, -(-largest // MAX_WEIGHT)) * divisor
    return tuple(WeightedEndpoint(found[key], max(1, weight // scale)) for key, weight in weights.items())
