"""Backends: the endpoints of a service port with their weights.

There are backends for ports on L7 too: a frontend may be withheld from a node until its proxy is
ready, and till then the kernel goes on balancing with what it has.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath import names
from xdsbpf.compile.fragments import Frame, frame_of, nested, placeholder
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.endpoints import Endpoint, endpoints
from xdsbpf.mesh.services import service, service_ports
from xdsbpf.mesh.weights import is_shared_out, weighted_endpoints
from xdsbpf.model.names import BACKENDS
from xdsbpf.model.resource import Resource, make_resource

_SERVICE_TAG: Final = datapath_pb2.Backends.SERVICE_FIELD_NUMBER << 3 | 2
_IPV4: Final = 4
"""Length of an endpoint's address: `mesh.endpoints` has no others yet."""


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
        members = b"".join([_encoded((entry.endpoint,), entry.weight) for entry in weighted_endpoints(db, *parsed)])
    else:
        members = _encoded(endpoints(db, *parsed), 1)
    return make_resource(BACKENDS, name, nested(_SERVICE_TAG, name.encode()) + members)


def _encoded(alike: tuple[Endpoint, ...], weight: int) -> bytes:
    """Backends of one weight. Those of one port, mostly all, are joined at once."""
    if not alike:
        return b""
    port, addresses = alike[0].port, []
    for endpoint in alike:
        if endpoint.port != port:
            return b"".join([_encoded((one,), weight) for one in alike])
        addresses.append(packed(endpoint.address))
    before, after = _member(port, weight)
    return before + (after + before).join(addresses) + after


@lru_cache(maxsize=4096)
def _member(port: int, weight: int) -> Frame:
    """The encoding of a backend around its IPv4 address; mostly the same for a whole mesh."""
    backend = datapath_pb2.Backend(address=placeholder(_IPV4), port=port, weight=weight)
    return frame_of(datapath_pb2.Backends(backends=[backend]), _IPV4)
