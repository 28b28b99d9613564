"""Clusters of sidecars (CDS, istio-translation.md 3.3): every outbound one, the catch-alls, the workload's own ports.

The outbound ones are those of the mesh, sent unasked.
"""

from __future__ import annotations

import msgspec
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.protocol_pb2 import Http1ProtocolOptions, Http2ProtocolOptions
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

from xdsbpf.compile.envoy.clusters import cluster, cluster_names
from xdsbpf.compile.envoy.connection_pool import HTTP_OPTIONS, set_connection_pool
from xdsbpf.compile.envoy.encoding import any_of, duration, resource
from xdsbpf.compile.sidecar import names
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.clients import Client
from xdsbpf.mesh.destination_rules import effective_policy
from xdsbpf.mesh.inbound import inbound_ports
from xdsbpf.mesh.services import HTTP2_CLASS, HTTP_CLASS
from xdsbpf.model.names import CLUSTER
from xdsbpf.model.resource import Resource
from xdsbpf.model.scalars import NANOSECONDS

IDLE = 300 * NANOSECONDS
CATCH_ALLS = (names.BLACK_HOLE, names.PASSTHROUGH, names.INBOUND_PASSTHROUGH)


@query
def sidecar_cluster_names(db: Database) -> tuple[str, ...]:
    """The outbound clusters of the mesh and the catch-alls."""
    return (*cluster_names(db), *CATCH_ALLS)


@query
def sidecar_cluster(db: Database, name: str) -> Resource | Absent:
    """A cluster that every sidecar has; ABSENT if unknown, or withheld (reported)."""
    if name == names.BLACK_HOLE:
        return resource(CLUSTER, name, _base(name, Cluster.STATIC))
    if name in CATCH_ALLS:
        return resource(CLUSTER, name, _passthrough(name))
    found = cluster(db, name)
    return found if found is ABSENT else msgspec.structs.replace(found, on_demand=False)


@query
def inbound_cluster_names(db: Database, workload: Client) -> tuple[str, ...]:
    """One name for each port of the workload that services send to."""
    return tuple(names.inbound_cluster(port.number) for port in inbound_ports(db, workload))


@query
def inbound_cluster(db: Database, workload: Client, name: str) -> Resource | Absent:
    """The workload's own port, reached at the address that the client dialled; ABSENT for any other name."""
    number = names.parse_inbound(name)
    port = next((port for port in inbound_ports(db, workload) if port.number == number), None)
    if port is None:
        return ABSENT
    message = _base(name, Cluster.ORIGINAL_DST)
    _to_workload(message)
    policy = effective_policy(db, port.host, port.service_port, "")
    is_http, is_http2 = port.protocol in HTTP_CLASS, port.protocol in HTTP2_CLASS
    set_connection_pool(message, policy.connection_pool, None, is_http=is_http, is_http2=is_http2)
    return resource(CLUSTER, name, message)


def _base(name: str, type_: int) -> Cluster:
    message = Cluster(name=name, alt_stat_name=f"{name};", type=type_)
    if type_ == Cluster.ORIGINAL_DST:
        message.lb_policy = Cluster.CLUSTER_PROVIDED
    set_connection_pool(message, None, None, is_http=False, is_http2=False)
    return message


def _passthrough(name: str) -> Cluster:
    """To where the client dialled, in the HTTP version that it speaks."""
    message = _base(name, Cluster.ORIGINAL_DST)
    options = HttpProtocolOptions()
    options.common_http_protocol_options.idle_timeout.CopyFrom(duration(IDLE))
    options.use_downstream_protocol_config.http_protocol_options.CopyFrom(Http1ProtocolOptions())
    options.use_downstream_protocol_config.http2_protocol_options.CopyFrom(Http2ProtocolOptions())
    message.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(any_of(options))
    if name == names.INBOUND_PASSTHROUGH:
        _to_workload(message)
    return message


def _to_workload(message: Cluster) -> None:
    """From an address that the redirection leaves alone, so that the workload is reached and not the sidecar again."""
    message.upstream_bind_config.source_address.address = names.LOOP_SOURCE
    message.upstream_bind_config.source_address.port_value = 0
