"""CORS policy per route (istio-translation.md 2.11)."""

from __future__ import annotations

from typing import Final

from envoy.config.core.v3.base_pb2 import RuntimeFractionalPercent
from envoy.extensions.filters.http.cors.v3.cors_pb2 import CorsPolicy as EnvoyCorsPolicy
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from google.protobuf.wrappers_pb2 import BoolValue

from xdsbpf.compile.envoy.codes import REGEX_INVALID, Report, at, warn
from xdsbpf.compile.envoy.encoding import fraction_of_hundred
from xdsbpf.compile.envoy.string_match import string_error, string_matcher
from xdsbpf.diagnostics import Origin
from xdsbpf.model.scalars import NANOSECONDS
from xdsbpf.model.virtual_service import CorsPolicy

ALWAYS: Final = RuntimeFractionalPercent(default_value=fraction_of_hundred(100))


def cors_policy(policy: CorsPolicy, where: Origin, report: Report) -> EnvoyCorsPolicy:
    """The route's configuration of the CORS filter; an origin with a bad regex is left out: refused."""
    result = EnvoyCorsPolicy(
        allow_methods=",".join(policy.allow_methods),
        allow_headers=",".join(policy.allow_headers),
        expose_headers=",".join(policy.expose_headers),
        filter_enabled=ALWAYS,
        forward_not_matching_preflights=BoolValue(value=policy.unmatched_preflights != "IGNORE"),
    )
    for index, origin in enumerate(policy.allow_origins):
        reason = string_error(origin)
        if reason:
            warn(report, REGEX_INVALID, at(where, f"allowOrigins[{index}]"), reason)
        else:
            result.allow_origin_string_match.append(string_matcher(origin))
    if not policy.allow_origins:
        result.allow_origin_string_match.extend(StringMatcher(exact=origin) for origin in policy.allow_origin)
    if policy.max_age is not None:
        result.max_age = str(policy.max_age // NANOSECONDS)
    if policy.allow_credentials is not None:
        result.allow_credentials.CopyFrom(BoolValue(value=policy.allow_credentials))
    return result
