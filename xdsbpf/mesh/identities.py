"""Workloads and identities: which pod runs where, under which name, seen with which address.

An identity is the SPIFFE id of a pod's service account; in the kernel it is authenticated by the
(anti-spoofed) source address. An address that pods of two identities claim has no identity: who
cannot be told apart is not trusted (fail closed).
"""

from __future__ import annotations

from typing import Final

import msgspec

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import Database, query
from xdsbpf.mesh.addresses import packed, refusal, usable
from xdsbpf.mesh.codes import warn
from xdsbpf.mesh.inputs import (
    NODES_BY_NAME,
    PODS_BY_ACCOUNT,
    PODS_BY_ADDRESS,
    PODS_BY_NODE,
    has_own_address,
    object_id,
    settings,
)
from xdsbpf.model.kube import Pod
from xdsbpf.model.names import spiffe_id
from xdsbpf.model.scalars import lookup

NODE_PROXY: Final = "xdsbpf:node-proxy"
"""Reserved identity: the source addresses of the nodes' proxies."""

PROXY_ADDRESS: Final = "xdsbpf.io/proxy-address"
"""Annotation of a Node: source address of its proxy."""


def workloads_of_node(db: Database, node: str) -> list[tuple[Pod, dict[str, bytes]]]:
    """The pods of a node that have addresses of their own, with these; in the order of the bucket."""
    found = [(pod, own) for pod in db.bucket(PODS_BY_NODE, node) if (own := own_addresses(pod))]
    db.cite(*[pod for pod, _ in found])
    return found


def own_addresses(pod: Pod) -> dict[str, bytes]:
    """The usable addresses of a pod that are its own, as they are written and packed, the primary first.

    None of a finished pod or one on the host's network. Cost: 0.5 us, several times for each pod of the mesh.
    """
    if not has_own_address(pod):
        return {}
    status = pod.status
    if not status.pod_ips:
        octets = usable(status.pod_ip)
        return {status.pod_ip: octets} if octets else {}
    return {address: octets for address in pod.addresses if (octets := usable(address))}


def identity_of(db: Database, pod: Pod) -> str:
    """The SPIFFE id of a pod."""
    return spiffe_id(settings(db).trust_domain, pod.metadata.namespace, pod.service_account)


def is_seen_at(db: Database, pod: Pod, address: str) -> bool:
    """Whether a running pod has a pod's identity at an address of it, if the address is not contested."""
    if pod.status.phase == "Running":
        return True
    identity = identity_of(db, pod)
    return any(identity_of(db, other) == identity for other in _running_at(db, address))


def _running_at(db: Database, address: str) -> list[Pod]:
    return [pod for pod in db.bucket(PODS_BY_ADDRESS, address) if pod.status.phase == "Running"]


class _Contested(msgspec.Struct, frozen=True):
    """An address without an identity: who claims it, running, and on which nodes there are pods that have it."""

    address: str
    names: tuple[str, ...]
    nodes: tuple[str, ...]


@query
def _contested_addresses(db: Database) -> tuple[_Contested, ...]:
    """Addresses that running pods of several identities, or a running pod and a proxy, claim (reported); mostly none.

    Reads no pod but those: a pod that comes or goes is no reason to look at the others again.
    """
    proxies = _written_proxy_addresses(db)
    found = []
    for address in sorted({*proxies, *db.shared_keys(PODS_BY_ADDRESS)}):
        running = _running_at(db, address)
        names = {identity_of(db, pod) for pod in running}
        if names and address in proxies:
            # Security: the proxies' identity passes every policy, no pod may share their address.
            names.add(NODE_PROXY)
        if len(names) > 1:
            for pod in running:
                _report_contested(db, pod.id, address, names)
            nodes = {pod.spec.node_name for pod in db.bucket(PODS_BY_ADDRESS, address)}
            found.append(_Contested(address, tuple(sorted(names)), tuple(sorted(nodes))))
    return tuple(found)


@query
def contested_on_node(db: Database, node: str) -> tuple[str, ...]:
    """The addresses of a node's pods that have no identity, sorted; mostly none."""
    return tuple(found.address for found in _contested_addresses(db) if node in found.nodes)


