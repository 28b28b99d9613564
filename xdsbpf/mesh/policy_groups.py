"""Groups of workloads that are guarded alike.

A group's name is its policies' "<namespace>/<name>", sorted and joined with "+"; "" is no policy. Where the
policies ask for the workload's own address, "@<block>" follows: the narrowest block around it that they
mention. `policy_tables` writes a group's decisions out.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.authorization import PolicySet, build_policy_set, policies_of
from xdsbpf.mesh.codes import warn
from xdsbpf.mesh.endpoints import Endpoint, subset_endpoints
from xdsbpf.mesh.identities import own_addresses
from xdsbpf.mesh.inputs import (
    PODS_BY_ADDRESS,
    PODS_BY_KIND,
    POLICIES_BY_NAMESPACE,
    object_id,
    settings,
)
from xdsbpf.mesh.policy_rules import Subject, policy_rules
from xdsbpf.model.address_block import BlockSet, parse_block
from xdsbpf.model.scalars import Labels


class GroupPort(msgspec.Struct, frozen=True, order=True):
    """A policy group ("" = no policy) and the workload port of some endpoints."""

    group: str
    port: int


@query
def _has_policies(db: Database, namespace: str) -> bool:
    """Whether there are policies that may select workloads of a namespace. Without, they need no cells."""
    homes = (settings(db).root_namespace, namespace)
    return any(db.bucket(POLICIES_BY_NAMESPACE, home) for home in homes)


def workload_policies(db: Database, namespace: str, labels: Labels) -> str:
    """The part of a group's name that names the policies of a workload; "" if it has none."""
    if not _has_policies(db, namespace):
        return ""
    return "+".join(sorted(f"{id.namespace}/{id.name}" for id in policies_of(db, namespace, labels)))


def group_naming(db: Database, policies: str) -> Callable[[str], str]:
    """What names the group of workloads that have these policies, by a workload's address."""
    blocks = _destination_blocks(db, policies) if policies else ()
    mentioned = BlockSet(map(parse_block, blocks))

    def name(address: str) -> str:
        block = mentioned.around(packed(address)) if blocks else None
        return policies if block is None else f"{policies}@{block}"

    return name


def possible_groups(db: Database, policies: str) -> tuple[str, ...]:
    """All groups that workloads with these policies may be in, whatever their address; () without policies."""
    blocks = _destination_blocks(db, policies) if policies else ()
    return (policies, *(f"{policies}@{block}" for block in blocks)) if policies else ()


@query
def _destination_blocks(db: Database, policies: str) -> tuple[str, ...]:
    """The blocks that some policies mention as those of destinations, sorted; mostly ()."""
    rules = (rule for id in _objects(policies) for rule in policy_rules(db, id).rules)
    terms = (term for rule in rules for term in rule.when if term.subject is Subject.DESTINATION_IP)
    return tuple(sorted({value for term in terms for value in term.values}))


def _objects(policies: str) -> tuple[ObjectId, ...]:
    names = (name.partition("/") for name in policies.split("+") if name)
    return tuple(object_id("AuthorizationPolicy", namespace, name) for namespace, _, name in names)


@query
def _guarded_kinds(db: Database) -> tuple[tuple[str, Labels, str], ...]:
    """(namespace, labels, policies) of each kind of pods that has policies, sorted. Cost: O(kinds).

    Pods of a namespace with equal labels are of one kind: no policy tells them apart but by their address.
    """
    kinds = db.bucket_keys(PODS_BY_KIND) if _are_there_policies(db) else ()
    found = ((namespace, labels, workload_policies(db, namespace, labels)) for namespace, labels in kinds)
    return tuple(kind for kind in found if kind[2])


@query
def _addresses_of_kind(db: Database, namespace: str, labels: Labels) -> tuple[str, ...]:
    """Addresses of the workloads of a guarded kind, sorted. Cost: O(its pods)."""
    found: set[str] = set()
    for pod in db.bucket(PODS_BY_KIND, (namespace, labels)):
        own = own_addresses(pod)
        if own:
            db.cite(pod)
            found.update(own)
        elif pod.spec.host_network and pod.status.phase not in ("Succeeded", "Failed"):
            for id in policies_of(db, namespace, labels):
                text = f"NOT-ENFORCED for {pod.id}: workloads on the host's network cannot be told apart"
                warn(db, "XB2013", id, "spec.selector", text)
    return tuple(sorted(found, key=packed))


