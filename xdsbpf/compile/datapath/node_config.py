"""NodeConfig: what one node's agent needs to know of its node: the proxy's address, the pods."""

from __future__ import annotations

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath.encoding import resource
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.identities import identity_of, known_nodes, own_addresses, pods_of_node, proxy_address, workload_name
from xdsbpf.mesh.inputs import settings
from xdsbpf.model.names import NODE_CONFIG
from xdsbpf.model.resource import Resource


@query
def node_config_names(db: Database, node: str) -> tuple[str, ...]:
    """The node's own name, or nothing for a node that is not known."""
    return (node,) if node in known_nodes(db) else ()


@query
def node_config(db: Database, node: str, name: str) -> Resource | Absent:
    """The configuration of `node`; ABSENT for another name. `proxy_address` is empty if unknown."""
    if name != node or node not in known_nodes(db):
        return ABSENT
    proxy = proxy_address(db, node)
    message = datapath_pb2.NodeConfig(
        node=node,
        proxy_address=packed(proxy) if proxy else b"",
        trust_domain=settings(db).trust_domain,
    )
    add = message.workloads.add
    for pod in pods_of_node(db, node):
        # Set field by field: an argument by keyword costs twice as much.
        entry = add()
        entry.name = workload_name(pod)
        entry.uid = pod.metadata.uid
        entry.addresses.extend([packed(address) for address in own_addresses(pod)])
        entry.identity = identity_of(db, pod)
    return resource(NODE_CONFIG, node, message)
