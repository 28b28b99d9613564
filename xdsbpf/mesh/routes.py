"""The ordered route list of a host and port, from the VirtualServices that own the host.

One entry per (http route, match) pair, in order, ending at the first catch-all
(istio-translation 2.5). Istio filters the list per client; here one list serves all clients of a
node, so the client's part becomes a guard on each entry, and the clients of one owner never fall
through into the routes of another.
"""

from __future__ import annotations

from collections.abc import Iterator

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import Database, query
from xdsbpf.mesh.codes import refuse, warn
from xdsbpf.mesh.destinations import resolve
from xdsbpf.mesh.route_values import MirrorTarget, RouteRule, RouteTarget, RuleKind, SourceGuard
from xdsbpf.mesh.services import service
from xdsbpf.mesh.virtual_services import MESH_GATEWAY, Owner, owners
from xdsbpf.model.scalars import Labels
from xdsbpf.model.virtual_service import HTTPMatchRequest, HTTPRoute, HTTPRouteDestination

ALL_REQUESTS = 1_000_000
"""Share of a mirror without a percentage, in millionths."""


def http_routes(db: Database, host: str, port: int) -> tuple[RouteRule, ...]:
    """The whole route list of a service port, in order; () for a host that is not a service.

    Ends with a DEFAULT entry unless routes for every client come before it. A client whose owner
    has routes for it, none of which matches, gets 404: from the end of the list, or from a
    NOT_FOUND entry where other entries follow.
    """
    if service(db, host) is None:
        return ()
    # Most services have no VirtualService: they need no cell for their one rule.
    return _rules_of_owners(db, host, port) if owners(db, host) else (_default_rule(host, port),)


def _default_rule(host: str, port: int) -> RouteRule:
    return RouteRule(RuleKind.DEFAULT, SourceGuard(), (RouteTarget(host, port),), catch_all=True)


@query
def _rules_of_owners(db: Database, host: str, port: int) -> tuple[RouteRule, ...]:
    rules: list[RouteRule] = []
    for owner in owners(db, host):
        routes = tuple(_owner_rules(db, owner, port))
        rules += routes
        if owner.namespaces:
            rules += _closing(owner, routes, host, port)
        elif routes and not any(rule.guard.is_open for rule in routes):
            rules += _not_found(routes)
        elif routes:
            return tuple(rules)
    return (*rules, _default_rule(host, port))


def http_rule_origins(db: Database, host: str, port: int) -> tuple[Origin, ...]:
    """The http routes that apply to a service port, each once, in order."""
    return tuple(
        dict.fromkeys(
            Origin(rule.virtual_service, rule.path)
            for rule in http_routes(db, host, port)
            if rule.virtual_service is not None
        )
    )


def _closing(owner: Owner, routes: tuple[RouteRule, ...], host: str, port: int) -> Iterator[RouteRule]:
    """What keeps the clients of `owner` away from the entries that follow theirs."""
    everyone = SourceGuard(owner.namespaces)
    if any(rule.guard == everyone for rule in routes):
        if not any(rule.guard == everyone and rule.catch_all for rule in routes):
            yield RouteRule(RuleKind.NOT_FOUND, everyone, catch_all=True)
        return
    yield from _not_found(routes)
    yield RouteRule(RuleKind.DEFAULT, everyone, (RouteTarget(host, port),), catch_all=True)


def _not_found(routes: tuple[RouteRule, ...]) -> Iterator[RouteRule]:
    """404 for each group of clients that has routes; the others follow."""
    closed = {rule.guard for rule in routes if rule.catch_all}
    for guard in dict.fromkeys(rule.guard for rule in routes):
        if guard not in closed:
            yield RouteRule(RuleKind.NOT_FOUND, guard, catch_all=True)


def _owner_rules(db: Database, owner: Owner, port: int) -> Iterator[RouteRule]:
    """The entries of one owner, up to and with the first catch-all for all its clients."""
    everyone = SourceGuard(owner.namespaces)
    virtual_service = owner.virtual_service
    for position, http in enumerate(virtual_service.spec.http):
        path = f"spec.http[{position}]"
        if http.delegate is not None:
            text = "delegation is not supported yet: the route is left out, requests go on to the next one"
            refuse(db, "XB2035", virtual_service.id, f"{path}.delegate", text)
            continue
        matches: tuple[HTTPMatchRequest | None, ...] = http.match or (None,)
        for index, match in enumerate(matches):
            guard = _guard(db, virtual_service.id, f"{path}.match[{index}]", match, port, everyone)
            if guard is None:
                continue
            match_path = f"{path}.match[{index}]" if match is not None else ""
            db.cite(Origin(virtual_service.id, match_path or path))
            rule = _rule(db, virtual_service.id, path, match_path, http, match, guard, port)
            yield rule
            if rule.catch_all and guard == everyone:
                return


