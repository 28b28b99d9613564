"""Authorisation at the proxy: the policies of a destination's workloads as per-route RBAC settings.

Policies select workloads, so the settings belong to a cluster: they stand on the route, or on each
weighted cluster. `mesh` reduced the policies to conditions on source and port; the port is known when
compiling, so what is left for Envoy is the source, which it knows as filter state. Endpoints of one
cluster may be selected by different policies; as nobody knows which endpoint Envoy will pick, a
request must satisfy all of them.
"""

from __future__ import annotations

import msgspec
from envoy.config.rbac.v3.rbac_pb2 import RBAC, Permission, Policy, Principal
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC as Filter
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBACPerRoute

from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.codes import POLICY_MIXED, note
from xdsbpf.compile.envoy.encoding import any_of
from xdsbpf.compile.envoy.rbac_principals import principal_of
from xdsbpf.diagnostics import Origin
from xdsbpf.incremental import Database, query
from xdsbpf.mesh.policy_groups import GroupPort, destination_groups, policy_set
from xdsbpf.mesh.policy_rules import L4Rule
from xdsbpf.model.scalars import Pairs

EVERYONE = Principal(any=True)


class Demands(msgspec.Struct, frozen=True):
    """What the policies of some endpoints of a cluster demand. Rules are (policy name, encoded Principal).

    `allow` is None without ALLOW policies, and () if none of their rules can match.
    """

    deny: Pairs[bytes]
    allow: Pairs[bytes] | None


def cluster_filters(db: Database, host: str, port: int, subset: str) -> Pairs[bytes]:
    """Per-route filter settings, (filter name, encoded Any), that requests to a cluster need.

    () if no policy selects any of its endpoints.
    """
    groups = tuple(found for found in destination_groups(db, host, port, subset) if found.group)
    return _filters_of(db, host, groups) if groups else ()


@query
def _filters_of(db: Database, host: str, groups: tuple[GroupPort, ...]) -> Pairs[bytes]:
    """The settings for endpoints of `host` in these groups; `host` is only for the finding."""
    demands = tuple(dict.fromkeys(_demands(db, found.group, found.port) for found in groups))
    if len(demands) > 1:
        _report_mixed(db, groups[0].group, host)
    return combine(demands)


@query
def _demands(db: Database, group: str, port: int) -> Demands:
    """The demands of a policy group for connections to one workload port."""
    policies = policy_set(db, group)
    deny = _rules(db, policies.deny, port)
    return Demands(deny, _rules(db, policies.allow, port) if policies.has_allow else None)


def _rules(db: Database, rules: tuple[L4Rule, ...], port: int) -> Pairs[bytes]:
    compiled = ((policy_name(rule), principal_of(db, rule, port)) for rule in rules)
    return tuple(
        (name, principal.SerializeToString(deterministic=True)) for name, principal in compiled if principal is not None
    )


def combine(demands: tuple[Demands, ...]) -> Pairs[bytes]:
    """Settings for the two slots such that a request passes iff every one of `demands` lets it pass.

    The slot for ALLOW holds one set of rules. Those of further endpoints become DENY rules for whoever
    they do not name.
    """
    deny: dict[str, Policy] = {}
    for demand in demands:
        for name, principal in demand.deny:
            _put(deny, name, Principal.FromString(principal))
    allows = tuple(dict.fromkeys(demand.allow for demand in demands if demand.allow is not None))
    for position, allow in enumerate(allows[1:], start=2):
        _put(deny, f"{names.NOT_ALLOWED_POLICY}[{position}]", _nobody_of(allow))
    settings: list[tuple[str, bytes]] = []
    if deny:
        settings.append((names.AUTHZ_DENY, _per_route(RBAC.DENY, deny)))
    if allows:
        policies: dict[str, Policy] = {}
        for name, principal in allows[0]:
            _put(policies, name, Principal.FromString(principal))
        settings.append((names.AUTHZ_ALLOW, _per_route(RBAC.ALLOW, policies)))
    return tuple(settings)


def policy_name(rule: L4Rule) -> str:
    """`ns[<namespace>]-policy[<name>]-rule[<index>]`, as Istio names it in Envoy's statistics and logs."""
    object_, _, path = rule.origin.partition(" ")
    parts = object_.split("/")
    index = path.removeprefix("spec.rules[").removesuffix("]")
    if len(parts) != 3 or not index.isdigit():
        return rule.origin
    return f"ns[{parts[1]}]-policy[{parts[2]}]-rule[{index}]"


def _put(policies: dict[str, Policy], name: str, principal: Principal) -> None:
    """Add a policy; one of the same name for another workload port gets a number."""
    policy = _policy(principal)
    unique, number = name, 2
    while unique in policies and policies[unique] != policy:
        unique = f"{name}-{number}"
        number += 1
    policies[unique] = policy


def _policy(principal: Principal) -> Policy:
    return Policy(permissions=[Permission(any=True)], principals=[principal])


def _nobody_of(allow: Pairs[bytes]) -> Principal:
    """Everyone whom none of the rules names."""
    if not allow:
        return EVERYONE
    named = [Principal.FromString(principal) for _, principal in allow]
    return Principal(not_id=Principal(or_ids=Principal.Set(ids=named)))


def _per_route(action: int, policies: dict[str, Policy]) -> bytes:
    rules = RBAC(action=action, policies=policies)
    encoded = any_of(RBACPerRoute(rbac=Filter(rules=rules)))
    return bytes(encoded.SerializeToString(deterministic=True))


def _report_mixed(db: Database, group: str, host: str) -> None:
    for policy in policy_set(db, group).objects[:1]:
        note(
            db.report,
            POLICY_MIXED,
            Origin(policy, "spec"),
            f"the endpoints of {host} are guarded differently: "
            "through the proxy a request must satisfy those of all of them",
            "use a subset per policy, or select all workloads of the service",
        )
