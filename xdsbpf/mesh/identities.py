"""Workloads and identities: which pod runs where, under which name, seen with which address.

An identity is the SPIFFE id of a pod's service account; in the kernel it is authenticated by the
(anti-spoofed) source address. An address that pods of two identities claim has no identity: who
cannot be told apart is not trusted (fail closed).
"""

from __future__ import annotations

from typing import Final

import msgspec

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import ABSENT, Database, query
from xdsbpf.mesh.addresses import packed, refusal
from xdsbpf.mesh.codes import inform, warn
from xdsbpf.mesh.inputs import (
    NODES_BY_NAME,
    PODS,
    PODS_BY_ADDRESS,
    PODS_BY_NAMESPACE,
    PODS_BY_NODE,
    object_id,
    settings,
)
from xdsbpf.model.kube import Pod
from xdsbpf.model.names import spiffe_id
from xdsbpf.model.scalars import Labels, lookup

NODE_PROXY: Final = "xdsbpf:node-proxy"
"""Reserved identity: the source addresses of the nodes' proxies."""

PROXY_ADDRESS: Final = "xdsbpf.io/proxy-address"
"""Annotation of a Node: source address of its proxy."""


class Workload(msgspec.Struct, frozen=True):
    """A pod with an address of its own. `name` is "<namespace>/<pod>", `identity` its SPIFFE id."""

    name: str
    namespace: str
    uid: str
    labels: Labels
    addresses: tuple[str, ...]
    identity: str
    node: str


def _has_own_address(pod: Pod) -> bool:
    """Whether the pod's addresses are its own: not the host's, and not given up by a finished pod."""
    return not pod.spec.host_network and pod.status.phase not in ("Succeeded", "Failed")


@query
def workload_of_pod(db: Database, id: ObjectId) -> Workload | None:
    """The workload that a pod is; None if it is absent, finished, without address or on the host network."""
    pod = db.input(PODS, id)
    if pod is ABSENT or not _has_own_address(pod):
        return None
    addresses = tuple(address for address in pod.addresses if not refusal(address))
    if not addresses:
        return None
    db.cite(Origin(id))
    identity = spiffe_id(settings(db).trust_domain, pod.namespace, pod.service_account)
    meta = pod.metadata
    return Workload(
        f"{pod.namespace}/{pod.name}",
        pod.namespace,
        meta.uid,
        meta.labels,
        addresses,
        identity,
        pod.spec.node_name,
    )


@query
def workloads_of_namespace(db: Database, namespace: str) -> tuple[Workload, ...]:
    """Workloads of a namespace, sorted by name."""
    found = (workload_of_pod(db, pod.id) for pod in db.bucket(PODS_BY_NAMESPACE, namespace))
    return tuple(sorted((workload for workload in found if workload), key=lambda w: w.name))


@query
def workloads_of_node(db: Database, node: str) -> tuple[Workload, ...]:
    """Workloads of a node, sorted by name."""
    found = (workload_of_pod(db, pod.id) for pod in db.bucket(PODS_BY_NODE, node))
    return tuple(sorted((workload for workload in found if workload), key=lambda w: w.name))


@query
def workload_namespaces(db: Database) -> tuple[str, ...]:
    """Namespaces that have pods, sorted."""
    return db.bucket_keys(PODS_BY_NAMESPACE)


@query
def identity_at(db: Database, address: str) -> str:
    """The one identity that running pods have at an address; "" if there is none or more than one."""
    pods = [
        pod for pod in db.bucket(PODS_BY_ADDRESS, address) if _has_own_address(pod) and pod.status.phase == "Running"
    ]
    trust_domain = settings(db).trust_domain
    names = {spiffe_id(trust_domain, pod.namespace, pod.service_account) for pod in pods}
    if names and address in proxy_addresses(db):
        # Security: the proxies' identity passes every policy, no pod may share their address.
        names.add(NODE_PROXY)
    if len(names) > 1:
        for pod in pods:
            warn(
                db,
                "XB2012",
                pod.id,
                "status.podIP",
                f"{address} is claimed by {', '.join(sorted(names))}: traffic from it has no identity",
                "delete the stale pods, give the node's proxy an address of its own",
            )
        return ""
    return names.pop() if names else ""


@query
def _identities_of_namespace(db: Database, namespace: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(identity, addresses) of a namespace's running pods, both sorted."""
    found: dict[str, set[str]] = {}
    for workload in workloads_of_namespace(db, namespace):
        for address in workload.addresses:
            if identity_at(db, address) == workload.identity:
                found.setdefault(workload.identity, set()).add(address)
    return tuple((name, tuple(sorted(found[name], key=packed))) for name in sorted(found))


@query
def identities(db: Database) -> tuple[str, ...]:
    """SPIFFE ids of all running workloads, sorted; the reserved node-proxy identity is not among them."""
    return tuple(
        sorted(name for namespace in workload_namespaces(db) for name, _ in _identities_of_namespace(db, namespace))
    )


@query
def identity(db: Database, name: str) -> tuple[str, ...]:
    """Addresses that an identity is seen with, sorted; the proxies' addresses for `xdsbpf:node-proxy`."""
    if name == NODE_PROXY:
        return proxy_addresses(db)
    namespace = namespace_of_identity(name)
    for found, addresses in _identities_of_namespace(db, namespace) if namespace else ():
        if found == name:
            return addresses
    return ()


def namespace_of_identity(name: str) -> str:
    """Namespace in `spiffe://<trust domain>/ns/<namespace>/sa/<account>`, or "" if it has another form."""
    parts = name.split("/")
    is_istio = len(parts) == 7 and parts[0] == "spiffe:" and not parts[1] and parts[3] == "ns" and parts[5] == "sa"
    return parts[4] if is_istio else ""


@query
def known_nodes(db: Database) -> tuple[str, ...]:
    """Names of the Node objects and of the nodes that pods run on, sorted."""
    return tuple(sorted({*db.bucket_keys(NODES_BY_NAME), *db.bucket_keys(PODS_BY_NODE)}))


@query
def proxy_address(db: Database, node: str) -> str:
    """Source address of a node's proxy: the annotation, else the node's InternalIP; "" if unknown."""
    manifests = db.bucket(NODES_BY_NAME, node)
    if not manifests:
        return ""
    manifest = manifests[0]
    id = object_id("Node", "", node)
    written = lookup(manifest.metadata.annotations, PROXY_ADDRESS)
    path = f"metadata.annotations[{PROXY_ADDRESS}]"
    if written is None:
        path = "status.addresses"
        internal = (entry.address for entry in manifest.status.addresses if entry.type == "InternalIP")
        written = next((address for address in internal if not refusal(address)), "")
        if written:
            inform(
                db,
                "XB2014",
                id,
                path,
                f"the node's own address {written} is its proxy's: processes and pods on the host's network "
                "pass policies as the proxy does",
                f"give the proxy an address of its own and annotate the Node with {PROXY_ADDRESS}",
            )
    reason = refusal(written) if written else "is not given"
    if reason:
        warn(
            db,
            "XB2014",
            id,
            path,
            f"the proxy address {written or 'of the node'} {reason}: nothing can be redirected on this node",
            f"annotate the Node with {PROXY_ADDRESS}",
        )
        return ""
    db.cite(Origin(id, path))
    return written


@query
def proxy_addresses(db: Database) -> tuple[str, ...]:
    """Source addresses of all nodes' proxies, sorted."""
    found = {proxy_address(db, node) for node in known_nodes(db)} - {""}
    return tuple(sorted(found, key=packed))