@query
def _groups_of_kind(db: Database, namespace: str, labels: Labels, policies: str) -> tuple[str, ...]:
    """The groups that workloads of a guarded kind are in, sorted: a pod that comes or goes changes none, mostly."""
    name = group_naming(db, policies)
    return tuple(sorted({name(address) for address in _addresses_of_kind(db, namespace, labels)}))


@query
def policy_groups(db: Database) -> tuple[str, ...]:
    """Names of all groups that have workloads and policies, sorted."""
    return tuple(sorted({group for kind in _guarded_kinds(db) for group in _groups_of_kind(db, *kind)}))


@query
def group_addresses(db: Database, group: str) -> tuple[str, ...]:
    """Addresses of a group's workloads, sorted. Cost: O(guarded kinds), and the group's pods."""
    policies = group.partition("@")[0]
    name = group_naming(db, policies)
    found = {
        address
        for namespace, labels, own in _guarded_kinds(db)
        if own == policies
        for address in _addresses_of_kind(db, namespace, labels)
        if name(address) == group
    }
    return tuple(sorted(found, key=packed))


@query
def policy_set(db: Database, group: str) -> PolicySet:
    """The policies that a group's name lists, ready for `evaluate`."""
    policies, _, block = group.partition("@")
    objects = _objects(policies)
    for id in objects:
        db.cite(Origin(id, "spec"))
    return build_policy_set(db, group, objects, block)


def destination_groups(db: Database, host: str, port: int, subset: str) -> tuple[GroupPort, ...]:
    """The groups and workload ports of a destination's endpoints, sorted; "" stands for unguarded ones.

    () without any policy in the mesh: what asks for groups then has nothing to do with endpoints.
    """
    return _destination_groups(db, host, port, subset) if _are_there_policies(db) else ()


@query
def _are_there_policies(db: Database) -> bool:
    return bool(db.bucket_keys(POLICIES_BY_NAMESPACE))


@query
def _destination_groups(db: Database, host: str, port: int, subset: str) -> tuple[GroupPort, ...]:
    members = subset_endpoints(db, host, port, subset)
    found = {GroupPort("", endpoint.port) for endpoint in members if not endpoint.namespace}
    # Endpoints of one service are mostly alike: ask once for each kind of them.
    kinds: dict[tuple[str, Labels], list[Endpoint]] = {}
    for entry in members:
        if entry.namespace:
            kinds.setdefault((entry.namespace, entry.labels), []).append(entry)
    for (namespace, labels), alike in kinds.items():
        name = group_naming(db, workload_policies(db, namespace, labels))
        found.update(GroupPort(name(entry.address), entry.port) for entry in alike)
    places = {(endpoint.address, endpoint.port) for endpoint in members}
    numbers = {number for _, number in places}
    for block in {_block(address) for address, _ in places}:
        for address, namespace, labels in _shared_addresses(db, block):
            group = group_naming(db, workload_policies(db, namespace, labels))(address)
            found.update(GroupPort(group, number) for number in numbers if (address, number) in places)
    return tuple(sorted(found))


def _block(address: str) -> str:
    """An address without its last octet."""
    return address.rpartition(".")[0]


@query
def _shared_addresses(db: Database, block: str) -> tuple[tuple[str, str, Labels], ...]:
    """(address, namespace, labels) of each pod of a block whose address another pod has, too; mostly ().

    Security: the kernel guards an address by the policies of all who claim it; so must the proxy, or a
    pod of one's own with another's address would lead through the proxy around the other's policies.
    """
    return tuple(
        (address, pod.namespace, pod.metadata.labels)
        for address in db.shared_keys(PODS_BY_ADDRESS)
        if _block(address) == block
        for pod in db.bucket(PODS_BY_ADDRESS, address)
    )
