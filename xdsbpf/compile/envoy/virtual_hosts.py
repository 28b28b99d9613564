"""One virtual host per HTTP service port: its domains and its ordered, guarded routes (VHDS).

A virtual host exists for every HTTP port whichever plane carries it, so that connections that are on
the proxy already keep working when a service moves to the kernel. All clients of a node share it:
who may use which route is decided by source guards inside the routes.
"""

from __future__ import annotations

from typing import Final

from envoy.config.route.v3.route_components_pb2 import DirectResponseAction, Route, RouteMatch, VirtualHost
from envoy.type.matcher.v3.filter_state_pb2 import FilterStateMatcher

from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.attributes import guard_alternatives
from xdsbpf.compile.envoy.codes import (
    MIRROR_WITHHELD,
    ROUTE_LEFT_OUT,
    SHORT_NAME_SHARED,
    at,
    fail,
    note,
    warn,
)
from xdsbpf.compile.envoy.encoding import resource
from xdsbpf.compile.envoy.hash_policy import consistent_hash
from xdsbpf.compile.envoy.rbac import cluster_filters
from xdsbpf.compile.envoy.route_action import Mirror, Target, default_route, http_route
from xdsbpf.compile.envoy.route_match import is_catch_all, match_error, route_match
from xdsbpf.compile.envoy.routes import route_config_requirement
from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import ABSENT, Absent, Database, Index, query
from xdsbpf.mesh.destination_rules import effective_policy
from xdsbpf.mesh.inputs import SERVICES, settings
from xdsbpf.mesh.route_values import RouteRule, RouteTarget, RuleKind
from xdsbpf.mesh.routes import http_routes
from xdsbpf.mesh.services import MeshService, http_ports, service
from xdsbpf.model.names import VIRTUAL_HOST, service_host
from xdsbpf.model.resource import Resource

SERVICES_BY_BARE_NAME = Index("services_by_bare_name", SERVICES, keys=lambda v: (v.name,))
FAILED_BODY: Final = "the route of this request is not usable\n"
NOT_FOUND_BODY: Final = "no route of this host matches the request\n"


@query
def virtual_host_names(db: Database) -> tuple[str, ...]:
    """Names of all virtual hosts: one per HTTP service port, sorted by host and port."""
    return tuple(names.virtual_host_name(port, host) for host, port in http_ports(db))


@query
def virtual_host(db: Database, name: str) -> Resource | Absent:
    """The virtual host resource `<port>/<host>`; ABSENT for any other name, or if the port is not HTTP.

    Its version is what a redirect to the proxy waits for. Cost: O(routes of the host).
    """
    parsed = names.parse_virtual_host(name)
    owner = service(db, parsed[1]) if parsed is not None else None
    if parsed is None or owner is None:
        return ABSENT
    port, host = parsed
    info = owner.port(port)
    if info is None or not info.is_http:
        return ABSENT
    message = VirtualHost(name=name, domains=_domains(db, owner, port), include_request_attempt_count=True)
    for rule in http_routes(db, host, port):
        message.routes.extend(routes_of(db, rule, port, guard_alternatives(rule.guard), is_checked=True))
    if not message.routes or not is_catch_all(message.routes[-1].match):
        message.routes.append(_not_found(RouteMatch(prefix="/")))
    return resource(VIRTUAL_HOST, name, message, requires=(route_config_requirement(port),))


def _domains(db: Database, owner: MeshService, port: int) -> list[str]:
    """Every name that a client may write for the service; ports are ignored by the route configuration."""
    short = f"{owner.name}.{owner.namespace}"
    domains = [owner.host, f"{owner.host}.", short, f"{short}.svc", owner.address]
    others = _namesakes(db, owner, port)
    if others == (owner.namespace,):
        domains.insert(2, owner.name)
    else:
        note(
            db.report,
            SHORT_NAME_SHARED,
            Origin(owner.object, "metadata.name"),
            f"{', '.join(others)} each have a service {owner.name} with HTTP port {port}: "
            f"requests for the bare name {owner.name!r} are answered 404",
            f"clients of the proxy must use {short}",
        )
    return domains


def _namesakes(db: Database, owner: MeshService, port: int) -> tuple[str, ...]:
    """Namespaces with a service of a service's name that has this HTTP port, as it has itself; sorted."""
    found = db.bucket(SERVICES_BY_BARE_NAME, owner.name)
    if len(found) == 1:
        return (owner.namespace,)
    namespaces = sorted({other.namespace for other in found})
    return tuple(namespace for namespace in namespaces if _has_http_port(db, owner.name, namespace, port))


