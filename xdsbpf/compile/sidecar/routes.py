"""Route configurations of sidecars: one per HTTP port number, with every host of the mesh inside (RDS).

Encoded virtual hosts are joined by the namespace of their service, then by port, so that a change of one rule
encodes one of them again and copies the rest. Clients that no rule tells apart share all of it.
"""

from __future__ import annotations

from envoy.config.route.v3.route_components_pb2 import Route, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from google.protobuf.duration_pb2 import Duration

from xdsbpf.compile.envoy.listeners import port_numbers
from xdsbpf.compile.envoy.local_replies import MAX_BODY
from xdsbpf.compile.envoy.names import parse_port, route_config_name
from xdsbpf.compile.envoy.virtual_hosts import routes_of
from xdsbpf.compile.sidecar.names import ALLOW_ANY, BLOCK_ALL, PASSTHROUGH
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.clients import Client, client_class, client_routes
from xdsbpf.mesh.inbound import SERVICES_BY_NAMESPACE
from xdsbpf.mesh.inputs import settings
from xdsbpf.mesh.services import MeshService, service
from xdsbpf.model.names import ROUTES, service_host
from xdsbpf.model.resource import Resource, make_resource

EVERY_SOURCE = ((),)
"""One alternative without conditions: the routes were chosen for the client already."""


@query
def route_config_names(db: Database, client: Client) -> tuple[str, ...]:
    """One name for each port number that speaks HTTP anywhere in the mesh."""
    return tuple(route_config_name(port) for port in port_numbers(db))


@query
def route_config(db: Database, client: Client, name: str) -> Resource | Absent:
    """The routes of a port number for `client`; ABSENT for a number that nobody speaks HTTP on."""
    port = parse_port(name)
    if port is None or port not in port_numbers(db):
        return ABSENT
    return _route_config(db, client_class(db, client), port)


@query
def _route_config(db: Database, client: Client, port: int) -> Resource:
    message = RouteConfiguration(name=route_config_name(port), ignore_port_in_host_matching=True)
    message.validate_clusters.value = False
    message.max_direct_response_body_size_bytes.value = MAX_BODY
    parts = [_virtual_hosts(db, client, port, namespace) for namespace in db.bucket_keys(SERVICES_BY_NAMESPACE)]
    rest = RouteConfiguration(virtual_hosts=[_any_other_host(db)])
    # Fields of one message may follow each other in any order: what is encoded already is copied.
    encoded = (message.SerializeToString(deterministic=True), *parts, rest.SerializeToString(deterministic=True))
    return make_resource(ROUTES, message.name, b"".join(encoded))


@query
def _virtual_hosts(db: Database, client: Client, port: int, namespace: str) -> bytes:
    """The encoded virtual hosts of one namespace's services on a port, as fields of a RouteConfiguration."""
    domain = settings(db).domain
    hosts = sorted(
        service_host(manifest.name, namespace, domain) for manifest in db.bucket(SERVICES_BY_NAMESPACE, namespace)
    )
    return b"".join(_virtual_host(db, client, host, port) for host in hosts if _has_http_port(db, host, port))


def _has_http_port(db: Database, host: str, port: int) -> bool:
    owner = service(db, host)
    info = owner.port(port) if owner is not None else None
    return info is not None and info.is_http


@query
def _virtual_host(db: Database, client: Client, host: str, port: int) -> bytes:
    """One encoded virtual host, as a field of a RouteConfiguration."""
    owner = service(db, host)
    if owner is None:
        return b""
    message = VirtualHost(name=f"{host}:{port}", domains=_domains(owner, client), include_request_attempt_count=True)
    for rule in client_routes(db, host, port, client):
        message.routes.extend(routes_of(db, rule, port, EVERY_SOURCE, is_checked=False))
    return bytes(RouteConfiguration(virtual_hosts=[message]).SerializeToString(deterministic=True))


def _domains(owner: MeshService, client: Client) -> list[str]:
    """Every name by which clients of a namespace may call a service (istio-translation 1.5)."""
    short = f"{owner.name}.{owner.namespace}"
    bare = [owner.name] if client.namespace == owner.namespace else []
    return [owner.host, f"{owner.host}.", *bare, short, f"{short}.svc", owner.address]


def _any_other_host(db: Database) -> VirtualHost:
    """What a request for a host gets that is no service of the mesh on this port."""
    if not settings(db).registry_only:
        route = Route(name=ALLOW_ANY)
        route.route.cluster = PASSTHROUGH
        route.route.timeout.CopyFrom(Duration())
        route.route.max_stream_duration.grpc_timeout_header_max.CopyFrom(Duration())
    else:
        route = Route(name=BLOCK_ALL)
        route.direct_response.status = 502
    route.match.prefix = "/"
    return VirtualHost(name=route.name, domains=["*"], routes=[route])
