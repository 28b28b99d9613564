"""Envoy resources for the conformance tests: small valid messages that carry an edition number.

In: a name and an edition. Out: the message to serve. The other way round, `name_of` and `edition_of` read both back
from what a server sent, so a test compares `{"a": 2}` and not bytes: a server may serialise as it likes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.endpoint.v3.endpoint_components_pb2 import LbEndpoint
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.config.route.v3.scoped_route_pb2 import ScopedRouteConfiguration
from envoy.extensions.filters.http.header_mutation.v3.header_mutation_pb2 import HeaderMutation
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext
from envoy.service.runtime.v3.rtds_pb2 import Runtime
from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.message import Message

PREFIX = "type.googleapis.com/"
CDS = PREFIX + Cluster.DESCRIPTOR.full_name
EDS = PREFIX + ClusterLoadAssignment.DESCRIPTOR.full_name
LDS = PREFIX + Listener.DESCRIPTOR.full_name
RDS = PREFIX + RouteConfiguration.DESCRIPTOR.full_name
SRDS = PREFIX + ScopedRouteConfiguration.DESCRIPTOR.full_name
VHDS = PREFIX + VirtualHost.DESCRIPTOR.full_name
SDS = PREFIX + Secret.DESCRIPTOR.full_name
ECDS = PREFIX + TypedExtensionConfig.DESCRIPTOR.full_name
RTDS = PREFIX + Runtime.DESCRIPTOR.full_name
LEDS = PREFIX + LbEndpoint.DESCRIPTOR.full_name
UNKNOWN = PREFIX + "conformance.v1.NoSuchType"

_BASE_PORT = 10_000


class Served(msgspec.Struct, frozen=True):
    """A resource that a driver is to serve; `ttl_s` of 0 is none."""

    name: str
    message: Message
    ttl_s: float = 0.0

    @property
    def type_url(self) -> str:
        """Its type."""
        return PREFIX + self.message.DESCRIPTOR.full_name


def cluster(name: str, edition: int = 1, *, service_name: str = "", secret: str = "") -> Served:
    """An EDS cluster over ADS; `service_name` names its endpoints, else they have the cluster's name.

    With `secret` it speaks TLS and takes its certificate under that name, over ADS.
    """
    message = Cluster(name=name, type=Cluster.EDS)
    message.connect_timeout.seconds = edition
    message.eds_cluster_config.eds_config.ads.SetInParent()
    message.eds_cluster_config.eds_config.resource_api_version = 2
    message.eds_cluster_config.service_name = service_name
    if secret:
        tls = UpstreamTlsContext()
        certificate = tls.common_tls_context.tls_certificate_sds_secret_configs.add(name=secret)
        certificate.sds_config.ads.SetInParent()
        message.transport_socket.name = "envoy.transport_sockets.tls"
        message.transport_socket.typed_config.Pack(tls)
    return Served(name, message)


def endpoints(name: str, edition: int = 1, *, size: int = 1, collection: str = "") -> Served:
    """Endpoints on loopback, `size` of them, or in a collection besides; edition 0 is the empty assignment."""
    message = ClusterLoadAssignment(cluster_name=name)
    if edition:
        locality = message.endpoints.add()
        locality.load_balancing_weight.value = 1
        for number in range(size):
            address = locality.lb_endpoints.add().endpoint.address.socket_address
            address.address = f"127.{number >> 16 & 255}.{number >> 8 & 255}.{(number & 255) or 1}"
            address.port_value = _BASE_PORT + edition
    if collection:
        leds = message.endpoints.add(priority=1).leds_cluster_locality_config
        leds.leds_config.ads.SetInParent()
        leds.leds_collection_name = collection
    return Served(name, message)


def endpoint(name: str, edition: int = 1) -> Served:
    """One endpoint on loopback, for LEDS; its message holds no name."""
    message = LbEndpoint()
    address = message.endpoint.address.socket_address
    address.address, address.port_value = "127.0.0.1", _BASE_PORT + edition
    return Served(name, message)


def listener(name: str, edition: int = 1, *, route: str = "") -> Served:
    """A listener with an HTTP connection manager that takes `route` over ADS, or has a route of its own."""
    message = Listener(name=name)
    message.per_connection_buffer_limit_bytes.value = edition
    message.address.socket_address.address = "127.0.0.1"
    message.address.socket_address.port_value = _BASE_PORT + sum(name.encode()) % 1000
    manager = HttpConnectionManager(stat_prefix=name)
    if route:
        manager.rds.route_config_name = route
        manager.rds.config_source.ads.SetInParent()
        manager.rds.config_source.resource_api_version = 2
    else:
        manager.route_config.name = f"{name}-inline"
    manager.http_filters.add(name="envoy.filters.http.router").typed_config.Pack(Router())
    network = message.filter_chains.add().filters.add(name="envoy.filters.network.http_connection_manager")
    network.typed_config.Pack(manager)
    return Served(name, message)


def routes(name: str, edition: int = 1, *, to: str = "") -> Served:
    """A route configuration; `to` is the cluster of its only route, else it answers by itself."""
    message = RouteConfiguration(name=name)
    message.max_direct_response_body_size_bytes.value = edition
    host = message.virtual_hosts.add(name="all", domains=["*"])
    _route(host, to)
    return Served(name, message)


def virtual_host(name: str, edition: int = 1, *, to: str = "") -> Served:
    """The virtual host `route configuration/host`, for VHDS."""
    message = VirtualHost(name=name, domains=[name.partition("/")[2]])
    message.per_request_buffer_limit_bytes.value = edition
    _route(message, to)
    return Served(name, message)


def scoped_route(name: str, edition: int = 1) -> Served:
    """A scope of requests."""
    message = ScopedRouteConfiguration(name=name, route_configuration_name=f"r{edition}")
    message.key.fragments.add(string_key=name)
    return Served(name, message)


def secret(name: str, edition: int = 1) -> Served:
    """A generic secret."""
    message = Secret(name=name)
    message.generic_secret.secret.inline_string = str(edition)
    return Served(name, message)


def runtime(name: str, edition: int = 1, *, ttl_s: float = 0.0) -> Served:
    """A layer of runtime values."""
    message = Runtime(name=name)
    message.layer["edition"] = edition
    return Served(name, message, ttl_s)


def extension(name: str, edition: int = 1) -> Served:
    """An HTTP filter by ECDS."""
    message = TypedExtensionConfig(name=name)
    mutation = HeaderMutation()
    mutation.mutations.request_mutations.add(remove=f"x-{edition}")
    message.typed_config.Pack(mutation)
    return Served(name, message)


def _route(host: VirtualHost, to: str) -> None:
    route = host.routes.add()
    route.match.prefix = "/"
    if to:
        route.route.cluster = to
    else:
        route.direct_response.status = 200


def _endpoints_edition(message: Any) -> int:
    if not message.endpoints:
        return 0
    return int(message.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value) - _BASE_PORT


def _extension_edition(message: Any) -> int:
    mutation = HeaderMutation()
    message.typed_config.Unpack(mutation)
    return int(mutation.mutations.request_mutations[0].remove.removeprefix("x-"))


_EDITIONS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    LEDS: (LbEndpoint, lambda message: message.endpoint.address.socket_address.port_value - _BASE_PORT),
    CDS: (Cluster, lambda message: message.connect_timeout.seconds),
    EDS: (ClusterLoadAssignment, _endpoints_edition),
    LDS: (Listener, lambda message: message.per_connection_buffer_limit_bytes.value),
    RDS: (RouteConfiguration, lambda message: message.max_direct_response_body_size_bytes.value),
    VHDS: (VirtualHost, lambda message: message.per_request_buffer_limit_bytes.value),
    SRDS: (ScopedRouteConfiguration, lambda message: int(message.route_configuration_name[1:])),
    SDS: (Secret, lambda message: int(message.generic_secret.secret.inline_string)),
    RTDS: (Runtime, lambda message: int(message.layer["edition"])),
    ECDS: (TypedExtensionConfig, _extension_edition),
}

BUILDERS: dict[str, Callable[..., Served]] = {
    CDS: cluster,
    EDS: endpoints,
    LEDS: endpoint,
    LDS: listener,
    RDS: routes,
    VHDS: virtual_host,
    SRDS: scoped_route,
    SDS: secret,
    RTDS: runtime,
    ECDS: extension,
}
"""Type -> how to make one of its resources from a name and an edition."""


def read_any(packed: ProtoAny) -> tuple[str, int]:
    """Name ("" if there is none in it) and edition of a resource as a server sent it.

    A type that is not served here is an assertion error.
    """
    assert packed.type_url in _EDITIONS, f"a resource of type {packed.type_url!r} was never served"
    kind, edition = _EDITIONS[packed.type_url]
    message = kind()
    message.ParseFromString(packed.value)
    return getattr(message, "cluster_name" if packed.type_url == EDS else "name", ""), edition(message)