def _has_http_port(db: Database, name: str, namespace: str, port: int) -> bool:
    found = service(db, service_host(name, namespace, settings(db).domain))
    info = found.port(port) if found is not None else None
    return info is not None and info.is_http


def routes_of(
    db: Database,
    rule: RouteRule,
    port: int,
    alternatives: tuple[tuple[FilterStateMatcher, ...], ...],
    *,
    is_checked: bool,
) -> list[Route]:
    """The Envoy routes of one rule: one for each alternative of its sources, none if it cannot be expressed.

    `is_checked`: this proxy decides for the destination who may call it, so the policies of the destination's
    workloads stand on the route. A client's own proxy leaves that to the destination.
    """
    if rule.kind is RuleKind.NOT_FOUND:
        return [_not_found(RouteMatch(prefix="/", filter_state=source)) for source in alternatives]
    if rule.kind is RuleKind.DEFAULT or rule.http is None or rule.virtual_service is None:
        route = default_route(_target(db, rule, rule.targets[0], is_checked=is_checked))
        return _with_matches(route, [RouteMatch(prefix="/", filter_state=source) for source in alternatives])
    where = Origin(rule.virtual_service, rule.path)
    db.cite(Origin(rule.virtual_service, rule.match_path or rule.path))
    path, reason = match_error(rule.match) if rule.match is not None else ("", "")
    if reason:
        place = Origin(rule.virtual_service, f"{rule.match_path}.{path}")
        fail(db.report, ROUTE_LEFT_OUT, place, f"{reason}: requests go on to the routes after this one")
        return []
    targets = tuple(_target(db, rule, target, is_checked=is_checked) for target in rule.targets)
    mirrors = _mirrors(db, rule, where, is_checked=is_checked)
    compiled = http_route(rule.http, targets, mirrors, port, where, db.report)
    if compiled is None:
        compiled = Route(direct_response=_failure())
    compiled.name = rule.name
    if rule.match is not None:
        compiled.stat_prefix = rule.match.stat_prefix
    return _with_matches(compiled, [route_match(rule.match, source) for source in alternatives])


def _with_matches(route: Route, matches: list[RouteMatch]) -> list[Route]:
    """The route for each of the matches; copies of it from the second one on."""
    routes = [route] * len(matches)
    for position, match in enumerate(matches):
        if position:
            routes[position] = Route()
            routes[position].CopyFrom(route)
        routes[position].match.CopyFrom(match)
    return routes


def _not_found(match: RouteMatch) -> Route:
    answer = DirectResponseAction(status=404)
    answer.body.inline_string = NOT_FOUND_BODY
    return Route(name=names.NO_ROUTE, match=match, direct_response=answer)


def _failure() -> DirectResponseAction:
    """The answer where a route's action cannot be expressed: requests fail, they do not go elsewhere."""
    answer = DirectResponseAction(status=503)
    answer.body.inline_string = FAILED_BODY
    return answer


def _target(db: Database, rule: RouteRule, target: RouteTarget, *, is_checked: bool) -> Target:
    settings = effective_policy(db, target.host, target.port, target.subset)
    owner = rule.virtual_service or _object_of(db, target.host)
    return Target(
        _cluster(target),
        target.weight,
        Origin(owner, target.path.removesuffix(".destination")),
        target.headers,
        consistent_hash(settings.load_balancer),
        cluster_filters(db, target.host, target.port, target.subset) if is_checked else (),
    )


def _cluster(target: RouteTarget) -> str:
    return str(names.ClusterKey(target.port, target.subset, target.host))


def _object_of(db: Database, host: str) -> ObjectId:
    found = service(db, host)
    return found.object if found is not None else ObjectId("Service", "", host)


def _mirrors(db: Database, rule: RouteRule, where: Origin, *, is_checked: bool) -> tuple[Mirror, ...]:
    """Mirrors of a rule. One whose destination has a policy is withheld: copies skip the authorisation
    filters, which decide on the route's own destination, and must not reach what the client may not.
    """
    mirrors: list[Mirror] = []
    for mirror in rule.mirrors:
        target = mirror.target
        if is_checked and cluster_filters(db, target.host, target.port, target.subset):
            text = f"nothing is mirrored to {target.host}: copies would skip its authorization policy"
            warn(db.report, MIRROR_WITHHELD, at(Origin(where.object, target.path), ""), text)
        elif mirror.percentage > 0:
            mirrors.append(Mirror(_cluster(target), mirror.percentage))
    return tuple(mirrors)
