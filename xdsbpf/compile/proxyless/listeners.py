"""Listeners for gRPC clients: what `xds:///<host>:<port>` names, an API listener that points to its routes (LDS).

Full names are the same for everybody; the bare name of a service is one only for clients of its own namespace.
"""

from __future__ import annotations

from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.encoding import any_of, over_ads, resource
from xdsbpf.compile.proxyless.names import parse_target, route_config_name, target_names
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.clients import Client
from xdsbpf.mesh.inputs import settings
from xdsbpf.mesh.services import MeshService, service, services
from xdsbpf.model.names import LISTENER, service_host
from xdsbpf.model.resource import Resource


@query
def listener_names(db: Database) -> tuple[str, ...]:
    """What clients of every namespace may dial: three names for each service port."""
    return tuple(name for owner in services(db) for port in owner.ports for name in target_names(owner, port.number))


@query
def listener(db: Database, name: str) -> Resource | Absent:
    """The listener of a dialled name; ABSENT if no service port has it."""
    target = parse_target(name)
    owner = _named(db, target[0]) if target is not None else None
    return _listener(name, owner, target[1] if target is not None else 0)


@query
def own_listener_names(db: Database, client: Client) -> tuple[str, ...]:
    """What only clients of the same namespace may dial: bare names."""
    own = (owner for owner in services(db) if owner.namespace == client.namespace)
    return tuple(f"{owner.name}:{port.number}" for owner in own for port in owner.ports)


@query
def own_listener(db: Database, client: Client, name: str) -> Resource | Absent:
    """The listener of a bare name; ABSENT if the client's namespace has no such service port."""
    target = parse_target(name)
    if target is None:
        return ABSENT
    host = service_host(target[0], client.namespace, settings(db).domain)
    return _listener(name, service(db, host), target[1])


def _named(db: Database, written: str) -> MeshService | None:
    """The service of a full name, `<name>.<namespace>` or `<name>.<namespace>.svc`."""
    domain = settings(db).domain
    ending = f".svc.{domain}"
    host = written if written.endswith(ending) else written.removesuffix(".svc") + ending
    return service(db, host)


def _listener(name: str, owner: MeshService | None, port: int) -> Resource | Absent:
    if owner is None or owner.port(port) is None:
        return ABSENT
    manager = HttpConnectionManager(stat_prefix=f"outbound_{port}")
    manager.rds.route_config_name = route_config_name(owner.host, port)
    manager.rds.config_source.CopyFrom(over_ads())
    manager.http_filters.add(name=names.FAULT, typed_config=any_of(HTTPFault()))
    manager.http_filters.add(name=names.ROUTER, typed_config=any_of(Router()))
    message = Listener(name=name)
    message.api_listener.api_listener.CopyFrom(any_of(manager))
    return resource(LISTENER, name, message, on_demand=True)
