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
from xdsbpf.mesh.identities import workload_namespaces, workloads_of_namespace
from xdsbpf.mesh.inputs import (
    PODS_BY_BLOCK,
    PODS_BY_NAMESPACE,
    POLICIES_BY_NAMESPACE,
    address_block,
    object_id,
    settings,
)
from xdsbpf.mesh.policy_rules import Subject, policy_rules
from xdsbpf.model.address_block import BlockSet, parse_block
from xdsbpf.model.kube import Pod
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
def _groups_of_namespace(db: Database, namespace: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(group, addresses) of a namespace's workloads that have policies, sorted."""
    if not _has_policies(db, namespace):
        return ()
    guarded: dict[str, set[str]] = {}
    for workload in workloads_of_namespace(db, namespace):
        policies = workload_policies(db, namespace, workload.labels)
        if policies:
            guarded.setdefault(policies, set()).update(workload.addresses)
    found: dict[str, set[str]] = {}
    for policies, addresses in guarded.items():
        name = group_naming(db, policies)
        for address in addresses:
            found.setdefault(name(address), set()).add(address)
    for pod in db.bucket(PODS_BY_NAMESPACE, namespace):
        is_running = pod.status.phase not in ("Succeeded", "Failed")
        if pod.spec.host_network and is_running and workload_policies(db, namespace, pod.metadata.labels):
            for id in policies_of(db, namespace, pod.metadata.labels):
                text = f"NOT-ENFORCED for {pod.id}: workloads on the host's network cannot be told apart"
                warn(db, "XB2013", id, "spec.selector", text)
    return tuple((group, tuple(sorted(found[group], key=packed))) for group in sorted(found))


@query
def policy_groups(db: Database) -> tuple[str, ...]:
    """Names of all groups that have workloads and policies, sorted."""
    namespaces = workload_namespaces(db)
    return tuple(sorted({group for name in namespaces for group, _ in _groups_of_namespace(db, name)}))


@query
def group_addresses(db: Database, group: str) -> tuple[str, ...]:
    """Addresses of a group's workloads, sorted."""
    found: set[str] = set()
    for namespace in workload_namespaces(db):
        for name, addresses in _groups_of_namespace(db, namespace):
            if name == group:
                found.update(addresses)
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
    for block in {address_block(address) for address, _ in places}:
        for address, namespace, labels in _shared_addresses(db, block):
            group = group_naming(db, workload_policies(db, namespace, labels))(address)
            found.update(GroupPort(group, number) for number in numbers if (address, number) in places)
    return tuple(sorted(found))


@query
def _shared_addresses(db: Database, block: str) -> tuple[tuple[str, str, Labels], ...]:
    """(address, namespace, labels) of each pod of a block whose address another pod has, too; mostly ().

    Security: the kernel guards an address by the policies of all who claim it; so must the proxy, or a
    pod of one's own with another's address would lead through the proxy around the other's policies.
    """
    claims: dict[str, list[Pod]] = {}
    for pod in db.bucket(PODS_BY_BLOCK, block):
        for address in pod.addresses:
            claims.setdefault(address, []).append(pod)
    return tuple(
        (address, pod.namespace, pod.metadata.labels)
        for address in sorted(claims)
        if len(claims[address]) > 1
        for pod in claims[address]
    )
