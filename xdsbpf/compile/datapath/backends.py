"""Backends: the endpoints of a service port with their weights.

There are backends for ports on L7 too: a frontend may be withheld from a node until its proxy is
ready, and till then the kernel goes on balancing with what it has.
"""

from __future__ import annotations

from functools import lru_cache

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath import names
from xdsbpf.compile.fragments import Frame, frame_of, placeholder
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.services import service, service_ports
from xdsbpf.mesh.weights import weighted_endpoints
from xdsbpf.model.names import BACKENDS
from xdsbpf.model.resource import Resource, make_resource


@query
def backends_names(db: Database) -> tuple[str, ...]:
    """Names of the backends of all service ports, sorted by host and port."""
    return tuple(names.backends_name(host, port) for host, port in service_ports(db))


@query
def backends(db: Database, name: str) -> Resource | Absent:
    """The backends `<host>:<port>`, possibly none; ABSENT if there is no such service port."""
    parsed = names.parse_backends(name)
    owner = service(db, parsed[0]) if parsed is not None else None
    if parsed is None or owner is None or owner.port(parsed[1]) is None:
        return ABSENT
    host, port = parsed
    members = [datapath_pb2.Backends(service=name).SerializeToString()]
    for entry in weighted_endpoints(db, host, port):
        address = packed(entry.endpoint.address)
        before, after = _member(len(address), entry.endpoint.port, entry.weight)
        members.append(before + address + after)
    return make_resource(BACKENDS, name, b"".join(members))


@lru_cache(maxsize=4096)
def _member(length: int, port: int, weight: int) -> Frame:
    """The encoding of a backend around an address of that length; mostly the same for a whole mesh."""
    backend = datapath_pb2.Backend(address=placeholder(length), port=port, weight=weight)
    return frame_of(datapath_pb2.Backends(backends=[backend]), length)
