"""Route configurations for gRPC clients: one per service port, with one virtual host for every authority (RDS).

The routes are those that a sidecar's Envoy would get, less what gRPC does not know (`matches`, `actions`). What
every client sees is in the shared scope; a client whose namespace or labels make a difference has its own.
"""

from __future__ import annotations

from envoy.config.route.v3.route_components_pb2 import Route, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from xdsbpf.compile.envoy.codes import check_size
from xdsbpf.compile.envoy.encoding import resource
from xdsbpf.compile.envoy.hash_policy import consistent_hash
from xdsbpf.compile.envoy.names import ClusterKey
from xdsbpf.compile.envoy.route_action import Target
from xdsbpf.compile.proxyless.actions import default_action, grpc_action
from xdsbpf.compile.proxyless.matches import grpc_matches
from xdsbpf.compile.proxyless.names import parse_route_config, route_config_name
from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.clients import ANYBODY, Client, client_class, client_routes, has_guards
from xdsbpf.mesh.destination_rules import effective_policy
from xdsbpf.mesh.route_values import RouteRule, RouteTarget
from xdsbpf.mesh.services import http_ports, service, service_ports
from xdsbpf.model.names import ROUTES
from xdsbpf.model.resource import Resource


@query
def route_config_names(db: Database) -> tuple[str, ...]:
    """One name for each TCP port of each service: a client may speak gRPC to any."""
    return tuple(route_config_name(host, port) for host, port in service_ports(db))


@query
def route_config(db: Database, name: str) -> Resource | Absent:
    """The routes of a service port as somebody unknown sees them; ABSENT for any other name."""
    return _route_config(db, ANYBODY, name)


@query
def own_route_config_names(db: Database, client: Client) -> tuple[str, ...]:
    """The names under which a client may see other routes than everybody."""
    return tuple(route_config_name(host, port) for host, port in http_ports(db) if has_guards(db, host, port))


@query
def own_route_config(db: Database, client: Client, name: str) -> Resource | Absent:
    """The routes of a service port as `client` sees them; shared by all clients of its class."""
    return _route_config(db, client_class(db, client), name)


@query
def _route_config(db: Database, client: Client, name: str) -> Resource | Absent:
    key = parse_route_config(name)
    owner = service(db, key[0]) if key is not None else None
    if key is None or owner is None or owner.port(key[1]) is None:
        return ABSENT
    host, port = key
    rules = client_routes(db, host, port, client)
    info = owner.port(port)
    if info is not None and info.is_http:
        routes = [route for rule in rules for route in _routes_of(db, rule)]
    else:
        routes = [_matched_always(default_action(_target(db, None, RouteTarget(host, port))))]
    everything = VirtualHost(name=f"{host}:{port}", domains=["*"], routes=routes)
    built = resource(ROUTES, name, RouteConfiguration(name=name, virtual_hosts=[everything]))
    check_size(db.report, Origin(owner.object, "spec"), built)
    return built


def _routes_of(db: Database, rule: RouteRule) -> list[Route]:
    """The routes of one rule: none if no gRPC call can match it."""
    if rule.http is None or rule.virtual_service is None:
        return [_matched_always(default_action(_target(db, rule, rule.targets[0])))]
    where = Origin(rule.virtual_service, rule.path)
    db.cite(Origin(rule.virtual_service, rule.match_path or rule.path))
    matches = grpc_matches(rule.match, Origin(rule.virtual_service, rule.match_path), db.report)
    if not matches:
        return []
    targets = tuple(_target(db, rule, target) for target in rule.targets)
    action = grpc_action(rule.http, targets, where, db.report)
    action.name = rule.name
    routes: list[Route] = []
    for match in matches:
        route = Route()
        route.CopyFrom(action)
        route.match.CopyFrom(match)
        routes.append(route)
    return routes


def _matched_always(route: Route) -> Route:
    route.match.prefix = "/"
    return route


def _target(db: Database, rule: RouteRule | None, target: RouteTarget) -> Target:
    policy = effective_policy(db, target.host, target.port, target.subset)
    manifest = rule.virtual_service if rule is not None else None
    owner = service(db, target.host)
    source = manifest or (owner.object if owner is not None else ObjectId("Service", "", target.host))
    cluster = str(ClusterKey(target.port, target.subset, target.host))
    place = Origin(source, target.path.removesuffix(".destination"))
    return Target(cluster, target.weight, place, target.headers, consistent_hash(policy.load_balancer))