def _guard(
    db: Database, id: ObjectId, path: str, match: HTTPMatchRequest | None, port: int, everyone: SourceGuard
) -> SourceGuard | None:
    """The clients that a match is for; None if it is not for this port or not for the mesh."""
    if match is None:
        return everyone
    if match.port is not None and match.port != port:
        return None
    if match.gateways:
        if MESH_GATEWAY in match.gateways:
            return everyone
        warn(db, "XB2034", id, f"{path}.gateways", "gateways are not supported yet: the match is left out")
        return None
    namespaces, labels = everyone.namespaces, everyone.labels
    if match.source_namespace:
        if namespaces and match.source_namespace not in namespaces:
            return None
        namespaces = (match.source_namespace,)
    return SourceGuard(namespaces, match.source_labels or labels)


def _rule(
    db: Database,
    id: ObjectId,
    path: str,
    match_path: str,
    http: HTTPRoute,
    match: HTTPMatchRequest | None,
    guard: SourceGuard,
    port: int,
) -> RouteRule:
    name = f"{http.name}.{match.name}" if match is not None and match.name and http.name else http.name
    if match is not None and match.name and not http.name:
        name = match.name
    return RouteRule(
        RuleKind.ROUTE,
        guard,
        _targets(db, id, path, http, port),
        _mirrors(db, id, path, http, port),
        id,
        path,
        match_path,
        name,
        match,
        http,
        _is_catch_all(match),
    )


def _is_catch_all(match: HTTPMatchRequest | None) -> bool:
    """Whether a match accepts every request (istio-translation 2.5); source fields are not asked."""
    if match is None:
        return True
    uri = match.uri
    is_any_path = uri is None or uri.prefix == "/" or uri.regex == ".*"
    others = (
        match.method,
        match.authority,
        match.scheme,
        match.headers,
        match.without_headers,
        match.query_params,
    )
    return is_any_path and not any(others)


def _targets(db: Database, id: ObjectId, path: str, http: HTTPRoute, port: int) -> tuple[RouteTarget, ...]:
    if http.redirect is not None or http.direct_response is not None:
        return ()
    weights = weights_of(db, id, path, tuple(entry.weight for entry in http.route))
    return tuple(
        _target(db, id, f"{path}.route[{position}].destination", entry, weights[position], port)
        for position, entry in enumerate(http.route)
        if weights[position]
    )


def _target(db: Database, id: ObjectId, path: str, entry: HTTPRouteDestination, weight: int, port: int) -> RouteTarget:
    return resolve(db, id, path, entry.destination, from_port=port, weight=weight, headers=entry.headers)


def weights_of(db: Database, id: ObjectId, path: str, weights: tuple[int, ...]) -> tuple[int, ...]:
    """Effective weights: a single destination gets everything, of several those with 0 get nothing."""
    if len(weights) == 1:
        return (1,)
    if weights and not any(weights):
        refuse(db, "XB2043", id, f"{path}.route", "all weights are zero: what this route matches fails")
    return weights


def _mirrors(db: Database, id: ObjectId, path: str, http: HTTPRoute, port: int) -> tuple[MirrorTarget, ...]:
    found = []
    for position, mirror in enumerate(http.mirrors):
        target = resolve(db, id, f"{path}.mirrors[{position}].destination", mirror.destination, from_port=port)
        found.append(MirrorTarget(target, mirror.percentage.value if mirror.percentage else ALL_REQUESTS))
    if http.mirror is not None:
        share = ALL_REQUESTS
        if http.mirror_percentage is not None:
            share = http.mirror_percentage.value
        elif http.mirror_percent is not None:
            share = http.mirror_percent * 10_000
        target = resolve(db, id, f"{path}.mirror", http.mirror, from_port=port)
        found.append(MirrorTarget(target, share))
    return tuple(entry for entry in found if entry.percentage)


def covers(guard: SourceGuard, namespace: str, labels: Labels) -> bool:
    """Whether a client of this namespace and with these labels is meant."""
    is_named = not guard.namespaces or namespace in guard.namespaces
    return is_named and set(guard.labels) <= set(labels)
