"""The decision table of a group of workloads: what both planes enforce.

It is `evaluate`, written out for every identity, block of source addresses and port that makes a
difference. Read by compile/datapath, and by the report of findings.
"""

from __future__ import annotations

from typing import Final

import msgspec

from xdsbpf.incremental import Database, query
from xdsbpf.mesh.authorization import (
    SPIFFE,
    Decision,
    PolicySet,
    Verdict,
    evaluate,
    source_of_identity,
)
from xdsbpf.mesh.identities import identities
from xdsbpf.mesh.inputs import settings
from xdsbpf.mesh.policy_groups import policy_set
from xdsbpf.mesh.policy_rules import L4Rule, Subject, Term
from xdsbpf.model.address_block import parse_block
from xdsbpf.model.names import spiffe_id

OTHER_PORT: Final = 0
"""Stands for a port that no rule mentions."""

_IMPERSONAL: Final = (Subject.PORT, Subject.SOURCE_IP)
"""What a rule can ask for without asking who the source is."""


class PolicyRow(msgspec.Struct, frozen=True):
    """A decision for a source, the block that it connects from, and a port.

    Identity and port None are any: who and what has no row of its own. `block` is the narrowest of the
    table's blocks around the source's address, "" for an address outside all of them.
    """

    identity: str | None
    block: str
    port: int | None
    verdict: Verdict
    rule: str


class PolicyTable(msgspec.Struct, frozen=True):
    """Full cross product of the identities, blocks and ports that matter, with their "any" rows.

    The row for (identity, block, port) decides, then (identity, block, any), (any, block, port), (any,
    block, any). `blocks` are sorted and do not contain "".
    """

    name: str
    ports: tuple[int, ...]
    blocks: tuple[str, ...]
    rows: tuple[PolicyRow, ...]


class Admission(msgspec.Struct, frozen=True):
    """Who may connect to one port: `default` for all but `exceptions`, for whom it is the other verdict.

    `inside` has what holds instead for sources in a block: (block, admission) for each block that makes a
    difference, sorted; the narrowest block around the source counts.
    """

    default: Verdict
    exceptions: tuple[str, ...]
    inside: tuple[tuple[str, Admission], ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it admits everybody."""
        inside = all(admission.is_open for _, admission in self.inside)
        return self.default is Verdict.ALLOW and not self.exceptions and inside


@query
def policy_table(db: Database, group: str) -> PolicyTable:
    """The decisions of a group, for every identity, block and port that makes a difference.

    Identities that get what an unknown source gets, for the same reason, have no rows. The proxies'
    identity is not in it. Cost: O(identities x blocks x ports x rules).
    """
    policies = policy_set(db, group)
    ports, blocks = _ports(policies), _blocks(policies)
    default = _decisions(policies, None, blocks, ports)
    rows = _rows(None, blocks, ports, default)
    for name in _candidates(db, policies):
        decisions = _decisions(policies, name, blocks, ports)
        if decisions != default:
            rows += _rows(name, blocks, ports, decisions)
    return PolicyTable(group, ports, blocks, tuple(rows))


@query
def admitted(db: Database, group: str, port: int) -> Admission:
    """Who may connect to a port of a group's workloads; everybody for the group ""."""
    if not group:
        return Admission(Verdict.ALLOW, ())
    table = policy_table(db, group)
    key = port if port in table.ports else None
    rows = [row for row in table.rows if row.port == key]
    outside, *inside = (_admission([row for row in rows if row.block == block]) for block in ("", *table.blocks))
    return Admission(outside.default, outside.exceptions, tuple(zip(table.blocks, inside, strict=True)))


def _admission(rows: list[PolicyRow]) -> Admission:
    """The rows of one block and one port."""
    default = next(row.verdict for row in rows if row.identity is None)
    names = (row.identity for row in rows if row.identity is not None and row.verdict is not default)
    return Admission(default, tuple(names))


def _decisions(
    policies: PolicySet, name: str | None, blocks: tuple[str, ...], ports: tuple[int, ...]
) -> tuple[Decision, ...]:
    """Decisions on one source, in the order of `_rows`."""
    sources = [source_of_identity(name, block) for block in ("", *blocks)]
    return tuple(evaluate(policies, source, port) for source in sources for port in (*ports, OTHER_PORT))


def _rows(
    identity: str | None, blocks: tuple[str, ...], ports: tuple[int, ...], decisions: tuple[Decision, ...]
) -> list[PolicyRow]:
    keys = [(block, port) for block in ("", *blocks) for port in (*ports, None)]
    return [
        PolicyRow(identity, block, port, decision.verdict, decision.rule)
        for (block, port), decision in zip(keys, decisions, strict=True)
    ]


def _terms(rules: tuple[L4Rule, ...]) -> list[Term]:
    found: list[Term] = []
    for rule in rules:
        for terms in (*rule.sources, *rule.operations, rule.when):
            found += terms
    return found


def _ports(policies: PolicySet) -> tuple[int, ...]:
    return tuple(sorted({int(value) for value in _values(policies, Subject.PORT)}))


def _blocks(policies: PolicySet) -> tuple[str, ...]:
    return tuple(sorted(_values(policies, Subject.SOURCE_IP), key=parse_block))


def _values(policies: PolicySet, subject: Subject) -> set[str]:
    terms = _terms(policies.deny + policies.allow)
    return {value for term in terms if term.subject is subject for value in term.values}


def _candidates(db: Database, policies: PolicySet) -> tuple[str, ...]:
    """Identities whose decisions may differ from those on an unknown source in the same block, sorted.

    Policies that only name identities do not depend on which ones there are.
    """
    trust_domain = settings(db).trust_domain
    named: set[str] = set()
    is_open_ended = any(term.negated and term.subject not in _IMPERSONAL for term in _terms(policies.allow))
    for term in _terms(policies.deny + policies.allow):
        for value in term.values:
            if term.subject is Subject.PRINCIPAL and "*" not in value:
                named.add(SPIFFE + value)
            elif term.subject is Subject.SERVICE_ACCOUNT:
                namespace, _, account = value.partition("/")
                named.add(spiffe_id(trust_domain, namespace, account))
            elif term.subject not in _IMPERSONAL:
                is_open_ended = True
    if is_open_ended:
        named.update(identities(db))
    return tuple(sorted(named))
