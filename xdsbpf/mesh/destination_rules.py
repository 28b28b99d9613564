"""Which DestinationRule applies to a host, its subsets, and the traffic policy in effect.

Levels (istio-translation 3.4): rules of the service's own namespace, then exported rules of other
namespaces, then those of the root namespace; the first level with a match wins, the most specific
host within it; rules for the identical host in one namespace are merged (3.5). Istio looks the first
level up per client; here it does not depend on the client yet, and what loses is reported.
"""

from __future__ import annotations

from typing import Final

import msgspec

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import Database, query
from xdsbpf.mesh.codes import warn
from xdsbpf.mesh.inputs import DESTINATION_RULES_BY_HOST, exact_key, parent_suffix, settings, suffix_keys
from xdsbpf.mesh.services import host_namespace
from xdsbpf.model.destination_rule import (
    ClientTLSSettings,
    ConnectionPoolSettings,
    DestinationRule,
    LoadBalancerSettings,
    OutlierDetection,
    PortTrafficPolicy,
    ProxyProtocol,
    RetryBudget,
    TrafficPolicy,
    TunnelSettings,
)
from xdsbpf.model.names import full_host
from xdsbpf.model.scalars import Labels


class SubsetRule(msgspec.Struct, frozen=True):
    """A subset and where it is defined (`spec.subsets[1]` of a rule)."""

    name: str
    labels: Labels
    policy: TrafficPolicy | None
    origin: Origin


class MergedRule(msgspec.Struct, frozen=True):
    """The rule in force for a host; `policy_origin` is the rule that the top-level policy comes from."""

    host: str
    objects: tuple[ObjectId, ...]
    policy: TrafficPolicy | None
    policy_origin: Origin | None
    subsets: tuple[SubsetRule, ...]


class EffectivePolicy(msgspec.Struct, frozen=True):
    """Traffic policy of one (host, port, subset); a None block means the defaults.

    `origins` are the policies that the blocks were taken from, the overriding one last; `blocks` says
    of each block that is set where it stands: ("connectionPool", `... spec.trafficPolicy.connectionPool`).
    """

    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None
    tunnel: TunnelSettings | None = None
    proxy_protocol: ProxyProtocol | None = None
    retry_budget: RetryBudget | None = None
    origins: tuple[Origin, ...] = ()
    blocks: tuple[tuple[str, Origin], ...] = ()


DEFAULTS: Final = EffectivePolicy()
"""The policy where no rule sets one."""


_BLOCKS = (
    ("loadBalancer", "load_balancer"),
    ("connectionPool", "connection_pool"),
    ("outlierDetection", "outlier_detection"),
    ("tls", "tls"),
    ("tunnel", "tunnel"),
    ("proxyProtocol", "proxy_protocol"),
    ("retryBudget", "retry_budget"),
)


def _is_exported(rule: DestinationRule) -> bool:
    """Whether other namespaces may use a rule: not private, not selecting clients."""
    names = rule.spec.export_to
    if rule.spec.workload_selector is not None:
        return False
    return not names or "*" in names or any(name not in (".", "~", rule.namespace) for name in names)


def _level(rule: DestinationRule, namespace: str, root: str) -> int | None:
    """0: the service's own namespace, 1: another one's exported rule, 2: the root's; None: not usable."""
    if namespace and rule.namespace == namespace:
        return 0
    if not _is_exported(rule):
        return None
    return 2 if rule.namespace == root else 1


def destination_rule(db: Database, host: str) -> MergedRule | None:
    """The rule in force for a host, or None. Losing rules are reported as shadowed."""
    # Most services have no rule: they need no cell for that.
    near = db.bucket(DESTINATION_RULES_BY_HOST, exact_key(host))
    return _merged_rule(db, host) if near or any(_wildcard_rules(db, parent_suffix(host))) else None


@query
def _merged_rule(db: Database, host: str) -> MergedRule | None:
    namespace = host_namespace(db, host)
    root = settings(db).root_namespace
    domain = settings(db).domain
    near = db.bucket(DESTINATION_RULES_BY_HOST, exact_key(host))
    exact = tuple(rule for rule in near if full_host(rule.spec.host, rule.namespace, domain) == host)
    groups = (_usable(db, exact), *_wildcard_rules(db, parent_suffix(host)))
    if not any(groups):
        return None
    found = (
        tuple(rule for rule in group if _level(rule, namespace, root) == level)
        for level in range(3)
        for group in groups
    )
    first = next((rules for rules in found if rules), ())
    # One namespace's rules are merged; of several namespaces the one with the oldest rule wins.
    chosen = tuple(rule for rule in first if rule.namespace == first[0].namespace)
    _report_shadowed(db, host, chosen, groups[0])
    return _merge(db, host, chosen) if chosen else None


@query
def _wildcard_rules(db: Database, suffix: str) -> tuple[tuple[DestinationRule, ...], ...]:
    """Usable rules for wildcards that cover `*<suffix>`, by pattern, the most specific first."""
    return tuple(_usable(db, db.bucket(DESTINATION_RULES_BY_HOST, key)) for key in suffix_keys(suffix))


def _usable(db: Database, rules: tuple[DestinationRule, ...]) -> tuple[DestinationRule, ...]:
    """Those of some rules that are usable, oldest first. Rules that select clients are not supported yet."""
    usable = []
    for rule in rules:
        names = rule.spec.export_to
        if rule.spec.workload_selector is not None:
            text = "rules for selected clients are not supported yet: the rule has no effect"
            warn(db, "XB2023", rule.id, "spec.workloadSelector", text)
            continue
        if names and "*" not in names:
            if "~" in names:
                continue
            text = "rules for the clients of some namespaces are not supported yet: "
            text += "it counts for every client" if _is_exported(rule) else "it counts in its own namespace's services"
            warn(db, "XB2023", rule.id, "spec.exportTo", text)
        usable.append(rule)
    return tuple(sorted(usable, key=_age))


