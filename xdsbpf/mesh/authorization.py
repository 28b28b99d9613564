"""The one evaluator of AuthorizationPolicies: which policies select a workload, what they decide.

Order: a matching DENY denies; else with ALLOW policies one of them must match; else allowed
(istio-translation 5.2). Both planes are compiled from `evaluate`, and tested against it. A source
without a principal is unauthenticated: it satisfies no identity condition of an ALLOW, not even a
negative one, and every negative one of a DENY. Where it connects from is known of every source.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import msgspec

from xdsbpf.diagnostics import ObjectId
from xdsbpf.incremental import ABSENT, Database, query
from xdsbpf.mesh.codes import inform, warn
from xdsbpf.mesh.identities import namespace_of_identity
from xdsbpf.mesh.inputs import POLICIES_BY_NAMESPACE, SERVICES, object_id, settings
from xdsbpf.mesh.policy_rules import Action, L4Rule, Subject, Term, policy_rules
from xdsbpf.model.address_block import parse_block
from xdsbpf.model.authorization_policy import AuthorizationPolicy, PolicyTargetRef
from xdsbpf.model.scalars import Labels, is_subset

SPIFFE: Final = "spiffe://"


class Source(msgspec.Struct, frozen=True):
    """Who connects: a SPIFFE id, or None for who is not known; and from where.

    `block` is the source's address, or the narrowest block around it that the rules asked about mention:
    they cannot tell the two apart. "" is an address outside all of them.
    """

    principal: str | None
    namespace: str | None
    block: str = ""


class Verdict(enum.StrEnum):
    """What happens to a connection."""

    ALLOW = "ALLOW"
    DENY = "DENY"


class Decision(msgspec.Struct, frozen=True):
    """A verdict and the rule that decided: `AuthorizationPolicy/default/viewer spec.rules[0]`."""

    verdict: Verdict
    rule: str


class PolicySet(msgspec.Struct, frozen=True):
    """The policies of a workload, reduced to L4. `has_allow`: an ALLOW policy is among them."""

    name: str
    objects: tuple[ObjectId, ...]
    deny: tuple[L4Rule, ...]
    allow: tuple[L4Rule, ...]
    has_allow: bool


def source_of_identity(name: str | None, block: str = "") -> Source:
    """The source that a SPIFFE id is, or an unknown one; its namespace is part of the id."""
    return Source(name, (namespace_of_identity(name) or None) if name else None, block)


@query
def policies_of(db: Database, namespace: str, labels: Labels) -> tuple[ObjectId, ...]:
    """Policies in force for a workload: the root namespace's, then its own, by age.

    Without those that have no effect on traffic (AUDIT, dry run).
    """
    root = settings(db).root_namespace
    found = []
    for home in dict.fromkeys((root, namespace)):
        for policy in db.bucket(POLICIES_BY_NAMESPACE, home):
            if _selects(db, policy, namespace, labels) and policy_rules(db, policy.id).action is not Action.NONE:
                found.append(policy.id)
    return tuple(found)


def _selects(db: Database, policy: AuthorizationPolicy, namespace: str, labels: Labels) -> bool:
    spec = policy.spec
    refs = spec.target_refs or ((spec.target_ref,) if spec.target_ref is not None else ())
    if refs:
        field = "spec.targetRefs" if spec.target_refs else "spec.targetRef"
        found = [_targets(db, policy, ref, field, namespace, labels) for ref in refs]
        return any(found)
    return spec.selector is None or is_subset(spec.selector.match_labels, labels)


def _targets(
    db: Database,
    policy: AuthorizationPolicy,
    ref: PolicyTargetRef,
    field: str,
    namespace: str,
    labels: Labels,
) -> bool:
    """A Service is guarded at its workloads; there are no gateways and waypoints to attach to yet."""
    if ref.kind != "Service" or ref.group not in ("", "core"):
        text = f"NOT-ENFORCED: a target of kind {ref.kind} is not supported yet; the policy guards nothing there"
        warn(db, "XB2054", policy.id, field, text)
        return False
    if policy.namespace != namespace or ref.namespace not in ("", namespace):
        return False
    manifest = db.input(SERVICES, object_id("Service", namespace, ref.name))
    if manifest is ABSENT or not manifest.spec.selector or not is_subset(manifest.spec.selector, labels):
        return False
    text = f"the workloads of Service {ref.name} are guarded, however they are reached"
    inform(db, "XB2054", policy.id, field, text)
    return True


def build_policy_set(db: Database, name: str, objects: tuple[ObjectId, ...], destination: str = "") -> PolicySet:
    """The rules of some policies by action, in the order of the policies, for workloads of one place.

    `destination` is their address, or the narrowest block around it that the policies mention as one of
    destinations; "" is outside all. What the rules say about it is decided here.
    """
    reduced = tuple(policy_rules(db, id) for id in objects)

    def rules(action: Action) -> tuple[L4Rule, ...]:
        found = (rule for policy in reduced if policy.action is action for rule in policy.rules)
        return tuple(at for rule in found if (at := _at_destination(rule, destination)) is not None)

    has_allow = any(policy.action is Action.ALLOW for policy in reduced)
    return PolicySet(name, objects, rules(Action.DENY), rules(Action.ALLOW), has_allow)


def _at_destination(rule: L4Rule, destination: str) -> L4Rule | None:
    """A rule without its conditions on the workload's address; None if one of them does not hold there."""
    asked = [term for term in rule.when if term.subject is Subject.DESTINATION_IP]
    if not all(is_within(destination, term.values) is not term.negated for term in asked):
        return None
    rest = tuple(term for term in rule.when if term.subject is not Subject.DESTINATION_IP)
    return L4Rule(rule.origin, rule.sources, rule.operations, rest)


