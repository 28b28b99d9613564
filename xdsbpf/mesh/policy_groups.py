"""Groups of workloads that share one set of policies, and each group's decision table.

A group's name is its policies' "<namespace>/<name>", sorted and joined with "+"; "" is no policy. The
table is what both planes enforce: it is `evaluate`, written out for every identity and port that
makes a difference.
"""

from __future__ import annotations

from typing import Final

import msgspec

from xdsbpf.diagnostics import Origin
from xdsbpf.incremental import Database, query
from xdsbpf.mesh.addresses import packed
from xdsbpf.mesh.authorization import (
    SPIFFE,
    UNKNOWN_SOURCE,
    Decision,
    PolicySet,
    Source,
    Verdict,
    build_policy_set,
    evaluate,
    policies_of,
    source_of_identity,
)
from xdsbpf.mesh.codes import warn
from xdsbpf.mesh.endpoints import subset_endpoints
from xdsbpf.mesh.identities import identities, workload_namespaces, workloads_of_namespace
from xdsbpf.mesh.inputs import (
    PODS_BY_BLOCK,
    PODS_BY_NAMESPACE,
    POLICIES_BY_NAMESPACE,
    address_block,
    object_id,
    settings,
)
from xdsbpf.mesh.policy_rules import L4Rule, Subject, Term
from xdsbpf.model.kube import Pod
from xdsbpf.model.names import spiffe_id
from xdsbpf.model.scalars import Labels

OTHER_PORT: Final = 0
"""Stands for a port that no rule mentions."""


class PolicyRow(msgspec.Struct, frozen=True):
    """A decision for a source and port; None is any: who and what has no row of its own."""

    identity: str | None
    port: int | None
    verdict: Verdict
    rule: str


class PolicyTable(msgspec.Struct, frozen=True):
    """Full cross product of the identities and ports that matter, with their "any" rows.

    The row for (identity, port) decides, then (identity, any), (any, port), (any, any).
    """

    name: str
    ports: tuple[int, ...]
    rows: tuple[PolicyRow, ...]


class GroupPort(msgspec.Struct, frozen=True, order=True):
    """A policy group ("" = no policy) and the workload port of some endpoints."""

    group: str
    port: int


class Admission(msgspec.Struct, frozen=True):
    """Who may connect to one port: `default` for all but `exceptions`, for whom it is the other verdict."""

    default: Verdict
    exceptions: tuple[str, ...]


@query
def _has_policies(db: Database, namespace: str) -> bool:
    """Whether there are policies that may select workloads of a namespace. Without, they need no cells."""
    homes = (settings(db).root_namespace, namespace)
    return any(db.bucket(POLICIES_BY_NAMESPACE, home) for home in homes)


def workload_group(db: Database, namespace: str, labels: Labels) -> str:
    """Name of the group that a workload is in."""
    if not _has_policies(db, namespace):
        return ""
    return "+".join(sorted(f"{id.namespace}/{id.name}" for id in policies_of(db, namespace, labels)))


