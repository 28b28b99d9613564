"""Conditions of a policy rule on the source, as Envoy principals over filter state and its address.

Exactly what `mesh.authorization.evaluate` decides for a known source and a given port; a property test
holds the two together. Names are matched as exact text, prefix, suffix or inside the attributes; no
regular expression is ever built from a name. A pattern that these cannot express is written out for the
identities that exist. The address is that of the connection: a client's x-forwarded-for changes nothing.
"""

from __future__ import annotations

from typing import Any as Message
from typing import Final

from envoy.config.rbac.v3.rbac_pb2 import Principal
from envoy.type.matcher.v3.filter_state_pb2 import FilterStateMatcher
from envoy.type.matcher.v3.string_pb2 import StringMatcher

from xdsbpf.compile.envoy.attributes import (
    account_prefix,
    attribute_prefix,
    namespace_ending,
    namespace_prefix,
    principal_matcher,
)
from xdsbpf.compile.envoy.encoding import cidr_range
from xdsbpf.incremental import Database
from xdsbpf.mesh.authorization import SPIFFE, PolicySet, Verdict, evaluate, source_of_identity
from xdsbpf.mesh.identities import identities
from xdsbpf.mesh.policy_rules import L4Rule, Subject, Term

KNOWN: Final = principal_matcher(StringMatcher(prefix=SPIFFE))


def principal_of(db: Database, rule: L4Rule, port: int) -> Principal | None:
    """The sources that a rule matches for connections to `port`; None if it cannot match any.

    Reads the mesh's identities only for a pattern that must be written out.
    """
    if rule.operations and not any(_ports_hold(terms, port) for terms in rule.operations):
        return None
    if not _ports_hold(rule.when, port):
        return None
    conditions: list[Message] = []
    if rule.sources:
        alternatives = [terms for terms in rule.sources if _ports_hold(terms, port)]
        if not alternatives:
            return None
        conditions.append(any_id([_all_terms(db, terms) for terms in alternatives]))
    conditions += _terms(db, rule.when)
    return all_ids(conditions)


def any_id(ids: list[Principal]) -> Principal:
    """Any of some principals; at least one is given."""
    return ids[0] if len(ids) == 1 else Principal(or_ids=Principal.Set(ids=ids))


def all_ids(ids: list[Principal]) -> Principal:
    """All of some principals; everyone if there is none."""
    if not ids:
        return Principal(any=True)
    return ids[0] if len(ids) == 1 else Principal(and_ids=Principal.Set(ids=ids))


def _ports_hold(terms: tuple[Term, ...], port: int) -> bool:
    ports = (term for term in terms if term.subject is Subject.PORT)
    return all((str(port) in term.values) is not term.negated for term in ports)


def _all_terms(db: Database, terms: tuple[Term, ...]) -> Principal:
    return all_ids(_terms(db, terms))


def _terms(db: Database, terms: tuple[Term, ...]) -> list[Principal]:
    return [_term(db, term) for term in terms if term.subject is not Subject.PORT]


def _term(db: Database, term: Term) -> Principal:
    ids = [one for value in term.values for one in _values(db, term.subject, value)]
    found = any_id(ids) if ids else Principal(not_id=Principal(any=True))
    return Principal(not_id=found) if term.negated else found


def _values(db: Database, subject: Subject, value: str) -> list[Principal]:
    """Principals any of which is what a value names; [] for nobody."""
    if subject is Subject.SOURCE_IP:
        return [Principal(direct_remote_ip=cidr_range(value))]
    if value == "*" and subject is not Subject.SERVICE_ACCOUNT:
        return [_state(KNOWN)]
    matcher = _matcher(subject, value)
    if matcher is not None:
        return [_state(matcher)]
    term = Term(subject, (value,))
    probe = PolicySet("", (), (L4Rule("", ((term,),)),), (), has_allow=False)
    matching = (name for name in identities(db) if evaluate(probe, source_of_identity(name), 0).verdict is Verdict.DENY)
    return [_state(principal_matcher(StringMatcher(exact=name))) for name in matching]


def _matcher(subject: Subject, value: str) -> FilterStateMatcher | None:
    """The one matcher for a value, or None for a pattern that one matcher cannot express."""
    if subject is Subject.PRINCIPAL:
        return _principal(value)
    if subject is Subject.SERVICE_ACCOUNT:
        namespace, _, account = value.partition("/")
        return attribute_prefix(account_prefix(namespace, account))
    stars = value.count("*")
    if subject is Subject.NAMESPACE:
        if not stars:
            return attribute_prefix(namespace_prefix(value))
        if stars == 1 and value.endswith("*"):
            return attribute_prefix(namespace_prefix(value[:-1])[:-1])
        return namespace_ending(value[1:]) if stars == 1 and value.startswith("*") else None
    if stars or "/" in value:
        return None
    return principal_matcher(StringMatcher(prefix=f"{SPIFFE}{value}/"))


def _principal(value: str) -> FilterStateMatcher | None:
    """Istio's string match on an id without its scheme."""
    if value.startswith("*"):
        # An ending that is a whole id and more would reach into the scheme.
        return None if value.count("/") > 4 else principal_matcher(StringMatcher(suffix=value[1:]))
    if value.endswith("*"):
        return principal_matcher(StringMatcher(prefix=SPIFFE + value[:-1]))
    return principal_matcher(StringMatcher(exact=SPIFFE + value))


def _state(matcher: FilterStateMatcher) -> Principal:
    return Principal(filter_state=matcher)
