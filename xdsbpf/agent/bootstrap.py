"""The bootstrap of the node's Envoy: delta ADS to the agent's control plane, and nothing else that is static.

Values in, proto3 JSON out, built from the API's own messages. Written by the supervisor, or for a user
who runs Envoy himself. Pure.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.resource_monitors.downstream_connections.v3 import downstream_connections_pb2
from google.protobuf import json_format

from xdsbpf.control_plane_cluster import XDS_CLUSTER, ClientTls, set_cluster
from xdsbpf.datapath.address import address_text
from xdsbpf.model.names import NodeId

MAX_DOWNSTREAM_CONNECTIONS = 50_000
_CONNECTION_LIMIT = "envoy.resource_monitors.global_downstream_max_connections"

# 112 lines per cluster without a matcher (shared-envoy section 7): only what people look at.
STATS_PREFIXES = (
    "http.",
    "listener.",
    "tcp.",
    "cluster_manager.",
    "listener_manager.",
    "control_plane.",
    "server.",
    "runtime.deprecated",
    "overload.",
    "vhds.",
    f"cluster.{XDS_CLUSTER}.",
)
STATS_SUFFIXES = (
    ".membership_healthy",
    ".membership_total",
    ".upstream_cx_active",
    ".upstream_cx_total",
    ".upstream_cx_connect_fail",
    ".upstream_cx_overflow",
    ".upstream_rq_active",
    ".upstream_rq_total",
    ".upstream_rq_5xx",
    ".upstream_rq_retry",
    ".upstream_rq_timeout",
    ".upstream_rq_pending_overflow",
    ".outlier_detection.ejections_active",
)


class BootstrapOptions(msgspec.Struct, frozen=True):
    """What a bootstrap depends on. `proxy_address`: 16 bytes; `xds`: unix:/path or host:port; `tls`: paths only."""

    node: str
    proxy_address: bytes
    xds: str
    admin_socket: Path
    domain: str = "cluster.local"
    strict: bool = False
    tls: ClientTls | None = None


def build_bootstrap(options: BootstrapOptions) -> str:
    """The bootstrap as JSON text, the same for the same options.

    `strict` makes every deprecated field an error (for tests). Every upstream connection leaves from
    the proxy's address: destinations admit node proxies by it (end-to-end.md 2.6).
    Raises: ConfigError for an address of the control plane without a port.
    """
    proxy = address_text(options.proxy_address)
    bootstrap = bootstrap_pb2.Bootstrap()
    bootstrap.node.id = str(NodeId("node", proxy, options.node, options.domain))
    bootstrap.node.cluster = options.node
    bootstrap.admin.address.pipe.path = str(options.admin_socket)
    bootstrap.admin.address.pipe.mode = 0o600
    _dynamic_resources(bootstrap.dynamic_resources)
    xds = bootstrap.static_resources.clusters.add()
    set_cluster(xds, options.xds, options.tls)
    # Its own, empty bind: the control plane is no destination that admits proxies by their address.
    xds.upstream_bind_config.SetInParent()
    source = bootstrap.cluster_manager.upstream_bind_config.source_address
    source.address, source.port_value = proxy, 0
    matcher = bootstrap.stats_config.stats_matcher.inclusion_list
    for prefix in STATS_PREFIXES:
        matcher.patterns.add().prefix = prefix
    for suffix in STATS_SUFFIXES:
        matcher.patterns.add().suffix = suffix
    monitor = bootstrap.overload_manager.resource_monitors.add(name=_CONNECTION_LIMIT)
    monitor.typed_config.Pack(
        downstream_connections_pb2.DownstreamConnectionsConfig(
            max_active_downstream_connections=MAX_DOWNSTREAM_CONNECTIONS
        )
    )
    layer = bootstrap.layered_runtime.layers.add(name="static")
    layer.static_layer.SetInParent()
    if options.strict:
        layer.static_layer["envoy.features.fail_on_any_deprecated_feature"] = True
    bootstrap.layered_runtime.layers.add(name="admin").admin_layer.SetInParent()
    value = json_format.MessageToDict(bootstrap, preserving_proto_field_name=True)
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _dynamic_resources(dynamic: bootstrap_pb2.Bootstrap.DynamicResources) -> None:
    ads = dynamic.ads_config
    ads.api_type = config_source_pb2.ApiConfigSource.DELTA_GRPC
    ads.transport_api_version = config_source_pb2.V3
    ads.set_node_on_first_message_only = True
    ads.grpc_services.add().envoy_grpc.cluster_name = XDS_CLUSTER
    for source in (dynamic.cds_config, dynamic.lds_config):
        source.ads.SetInParent()
        source.resource_api_version = config_source_pb2.V3
        # Zero: wait for ever. A proxy that went LIVE without configuration would refuse or 404.
        source.initial_fetch_timeout.seconds = 0
