"""What policies decide about a peer that cannot prove who or where it is: a connection without a certificate.

Not `authorization.evaluate` of an unknown source: the kernel knows by the address that an unknown source is none of
those that a rule names; a proxy at the destination does not. So no ALLOW rule that asks who it is can be met, and
every DENY rule may be meant for it: it is widened to what its other fields say (DESIGN section 7).
"""

from __future__ import annotations

from xdsbpf.diagnostics import Diagnostic, ObjectId, Severity
from xdsbpf.incremental import Database
from xdsbpf.mesh.authorization import Decision, PolicySet, Verdict
from xdsbpf.mesh.clients import Client
from xdsbpf.mesh.policy_groups import policy_set, possible_groups, workload_policies
from xdsbpf.mesh.policy_rules import L4Rule, Subject, Term

UNPROVEN_ALLOW = "XB2060"
UNPROVEN_DENY = "XB2061"


def unproven_policies(db: Database, workload: Client) -> tuple[PolicySet, ...]:
    """The policies of the workloads of a class, reported on; () without any.

    Of a class the addresses are not known: one set for each place that the policies tell apart by `destination.ip`.
    """
    groups = possible_groups(db, workload_policies(db, workload.namespace, workload.labels))
    found = tuple(policy_set(db, group) for group in groups)
    for policies in found:
        _report_unproven(db, policies)
    return found


def is_closed(found: tuple[PolicySet, ...], port: int) -> bool:
    """Whether a port admits nobody. Security: closed to all of a class if it is at any of its addresses."""
    return any(evaluate_unproven(policies, port).verdict is Verdict.DENY for policies in found)


def evaluate_unproven(policies: PolicySet, port: int) -> Decision:
    """What `policies` decide about any connection to the workload's `port`. Cost: O(rules)."""
    for rule in policies.deny:
        if _matches(rule, port, unproven=True):
            return Decision(Verdict.DENY, rule.origin)
    if not policies.has_allow:
        return Decision(Verdict.ALLOW, f"default: no DENY rule matched ({policies.name})")
    for rule in policies.allow:
        if _matches(rule, port, unproven=False):
            return Decision(Verdict.ALLOW, rule.origin)
    return Decision(Verdict.DENY, f"default: no ALLOW rule matched ({policies.name})")


def mentioned_ports(found: tuple[PolicySet, ...]) -> tuple[int, ...]:
    """Ports that any rule mentions, sorted: all others get the decision for `OTHER_PORT`."""
    numbers = {
        int(value)
        for policies in found
        for rule in (*policies.deny, *policies.allow)
        for terms in (*rule.operations, *rule.sources, rule.when)
        for term in terms
        if term.subject is Subject.PORT
        for value in term.values
    }
    return tuple(sorted(numbers))


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
    return any(term.subject is not Subject.PORT for term in terms)


def _matches(rule: L4Rule, port: int, *, unproven: bool) -> bool:
    """Whether a rule matches a connection to `port`; `unproven` is what a question for the peer counts as."""

    def hold(terms: tuple[Term, ...]) -> bool:
        return all(
            (str(port) in term.values) is not term.negated if term.subject is Subject.PORT else unproven
            for term in terms
        )

    return (
        (not rule.sources or any(hold(terms) for terms in rule.sources))
        and (not rule.operations or any(hold(terms) for terms in rule.operations))
        and hold(rule.when)
    )