@query
def _contested_of(db: Database, name: str) -> tuple[str, ...]:
    """The addresses that an identity claims and does not have, sorted; mostly none."""
    return tuple(found.address for found in _contested_addresses(db) if name in found.names)


def _report_contested(db: Database, id: ObjectId, address: str, names: set[str]) -> None:
    text = f"{address} is claimed by {', '.join(sorted(names))}: traffic from it has no identity"
    hint = "delete the stale pods, give the node's proxy an address of its own"
    warn(db, "XB2012", id, "status.podIP", text, hint)


@query
def identities(db: Database) -> tuple[str, ...]:
    """SPIFFE ids of all running workloads, sorted; the reserved node-proxy identity is not among them."""
    trust_domain = settings(db).trust_domain
    names = (spiffe_id(trust_domain, *account) for account in db.bucket_keys(PODS_BY_ACCOUNT))
    return tuple(sorted(name for name in names if _is_seen(db, name)))


@query
def _is_seen(db: Database, name: str) -> bool:
    """Whether an identity has an address: pods come and go, and mostly this stays."""
    return bool(identity(db, name))


@query
def identity(db: Database, name: str) -> tuple[str, ...]:
    """Addresses that an identity is seen with, sorted; the proxies' addresses for `xdsbpf:node-proxy`."""
    if name == NODE_PROXY:
        return proxy_addresses(db)
    namespace = namespace_of_identity(name)
    pods = db.bucket(PODS_BY_ACCOUNT, (namespace, name.rpartition("/")[2]))
    used = [(pod, own) for pod in pods if pod.status.phase == "Running" and (own := own_addresses(pod))]
    db.cite(*[pod for pod, _ in used])
    found = {address: octets for _, own in used for address, octets in own.items()}
    for address in _contested_of(db, name):
        found.pop(address, None)
    return tuple(sorted(found, key=found.__getitem__))


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
    """Source address of a node's proxy, as the Node's annotation gives it; "" if unknown or not its alone.

    Security: there is no default. The node's own address is the source of every process and pod on the
    host's network, and the proxy's passes every policy. So would a pod that has the proxy's address.
    """
    written = _written_proxy_address(db, node)
    id, path = object_id("Node", "", node), f"metadata.annotations[{PROXY_ADDRESS}]"
    hint = f"give the proxy an address of its own on the node and annotate the Node with {PROXY_ADDRESS}"
    reason = refusal(written) if written else f"is not given: the annotation {PROXY_ADDRESS} is missing"
    if not reason:
        claimants = db.bucket(PODS_BY_ADDRESS, written)
        reason = f"is also that of {claimants[0].id}" if claimants else ""
    manifests = db.bucket(NODES_BY_NAME, node)
    if reason:
        if manifests:
            text = f"the proxy address {written + ' ' if written else ''}{reason}: L7 services are refused on this node"
            warn(db, "XB2014", id, path, text, hint)
        return ""
    if any(entry.address == written for entry in manifests[0].status.addresses):
        text = f"{written} is the node's own: processes and pods on the host's network pass policies as the proxy does"
        warn(db, "XB2014", id, path, text, hint)
    db.cite(Origin(id, path))
    return written


def _written_proxy_address(db: Database, node: str) -> str:
    manifests = db.bucket(NODES_BY_NAME, node)
    return (lookup(manifests[0].metadata.annotations, PROXY_ADDRESS) or "") if manifests else ""


@query
def _written_proxy_addresses(db: Database) -> tuple[str, ...]:
    """What the nodes' annotations say, each once, sorted."""
    written = {_written_proxy_address(db, node) for node in db.bucket_keys(NODES_BY_NAME)}
    return tuple(sorted(written - {""}))


@query
def proxy_addresses(db: Database) -> tuple[str, ...]:
    """Source addresses of all nodes' proxies, sorted."""
    found = {proxy_address(db, node) for node in known_nodes(db)} - {""}
    return tuple(sorted(found, key=packed))