@query
def _groups_of_namespace(db: Database, namespace: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(group, addresses) of a namespace's workloads that have policies, sorted."""
    if not _has_policies(db, namespace):
        return ()
    found: dict[str, set[str]] = {}
    for workload in workloads_of_namespace(db, namespace):
        group = workload_group(db, namespace, workload.labels)
        if group:
            found.setdefault(group, set()).update(workload.addresses)
    for pod in db.bucket(PODS_BY_NAMESPACE, namespace):
        is_running = pod.status.phase not in ("Succeeded", "Failed")
        if pod.spec.host_network and is_running and workload_group(db, namespace, pod.metadata.labels):
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
    names = (name.partition("/") for name in group.split("+") if name)
    objects = tuple(object_id("AuthorizationPolicy", namespace, name) for namespace, _, name in names)
    for id in objects:
        db.cite(Origin(id, "spec"))
    return build_policy_set(db, group, objects)


@query
def policy_table(db: Database, group: str) -> PolicyTable:
    """The decisions of a group, for every identity and port that makes a difference.

    Identities that get what an unknown source gets, for the same reason, have no rows. The proxies'
    identity is not in it. Cost: O(identities x ports x rules).
    """
    policies = policy_set(db, group)
    ports = _ports(policies)
    default = _decisions(policies, UNKNOWN_SOURCE, ports)
    rows = list(_rows(None, ports, default))
    for name in _candidates(db, policies):
        decisions = _decisions(policies, source_of_identity(name), ports)
        if decisions != default:
            rows += _rows(name, ports, decisions)
    return PolicyTable(group, ports, tuple(rows))


@query
def admitted(db: Database, group: str, port: int) -> Admission:
    """Who may connect to a port of a group's workloads; everybody for the group ""."""
    if not group:
        return Admission(Verdict.ALLOW, ())
    table = policy_table(db, group)
    key = port if port in table.ports else None
    rows = [row for row in table.rows if row.port == key]
    default = next(row.verdict for row in rows if row.identity is None)
    names = tuple(row.identity for row in rows if row.identity is not None and row.verdict is not default)
    return Admission(default, names)


@query
def destination_groups(db: Database, host: str, port: int, subset: str) -> tuple[GroupPort, ...]:
    """The groups and workload ports of a destination's endpoints, sorted; "" stands for unguarded ones."""
    members = subset_endpoints(db, host, port, subset)
    found = {GroupPort("", endpoint.port) for endpoint in members if not endpoint.workload}
    # Endpoints of one service are mostly alike: ask once for each kind of them.
    kinds = dict.fromkeys((entry.namespace, entry.labels, entry.port) for entry in members if entry.workload)
    found.update(GroupPort(workload_group(db, namespace, labels), number) for namespace, labels, number in kinds)
    places = {(endpoint.address, endpoint.port) for endpoint in members}
    numbers = {number for _, number in places}
    for block in {address_block(address) for address, _ in places}:
        for address, namespace, labels in _shared_addresses(db, block):
            group = workload_group(db, namespace, labels)
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


def _decisions(policies: PolicySet, source: Source, ports: tuple[int, ...]) -> tuple[Decision, ...]:
    return tuple(evaluate(policies, source, port) for port in (*ports, OTHER_PORT))


def _rows(identity: str | None, ports: tuple[int, ...], decisions: tuple[Decision, ...]) -> list[PolicyRow]:
    keys: tuple[int | None, ...] = (*ports, None)
    return [
        PolicyRow(identity, port, decision.verdict, decision.rule)
        for port, decision in zip(keys, decisions, strict=True)
    ]


def _terms(rules: tuple[L4Rule, ...]) -> list[Term]:
    found: list[Term] = []
    for rule in rules:
        for terms in (*rule.sources, *rule.operations, rule.when):
            found += terms
    return found


def _ports(policies: PolicySet) -> tuple[int, ...]:
    terms = _terms(policies.deny + policies.allow)
    values = (value for term in terms if term.subject is Subject.PORT for value in term.values)
    return tuple(sorted({int(value) for value in values}))


def _candidates(db: Database, policies: PolicySet) -> tuple[str, ...]:
    """Identities whose decisions may differ from an unknown source's, sorted.

    Policies that only name identities do not depend on which ones there are.
    """
    trust_domain = settings(db).trust_domain
    named: set[str] = set()
    is_open_ended = any(term.negated and term.subject is not Subject.PORT for term in _terms(policies.allow))
    for term in _terms(policies.deny + policies.allow):
        for value in term.values:
            if term.subject is Subject.PRINCIPAL and "*" not in value:
                named.add(SPIFFE + value)
            elif term.subject is Subject.SERVICE_ACCOUNT:
                namespace, _, account = value.partition("/")
                named.add(spiffe_id(trust_domain, namespace, account))
            elif term.subject is not Subject.PORT:
                is_open_ended = True
    if is_open_ended:
        named.update(identities(db))
    return tuple(sorted(named))
