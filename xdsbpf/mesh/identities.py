"""Workloads and identities: which pod runs where, under which name, seen with which address.

An identity is the SPIFFE id of a pod's service account; in the kernel it is authenticated by the
(anti-spoofed) source address. An address that pods of two identities claim has no identity: who
cannot be told apart is not trusted (fail closed).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import Database, query
from xdsbpf.mesh.addresses import packed, refusal
from xdsbpf.mesh.codes import warn
from xdsbpf.mesh.inputs import (
    NODES_BY_NAME,
    PODS_BY_ACCOUNT,
    PODS_BY_BLOCK,
    PODS_BY_NODE,
    address_block,
    has_own_address,
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


class Workload(msgspec.Struct, frozen=True, gc=False):
    """A pod with an address of its own, and sometimes others; `identity` is its SPIFFE id."""

    namespace: str
    pod: str
    uid: str
    labels: Labels
    address: str
    others: tuple[str, ...]
    identity: str
    is_running: bool

    @property
    def addresses(self) -> tuple[str, ...]:
        """All its addresses, at least one; made when asked for, so that they cost no memory."""
        return (self.address, *self.others)

    @property
    def name(self) -> str:
        """`<namespace>/<pod>`, made as the addresses are."""
        return f"{self.namespace}/{self.pod}"


@query
def workloads_of_node(db: Database, node: str) -> tuple[Workload, ...]:
    """Workloads of a node, sorted by name: its pods but for those that have no address of their own."""
    trust_domain = settings(db).trust_domain
    found = []
    for pod in db.bucket(PODS_BY_NODE, node):
        addresses = own_addresses(pod)
        if not addresses:
            continue
        db.cite(pod)
        meta = pod.metadata
        identity = spiffe_id(trust_domain, meta.namespace, pod.service_account)
        is_running = pod.status.phase == "Running"
        first, others = addresses[0], addresses[1:]
        found.append(Workload(meta.namespace, meta.name, meta.uid, meta.labels, first, others, identity, is_running))
    found.sort(key=lambda workload: workload.name)
    return tuple(found)


def own_addresses(pod: Pod) -> tuple[str, ...]:
    """The usable addresses of a pod that are its own; none of a finished pod or one on the host's network."""
    return tuple([address for address in pod.addresses if not refusal(address)]) if has_own_address(pod) else ()


def contested(db: Database, addresses: Iterable[str]) -> frozenset[str]:
    """Those of some addresses, and of others near them, that running pods of several identities claim."""
    blocks = dict.fromkeys(map(address_block, addresses))
    return frozenset(address for block in blocks for address in _contested_addresses(db, block))


def is_seen_at(db: Database, workload: Workload, address: str) -> bool:
    """Whether a running pod has a workload's identity at an address, if that is not `contested`."""
    return workload.is_running or any(
        address in pod.addresses and _identity_of(db, pod) == workload.identity
        for pod in _running_pods(db, address_block(address))
    )


def _running_pods(db: Database, block: str) -> list[Pod]:
    return [pod for pod in db.bucket(PODS_BY_BLOCK, block) if pod.status.phase == "Running"]


def _identity_of(db: Database, pod: Pod) -> str:
    return spiffe_id(settings(db).trust_domain, pod.namespace, pod.service_account)


@query
def _contested_addresses(db: Database, block: str) -> tuple[str, ...]:
    """Addresses of a block's running pods that have no identity (reported), sorted; mostly none.

    An identity depends on these only: a pod that comes or goes leaves the other identities of its block alone.
    """
    trust_domain = settings(db).trust_domain
    first: dict[str, str] = {}
    several: dict[str, set[str]] = {}
    running = _running_pods(db, block)
    for pod in running:
        name = spiffe_id(trust_domain, pod.metadata.namespace, pod.service_account)
        for address in pod.addresses:
            if first.setdefault(address, name) != name:
                several.setdefault(address, {first[address]}).add(name)
    for address in _written_proxy_addresses(db) if running else ():
        if address in first:
            # Security: the proxies' identity passes every policy, no pod may share their address.
            several.setdefault(address, {first[address]}).add(NODE_PROXY)
    # A pod's other addresses are in other blocks, with the other pods that claim them.
    several = {address: names for address, names in several.items() if address_block(address) == block}
    for pod in running if several else ():
        for address in pod.addresses:
            if address in several:
                _report_contested(db, pod.id, address, several[address])
    return tuple(sorted(several))


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
    found: set[str] = set()
    for pod in db.bucket(PODS_BY_ACCOUNT, (namespace, name.rpartition("/")[2])):
        usable = own_addresses(pod) if pod.status.phase == "Running" else ()
        if usable:
            db.cite(pod)
            found.update(usable)
    return tuple(sorted(found - contested(db, sorted(found)), key=packed))


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
        claimants = (pod for pod in db.bucket(PODS_BY_BLOCK, address_block(written)) if written in pod.addresses)
        reason = next((f"is also that of {pod.id}" for pod in claimants), "")
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
    return tuple(_written_proxy_address(db, node) for node in db.bucket_keys(NODES_BY_NAME))


@query
def proxy_addresses(db: Database) -> tuple[str, ...]:
    """Source addresses of all nodes' proxies, sorted."""
    found = {proxy_address(db, node) for node in known_nodes(db)} - {""}
    return tuple(sorted(found, key=packed))
