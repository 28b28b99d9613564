"""Network RBAC filters of a raw listener -> who may connect, as the kernel's policy tables say it.

In: `envoy.extensions.filters.network.rbac.v3.RBAC` and the listener's address, with which permissions are decided at
once. Out: conditions on the source, evaluated for every identity and block of addresses that makes a difference.
A `principal_name` is the SPIFFE id that belongs to the source's address, as in every policy in the kernel. What cannot
be said about an address raises `NotForKernel`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec

from xdsbpf.compile.raw.kernel_fields import NotForKernel, join, only
from xdsbpf.mesh.authorization import Decision, Source, Verdict, is_within
from xdsbpf.model.address_block import AddressBlock, parse_block
from xdsbpf.model.names import RESERVED_IDENTITY

_FILTER: Final = frozenset({"rules", "stat_prefix"})
_RULES: Final = frozenset({"action", "policies"})
_POLICY: Final = frozenset({"permissions", "principals"})
_PLAIN_MATCHES: Final = ("exact", "prefix", "suffix", "contains")
_ADDRESSES: Final = ("source_ip", "direct_remote_ip", "remote_ip")
"""The same address where nothing before the filter has replaced it, and nothing may stand before it here."""


class Atom(msgspec.Struct, frozen=True):
    """One condition: everybody, nobody, whoever is known, a name of an identity, or a block of addresses."""

    kind: Literal["any", "none", "known", "exact", "prefix", "suffix", "contains", "block"]
    value: str = ""


class Combined(msgspec.Struct, frozen=True):
    """All, any or (exactly one, negated) none of some conditions."""

    kind: Literal["and", "or", "not"]
    parts: tuple[Condition, ...]


Condition = Atom | Combined


class RbacRule(msgspec.Struct, frozen=True):
    """A policy of a filter whose permissions hold: it matches a source that any condition matches."""

    origin: str
    principals: tuple[Condition, ...]


class RbacFilter(msgspec.Struct, frozen=True):
    """One filter: lets in whom a rule matches (`is_allow`), or all others."""

    origin: str
    is_allow: bool
    rules: tuple[RbacRule, ...]


def rbac_filter(message: Any, address: str, port: int, path: str, origin: str) -> RbacFilter | None:
    """The filter for connections to address:port; None if it lets everybody in. Raises: NotForKernel."""
    only(message, _FILTER, path)
    if not message.HasField("rules"):
        return None
    rules, path = message.rules, join(path, "rules")
    only(rules, _RULES, path)
    if rules.action not in (rules.ALLOW, rules.DENY):
        raise NotForKernel(join(path, "action"), "only Envoy logs")
    found = []
    for name in sorted(rules.policies):
        policy, at = rules.policies[name], f"{path}.policies[{name}]"
        only(policy, _POLICY, at)
        if not policy.permissions or not policy.principals:
            raise NotForKernel(at, "a policy needs permissions and principals")
        here = [
            _permission(entry, address, port, f"{at}.permissions[{index}]")
            for index, entry in enumerate(policy.permissions)
        ]
        who = tuple(_principal(entry, f"{at}.principals[{index}]") for index, entry in enumerate(policy.principals))
        if any(here):
            found.append(RbacRule(f"{origin} {at}", who))
    return RbacFilter(f"{origin} {path}", rules.action == rules.ALLOW, tuple(found))


def decide(filters: tuple[RbacFilter, ...], source: Source) -> Decision:
    """What a chain of filters decides about a source. Cost: O(conditions)."""
    decided = "default: no policy matched"
    for entry in filters:
        rule = next((rule for rule in entry.rules if _matches(rule, source, is_allow=entry.is_allow)), None)
        if entry.is_allow is (rule is None):
            return Decision(Verdict.DENY, rule.origin if rule else f"default: no policy matched ({entry.origin})")
        decided = rule.origin if rule else f"default: no policy matched ({entry.origin})"
    return Decision(Verdict.ALLOW, decided)


def blocks_of(filters: tuple[RbacFilter, ...]) -> tuple[str, ...]:
    """The blocks that any condition mentions, sorted."""
    return tuple(sorted({atom.value for atom, _ in _atoms(filters) if atom.kind == "block"}, key=parse_block))


def names_of(filters: tuple[RbacFilter, ...]) -> frozenset[str]:
    """The identities that conditions name in full."""
    return frozenset(atom.value for atom, _ in _atoms(filters) if atom.kind == "exact")


def asks_everybody(filters: tuple[RbacFilter, ...]) -> bool:
    """Whether identities that no condition names in full may fare otherwise than who is not known."""
    open_ended = ("known", "prefix", "suffix", "contains")
    return any(atom.kind in open_ended or (atom.kind == "exact" and excluded) for atom, excluded in _atoms(filters))


def _matches(rule: RbacRule, source: Source, *, is_allow: bool) -> bool:
    return any(_holds(entry, source, is_allow=is_allow, negated=False) for entry in rule.principals)


def _holds(condition: Condition, source: Source, *, is_allow: bool, negated: bool) -> bool:
    if isinstance(condition, Combined):
        if condition.kind == "not":
            return not _holds(condition.parts[0], source, is_allow=is_allow, negated=not negated)
        results = (_holds(part, source, is_allow=is_allow, negated=negated) for part in condition.parts)
        return all(results) if condition.kind == "and" else any(results)
    value = condition.value
    if condition.kind in ("any", "none"):
        return condition.kind == "any"
    if condition.kind == "block":
        return is_within(source.block, (value,))
    if source.principal is None:
        # Security: an ALLOW for all but somebody is not for who does not say who he is.
        return is_allow and negated
    match condition.kind:
        case "exact":
            return source.principal == value
        case "prefix":
            return source.principal.startswith(value)
        case "suffix":
            return source.principal.endswith(value)
        case "contains":
            return value in source.principal
        case _:
            return True


def _atoms(filters: tuple[RbacFilter, ...]) -> Iterator[tuple[Atom, bool]]:
    """(atom, whether an ALLOW excludes what it matches)."""
    for entry in filters:
        for rule in entry.rules:
            for condition in rule.principals:
                yield from ((atom, negated and entry.is_allow) for atom, negated in _leaves(condition, False))


def _leaves(condition: Condition, negated: bool) -> Iterator[tuple[Atom, bool]]:
    if isinstance(condition, Atom):
        yield condition, negated
        return
    for part in condition.parts:
        yield from _leaves(part, negated is not (condition.kind == "not"))


def _permission(message: Any, address: str, port: int, path: str) -> bool:
    """Whether a permission holds for connections to address:port."""
    kind, value, path = _rule_of(message, "rule", path)
    if kind in ("and_rules", "or_rules"):
        parts = [_permission(entry, address, port, path) for entry in _members(value, "rules", path)]
        return all(parts) if kind == "and_rules" else any(parts)
    if kind == "not_rule":
        return not _permission(value, address, port, path)
    if kind == "any" and value:
        return True
    if kind == "destination_ip":
        block = _block(value, path)
        return block is not None and block.contains(parse_block(address))
    if kind == "destination_port":
        return bool(value == port)
    if kind == "destination_port_range":
        return bool(value.start <= port < value.end)
    raise NotForKernel(path, f"only Envoy checks {kind}")


def _principal(message: Any, path: str) -> Condition:
    kind, value, path = _rule_of(message, "identifier", path)
    if kind in ("and_ids", "or_ids"):
        parts = tuple(_principal(entry, path) for entry in _members(value, "ids", path))
        return Combined("and" if kind == "and_ids" else "or", parts)
    if kind == "not_id":
        return Combined("not", (_principal(value, path),))
    if kind == "any" and value:
        return Atom("any")
    if kind in _ADDRESSES:
        block = _block(value, path)
        return Atom("none") if block is None else Atom("block", str(block))
    if kind == "authenticated":
        return _authenticated(value, path)
    raise NotForKernel(path, f"only Envoy checks {kind}")


def _authenticated(message: Any, path: str) -> Atom:
    only(message, frozenset({"principal_name"}), path)
    if not message.HasField("principal_name"):
        return Atom("known")
    name, path = message.principal_name, join(path, "principal_name")
    only(name, frozenset(_PLAIN_MATCHES), path)
    match name.WhichOneof("match_pattern"):
        case "exact":
            if not name.exact or "\0" in name.exact or name.exact.startswith(RESERVED_IDENTITY):
                raise NotForKernel(path, f"{name.exact!r} is no name of a client")
            return Atom("exact", name.exact)
        case "prefix":
            return Atom("prefix", name.prefix)
        case "suffix":
            return Atom("suffix", name.suffix)
        case "contains":
            return Atom("contains", name.contains)
        case _:
            raise NotForKernel(path, "it matches nothing")


def _rule_of(message: Any, oneof: str, path: str) -> tuple[str, Any, str]:
    """(field, value, path) of what is set of a oneof; the message has nothing else."""
    kind = message.WhichOneof(oneof)
    if kind is None:
        raise NotForKernel(path, "it has a condition that this release does not know")
    only(message, frozenset({kind}), path)
    return kind, getattr(message, kind), join(path, kind)


def _members(message: Any, field: str, path: str) -> list[Any]:
    only(message, frozenset({field}), path)
    members = list(getattr(message, field))
    if not members:
        raise NotForKernel(path, "it has no members")
    return members


def _block(message: Any, path: str) -> AddressBlock | None:
    """A core.v3.CidrRange; None for one of IPv6, where no connection to an IPv4 address comes from."""
    only(message, frozenset({"address_prefix", "prefix_len"}), path)
    try:
        block = parse_block(f"{message.address_prefix}/{message.prefix_len.value}")
    except ValueError as error:
        raise NotForKernel(path, "it is no block of addresses") from error
    return None if ":" in message.address_prefix else block
