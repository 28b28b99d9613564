"""NodeConfig: what one node's agent needs to know of its node: the proxy's address, the pods."""

from __future__ import annotations

from bisect import bisect_left

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath.encoding import resource
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.identities import known_nodes, proxy_address, workloads_of_node
from xdsbpf.mesh.inputs import settings
from xdsbpf.model.names import NODE_CONFIG, spiffe_id
from xdsbpf.model.resource import Resource


@query
def node_config_names(db: Database, node: str) -> tuple[str, ...]:
    """The node's own name, or nothing for a node that is not known."""
    return (node,) if _is_known(db, node) else ()


def _is_known(db: Database, node: str) -> bool:
    nodes = known_nodes(db)  # sorted: every node of the mesh asks this
    position = bisect_left(nodes, node)
    return position < len(nodes) and nodes[position] == node


@query
def node_config(db: Database, node: str, name: str) -> Resource | Absent:
    """The configuration of `node`; ABSENT for another name. `proxy_address` is empty if unknown."""
    if name != node or not _is_known(db, node):
        return ABSENT
    proxy = proxy_address(db, node)
    domain = settings(db).trust_domain
    message = datapath_pb2.NodeConfig(node=node, proxy_address=packed(proxy) if proxy else b"", trust_domain=domain)
    workloads = {
        f"{pod.metadata.namespace}/{pod.metadata.name}": (pod, own) for pod, own in workloads_of_node(db, node)
    }
    add = message.workloads.add
    for called in sorted(workloads):
        pod, addresses = workloads[called]
        # Set field by field: an argument by keyword costs twice as much.
        entry = add()
        entry.name = called
        if pod.metadata.uid:
            entry.uid = pod.metadata.uid
        entry.addresses.extend(addresses.values())
        entry.identity = spiffe_id(domain, pod.metadata.namespace, pod.service_account)
    return resource(NODE_CONFIG, node, message)
