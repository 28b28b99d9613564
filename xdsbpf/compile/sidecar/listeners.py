"""Outbound listeners of sidecars (LDS, istio-translation.md 6.1): the same for every sidecar of the mesh.

`virtualOutbound` takes what is redirected to 15001 and hands each connection to the listener of its original
destination: `0.0.0.0_<port>` for HTTP, told from other traffic by its first bytes, `<address>_<port>` for TCP. None
of those binds a socket. What no listener is for passes through or is cut off, as the mesh's policy says.
"""

from __future__ import annotations

from typing import Final

from envoy.config.core.v3.base_pb2 import TrafficDirection
from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.listener.http_inspector.v3.http_inspector_pb2 import HttpInspector
from google.protobuf.duration_pb2 import Duration

from xdsbpf.compile.envoy.codes import warn
from xdsbpf.compile.envoy.encoding import any_of, resource
from xdsbpf.compile.envoy.listeners import port_numbers
from xdsbpf.compile.envoy.names import ClusterKey
from xdsbpf.compile.sidecar import names
from xdsbpf.compile.sidecar.managers import destination_port, outbound_manager, tcp_proxy
from xdsbpf.diagnostics import Origin
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import service_at
from xdsbpf.mesh.destination_rules import effective_policy
from xdsbpf.mesh.inputs import settings
from xdsbpf.mesh.route_values import RouteTarget
from xdsbpf.mesh.services import MeshService, service, services
from xdsbpf.mesh.tcp_routes import tcp_destinations
from xdsbpf.mesh.virtual_services import owners
from xdsbpf.model.names import LISTENER, service_host
from xdsbpf.model.resource import Resource
from xdsbpf.model.scalars import Pairs

PORT_RESERVED: Final = "XB3054"
"""A service port that a sidecar itself listens on: sidecars cannot carry it."""
HTTP_VERSIONS = ("http/1.1", "h2c")


@query
def listener_names(db: Database) -> tuple[str, ...]:
    """The capturing listener, one per HTTP port number, one per TCP service port."""
    http = tuple(names.listener_name(names.ANY_ADDRESS, port) for port in port_numbers(db))
    tcp = tuple(
        names.listener_name(owner.address, port.number)
        for owner in services(db)
        for port in owner.ports
        if not port.is_http
    )
    return (names.OUTBOUND, *http, *tcp)


@query
def listener(db: Database, name: str) -> Resource | Absent:
    """A listener by name; ABSENT for a name of nothing, or a port that sidecars keep for themselves (reported)."""
    if name == names.OUTBOUND:
        return resource(LISTENER, name, _capture(db))
    found = names.parse_listener(name)
    if found is None or found[1] in names.RESERVED_PORTS:
        _report_reserved(db, name, found)
        return ABSENT
    address, port = found
    if address == names.ANY_ADDRESS:
        return resource(LISTENER, name, _http(db, name, port)) if port in port_numbers(db) else ABSENT
    owner = _service_at(db, address)
    info = owner.port(port) if owner is not None else None
    if owner is None or info is None or info.is_http:
        return ABSENT
    return resource(LISTENER, name, _tcp(db, name, owner, port))


def _service_at(db: Database, address: str) -> MeshService | None:
    key = service_at(db, address)
    return service(db, service_host(key[1], key[0], settings(db).domain)) if key is not None else None


def _capture(db: Database) -> Listener:
    message = _listener(names.OUTBOUND, names.ANY_ADDRESS, names.OUTBOUND_PORT)
    message.use_original_dst.value = True
    own = message.filter_chains.add(name=f"{names.OUTBOUND}-blackhole")
    own.filter_chain_match.destination_port.CopyFrom(destination_port(names.OUTBOUND_PORT))
    own.filters.append(tcp_proxy(names.BLACK_HOLE, ((names.BLACK_HOLE, 1),)))
    message.filter_chains.add(name=f"{names.OUTBOUND}-catchall-tcp", filters=[_passthrough(db)])
    return message


def _http(db: Database, name: str, port: int) -> Listener:
    message = _unbound(name, names.ANY_ADDRESS, port)
    message.listener_filters.add(name=names.HTTP_INSPECTOR, typed_config=any_of(HttpInspector()))
    chain = message.filter_chains.add(filters=[outbound_manager(port)])
    chain.filter_chain_match.transport_protocol = "raw_buffer"
    chain.filter_chain_match.application_protocols.extend(HTTP_VERSIONS)
    message.default_filter_chain.CopyFrom(FilterChain(name=names.PASSTHROUGH_CHAIN, filters=[_passthrough(db)]))
    return message


def _tcp(db: Database, name: str, owner: MeshService, port: int) -> Listener:
    targets = tcp_destinations(db, owner.host, port) or (RouteTarget(owner.host, port),)
    weighted: Pairs[int] = tuple((str(ClusterKey(one.port, one.subset, one.host)), one.weight) for one in targets)
    stat_prefix = weighted[0][0]
    if len(weighted) > 1:
        rule = owners(db, owner.host)[-1].virtual_service
        stat_prefix = f"{rule.name}.{rule.namespace}"
    first = targets[0]
    pool = effective_policy(db, first.host, first.port, first.subset).connection_pool
    message = _unbound(name, owner.address, port)
    limits = pool.tcp if pool is not None else None
    message.filter_chains.add(filters=[tcp_proxy(stat_prefix, weighted, limits)])
    return message


def _unbound(name: str, address: str, port: int) -> Listener:
    """A listener that gets its connections from the capturing one."""
    message = _listener(name, address, port)
    message.bind_to_port.value = False
    message.continue_on_listener_filters_timeout = True
    message.listener_filters_timeout.CopyFrom(Duration())
    return message


def _listener(name: str, address: str, port: int) -> Listener:
    message = Listener(name=name, traffic_direction=TrafficDirection.OUTBOUND)
    message.address.socket_address.address = address
    message.address.socket_address.port_value = port
    return message


def _passthrough(db: Database) -> Filter:
    """Where traffic goes that is for no service."""
    name = names.BLACK_HOLE if settings(db).registry_only else names.PASSTHROUGH
    return tcp_proxy(name, ((name, 1),))


def _report_reserved(db: Database, name: str, found: tuple[str, int] | None) -> None:
    for owner in services(db) if found is not None else ():
        port = owner.port(found[1]) if found is not None else None
        if port is not None and name in (
            names.listener_name(owner.address, port.number),
            f"{names.ANY_ADDRESS}_{port.number}",
        ):
            text = f"sidecars listen on {port.number} themselves: they do not carry this port"
            warn(db.report, PORT_RESERVED, Origin(owner.object, "spec.ports"), text, "use another port number")
