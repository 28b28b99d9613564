"""Identities: every SPIFFE id of the mesh with the addresses that it is seen with, and the proxies'."""

from __future__ import annotations

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath.encoding import resource
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.identities import NODE_PROXY, identities, identity
from xdsbpf.model.names import IDENTITY
from xdsbpf.model.resource import Resource


@query
def identity_names(db: Database) -> tuple[str, ...]:
    """SPIFFE ids of all workloads, sorted, and the reserved name of the proxies."""
    return (*identities(db), NODE_PROXY)


@query
def identity_resource(db: Database, name: str) -> Resource | Absent:
    """One identity; ABSENT if no running workload has it. The proxies' may have no address yet."""
    addresses = identity(db, name)
    if not addresses and name != NODE_PROXY:
        return ABSENT
    message = datapath_pb2.Identity(name=name, addresses=[packed(address) for address in addresses])
    return resource(IDENTITY, name, message)
