"""Validation of retries, fault, mirrors and CORS of an http route (istio-translation.md 9.2 rows 24 to 27)."""

from __future__ import annotations

from typing import Final

from xdsbpf.model import codes
from xdsbpf.model.checks import Checks
from xdsbpf.model.virtual_service import (
    CorsPolicy,
    FaultAbort,
    FaultDelay,
    HTTPFaultInjection,
    HTTPRetry,
    HTTPRoute,
)

RETRY_ON: Final = frozenset(
    {
        "5xx",
        "cancelled",
        "connect-failure",
        "deadline-exceeded",
        "envoy-ratelimited",
        "gateway-error",
        "http3-post-connect-failure",
        "internal",
        "refused-stream",
        "reset",
        "reset-before-request",
        "resource-exhausted",
        "retriable-4xx",
        "retriable-headers",
        "retriable-status-codes",
        "unavailable",
    }
)
"""Envoy's retry policies for HTTP and gRPC (x-envoy-retry-on, x-envoy-retry-grpc-on)."""

GRPC_STATUS: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""Names of gRPC status codes, each at the index of its number."""

HTTP_METHODS: Final = frozenset({"*", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"})
_SECOND: Final = 1_000_000_000


def check_retries(checks: Checks, path: str, retries: HTTPRetry) -> None:
    """Row 24."""
    if retries.attempts == 0:
        beside = (
            ("perTryTimeout", retries.per_try_timeout is not None),
            ("retryOn", bool(retries.retry_on)),
            ("retryRemoteLocalities", retries.retry_remote_localities is not None),
        )
        for name, given in beside:
            if given:
                message = f"{name} has no meaning with 0 attempts"
                checks.error(codes.VS_RETRIES, f"{path}.{name}", message, "set attempts")
    checks.duration(f"{path}.perTryTimeout", retries.per_try_timeout)
    checks.duration(f"{path}.backoff", retries.backoff)
    for token in retries.retry_on.split(",") if retries.retry_on else ():
        is_status = token.isascii() and token.isdecimal() and len(token) == 3 and 100 <= int(token) <= 599
        if token not in RETRY_ON and not is_status:
            hint = "remove the spaces" if token.strip() in RETRY_ON else f"known: {', '.join(sorted(RETRY_ON))}"
            message = f"{token!r} is no retry policy of Envoy and no HTTP status"
            checks.error(codes.VS_RETRIES, f"{path}.retryOn", message, hint)


def check_fault(checks: Checks, path: str, fault: HTTPFaultInjection) -> None:
    """Row 25."""
    if fault.delay is None and fault.abort is None:
        checks.error(codes.VS_FAULT, path, "one of delay and abort is required")
    if fault.delay is not None:
        _check_delay(checks, f"{path}.delay", fault.delay)
    if fault.abort is not None:
        _check_abort(checks, f"{path}.abort", fault.abort)


def _check_delay(checks: Checks, path: str, delay: FaultDelay) -> None:
    if delay.exponential_delay is not None:
        message = "exponentialDelay is not supported"
        checks.error(codes.VS_FAULT, f"{path}.exponentialDelay", message, "use fixedDelay")
    elif delay.fixed_delay is None:
        checks.error(codes.VS_FAULT, path, "fixedDelay is required", "for example fixedDelay: 7s")
    checks.duration(f"{path}.fixedDelay", delay.fixed_delay)
    checks.percent(f"{path}.percent", delay.percent)
    if delay.percent is not None:
        checks.warning(codes.DEPRECATED, f"{path}.percent", "percent is deprecated", "use percentage.value")


def _check_abort(checks: Checks, path: str, abort: FaultAbort) -> None:
    kinds = [
        name
        for name, value in (
            ("httpStatus", abort.http_status),
            ("grpcStatus", abort.grpc_status),
            ("http2Error", abort.http2_error),
        )
        if value is not None
    ]
    if len(kinds) > 1:
        checks.error(codes.VS_FAULT, path, f"expected one error, found {' and '.join(kinds)}")
    if not kinds:
        hint = "give httpStatus or grpcStatus"
        checks.warning(codes.VS_FAULT, path, "an abort without an error has no effect", hint)
    if abort.http2_error is not None:
        checks.error(codes.VS_FAULT, f"{path}.http2Error", "http2Error is not supported", "use httpStatus")
    if abort.http_status is not None and not 200 <= abort.http_status <= 599:
        message = f"expected 200 to 599, found {abort.http_status}"
        checks.error(codes.VS_FAULT, f"{path}.httpStatus", message)
    if abort.grpc_status is not None and abort.grpc_status not in GRPC_STATUS:
        message = f"{abort.grpc_status!r} is no gRPC status"
        checks.error(codes.VS_FAULT, f"{path}.grpcStatus", message, "for example UNAVAILABLE")


def check_mirrors(checks: Checks, path: str, route: HTTPRoute) -> None:
    """Row 26; the destinations are checked by the caller."""
    if route.mirror is not None and route.mirrors:
        checks.error(codes.VS_MIRROR, f"{path}.mirrors", "mirror and mirrors exclude each other")
    checks.percent(f"{path}.mirrorPercent", route.mirror_percent)
    if route.mirror_percent is not None:
        hint = "use mirrorPercentage.value"
        checks.warning(codes.DEPRECATED, f"{path}.mirrorPercent", "mirrorPercent is deprecated", hint)
    if route.mirror is None and (route.mirror_percent is not None or route.mirror_percentage is not None):
        checks.warning(codes.VS_MIRROR, path, "a mirror percentage without mirror has no effect")


def check_cors(checks: Checks, path: str, cors: CorsPolicy) -> None:
    """Row 27."""
    for index, method in enumerate(cors.allow_methods):
        if method not in HTTP_METHODS:
            checks.error(codes.VS_CORS, f"{path}.allowMethods[{index}]", f"{method!r} is no HTTP method")
    for name, headers in (("allowHeaders", cors.allow_headers), ("exposeHeaders", cors.expose_headers)):
        for index, header in enumerate(headers):
            if header != "*":
                checks.header_name(f"{path}.{name}[{index}]", header)
    if cors.max_age is not None and (cors.max_age < 0 or cors.max_age % _SECOND):
        checks.error(codes.VS_CORS, f"{path}.maxAge", "expected whole seconds of at least 0")
    for index, origin in enumerate(cors.allow_origins):
        place = f"{path}.allowOrigins[{index}]"
        given = [text for text in (origin.exact, origin.prefix, origin.regex) if text is not None]
        if len(given) != 1:
            checks.error(codes.VS_CORS, place, "expected one of exact, prefix and regex")
        if origin.regex is not None:
            checks.regex(f"{place}.regex", origin.regex)
    if cors.allow_origin:
        checks.warning(codes.DEPRECATED, f"{path}.allowOrigin", "allowOrigin is deprecated", "use allowOrigins")
