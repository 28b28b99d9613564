"""Backends: the endpoints of a service port with their weights.

There are backends for ports on L7 too: a frontend may be withheld from a node until its proxy is
ready, and till then the kernel goes on balancing with what it has.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath import names
from xdsbpf.compile.fragments import Frame, frame_of, nested, placeholder
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.endpoints import PLACE, PLACE_ADDRESS, Endpoint, EndpointSet, endpoint_set
from xdsbpf.mesh.services import service, service_ports
from xdsbpf.mesh.weights import is_shared_out, weighted_endpoints
from xdsbpf.model.names import BACKENDS
from xdsbpf.model.resource import Resource, make_resource

_SERVICE_TAG: Final = datapath_pb2.Backends.SERVICE_FIELD_NUMBER << 3 | 2
_addresses: Final = struct.Struct(f"{PLACE_ADDRESS}s{PLACE - PLACE_ADDRESS}x").iter_unpack


@query
def backends_names(db: Database) -> tuple[str, ...]:
    """Names of the backends of all service ports, sorted by host and port."""
    return tuple(names.backends_name(host, port) for host, port in service_ports(db))


@query
def backends(db: Database, name: str) -> Resource | Absent:
    """The backends `<host>:<port>`, possibly none; ABSENT if there is no such service port."""
    parsed = names.parse_backends(name)
    owner = service(db, parsed[0]) if parsed is not None else None
    info = owner.port(parsed[1]) if parsed is not None and owner is not None else None
    if parsed is None or info is None:
        return ABSENT
    if is_shared_out(db, parsed[0], info):
        members = b"".join([_encoded(entry.endpoint, entry.weight) for entry in weighted_endpoints(db, *parsed)])
    else:
        members = _alike(endpoint_set(db, *parsed))
    return make_resource(BACKENDS, name, nested(_SERVICE_TAG, name.encode()) + members)


def _alike(found: EndpointSet) -> bytes:
    """Backends of weight 1. Those of one port, which is the rule, are joined at once."""
    if not found.endpoints or not found.port:
        return b"".join([_encoded(endpoint, 1) for endpoint in found.endpoints])
    before, after = _member(found.port, 1)
    return before + (after + before).join([address for (address,) in _addresses(found.places)]) + after


def _encoded(endpoint: Endpoint, weight: int) -> bytes:
    before, after = _member(endpoint.port, weight)
    return before + packed(endpoint.address) + after


@lru_cache(maxsize=4096)
def _member(port: int, weight: int) -> Frame:
    """The encoding of a backend around its IPv4 address; mostly the same for a whole mesh."""
    backend = datapath_pb2.Backend(address=placeholder(PLACE_ADDRESS), port=port, weight=weight)
    return frame_of(datapath_pb2.Backends(backends=[backend]), PLACE_ADDRESS)
