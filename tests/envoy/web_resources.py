"""Resources of one web listener over any variant of xDS: a port, hosts, clusters with endpoints on loopback.

In: names, ports and a variant, which every config source in them names. Out: resources for the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401  (registers an Any type)
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,  # noqa: F401
)
from google.protobuf import json_format
from google.protobuf.message import Message

from tests.envoy.real_envoy import config_source
from tests.xds.wire import Variant
from xdsbpf.model.names import CLUSTER, ENDPOINTS, LISTENER, ROUTES
from xdsbpf.model.resource import Resource, make_resource

_EXTENSIONS = "type.googleapis.com/envoy.extensions.filters"
WARM_WITHIN = "1s"
"""As long Envoy waits for endpoints: a stall over a second counts as `init_fetch_timeout`."""
WAIT_FOR_EVER = "0s"


class Web(msgspec.Struct, frozen=True):
    """The listener `web` on a port of loopback, its routes, and clusters, as one variant of xDS carries them."""

    port: int
    variant: Variant
    warm_within: str = WARM_WITHIN

    def cluster(self, name: str, edition: int = 1, *, service_name: str = "", **more: Any) -> Resource:
        """A cluster with endpoints of its own; another edition is another connect_timeout."""
        eds = {"eds_config": config_source(self.variant, self.warm_within), "service_name": service_name}
        body = {"name": name, "type": "EDS", "connect_timeout": f"{edition}s", "eds_cluster_config": eds, **more}
        return made(Cluster(), CLUSTER, name, body)

    def routes(self, hosts: Mapping[str, str]) -> Resource:
        """Host `<name>.test` to a cluster, for each name."""
        virtual_hosts = [
            {
                "name": name,
                "domains": [f"{name}.test"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": to}}],
            }
            for name, to in sorted(hosts.items())
        ]
        # Whether a cluster exists is the server's affair: over a stream per type a route may come first.
        body = {"name": "web", "virtual_hosts": virtual_hosts, "validate_clusters": False}
        return made(RouteConfiguration(), ROUTES, "web", body)

    def listener(self) -> Resource:
        """The listener, whose routes come by RDS."""
        manager = {
            "@type": f"{_EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "web",
            "rds": {"route_config_name": "web", "config_source": config_source(self.variant, WAIT_FOR_EVER)},
            "http_filters": [{"name": "router", "typed_config": {"@type": f"{_EXTENSIONS}.http.router.v3.Router"}}],
        }
        body = {
            "name": "web",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.port}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        }
        return made(Listener(), LISTENER, "web", body)


def endpoints(name: str, *ports: int) -> Resource:
    """Endpoints on loopback; without ports the empty assignment."""
    hosts = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports
    ]
    localities = [{"lb_endpoints": hosts}] if hosts else []
    return made(ClusterLoadAssignment(), ENDPOINTS, name, {"cluster_name": name, "endpoints": localities})


def made(message: Message, type_url: str, name: str, body: Mapping[str, Any]) -> Resource:
    """A resource from proto3 JSON."""
    json_format.ParseDict(body, message)
    return make_resource(type_url, name, message.SerializeToString(deterministic=True))
