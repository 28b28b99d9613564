"""The bootstrap with which a stock Envoy, or a gRPC client, takes everything from this control plane.

Values in, JSON-ready dict out, built from the API's own messages; `xdsbpf bootstrap` prints it. The node agent's
own bootstrap is another one (`agent.bootstrap`): that Envoy carries the traffic of a whole node. Pure.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
from typing import Any, Final

import msgspec
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format

from xdsbpf.compile.proxyless.names import SERVER_PREFIX
from xdsbpf.errors import ConfigError
from xdsbpf.model.names import SECRET

XDS_CLUSTER: Final = "xds"
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TLS: Final = "envoy.transport_sockets.tls"
_CERTIFICATE: Final = "xds_certificate"
_AUTHORITIES: Final = "xds_authorities"

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


class TlsFiles(msgspec.Struct, frozen=True):
    """Files of a client certificate, its key and the CA of the control plane; `server_name` is optional.

    `sds_directory`: where the files of `sds_documents` are; with them Envoy takes up replaced certificates, without
    them it reads each file once.
    """

    certificate: str
    key: str
    ca: str
    server_name: str = ""
    sds_directory: str = ""


class ClientBootstrap(msgspec.Struct, frozen=True):
    """What a bootstrap depends on. `xds` is host:port or unix:/path; `admin` a path of a unix socket."""

    node_id: str
    xds: str = "127.0.0.1:15010"
    cluster: str = "xdsbpf"
    admin: str = ""
    is_delta: bool = True
    tls: TlsFiles | None = None
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
    for config in (dynamic.cds_config, dynamic.lds_config):
        if options.poll_s:
            _set_polling(config.api_config_source, options.poll_s)
        else:
            config.ads.SetInParent()
        config.resource_api_version = config_source_pb2.V3
        # Zero: wait for ever. An Envoy that goes LIVE without configuration refuses what it should serve.
        config.initial_fetch_timeout.seconds = 0
    _xds_cluster(bootstrap.static_resources.clusters.add(), options)
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


def sds_documents(options: ClientBootstrap) -> dict[str, dict[str, Any]]:
    """File name -> content of the secrets that the bootstrap refers to; none without `sds_directory`.

    Envoy watches the directories of the certificates: files moved there, and links moved as Kubernetes does, count.
    Raises: ConfigError for an address without a port.
    """
    files = options.tls
    if files is None or not files.sds_directory:
        return {}
    certificate = secret_pb2.Secret(name=_CERTIFICATE)
    _set_certificate(certificate.tls_certificate, files)
    certificate.tls_certificate.watched_directory.path = _directory(files.certificate)
    authorities = secret_pb2.Secret(name=_AUTHORITIES)
    _set_authorities(authorities.validation_context, files, _server_name(options))
    authorities.validation_context.watched_directory.path = _directory(files.ca)
    documents = {}
    for secret in (certificate, authorities):
        body = json.loads(json_format.MessageToJson(secret, preserving_proto_field_name=True))
        documents[f"{secret.name}.json"] = {"resources": [{"@type": SECRET, **body}]}
    return documents


def grpc_bootstrap(options: ClientBootstrap) -> dict[str, Any]:
    """The file that GRPC_XDS_BOOTSTRAP names (gRFC A27): for `xds:///` targets, and for servers that listen over xDS.

    Raises: ConfigError for an address without a port.
    """
    if options.xds.startswith("unix:"):
        uri = options.xds
    else:
        host, port = _host_and_port(options.xds)
        uri = f"{host}:{port}"
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


def _xds_cluster(cluster: cluster_pb2.Cluster, options: ClientBootstrap) -> None:
    cluster.name = XDS_CLUSTER
    cluster.connect_timeout.seconds = 1
    if not options.poll_s:
        http = http_protocol_options_pb2.HttpProtocolOptions()
        keepalive = http.explicit_http_config.http2_protocol_options.connection_keepalive
        keepalive.interval.seconds, keepalive.timeout.seconds = 30, 5
        cluster.typed_extension_protocol_options[_HTTP_OPTIONS].Pack(http)
    cluster.load_assignment.cluster_name = XDS_CLUSTER
    address = cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address
    if options.xds.startswith("unix:"):
        cluster.type = cluster_pb2.Cluster.STATIC
        address.pipe.path = options.xds.removeprefix("unix:")
    else:
        host, port = _host_and_port(options.xds)
        # A name is asked for again, so that the control plane may move.
        cluster.type = cluster_pb2.Cluster.STATIC if _is_address(host.strip("[]")) else cluster_pb2.Cluster.STRICT_DNS
        address.socket_address.address = host.strip("[]")
        address.socket_address.port_value = port
    if options.tls is not None:
        _set_tls(cluster, options.tls, _server_name(options))


def _server_name(options: ClientBootstrap) -> str:
    """What must stand in the control plane's certificate; "" only behind a unix socket."""
    if options.tls is not None and options.tls.server_name:
        return options.tls.server_name
    return "" if options.xds.startswith("unix:") else _host_and_port(options.xds)[0].strip("[]")


def _set_tls(cluster: cluster_pb2.Cluster, files: TlsFiles, server_name: str) -> None:
    context = tls_pb2.UpstreamTlsContext(sni=_host_name(server_name))
    common = context.common_tls_context
    if files.sds_directory:
        _refer(common.tls_certificate_sds_secret_configs.add(), _CERTIFICATE, files)
        _refer(common.validation_context_sds_secret_config, _AUTHORITIES, files)
    else:
        _set_certificate(common.tls_certificates.add(), files)
        _set_authorities(common.validation_context, files, server_name)
    common.alpn_protocols.append("h2")
    cluster.transport_socket.name = _TLS
    cluster.transport_socket.typed_config.Pack(context)


def _refer(config: secret_pb2.SdsSecretConfig, name: str, files: TlsFiles) -> None:
    config.name = name
    config.sds_config.path_config_source.path = f"{files.sds_directory}/{name}.json"
    config.sds_config.resource_api_version = config_source_pb2.V3


def _set_certificate(certificate: common_pb2.TlsCertificate, files: TlsFiles) -> None:
    certificate.certificate_chain.filename = files.certificate
    certificate.private_key.filename = files.key


def _set_authorities(validation: common_pb2.CertificateValidationContext, files: TlsFiles, server_name: str) -> None:
    """Security: every workload has a certificate of the mesh's authorities, so the name is checked as well."""
    validation.trusted_ca.filename = files.ca
    if server_name:
        subject = validation.match_typed_subject_alt_names.add()
        matcher = common_pb2.SubjectAltNameMatcher
        subject.san_type = matcher.IP_ADDRESS if _is_address(server_name) else matcher.DNS
        if server_name.startswith("spiffe://"):
            subject.san_type = matcher.URI
        subject.matcher.exact = server_name


def _host_name(server_name: str) -> str:
    """What may stand in the TLS handshake: a host name, never an address or a URI."""
    return "" if _is_address(server_name) or server_name.startswith("spiffe://") else server_name


def _directory(file: str) -> str:
    return file.rpartition("/")[0] or "/"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is no address of a control plane", hint="host:port or unix:/path")
    return ("127.0.0.1" if host == "localhost" else host), int(port)
