"""Backends: the endpoints of a service port with their weights.

There are backends for ports on L7 too: a frontend may be withheld from a node until its proxy is
ready, and till then the kernel goes on balancing with what it has.
"""

from __future__ import annotations

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath import names
from xdsbpf.compile.datapath.encoding import resource
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.services import service, service_ports
from xdsbpf.mesh.weights import weighted_endpoints
from xdsbpf.model.names import BACKENDS
from xdsbpf.model.resource import Resource


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
    message = datapath_pb2.Backends(service=name)
    for entry in weighted_endpoints(db, host, port):
        endpoint = entry.endpoint
        message.backends.add(address=packed(endpoint.address), port=endpoint.port, weight=entry.weight)
    return resource(BACKENDS, name, message)
