"""Backends: the endpoints of a service port with their weights.

There are backends for ports on L7 too: a frontend may be withheld from a node until its proxy is
ready, and till then the kernel goes on balancing with what it has.
"""

from __future__ import annotations

import math
from typing import Final

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath import names
from xdsbpf.compile.datapath.encoding import resource
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.endpoints import Endpoint, endpoints, subset_endpoints
from xdsbpf.mesh.services import service, service_ports
from xdsbpf.mesh.tcp_routes import tcp_destinations
from xdsbpf.model.names import BACKENDS
from xdsbpf.model.resource import Resource

MAX_WEIGHT: Final = 65535
"""Largest weight of a backend; shares are rounded to fit."""


@query
def backends_names(db: Database) -> tuple[str, ...]:
    """Names of the backends of all service ports, sorted by host and port."""
    return tuple(names.backends_name(host, port) for host, port in service_ports(db))


@query
def backends(db: Database, name: str) -> Resource | Absent:
    """The backends with this name; ABSENT for any other name."""
    parsed = names.parse_backends(name)
    return ABSENT if parsed is None else backends_resource(db, *parsed)


@query
def backends_resource(db: Database, host: str, port: int) -> Resource | Absent:
    """The backends of one service port, possibly none; ABSENT if there is no such port."""
    owner = service(db, host)
    if owner is None or owner.port(port) is None:
        return ABSENT
    name = names.backends_name(host, port)
    message = datapath_pb2.Backends(service=name)
    for endpoint, weight in _weighted(db, host, port):
        message.backends.add(address=packed(endpoint.address), port=endpoint.port, weight=weight)
    return resource(BACKENDS, name, message)


def _weighted(db: Database, host: str, port: int) -> list[tuple[Endpoint, int]]:
    """Endpoints with weights; a TCP VirtualService's weights are shares of whole subsets."""
    targets = tcp_destinations(db, host, port)
    if not targets:
        return [(endpoint, 1) for endpoint in endpoints(db, host, port)]
    shares = []
    for target in targets:
        members = subset_endpoints(db, target.host, target.port, target.subset) if target.is_known else ()
        if members:
            shares.append((members, target.weight))
    return spread(shares)


def spread(shares: list[tuple[tuple[Endpoint, ...], int]]) -> list[tuple[Endpoint, int]]:
    """Split each share evenly over its members, in whole numbers of at least 1 and MAX_WEIGHT at most.

    An address and port in several shares gets the sum. The order is that of first appearance.
    """
    common = math.lcm(*(len(members) for members, _ in shares)) if shares else 1
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
    return [(endpoint, max(1, weights[key] // scale)) for key, endpoint in found.items()]
