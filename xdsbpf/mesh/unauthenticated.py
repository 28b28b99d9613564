"""What policies decide about a peer that cannot prove who it is: a connection without a certificate.

Not `authorization.evaluate` of an unknown source: the kernel knows by the address that an unknown source is none of
those that a rule names; a proxy at the destination does not. So no ALLOW rule that asks who it is can be met, and
every DENY rule may be meant for it: it is widened to what its other fields say (DESIGN section 7). Where a peer
connects from, everybody sees.
"""

from __future__ import annotations

import msgspec

from xdsbpf.diagnostics import Diagnostic, ObjectId, Severity
from xdsbpf.incremental import Database
from xdsbpf.mesh.authorization import Decision, PolicySet, Verdict, decide, is_within
from xdsbpf.mesh.clients import Client
from xdsbpf.mesh.policy_groups import policy_set, possible_groups, workload_policies
from xdsbpf.mesh.policy_rules import Subject, Term

UNPROVEN_ALLOW = "XB2060"
UNPROVEN_DENY = "XB2061"
ANYWHERE = ("0.0.0.0/0", "::/0")


def unproven_policies(db: Database, workload: Client) -> tuple[PolicySet, ...]:
    """The policies of the workloads of a class, reported on; () without any.

    Of a class the addresses are not known: one set for each place that the policies tell apart by `destination.ip`.
    """
    groups = possible_groups(db, workload_policies(db, workload.namespace, workload.labels))
    found = tuple(policy_set(db, group) for group in groups)
    for policies in found:
        _report_unproven(db, policies)
    return found


class Admission(msgspec.Struct, frozen=True):
    """Whether a port is closed to those who connect from some blocks; () is from anywhere."""

    is_closed: bool
    blocks: tuple[str, ...]


def admissions(found: tuple[PolicySet, ...], port: int) -> tuple[Admission, ...]:
    """Who may connect to a port: one entry for everybody, or two that together have every address.

    The narrowest block around an address decides. Security: a port is closed to all of a class if it is at any of the
    addresses of the class. Cost: O(rules x blocks).
    """
    blocks = _mentioned(found, Subject.SOURCE_IP)
    verdicts = {block: _is_closed(found, port, block) for block in ("", *blocks)}
    if len(set(verdicts.values())) == 1:
        return (Admission(verdicts[""], ()),)
    found_in: dict[bool, list[str]] = {False: [], True: []}
    for block, verdict in verdicts.items():
        found_in[verdict] += (block,) if block else ANYWHERE
    return tuple(Admission(verdict, tuple(listed)) for verdict, listed in found_in.items())


def _is_closed(found: tuple[PolicySet, ...], port: int, block: str) -> bool:
    return any(evaluate_unproven(policies, port, block).verdict is Verdict.DENY for policies in found)


def evaluate_unproven(policies: PolicySet, port: int, block: str = "") -> Decision:
    """What `policies` decide about a connection to the workload's `port`. Cost: O(rules).

    `block` is the narrowest one around the peer's address that the policies mention, "" outside of all.
    """

    def holds(term: Term, is_deny: bool) -> bool:
        if term.subject is Subject.PORT:
            return (str(port) in term.values) is not term.negated
        if term.subject is Subject.SOURCE_IP:
            return is_within(block, term.values) is not term.negated
        return is_deny  # it asks who the peer is

    return decide(policies, holds)


def mentioned_ports(found: tuple[PolicySet, ...]) -> tuple[int, ...]:
    """Ports that any rule mentions, sorted: all others get the decision for `OTHER_PORT`."""
    return tuple(sorted(map(int, _mentioned(found, Subject.PORT))))


def _mentioned(found: tuple[PolicySet, ...], subject: Subject) -> tuple[str, ...]:
    values = {
        value
        for policies in found
        for rule in (*policies.deny, *policies.allow)
        for terms in (*rule.operations, *rule.sources, rule.when)
        for term in terms
        if term.subject is subject
        for value in term.values
    }
    return tuple(sorted(values))


def _report_unproven(db: Database, policies: PolicySet) -> None:
    """Say of every rule that asks who the peer is what becomes of it."""
    for rules, code, text in (
        (policies.deny, UNPROVEN_DENY, "it denies everybody that its other fields match"),
        (policies.allow, UNPROVEN_ALLOW, "it allows nobody"),
    ):
        for rule in rules:
            if not any(_asks_who(terms) for terms in (*rule.sources, rule.when)):
                continue
            object_, _, path = rule.origin.partition(" ")
            id = next((found for found in policies.objects if str(found) == object_), None)
            message = f"NOT-ENFORCED: sidecars and gRPC servers cannot tell their peers apart yet; there {text}"
            db.report(
                Diagnostic(code, Severity.WARNING, id or ObjectId("AuthorizationPolicy", "", object_), path, message)
            )


def _asks_who(terms: tuple[Term, ...]) -> bool:
    return any(term.subject not in (Subject.PORT, Subject.SOURCE_IP) for term in terms)