def is_within(block: str, values: tuple[str, ...]) -> bool:
    """Whether a block (or address; "" is outside everything) is inside one of some blocks."""
    return bool(block) and any(parse_block(value).contains(parse_block(block)) for value in values)


def evaluate(policies: PolicySet, source: Source, port: int) -> Decision:
    """What `policies` decide about a connection from `source` to the workload's `port`.

    Port 0 stands for a port that no rule mentions. Cost: O(rules).
    """
    return decide(policies, lambda term, is_deny: _holds(term, source, port, is_deny=is_deny))


def decide(policies: PolicySet, holds: Callable[[Term, bool], bool]) -> Decision:
    """What `policies` decide where `holds(term, whether the rule denies)` says which conditions a connection meets."""
    for rule in policies.deny:
        if _matches(rule, lambda term: holds(term, True)):
            return Decision(Verdict.DENY, rule.origin)
    if not policies.has_allow:
        return Decision(Verdict.ALLOW, f"default: no DENY rule matched ({policies.name})")
    for rule in policies.allow:
        if _matches(rule, lambda term: holds(term, False)):
            return Decision(Verdict.ALLOW, rule.origin)
    return Decision(Verdict.DENY, f"default: no ALLOW rule matched ({policies.name})")


def _matches(rule: L4Rule, holds: Callable[[Term], bool]) -> bool:
    def hold(terms: tuple[Term, ...]) -> bool:
        return all(map(holds, terms))

    return (
        (not rule.sources or any(map(hold, rule.sources)))
        and (not rule.operations or any(map(hold, rule.operations)))
        and hold(rule.when)
    )


def _holds(term: Term, source: Source, port: int, *, is_deny: bool) -> bool:
    if term.subject is Subject.PORT:
        return (str(port) in term.values) is not term.negated
    if term.subject is Subject.SOURCE_IP:
        return is_within(source.block, term.values) is not term.negated
    if source.principal is None:
        # Security: not to be somebody cannot be proven by not saying who one is.
        return term.negated and is_deny
    return any(_is_named(term.subject, value, source) for value in term.values) is not term.negated


def _is_named(subject: Subject, value: str, source: Source) -> bool:
    """Whether a source with a principal is what a value names (istio-translation 5.3)."""
    name = (source.principal or "").removeprefix(SPIFFE)
    if subject is Subject.PRINCIPAL:
        return _is_like(value, name)
    if subject is Subject.NAMESPACE:
        return source.namespace is not None and _is_glob(value, source.namespace)
    if subject is Subject.SERVICE_ACCOUNT:
        namespace, _, account = value.partition("/")
        return name.partition("/")[2] == f"ns/{namespace}/sa/{account}"
    return _is_glob(value, name.partition("/")[0])


def _is_like(value: str, name: str) -> bool:
    """Istio's string match: `*` presence, `x*` prefix, `*x` suffix, else equality."""
    if value == "*":
        return bool(name)
    if value.startswith("*"):
        return name.endswith(value[1:])
    if value.endswith("*"):
        return name.startswith(value[:-1])
    return name == value


def _is_glob(pattern: str, text: str) -> bool:
    """Whether `text` is `pattern`, each `*` standing for any characters. No regex is built from names."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == text
    if not text.startswith(first):
        return False
    position = len(first)
    *middle, last = rest
    for piece in middle:
        found = text.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    return len(text) - position >= len(last) and text.endswith(last)
