"""Frontends: what the kernel does with a connection to a service's address.

On L4 it picks a backend; on L7 it redirects to the node's proxy, once the proxy has what the redirect needs
(`requires`: a virtual host, or the listener for TCP), and after the policy check where one policy covers
everything that the connection could reach.
"""

from __future__ import annotations

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath import names
from xdsbpf.compile.datapath.encoding import resource
from xdsbpf.compile.envoy.names import OUT_HTTP_PORT, OUT_TCP, OUT_TCP_PORT, virtual_host_name
from xdsbpf.compile.envoy.virtual_hosts import virtual_host as virtual_host_of
from xdsbpf.diagnostics import Origin
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed, service_at
from xdsbpf.mesh.inputs import settings
from xdsbpf.mesh.policy_groups import GroupPort, destination_groups
from xdsbpf.mesh.route_values import RouteRule, RuleKind
from xdsbpf.mesh.routes import http_routes
from xdsbpf.mesh.services import PortInfo, service, services
from xdsbpf.mesh.tcp_admission import tcp_groups
from xdsbpf.mesh.traffic_mode import Plane, mode_of
from xdsbpf.model.names import FRONTEND, LISTENER, service_host
from xdsbpf.model.resource import AS_SERVED, Requirement, Resource


@query
def frontend_names(db: Database) -> tuple[str, ...]:
    """Names of all frontends, one per TCP service port, sorted by host and port."""
    return tuple(
        names.frontend_name(owner.address, number)
        for owner in services(db)
        for number in sorted(port.number for port in owner.ports)
    )


@query
def frontend(db: Database, name: str) -> Resource | Absent:
    """The frontend with this name; ABSENT if no service has the address and port."""
    parsed = names.parse_frontend(name)
    found = service_at(db, parsed[0]) if parsed is not None else None
    if parsed is None or found is None:
        return ABSENT
    host = service_host(found[1], found[0], settings(db).domain)
    return _frontend(db, host, parsed[1])


def _frontend(db: Database, host: str, port: int) -> Resource | Absent:
    """The frontend of one service port; ABSENT if there is none."""
    owner = service(db, host)
    info = owner.port(port) if owner is not None else None
    if owner is None or info is None:
        return ABSENT
    db.cite(Origin(owner.object, "spec"))
    message = datapath_pb2.Frontend(
        address=packed(owner.address),
        port=port,
        protocol=datapath_pb2.TCP,
        service=names.backends_name(host, port),
    )
    need = _requirement(db, host, info) if mode_of(db, host, port).plane is Plane.L7 else None
    if need is None:
        message.balance.backends = names.backends_name(host, port)
    else:
        guard = connect_policy(db, host, port)
        message.redirect.proxy_port = OUT_HTTP_PORT if info.is_http else OUT_TCP_PORT
        if guard is not None:
            message.redirect.policy = guard.group
            message.redirect.policy_port = guard.port
    name = names.frontend_name(owner.address, port)
    return resource(FRONTEND, name, message, (need,) if need is not None else ())


def _requirement(db: Database, host: str, info: PortInfo) -> Requirement | None:
    """What the proxy must hold before connections are redirected to it; None if there is no such thing.

    HTTP: the virtual host, at its present version. TCP: the listener as it is served, which knows who may connect;
    its version is not written down, or every such frontend would change with every policy of any of them.
    """
    if not info.is_http:
        return Requirement(LISTENER, OUT_TCP, AS_SERVED)
    found = virtual_host_of(db, virtual_host_name(info.number, host))
    return None if found is ABSENT else Requirement(found.type_url, found.name, found.version)


@query
def connect_policy(db: Database, host: str, port: int) -> GroupPort | None:
    """The one policy and workload port behind an L7 service port; None if there is not exactly one.

    Policies guard workloads, so what counts is where the routes lead, not the service that is
    dialled. With several policies, or an answer that reaches no workload, the proxy decides.
    """
    owner = service(db, host)
    info = owner.port(port) if owner is not None else None
    is_tcp = info is not None and not info.is_http
    found = set(tcp_groups(db, host, port)) if is_tcp else _http_groups(db, host, port)
    only = next(iter(found)) if len(found) == 1 else None
    return only if only is not None and only.group else None


def _http_groups(db: Database, host: str, port: int) -> set[GroupPort]:
    """The groups that the HTTP routes lead to; none if one of them reaches no workload."""
    found: set[GroupPort] = set()
    for rule in http_routes(db, host, port):
        if rule.kind is RuleKind.NOT_FOUND:
            continue
        if _answers_itself(rule):
            return set()
        for target in rule.targets:
            if target.is_known:
                found.update(destination_groups(db, target.host, target.port, target.subset))
    return found


def _answers_itself(rule: RouteRule) -> bool:
    return rule.http is not None and (rule.http.redirect is not None or rule.http.direct_response is not None)
