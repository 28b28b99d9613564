"""Route configurations: one per HTTP port number, filled with virtual hosts over VHDS (RDS).

It holds no host of its own but a catch-all that answers 404. Without it a request for an unknown host
would make Envoy ask for it and wait for ever.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from envoy.config.route.v3.route_components_pb2 import Route, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.encoding import over_ads, resource
from xdsbpf.compile.envoy.listeners import port_numbers
from xdsbpf.compile.envoy.local_replies import MAX_BODY
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.model.names import ROUTES
from xdsbpf.model.resource import Requirement, Resource

UNKNOWN_HOST_BODY: Final = "no such host in the mesh on this port\n"


@query
def route_config_names(db: Database) -> tuple[str, ...]:
    """One name for each port number of the listener."""
    return tuple(names.route_config_name(port) for port in port_numbers(db))


@query
def route_config(db: Database, name: str) -> Resource | Absent:
    """The route configuration of a port number; ABSENT if the listener has no such port."""
    port = names.parse_port(name)
    if port is None or port not in port_numbers(db):
        return ABSENT
    return route_config_of(port)


@cache
def route_config_of(port: int) -> Resource:
    """The route configuration of a port: it depends on nothing else."""
    return resource(ROUTES, names.route_config_name(port), route_configuration(port))


def route_config_requirement(port: int) -> Requirement:
    """What must have been ACKed before a virtual host of this port is sent.

    Envoy drops a virtual host whose route configuration it does not have yet, acknowledges it all the
    same, and would then wait for it for ever.
    """
    found = route_config_of(port)
    return Requirement(ROUTES, found.name, found.version)


def route_configuration(port: int) -> RouteConfiguration:
    """The route configuration of a port: VHDS, and 404 for every unknown host."""
    message = RouteConfiguration(name=names.route_config_name(port), ignore_port_in_host_matching=True)
    message.validate_clusters.value = False
    message.max_direct_response_body_size_bytes.value = MAX_BODY
    message.vhds.config_source.CopyFrom(over_ads())
    unknown = Route(name=names.CATCH_ALL_HOST)
    unknown.match.prefix = "/"
    unknown.direct_response.status = 404
    unknown.direct_response.body.inline_string = UNKNOWN_HOST_BODY
    message.virtual_hosts.append(VirtualHost(name=names.CATCH_ALL_HOST, domains=["*"], routes=[unknown]))
    return message
