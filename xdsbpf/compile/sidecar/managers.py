"""Network filters of a sidecar's chains: HTTP connection managers and TCP proxies (istio-translation.md 6.3, 6.4)."""

from __future__ import annotations

from typing import Any as Message
from typing import Final

from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.config.rbac.v3.rbac_pb2 import RBAC as Rules
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.cors.v3.cors_pb2 import Cors
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import UInt32Value

from xdsbpf.compile.envoy import names as envoy_names
from xdsbpf.compile.envoy.connection_manager import base_manager, refuse_instructions
from xdsbpf.compile.envoy.encoding import any_of, duration, over_ads
from xdsbpf.compile.sidecar import names
from xdsbpf.mesh.inbound import InboundPort
from xdsbpf.mesh.services import Protocol
from xdsbpf.model.destination_rule import TCPSettings
from xdsbpf.model.scalars import Pairs

FILTERS: Final[dict[str, Message]] = {
    envoy_names.FAULT: HTTPFault(),
    envoy_names.CORS: Cors(),
    envoy_names.ROUTER: Router(),
}
INBOUND_RETRY_ON: Final = "reset-before-request"
INBOUND_RETRIES: Final = 2


def outbound_manager(port: int) -> Filter:
    """The connection manager of the listener that all HTTP services of a port number share."""
    message = base_manager(f"outbound_{names.listener_name(names.ANY_ADDRESS, port)};")
    message.rds.route_config_name = envoy_names.route_config_name(port)
    message.rds.config_source.CopyFrom(over_ads())
    for name in names.HTTP_FILTERS:
        message.http_filters.add(name=name, typed_config=any_of(FILTERS[name]))
    return Filter(name=envoy_names.CONNECTION_MANAGER, typed_config=any_of(message))


def inbound_manager(port: InboundPort, *, is_denied: bool) -> Filter:
    """The connection manager of one port of the workload; all requests get 403 where they are denied."""
    message = base_manager(f"inbound_{names.listener_name(names.ANY_ADDRESS, port.number)};")
    message.forward_client_cert_details = HttpConnectionManager.APPEND_FORWARD
    refuse_instructions(message)
    message.route_config.CopyFrom(_inbound_routes(port))
    if is_denied:
        # An ALLOW without a policy lets nothing pass.
        nobody = RBAC(rules=Rules(action=Rules.ALLOW))
        message.http_filters.add(name=envoy_names.AUTHZ_ALLOW, typed_config=any_of(nobody))
    for name in names.HTTP_FILTERS:
        message.http_filters.add(name=name, typed_config=any_of(FILTERS[name]))
    return Filter(name=envoy_names.CONNECTION_MANAGER, typed_config=any_of(message))


def _inbound_routes(port: InboundPort) -> RouteConfiguration:
    cluster = names.inbound_cluster(port.number)
    message = RouteConfiguration(name=cluster)
    message.validate_clusters.value = False
    host = message.virtual_hosts.add(name=f"inbound|http|{port.service_port}", domains=["*"])
    route = host.routes.add(name=envoy_names.DEFAULT_ROUTE)
    route.match.prefix = "/"
    route.route.cluster = cluster
    route.route.timeout.CopyFrom(Duration())
    route.route.max_stream_duration.max_stream_duration.CopyFrom(Duration())
    route.route.max_stream_duration.grpc_timeout_header_max.CopyFrom(Duration())
    if port.protocol is not Protocol.GRPC:
        route.route.retry_policy.retry_on = INBOUND_RETRY_ON
        route.route.retry_policy.num_retries.value = INBOUND_RETRIES
    return message


def tcp_proxy(stat_prefix: str, clusters: Pairs[int], limits: TCPSettings | None = None) -> Filter:
    """A TCP proxy to one cluster, or to several by weight."""
    message = TcpProxy(stat_prefix=stat_prefix)
    if len(clusters) == 1:
        message.cluster = clusters[0][0]
    else:
        for name, weight in clusters:
            message.weighted_clusters.clusters.add(name=name, weight=weight)
    if limits is not None and limits.idle_timeout:
        message.idle_timeout.CopyFrom(duration(limits.idle_timeout))
    if limits is not None and limits.max_connection_duration:
        message.max_downstream_connection_duration.CopyFrom(duration(limits.max_connection_duration))
    return Filter(name=names.TCP_PROXY, typed_config=any_of(message))


def destination_port(port: int) -> UInt32Value:
    """The condition of a chain on the port that the client dialled."""
    return UInt32Value(value=port)
