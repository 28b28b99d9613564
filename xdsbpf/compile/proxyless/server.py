"""Listeners for gRPC servers that take their configuration over xDS (gRFC A36, A41).

A server asks for the name that its bootstrap makes of the address it listens on. There is one for each port that a
service sends traffic to and each address of `ANY_ADDRESSES`; calls are admitted or denied by the port and the address
they come from, because without certificates a policy cannot tell who the peers are.
"""

from __future__ import annotations

from envoy.config.core.v3.base_pb2 import TrafficDirection
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC as Filter
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.encoding import any_of, cidr_range, resource
from xdsbpf.compile.proxyless.names import ANY_ADDRESSES, SERVER_PREFIX, parse_target
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.clients import Client
from xdsbpf.mesh.inbound import inbound_ports
from xdsbpf.mesh.unauthenticated import admissions, unproven_policies
from xdsbpf.model.names import LISTENER
from xdsbpf.model.resource import Resource


@query
def server_listener_names(db: Database, client: Client) -> tuple[str, ...]:
    """A name for each port of the workload and each address a server may listen on."""
    ports = inbound_ports(db, client)
    return tuple(f"{SERVER_PREFIX}{address}:{port.number}" for port in ports for address in ANY_ADDRESSES)


@query
def server_listener(db: Database, client: Client, name: str) -> Resource | Absent:
    """The listener of a server's address; ABSENT if no service sends traffic there."""
    address = parse_target(name.removeprefix(SERVER_PREFIX)) if name.startswith(SERVER_PREFIX) else None
    if address is None or all(port.number != address[1] for port in inbound_ports(db, client)):
        return ABSENT
    message = Listener(name=name, traffic_direction=TrafficDirection.INBOUND)
    message.address.socket_address.address = address[0].strip("[]")
    message.address.socket_address.port_value = address[1]
    for admission in admissions(unproven_policies(db, client), address[1]):
        manager = _manager(address[1], is_denied=admission.is_closed)
        chain = message.filter_chains.add(name="denied" if admission.is_closed else "inbound")
        if admission.blocks:
            chain.filter_chain_match.source_prefix_ranges.extend(map(cidr_range, admission.blocks))
        chain.filters.add(name=names.CONNECTION_MANAGER, typed_config=any_of(manager))
    return resource(LISTENER, name, message, on_demand=True)


def _manager(port: int, *, is_denied: bool) -> HttpConnectionManager:
    manager = HttpConnectionManager(stat_prefix=f"inbound_{port}")
    if is_denied:
        # An ALLOW without a policy lets nothing pass.
        nobody = Filter(rules=RBAC(action=RBAC.ALLOW))
        manager.http_filters.add(name=names.AUTHZ_ALLOW, typed_config=any_of(nobody))
    manager.http_filters.add(name=names.ROUTER, typed_config=any_of(Router()))
    manager.route_config.name = f"inbound|{port}||"
    everything = manager.route_config.virtual_hosts.add(name=f"inbound|http|{port}", domains=["*"])
    route = everything.routes.add()
    route.match.prefix = "/"
    route.non_forwarding_action.SetInParent()
    return manager
