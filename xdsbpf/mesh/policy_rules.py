"""What an AuthorizationPolicy demands of a connection: its rules reduced to L4 conditions.

A field that a connection does not show (method, path, token) cannot be enforced yet: an ALLOW rule with
it is dropped, so it denies; of a DENY rule the field is dropped, so it denies more (istio-translation
5.4). Each case is reported. Only the annotation `xdsbpf.io/unenforced: allow`
turns that around. `authorization` evaluates the result; nothing else interprets a policy.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

import msgspec

from xdsbpf.diagnostics import ObjectId
from xdsbpf.incremental import ABSENT, Database, query
from xdsbpf.mesh.codes import inform, warn
from xdsbpf.mesh.inputs import AUTHORIZATION_POLICIES, settings
from xdsbpf.model.address_block import parse_block
from xdsbpf.model.authorization_policy import AuthorizationPolicy, From, Rule, To
from xdsbpf.model.checks import is_subnet
from xdsbpf.model.scalars import lookup

UNINTELLIGIBLE: Final = "xdsbpf.io/unintelligible"
"""Annotation "true": sources could not read the policy; it denies what it selects."""

UNENFORCED: Final = "xdsbpf.io/unenforced"
"""Annotation "allow": what cannot be enforced leaves traffic open instead of denying it."""

DRY_RUN: Final = "istio.io/dry-run"


class Subject(enum.StrEnum):
    """What a condition looks at."""

    PRINCIPAL = "principal"
    NAMESPACE = "namespace"
    SERVICE_ACCOUNT = "serviceAccount"
    TRUST_DOMAIN = "trustDomain"
    PORT = "port"
    SOURCE_IP = "sourceIp"
    DESTINATION_IP = "destinationIp"


class Term(msgspec.Struct, frozen=True):
    """One condition: the subject is one of `values` (Istio's `*` syntax), or none of them if negated.

    PRINCIPAL values come without `spiffe://`, SERVICE_ACCOUNT values as `<namespace>/<name>`, addresses as
    blocks (`10.0.0.1/32`). SOURCE_IP is the address that a connection comes from, DESTINATION_IP the
    workload's own.
    """

    subject: Subject
    values: tuple[str, ...]
    negated: bool = False


class L4Rule(msgspec.Struct, frozen=True):
    """`sources` and `operations`: any of them, all terms of it; `when`: all. Empty: no constraint."""

    origin: str
    sources: tuple[tuple[Term, ...], ...] = ()
    operations: tuple[tuple[Term, ...], ...] = ()
    when: tuple[Term, ...] = ()


class Action(enum.StrEnum):
    """What a policy's rules do when they match; NONE has no effect on traffic."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    NONE = "NONE"


class PolicyRules(msgspec.Struct, frozen=True):
    """A policy reduced to L4."""

    object: ObjectId
    action: Action
    rules: tuple[L4Rule, ...]


_WHEN_SUBJECTS: Final = {
    "source.principal": Subject.PRINCIPAL,
    "source.namespace": Subject.NAMESPACE,
    "source.serviceAccount": Subject.SERVICE_ACCOUNT,
    "source.trustDomain": Subject.TRUST_DOMAIN,
    "destination.port": Subject.PORT,
    "source.ip": Subject.SOURCE_IP,
    "remote.ip": Subject.SOURCE_IP,
    "destination.ip": Subject.DESTINATION_IP,
}
_SOURCE_FIELDS: Final = (
    ("principals", "principals", Subject.PRINCIPAL, False),
    ("not_principals", "notPrincipals", Subject.PRINCIPAL, True),
    ("namespaces", "namespaces", Subject.NAMESPACE, False),
    ("not_namespaces", "notNamespaces", Subject.NAMESPACE, True),
    ("service_accounts", "serviceAccounts", Subject.SERVICE_ACCOUNT, False),
    ("not_service_accounts", "notServiceAccounts", Subject.SERVICE_ACCOUNT, True),
    ("request_principals", "requestPrincipals", None, False),
    ("not_request_principals", "notRequestPrincipals", None, True),
    ("ip_blocks", "ipBlocks", Subject.SOURCE_IP, False),
    ("not_ip_blocks", "notIpBlocks", Subject.SOURCE_IP, True),
    ("remote_ip_blocks", "remoteIpBlocks", Subject.SOURCE_IP, False),
    ("not_remote_ip_blocks", "notRemoteIpBlocks", Subject.SOURCE_IP, True),
)
_OPERATION_FIELDS: Final = (
    ("ports", "ports", Subject.PORT, False),
    ("not_ports", "notPorts", Subject.PORT, True),
    ("hosts", "hosts", None, False),
    ("not_hosts", "notHosts", None, True),
    ("methods", "methods", None, False),
    ("not_methods", "notMethods", None, True),
    ("paths", "paths", None, False),
    ("not_paths", "notPaths", None, True),
)


@query
def policy_rules(db: Database, id: ObjectId) -> PolicyRules:
    """The L4 rules of a policy; NONE for a policy that is gone or has no effect."""
    policy = db.input(AUTHORIZATION_POLICIES, id)
    if policy is ABSENT:
        return PolicyRules(id, Action.NONE, ())
    annotations = policy.metadata.annotations
    if lookup(annotations, UNINTELLIGIBLE) == "true":
        text = "the policy could not be read: everything to the workloads it selects is denied"
        warn(db, "XB2055", id, "spec", text, "correct the policy, or delete it")
        return PolicyRules(id, Action.DENY, (L4Rule(f"{id} could not be read"),))
    is_open = _is_open(db, policy)
    if policy.spec.action == "AUDIT":
        inform(db, "XB2053", id, "spec.action", "AUDIT is not supported yet: nothing is logged")
        return PolicyRules(id, Action.NONE, ())
    if lookup(annotations, DRY_RUN) == "true" and policy.spec.action != "CUSTOM":
        path = f"metadata.annotations[{DRY_RUN}]"
        inform(db, "XB2053", id, path, "a dry run: the policy is not enforced, and not logged yet")
        return PolicyRules(id, Action.NONE, ())
    action = Action.ALLOW if policy.spec.action == "ALLOW" else Action.DENY
    if policy.spec.action == "CUSTOM":
        if is_open:
            warn(
                db,
                "XB2056",
                id,
                "spec.action",
                "NOT-ENFORCED: CUSTOM is not supported yet; traffic is left open",
            )
            return PolicyRules(id, Action.NONE, ())
        text = "NOT-ENFORCED: CUSTOM is not supported yet; what its rules match is denied"
        warn(db, "XB2052", id, "spec.action", text, f"annotate it {UNENFORCED}: allow to leave traffic open")
    reduction = _Reduction(db, policy, action, is_open)
    found = (reduction.rule(position, rule) for position, rule in enumerate(policy.spec.rules))
    return PolicyRules(id, action, tuple(rule for rule in found if rule is not None))


def _is_open(db: Database, policy: AuthorizationPolicy) -> bool:
    value = lookup(policy.metadata.annotations, UNENFORCED)
    if value not in (None, "allow"):
        path = f"metadata.annotations[{UNENFORCED}]"
        warn(db, "XB2040", policy.id, path, f"{value!r} is not a value of {UNENFORCED}: ignored", 'use "allow"')
    return value == "allow"


class _Reduction:
    """Reduces the rules of one policy; `lost` collects the fields of a rule that cannot be enforced."""

    def __init__(self, db: Database, policy: AuthorizationPolicy, action: Action, is_open: bool) -> None:
        self.db = db
        self.policy = policy
        self.action = action
        self.is_open = is_open
        self.trust_domain = settings(db).trust_domain
        self.lost: list[tuple[str, str]] = []

    def rule(self, position: int, rule: Rule) -> L4Rule | None:
        """The L4 form of a rule; None if it is dropped."""
        path = f"spec.rules[{position}]"
        self.lost = []
        reduced = L4Rule(
            f"{self.policy.id} {path}",
            tuple(self._source(f"{path}.from[{i}].source", entry) for i, entry in enumerate(rule.from_)),
            tuple(self._operation(f"{path}.to[{i}].operation", entry) for i, entry in enumerate(rule.to)),
            tuple(self._when(path, rule)),
        )
        for field_path, name in self.lost:
            self._report(field_path, name)
        # ALLOW loses the whole rule, DENY the field: both deny more, never less. Open: the reverse.
        is_dropped = bool(self.lost) and (self.action is Action.ALLOW) != self.is_open
        return None if is_dropped else reduced

    def _report(self, path: str, name: str) -> None:
        id = self.policy.id
        if self.is_open:
            effect = "the condition is ignored" if self.action is Action.ALLOW else "the rule is dropped"
            warn(
                self.db,
                "XB2056",
                id,
                path,
                f"NOT-ENFORCED: {name} is not supported yet; {effect}, as annotated",
            )
            return
        hint = f"annotate the policy {UNENFORCED}: allow to leave the traffic open instead"
        if self.action is Action.ALLOW:
            text = f"NOT-ENFORCED: {name} is not supported yet; the rule allows nothing"
            warn(self.db, "XB2050", id, path, text, hint)
        else:
            text = f"NOT-ENFORCED: {name} is not supported yet; the rule denies all that its other fields match"
            warn(self.db, "XB2051", id, path, text, hint)

    def _source(self, path: str, entry: From) -> tuple[Term, ...]:
        return tuple(self._terms(path, entry.source, _SOURCE_FIELDS))

    def _operation(self, path: str, entry: To) -> tuple[Term, ...]:
        return tuple(self._terms(path, entry.operation, _OPERATION_FIELDS))

    def _terms(
        self, path: str, holder: object, fields: tuple[tuple[str, str, Subject | None, bool], ...]
    ) -> Iterable[Term]:
        for attribute, name, subject, negated in fields:
            values: tuple[str, ...] = getattr(holder, attribute)
            if values:
                yield from self._term(f"{path}.{name}", name, subject, values, negated)

    def _when(self, path: str, rule: Rule) -> Iterable[Term]:
        for position, condition in enumerate(rule.when):
            subject = _WHEN_SUBJECTS.get(condition.key)
            at = f"{path}.when[{position}]"
            name = f"the condition {condition.key}"
            if condition.values:
                yield from self._term(f"{at}.values", name, subject, condition.values, False)
            if condition.not_values:
                yield from self._term(f"{at}.notValues", name, subject, condition.not_values, True)

    def _term(
        self, path: str, name: str, subject: Subject | None, values: tuple[str, ...], negated: bool
    ) -> Iterable[Term]:
        if subject is None or not all(_is_intelligible(subject, value) for value in values):
            self.lost.append((path, name))
            return
        if "remote" in name:
            text = f"{name} is the address that the connection comes from: no x-forwarded-for is believed"
            inform(self.db, "XB2057", self.policy.id, path, text)
        if subject is Subject.PRINCIPAL:
            values = tuple(dict.fromkeys(each for value in values for each in self._aliases(value)))
        elif subject is Subject.SERVICE_ACCOUNT:
            values = tuple(value if "/" in value else f"{self.policy.namespace}/{value}" for value in values)
        elif subject is Subject.PORT:
            values = tuple(str(int(value)) for value in values)
        elif subject in (Subject.SOURCE_IP, Subject.DESTINATION_IP):
            values = tuple(dict.fromkeys(str(parse_block(value)) for value in values))
        yield Term(subject, values, negated)

    def _aliases(self, principal: str) -> tuple[str, ...]:
        """`cluster.local` and the mesh's trust domain mean one another (istio-translation 5.5)."""
        parts = principal.split("/")
        if len(parts) != 5 or parts[0] not in ("cluster.local", self.trust_domain):
            return (principal,)
        rest = principal.partition("/")[2]
        return tuple(dict.fromkeys((f"{self.trust_domain}/{rest}", principal)))


def _is_intelligible(subject: Subject, value: str) -> bool:
    """Whether a value can be compared with what it is about; any text is a name."""
    if subject is Subject.PORT:
        return value.isascii() and value.isdigit() and 1 <= int(value) <= 65535
    return subject not in (Subject.SOURCE_IP, Subject.DESTINATION_IP) or is_subnet(value)
