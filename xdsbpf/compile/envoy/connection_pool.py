"""Connection pool settings of a cluster: limits, timeouts, HTTP protocol (istio-translation.md 3.7)."""

from __future__ import annotations

from typing import Final

from envoy.config.cluster.v3.circuit_breaker_pb2 import CircuitBreakers
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.address_pb2 import TcpKeepalive as EnvoyKeepalive
from envoy.config.core.v3.protocol_pb2 import Http1ProtocolOptions, Http2ProtocolOptions
from envoy.config.core.v3.protocol_pb2 import HttpProtocolOptions as CommonOptions
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from google.protobuf.wrappers_pb2 import UInt32Value

from xdsbpf.compile.envoy.encoding import any_of, duration
from xdsbpf.model.destination_rule import (
    ConnectionPoolSettings,
    HTTPSettings,
    RetryBudget,
    TcpKeepalive,
    TCPSettings,
)
from xdsbpf.model.scalars import NANOSECONDS

NO_LIMIT: Final = 4_294_967_295
CONNECT_TIMEOUT: Final = 10 * NANOSECONDS
HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
BUDGET_PERCENT: Final = 20.0
BUDGET_CONCURRENCY: Final = 3
NO_TCP: Final = TCPSettings()
NO_HTTP: Final = HTTPSettings()


def set_connection_pool(
    cluster: Cluster,
    pool: ConnectionPoolSettings | None,
    budget: RetryBudget | None,
    *,
    is_http: bool,
    is_http2: bool,
) -> None:
    """Write limits, timeouts and protocol options. 0 means "not set" in every integer field."""
    tcp = (pool.tcp if pool else None) or NO_TCP
    http = (pool.http if pool else None) or NO_HTTP
    cluster.connect_timeout.CopyFrom(duration(tcp.connect_timeout or CONNECT_TIMEOUT))
    cluster.circuit_breakers.thresholds.append(_thresholds(tcp, http, budget))
    if tcp.tcp_keepalive is not None:
        cluster.upstream_connection_options.tcp_keepalive.CopyFrom(_keepalive(tcp.tcp_keepalive))
    options = _protocol_options(tcp, http, is_http=is_http, is_http2=is_http2)
    if options is not None:
        cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(any_of(options))


def _thresholds(tcp: TCPSettings, http: HTTPSettings, budget: RetryBudget | None) -> CircuitBreakers.Thresholds:
    thresholds = CircuitBreakers.Thresholds(
        max_connections=UInt32Value(value=tcp.max_connections or NO_LIMIT),
        max_pending_requests=UInt32Value(value=http.http1_max_pending_requests or NO_LIMIT),
        max_requests=UInt32Value(value=http.http2_max_requests or NO_LIMIT),
        max_retries=UInt32Value(value=http.max_retries or NO_LIMIT),
    )
    if budget is not None:
        percent = BUDGET_PERCENT if budget.percent is None else budget.percent / 10_000
        concurrency = budget.min_retry_concurrency
        thresholds.retry_budget.budget_percent.value = min(percent, 100.0)
        thresholds.retry_budget.min_retry_concurrency.value = BUDGET_CONCURRENCY if concurrency is None else concurrency
    return thresholds


def _keepalive(settings: TcpKeepalive) -> EnvoyKeepalive:
    result = EnvoyKeepalive()
    if settings.probes:
        result.keepalive_probes.value = settings.probes
    if settings.time:
        result.keepalive_time.value = settings.time // NANOSECONDS
    if settings.interval:
        result.keepalive_interval.value = settings.interval // NANOSECONDS
    return result


def _protocol_options(
    tcp: TCPSettings, http: HTTPSettings, *, is_http: bool, is_http2: bool
) -> HttpProtocolOptions | None:
    """None where Envoy's defaults (HTTP/1.1, an hour idle) are what is asked for."""
    common = CommonOptions()
    idle = http.idle_timeout or tcp.idle_timeout
    if idle:
        common.idle_timeout.CopyFrom(duration(idle))
    if tcp.max_connection_duration:
        common.max_connection_duration.CopyFrom(duration(tcp.max_connection_duration))
    if http.max_requests_per_connection:
        common.max_requests_per_connection.value = http.max_requests_per_connection
    upgraded = is_http2 or (http.h2_upgrade_policy == "UPGRADE" and is_http)
    options = HttpProtocolOptions()
    if common.ByteSize():
        options.common_http_protocol_options.CopyFrom(common)
    if http.use_client_protocol:
        options.use_downstream_protocol_config.http_protocol_options.CopyFrom(Http1ProtocolOptions())
        options.use_downstream_protocol_config.http2_protocol_options.CopyFrom(_http2(http))
    elif upgraded:
        options.explicit_http_config.http2_protocol_options.CopyFrom(_http2(http))
    elif common.ByteSize():
        options.explicit_http_config.http_protocol_options.CopyFrom(Http1ProtocolOptions())
    else:
        return None
    return options


def _http2(http: HTTPSettings) -> Http2ProtocolOptions:
    options = Http2ProtocolOptions()
    if http.max_concurrent_streams:
        options.max_concurrent_streams.value = http.max_concurrent_streams
    keepalive = http.http2_keep_alive
    if keepalive is not None and keepalive.interval and keepalive.timeout:
        options.connection_keepalive.interval.CopyFrom(duration(keepalive.interval))
        options.connection_keepalive.timeout.CopyFrom(duration(keepalive.timeout))
    return options
