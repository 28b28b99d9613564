"""Frontends: what the kernel does with a connection to a service's address.

On L4 it picks a backend; on L7 it redirects to the node's proxy, once the proxy has the virtual host
that the redirect needs (`requires`), and after the policy check where one policy covers everything
that the connection could reach.
"""

from __future__ import annotations

from typing import Final

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath import names
from xdsbpf.compile.datapath.encoding import resource
from xdsbpf.compile.envoy.names import virtual_host_name
from xdsbpf.compile.envoy.virtual_hosts import virtual_host as virtual_host_of
from xdsbpf.diagnostics import Origin
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import packed, service_at
from xdsbpf.mesh.inputs import settings
from xdsbpf.mesh.policy_groups import GroupPort, destination_groups
from xdsbpf.mesh.route_values import RouteRule, RuleKind
from xdsbpf.mesh.routes import http_routes
from xdsbpf.mesh.services import service, services
from xdsbpf.mesh.traffic_mode import Plane, traffic_mode
from xdsbpf.model.names import FRONTEND, service_host
from xdsbpf.model.resource import Requirement, Resource

PROXY_PORT: Final = 15001
"""Port of the node proxy's listener for HTTP (DESIGN 2)."""


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
    return frontend_resource(db, host, parsed[1])


@query
def frontend_resource(db: Database, host: str, port: int) -> Resource | Absent:
    """The frontend of one service port; ABSENT if there is none.

    A redirect requires the virtual host that the proxy serves it with, at its present version.
    """
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
    requires: tuple[Requirement, ...] = ()
    virtual_host: Resource | Absent = ABSENT
    if traffic_mode(db, host, port).plane is Plane.L7:
        virtual_host = virtual_host_of(db, virtual_host_name(port, host))
    if virtual_host is ABSENT:
        message.balance.backends = names.backends_name(host, port)
    else:
        guard = connect_policy(db, host, port)
        message.redirect.proxy_port = PROXY_PORT
        if guard is not None:
            message.redirect.policy = guard.group
            message.redirect.policy_port = guard.port
        requires = (Requirement(virtual_host.type_url, virtual_host.name, virtual_host.version),)
    return resource(FRONTEND, names.frontend_name(owner.address, port), message, requires)


@query
def connect_policy(db: Database, host: str, port: int) -> GroupPort | None:
    """The one policy and workload port behind an L7 service port; None if there is not exactly one.

    Policies guard workloads, so what counts is where the routes lead, not the service that is
    dialled. With several policies, or an answer that reaches no workload, the proxy decides per request.
    """
    found: set[GroupPort] = set()
    for rule in http_routes(db, host, port):
        if rule.kind is RuleKind.NOT_FOUND:
            continue
        if _answers_itself(rule):
            return None
        for target in rule.targets:
            if target.is_known:
                found.update(destination_groups(db, target.host, target.port, target.subset))
    only = next(iter(found)) if len(found) == 1 else None
    return only if only is not None and only.group else None


def _answers_itself(rule: RouteRule) -> bool:
    return rule.http is not None and (rule.http.redirect is not None or rule.http.direct_response is not None)
