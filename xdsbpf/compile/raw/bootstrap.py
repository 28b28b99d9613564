"""The bootstrap with which a stock Envoy, or a gRPC client, takes everything from this control plane.

Values in, JSON-ready dict out, built from the API's own messages; `xdsbpf bootstrap` prints it. The node agent's
own bootstrap is another one (`agent.bootstrap`): that Envoy carries the traffic of a whole node. Pure.
"""

from __future__ import annotations

import datetime
import json
from typing import Any, Final

import msgspec
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.core.v3 import config_source_pb2
from google.protobuf import json_format

from xdsbpf.compile.proxyless.names import SERVER_PREFIX
from xdsbpf.control_plane_cluster import XDS_CLUSTER, ClientTls, host_and_port, set_cluster

STATS_PREFIXES: Final = (
    *("http.", "tcp.", "listener.", "listener_manager.", "cluster_manager.", "control_plane.", "server."),
    *("runtime.deprecated", "overload.", f"cluster.{XDS_CLUSTER}."),
)
STATS_SUFFIXES: Final = (
    *(".membership_healthy", ".membership_total", ".upstream_cx_active", ".upstream_cx_total"),
    *(".upstream_cx_connect_fail", ".upstream_cx_overflow", ".upstream_rq_active", ".upstream_rq_total"),
    *(".upstream_rq_5xx", ".upstream_rq_retry", ".upstream_rq_timeout", ".upstream_rq_pending_overflow"),
    ".outlier_detection.ejections_active",
)
"""Envoy makes about a hundred lines per cluster without a list: only what people look at."""


class ClientBootstrap(msgspec.Struct, frozen=True):
    """What a bootstrap depends on. `xds` is host:port or unix:/path; `admin` a path of a unix socket."""

    node_id: str
    xds: str = "127.0.0.1:15010"
    cluster: str = "xdsbpf"
    admin: str = ""
    is_delta: bool = True
    tls: ClientTls | None = None
    poll_s: float = 0.0
    """Seconds between two polls by REST; 0 for streams of gRPC."""


def envoy_bootstrap(options: ClientBootstrap) -> dict[str, Any]:
    """The bootstrap of a stock Envoy: LDS and CDS over one ADS stream or polled, the admin interface on a unix socket.

    Raises: ConfigError for an address without a port.
    """
    bootstrap = bootstrap_pb2.Bootstrap()
    bootstrap.node.id, bootstrap.node.cluster = options.node_id, options.cluster
    bootstrap.admin.address.pipe.path = options.admin or "envoy-admin.sock"
    bootstrap.admin.address.pipe.mode = 0o600
    dynamic = bootstrap.dynamic_resources
    if not options.poll_s:
        ads = dynamic.ads_config
        source = config_source_pb2.ApiConfigSource
        ads.api_type = source.DELTA_GRPC if options.is_delta else source.GRPC
        ads.transport_api_version = config_source_pb2.V3
        ads.set_node_on_first_message_only = True
        ads.grpc_services.add().envoy_grpc.cluster_name = XDS_CLUSTER
        if not options.is_delta:
            # Envoy can, and says so only if it is told to: without it a resource's time to live is left out.
            bootstrap.node.client_features.append("xds.config.resource-in-sotw")
    for config in (dynamic.cds_config, dynamic.lds_config):
        if options.poll_s:
            _set_polling(config.api_config_source, options.poll_s)
        else:
            config.ads.SetInParent()
        config.resource_api_version = config_source_pb2.V3
        # Zero: wait for ever. An Envoy that goes LIVE without configuration refuses what it should serve.
        config.initial_fetch_timeout.seconds = 0
    set_cluster(bootstrap.static_resources.clusters.add(), options.xds, options.tls, is_streamed=not options.poll_s)
    matcher = bootstrap.stats_config.stats_matcher.inclusion_list
    for prefix in STATS_PREFIXES:
        matcher.patterns.add().prefix = prefix
    for suffix in STATS_SUFFIXES:
        matcher.patterns.add().suffix = suffix
    # Through text: an Any becomes an OrderedDict, which no YAML writer takes.
    document: dict[str, Any] = json.loads(json_format.MessageToJson(bootstrap, preserving_proto_field_name=True))
    return document


def _set_polling(source: config_source_pb2.ApiConfigSource, every_s: float) -> None:
    source.api_type = config_source_pb2.ApiConfigSource.REST
    source.transport_api_version = config_source_pb2.V3
    source.cluster_names.append(XDS_CLUSTER)
    source.refresh_delay.FromTimedelta(datetime.timedelta(seconds=every_s))
    source.request_timeout.seconds = 5


def grpc_bootstrap(options: ClientBootstrap) -> dict[str, Any]:
    """The file that GRPC_XDS_BOOTSTRAP names (gRFC A27): for `xds:///` targets, and for servers that listen over xDS.

    Raises: ConfigError for an address without a port.
    """
    if options.xds.startswith("unix:"):
        uri = options.xds
    else:
        host, port = host_and_port(options.xds)
        uri = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    credentials: dict[str, Any] = {"type": "insecure"}
    if options.tls is not None:
        files = {
            "certificate_file": options.tls.certificate,
            "private_key_file": options.tls.key,
            "ca_certificate_file": options.tls.ca,
        }
        credentials = {"type": "tls", "config": files}
    server = {"server_uri": uri, "channel_creds": [credentials], "server_features": ["xds_v3"]}
    node = {"id": options.node_id, "cluster": options.cluster, "metadata": {"GENERATOR": "grpc"}}
    return {"xds_servers": [server], "node": node, "server_listener_resource_name_template": f"{SERVER_PREFIX}%s"}