def _age(rule: DestinationRule) -> tuple[bool, str, str, str]:
    """Order of merging: creation time (none last), name, namespace (istio-translation 3.5)."""
    created = rule.metadata.creation_timestamp
    return (created is None, created or "", rule.name, rule.namespace)


def _report_shadowed(
    db: Database, host: str, chosen: tuple[DestinationRule, ...], exact: tuple[DestinationRule, ...]
) -> None:
    for rule in exact:
        if chosen and rule not in chosen:
            warn(
                db,
                "XB2020",
                rule.id,
                "spec.host",
                f"SHADOWED-BY {chosen[0].id} for {host}",
                "the service's own namespace comes first, then exported rules, then the root namespace",
            )
    for rule in chosen[1:]:
        if rule.spec.traffic_policy is not None and any(
            other.spec.traffic_policy is not None for other in chosen[: chosen.index(rule)]
        ):
            text = f"SHADOWED-BY {chosen[0].id} for {host}: an older rule's policy is in force"
            warn(db, "XB2020", rule.id, "spec.trafficPolicy", text)


def _merge(db: Database, host: str, rules: tuple[DestinationRule, ...]) -> MergedRule:
    policy: TrafficPolicy | None = None
    policy_origin: Origin | None = None
    found: dict[str, SubsetRule] = {}
    for rule in rules:
        db.cite(Origin(rule.id, "spec.host"))
        if policy is None and rule.spec.traffic_policy is not None:
            policy = rule.spec.traffic_policy
            policy_origin = Origin(rule.id, "spec.trafficPolicy")
        for position, subset in enumerate(rule.spec.subsets):
            path = f"spec.subsets[{position}]"
            if subset.name in found:
                text = f"SHADOWED-BY {found[subset.name].origin}: it defines the subset {subset.name!r} too"
                warn(db, "XB2021", rule.id, f"{path}.name", text)
                continue
            origin = Origin(rule.id, path)
            found[subset.name] = SubsetRule(subset.name, subset.labels, subset.traffic_policy, origin)
    return MergedRule(host, tuple(rule.id for rule in rules), policy, policy_origin, tuple(found.values()))


def subsets(db: Database, host: str) -> tuple[SubsetRule, ...]:
    """Subsets of a host in the order of their definition."""
    rule = destination_rule(db, host)
    return rule.subsets if rule else ()


def effective_policy(db: Database, host: str, port: int, subset: str) -> EffectivePolicy:
    """Policy in effect for one cluster (istio-translation 3.6); subset "" is the whole service.

    A port-level entry replaces the whole top-level policy; a subset's blocks replace whole blocks.
    """
    # Most services have no rule: they need no cell for it.
    return DEFAULTS if destination_rule(db, host) is None else _policy_of_rule(db, host, port, subset)


@query
def _policy_of_rule(db: Database, host: str, port: int, subset: str) -> EffectivePolicy:
    rule = destination_rule(db, host)
    effective = DEFAULTS
    if rule is None:
        return effective
    if rule.policy is not None and rule.policy_origin is not None:
        effective, _ = _at_port(rule.policy, rule.policy_origin, port)
    overlay = next((entry for entry in rule.subsets if entry.name == subset), None) if subset else None
    if overlay is not None and overlay.policy is not None:
        below = Origin(overlay.origin.object, f"{overlay.origin.path}.trafficPolicy")
        effective = _overlay(effective, *_at_port(overlay.policy, below, port))
    for origin in effective.origins:
        db.cite(origin)
    return effective


def _at_port(policy: TrafficPolicy, origin: Origin, port: int) -> tuple[EffectivePolicy, bool]:
    """The policy for a port and whether it is a port-level entry (which has four blocks only)."""
    for position, entry in enumerate(policy.port_level_settings):
        if entry.port is not None and entry.port.number == port:
            at = Origin(origin.object, f"{origin.path}.portLevelSettings[{position}]")
            return _of_blocks(entry, at), True
    return _of_blocks(policy, origin), False


def _of_blocks(policy: TrafficPolicy | PortTrafficPolicy, origin: Origin) -> EffectivePolicy:
    return EffectivePolicy(
        policy.load_balancer,
        policy.connection_pool,
        policy.outlier_detection,
        policy.tls,
        *(
            (policy.tunnel, policy.proxy_protocol, policy.retry_budget)
            if isinstance(policy, TrafficPolicy)
            else (None, None, None)
        ),
        origins=(origin,),
        blocks=tuple(
            (name, Origin(origin.object, f"{origin.path}.{name}"))
            for name, field in _BLOCKS
            if getattr(policy, field, None) is not None
        ),
    )


def _overlay(base: EffectivePolicy, top: EffectivePolicy, is_port_entry: bool) -> EffectivePolicy:
    """`top`'s blocks over `base`'s; of a port-level entry the first four count even when unset."""
    replaced = {name for name, _ in top.blocks}
    if is_port_entry:
        replaced.update(name for name, _ in _BLOCKS[:4])
    chosen = {field: getattr(top if name in replaced else base, field) for name, field in _BLOCKS}
    below = tuple(entry for entry in base.blocks if entry[0] not in replaced)
    return EffectivePolicy(**chosen, origins=base.origins + top.origins, blocks=below + top.blocks)
