"""networking.istio.io DestinationRule: the whole v1 schema (istio-translation.md 3.4 to 3.11, 9.3)."""

from __future__ import annotations

from typing import Literal

import msgspec

from xdsbpf.model.matching import PortSelector
from xdsbpf.model.meta import Manifest
from xdsbpf.model.scalars import Count, Decimal, Duration, Labels, Millionths, Pairs, UInt32, UInt64


class TcpKeepalive(msgspec.Struct, frozen=True):
    probes: UInt32 = 0
    time: Duration | None = None
    interval: Duration | None = None


class TCPSettings(msgspec.Struct, frozen=True, rename="camel"):
    max_connections: Count = 0
    connect_timeout: Duration | None = None
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: Duration | None = None
    idle_timeout: Duration | None = None


class Http2KeepAlive(msgspec.Struct, frozen=True):
    interval: Duration | None = None
    timeout: Duration | None = None


class HTTPSettings(msgspec.Struct, frozen=True, rename="camel"):
    http1_max_pending_requests: Count = 0
    http2_max_requests: Count = 0
    max_requests_per_connection: Count = 0
    max_retries: Count = 0
    idle_timeout: Duration | None = None
    h2_upgrade_policy: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] = "DEFAULT"
    use_client_protocol: bool = False
    max_concurrent_streams: Count = 0
    http2_keep_alive: Http2KeepAlive | None = None


class ConnectionPoolSettings(msgspec.Struct, frozen=True):
    tcp: TCPSettings | None = None
    http: HTTPSettings | None = None


class CookieAttribute(msgspec.Struct, frozen=True):
    name: str
    value: str = ""


class HTTPCookie(msgspec.Struct, frozen=True):
    name: str
    path: str = ""
    ttl: Duration | None = None
    attributes: tuple[CookieAttribute, ...] = ()


class RingHash(msgspec.Struct, frozen=True, rename="camel"):
    minimum_ring_size: UInt64 = 0


class MagLev(msgspec.Struct, frozen=True, rename="camel"):
    table_size: UInt64 = 0


class ConsistentHashLB(msgspec.Struct, frozen=True, rename="camel"):
    http_header_name: str = ""
    http_cookie: HTTPCookie | None = None
    use_source_ip: bool = False
    http_query_parameter_name: str = ""
    ring_hash: RingHash | None = None
    maglev: MagLev | None = None
    minimum_ring_size: UInt64 = 0


class LocalityDistribute(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    from_: str = ""
    to: Pairs[UInt32] = ()


class LocalityFailover(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    from_: str = ""
    to: str = ""


class LocalityLbSetting(msgspec.Struct, frozen=True, rename="camel"):
    distribute: tuple[LocalityDistribute, ...] = ()
    failover: tuple[LocalityFailover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    enabled: bool | None = None


class Warmup(msgspec.Struct, frozen=True, rename="camel"):
    duration: Duration
    minimum_percent: Millionths | None = None
    aggression: Decimal | None = None


class LoadBalancerSettings(msgspec.Struct, frozen=True, rename="camel"):
    simple: Literal["UNSPECIFIED", "LEAST_CONN", "LEAST_REQUEST", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN"] | None = None
    consistent_hash: ConsistentHashLB | None = None
    locality_lb_setting: LocalityLbSetting | None = None
    warmup_duration_secs: Duration | None = None
    warmup: Warmup | None = None


class OutlierDetection(msgspec.Struct, frozen=True, rename="camel"):
    consecutive_errors: UInt32 | None = None
    split_external_local_origin_errors: bool = False
    consecutive_local_origin_failures: UInt32 | None = None
    consecutive_gateway_errors: UInt32 | None = None
    consecutive_5xx_errors: UInt32 | None = msgspec.field(default=None, name="consecutive5xxErrors")
    interval: Duration | None = None
    base_ejection_time: Duration | None = None
    max_ejection_percent: Count = 0
    min_health_percent: Count = 0


class ClientTLSSettings(msgspec.Struct, frozen=True, rename="camel"):
    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    client_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    credential_name: str = ""
    subject_alt_names: tuple[str, ...] = ()
    sni: str = ""
    insecure_skip_verify: bool | None = None
    ca_crl: str = ""


class TunnelSettings(msgspec.Struct, frozen=True, rename="camel"):
    protocol: str = ""
    target_host: str = ""
    target_port: UInt32 = 0


class ProxyProtocol(msgspec.Struct, frozen=True):
    version: Literal["V1", "V2"] = "V1"


class RetryBudget(msgspec.Struct, frozen=True, rename="camel"):
    percent: Millionths | None = None
    min_retry_concurrency: UInt32 | None = None


class PortTrafficPolicy(msgspec.Struct, frozen=True, rename="camel"):
    port: PortSelector | None = None
    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None


class TrafficPolicy(msgspec.Struct, frozen=True, rename="camel"):
    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None
    port_level_settings: tuple[PortTrafficPolicy, ...] = ()
    tunnel: TunnelSettings | None = None
    proxy_protocol: ProxyProtocol | None = None
    retry_budget: RetryBudget | None = None


class Subset(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    labels: Labels = ()
    traffic_policy: TrafficPolicy | None = None


class WorkloadSelector(msgspec.Struct, frozen=True, rename="camel"):
    match_labels: Labels = ()


class DestinationRuleSpec(msgspec.Struct, frozen=True, rename="camel"):
    host: str
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[str, ...] = ()
    workload_selector: WorkloadSelector | None = None


class DestinationRule(Manifest, frozen=True, kw_only=True):
    spec: DestinationRuleSpec
