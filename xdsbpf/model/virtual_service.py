"""networking.istio.io VirtualService: the whole v1 schema (istio-translation.md 2, 9.2).

Everything Istio accepts has a type here, so that a misspelled field is found; which parts are
compiled is decided later and what is not is reported.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from xdsbpf.model.matching import PortSelector, StringMatch
from xdsbpf.model.meta import Manifest
from xdsbpf.model.scalars import Count, Duration, Labels, Millionths, Pairs, UInt32


class Destination(msgspec.Struct, frozen=True):
    host: str
    subset: str = ""
    port: PortSelector | None = None


class HeaderOperations(msgspec.Struct, frozen=True):
    set: Pairs[str] = ()
    add: Pairs[str] = ()
    remove: tuple[str, ...] = ()


class Headers(msgspec.Struct, frozen=True):
    request: HeaderOperations = HeaderOperations()
    response: HeaderOperations = HeaderOperations()


class HTTPRouteDestination(msgspec.Struct, frozen=True):
    destination: Destination
    weight: Count = 0
    headers: Headers | None = None


class HTTPMatchRequest(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: Pairs[StringMatch] = ()
    without_headers: Pairs[StringMatch] = ()
    query_params: Pairs[StringMatch] = ()
    ignore_uri_case: bool = False
    port: UInt32 | None = None
    source_labels: Labels = ()
    source_namespace: str = ""
    gateways: tuple[str, ...] = ()
    stat_prefix: str = ""


class HTTPRedirect(msgspec.Struct, frozen=True, rename="camel"):
    uri: str = ""
    uri_prefix: str = ""
    prefix_rewrite: str = ""
    authority: str = ""
    port: UInt32 | None = None
    derive_port: Literal["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"] | None = None
    scheme: str = ""
    redirect_code: UInt32 = 0


class HTTPBody(msgspec.Struct, frozen=True):
    string: str | None = None
    bytes: str | None = None


class HTTPDirectResponse(msgspec.Struct, frozen=True):
    status: UInt32
    body: HTTPBody | None = None


class RegexRewrite(msgspec.Struct, frozen=True):
    match: str
    rewrite: str = ""


class HTTPRewrite(msgspec.Struct, frozen=True, rename="camel"):
    uri: str = ""
    authority: str = ""
    uri_regex_rewrite: RegexRewrite | None = None


class HTTPRetry(msgspec.Struct, frozen=True, rename="camel"):
    attempts: Count = 0
    per_try_timeout: Duration | None = None
    retry_on: str = ""
    retry_remote_localities: bool | None = None
    retry_ignore_previous_hosts: bool | None = None
    backoff: Duration | None = None


class Percent(msgspec.Struct, frozen=True):
    value: Millionths = 0


class FaultDelay(msgspec.Struct, frozen=True, rename="camel"):
    fixed_delay: Duration | None = None
    exponential_delay: Duration | None = None
    percentage: Percent | None = None
    percent: Count | None = None


class FaultAbort(msgspec.Struct, frozen=True, rename="camel"):
    http_status: Count | None = None
    grpc_status: str | None = None
    http2_error: str | None = None
    percentage: Percent | None = None


class HTTPFaultInjection(msgspec.Struct, frozen=True):
    delay: FaultDelay | None = None
    abort: FaultAbort | None = None


class HTTPMirrorPolicy(msgspec.Struct, frozen=True):
    destination: Destination
    percentage: Percent | None = None


class CorsPolicy(msgspec.Struct, frozen=True, rename="camel"):
    allow_origins: tuple[StringMatch, ...] = ()
    allow_origin: tuple[str, ...] = ()
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    max_age: Duration | None = None
    allow_credentials: bool | None = None
    unmatched_preflights: Literal["UNSPECIFIED", "FORWARD", "IGNORE"] | None = None


class Delegate(msgspec.Struct, frozen=True):
    name: str
    namespace: str = ""


class HTTPRoute(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    match: tuple[HTTPMatchRequest, ...] = ()
    route: tuple[HTTPRouteDestination, ...] = ()
    redirect: HTTPRedirect | None = None
    direct_response: HTTPDirectResponse | None = None
    delegate: Delegate | None = None
    rewrite: HTTPRewrite | None = None
    timeout: Duration | None = None
    retries: HTTPRetry | None = None
    fault: HTTPFaultInjection | None = None
    mirror: Destination | None = None
    mirrors: tuple[HTTPMirrorPolicy, ...] = ()
    mirror_percent: Count | None = None
    mirror_percentage: Percent | None = None
    cors_policy: CorsPolicy | None = None
    headers: Headers | None = None


class RouteDestination(msgspec.Struct, frozen=True):
    destination: Destination
    weight: Count = 0


class L4MatchAttributes(msgspec.Struct, frozen=True, rename="camel"):
    destination_subnets: tuple[str, ...] = ()
    port: UInt32 | None = None
    source_subnet: str = ""
    source_labels: Labels = ()
    gateways: tuple[str, ...] = ()
    source_namespace: str = ""


class TCPRoute(msgspec.Struct, frozen=True):
    match: tuple[L4MatchAttributes, ...] = ()
    route: tuple[RouteDestination, ...] = ()


class TLSMatchAttributes(msgspec.Struct, frozen=True, rename="camel"):
    sni_hosts: tuple[str, ...] = ()
    destination_subnets: tuple[str, ...] = ()
    port: UInt32 | None = None
    source_labels: Labels = ()
    gateways: tuple[str, ...] = ()
    source_namespace: str = ""


class TLSRoute(msgspec.Struct, frozen=True):
    match: tuple[TLSMatchAttributes, ...] = ()
    route: tuple[RouteDestination, ...] = ()


class VirtualServiceSpec(msgspec.Struct, frozen=True, rename="camel"):
    hosts: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    http: tuple[HTTPRoute, ...] = ()
    tls: tuple[TLSRoute, ...] = ()
    tcp: tuple[TCPRoute, ...] = ()
    export_to: tuple[str, ...] = ()


class VirtualService(Manifest, frozen=True, kw_only=True):
    spec: VirtualServiceSpec
