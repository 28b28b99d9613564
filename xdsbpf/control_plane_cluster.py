"""How an Envoy reaches the control plane: the static cluster, mutual TLS, and the files that hold its secrets.

Values in, the API's own messages or JSON-ready dicts out. Both bootstraps are built with it: that of stock Envoys
(`compile.raw.bootstrap`) and that of a node's Envoy (`agent.bootstrap`), so that both trust the same server. Imports
neither the compiler nor the agent, and never holds a key: only paths. Pure.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any, Final

import msgspec
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format

from xdsbpf.errors import ConfigError
from xdsbpf.model.names import SECRET

XDS_CLUSTER: Final = "xds"
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TLS: Final = "envoy.transport_sockets.tls"
_CERTIFICATE: Final = "xds_certificate"
_AUTHORITIES: Final = "xds_authorities"
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?\.?")


class ClientTls(msgspec.Struct, frozen=True):
    """Files of a client certificate, its key and the CA of the control plane; `server_name` is optional.

    `sds_directory`: where the files of `secret_documents` are; with them Envoy takes up replaced certificates, without
    them it reads each file once.
    """

    certificate: str
    key: str
    ca: str
    server_name: str = ""
    sds_directory: str = ""


def set_cluster(cluster: cluster_pb2.Cluster, xds: str, tls: ClientTls | None, *, is_streamed: bool = True) -> None:
    """Fill in the cluster of the control plane at `xds` (host:port or unix:/path); HTTP/2 if it carries streams.

    Raises: ConfigError for an address without a port.
    """
    cluster.name = XDS_CLUSTER
    cluster.connect_timeout.seconds = 1
    if is_streamed:
        http = http_protocol_options_pb2.HttpProtocolOptions()
        keepalive = http.explicit_http_config.http2_protocol_options.connection_keepalive
        keepalive.interval.seconds, keepalive.timeout.seconds = 30, 5
        cluster.typed_extension_protocol_options[_HTTP_OPTIONS].Pack(http)
    cluster.load_assignment.cluster_name = XDS_CLUSTER
    address = cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address
    if xds.startswith("unix:"):
        cluster.type = cluster_pb2.Cluster.STATIC
        address.pipe.path = xds.removeprefix("unix:")
    else:
        host, port = host_and_port(xds)
        # A name is asked for again, so that the control plane may move.
        cluster.type = cluster_pb2.Cluster.STATIC if is_address(host) else cluster_pb2.Cluster.STRICT_DNS
        address.socket_address.address = host
        address.socket_address.port_value = port
    if tls is not None:
        _set_tls(cluster, tls, server_name(xds, tls))


def secret_documents(xds: str, tls: ClientTls | None) -> dict[str, dict[str, Any]]:
    """File name -> content of the secrets that the cluster refers to; none without `sds_directory`.

    Envoy watches the directories of the certificates: files moved there, and links moved as Kubernetes does, count.
    Raises: ConfigError for an address without a port.
    """
    if tls is None or not tls.sds_directory:
        return {}
    certificate = secret_pb2.Secret(name=_CERTIFICATE)
    _set_certificate(certificate.tls_certificate, tls)
    certificate.tls_certificate.watched_directory.path = _directory(tls.certificate)
    authorities = secret_pb2.Secret(name=_AUTHORITIES)
    _set_authorities(authorities.validation_context, tls, server_name(xds, tls))
    authorities.validation_context.watched_directory.path = _directory(tls.ca)
    documents = {}
    for secret in (certificate, authorities):
        body = json.loads(json_format.MessageToJson(secret, preserving_proto_field_name=True))
        documents[f"{secret.name}.json"] = {"resources": [{"@type": SECRET, **body}]}
    return documents


def server_name(xds: str, tls: ClientTls) -> str:
    """What must stand in the control plane's certificate: the name given, else the host dialled.

    A DNS name must be among its DNS names, an address among its addresses, a spiffe:// id among its URI names. "" only
    behind a unix socket. Raises: ConfigError for an address without a port.
    """
    if tls.server_name:
        return tls.server_name
    return "" if xds.startswith("unix:") else host_and_port(xds)[0]


def host_and_port(address: str) -> tuple[str, int]:
    """Name or address (IPv6 without brackets; `localhost` is 127.0.0.1) and port of `host:port`.

    Raises: ConfigError.
    """
    written, _, port = address.rpartition(":")
    host = written[1:-1] if written.startswith("[") and written.endswith("]") else written
    known = is_address(host) or (host == written and _HOST_NAME.fullmatch(host))
    if not known or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is no address of a control plane", hint="host:port or unix:/path")
    return ("127.0.0.1" if host == "localhost" else host), int(port)


def is_address(text: str) -> bool:
    """Whether a host is an IP address, and no name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _set_tls(cluster: cluster_pb2.Cluster, tls: ClientTls, name: str) -> None:
    context = tls_pb2.UpstreamTlsContext(sni=_host_name(name))
    common = context.common_tls_context
    if tls.sds_directory:
        _refer(common.tls_certificate_sds_secret_configs.add(), _CERTIFICATE, tls)
        _refer(common.validation_context_sds_secret_config, _AUTHORITIES, tls)
    else:
        _set_certificate(common.tls_certificates.add(), tls)
        _set_authorities(common.validation_context, tls, name)
    common.alpn_protocols.append("h2")
    cluster.transport_socket.name = _TLS
    cluster.transport_socket.typed_config.Pack(context)


def _refer(config: secret_pb2.SdsSecretConfig, name: str, tls: ClientTls) -> None:
    config.name = name
    config.sds_config.path_config_source.path = f"{tls.sds_directory}/{name}.json"
    config.sds_config.resource_api_version = config_source_pb2.V3


def _set_certificate(certificate: common_pb2.TlsCertificate, tls: ClientTls) -> None:
    certificate.certificate_chain.filename = tls.certificate
    certificate.private_key.filename = tls.key


def _set_authorities(validation: common_pb2.CertificateValidationContext, tls: ClientTls, name: str) -> None:
    """Security: every workload has a certificate of the mesh's authorities, so the name is checked as well."""
    validation.trusted_ca.filename = tls.ca
    if name:
        subject = validation.match_typed_subject_alt_names.add()
        matcher = common_pb2.SubjectAltNameMatcher
        subject.san_type = matcher.IP_ADDRESS if is_address(name) else matcher.DNS
        if name.startswith("spiffe://"):
            subject.san_type = matcher.URI
        subject.matcher.exact = name


def _host_name(name: str) -> str:
    """What may stand in the TLS handshake: a host name, never an address or a URI."""
    return "" if is_address(name) or name.startswith("spiffe://") else name


def _directory(file: str) -> str:
    return file.rpartition("/")[0] or "/"
