"""HTTP match conditions for gRPC libraries, which know fewer of them than Envoy (gRFC A28).

Pure: a match of the manifest in, RouteMatches out, several where one condition of Envoy's takes two of gRPC's.
"""

from __future__ import annotations

import itertools
import re
from typing import Final

from envoy.config.route.v3.route_components_pb2 import HeaderMatcher, RouteMatch
from google.protobuf.wrappers_pb2 import BoolValue

from xdsbpf.compile.envoy.codes import Report
from xdsbpf.compile.envoy.route_match import header_matcher, match_error, set_path
from xdsbpf.compile.envoy.string_match import is_presence
from xdsbpf.compile.proxyless.codes import left_out
from xdsbpf.diagnostics import Origin
from xdsbpf.model.matching import StringMatch
from xdsbpf.model.virtual_service import HTTPMatchRequest

METHOD: Final = "POST"
"""Every gRPC call is one."""
HIDDEN_SUFFIX: Final = "-bin"
"""Binary metadata, which gRPC never shows to a matcher."""


def grpc_matches(match: HTTPMatchRequest | None, where: Origin, report: Report) -> tuple[RouteMatch, ...]:
    """RouteMatches of which a call must fulfil any; () if no gRPC call can match, or none can be told (reported)."""
    if match is None:
        return (RouteMatch(prefix="/"),)
    field, reason = _obstacle(match)
    if reason:
        left_out(report, where, field, reason)
        return ()
    if match.method is not None and not _accepts(match.method, METHOD):
        return ()
    result = RouteMatch()
    set_path(result, match.uri)
    result.case_sensitive.CopyFrom(BoolValue(value=not match.ignore_uri_case))
    result.headers.extend(header_matcher(name, value) for name, value in sorted(match.headers, key=_name))
    absences = [_absence(name, value) for name, value in sorted(match.without_headers, key=_name)]
    return tuple(_with(result, chosen) for chosen in itertools.product(*absences))


def _obstacle(match: HTTPMatchRequest) -> tuple[str, str]:
    """Field and reason why gRPC cannot evaluate a match; ("", "") if it can."""
    field, reason = match_error(match)
    if reason:
        return field, reason
    if match.query_params:
        return "queryParams", "a gRPC call has no query parameters"
    for name in ("authority", "scheme"):
        if getattr(match, name) is not None:
            return name, f"gRPC clients do not match on the {name}"
    for holder, pairs in (("headers", match.headers), ("withoutHeaders", match.without_headers)):
        for key, _ in pairs:
            if key.startswith(":") or key.lower().endswith(HIDDEN_SUFFIX):
                return f"{holder}[{key}]", f"gRPC clients do not match on the header {key}"
    return "", ""


def _absence(name: str, value: StringMatch) -> tuple[HeaderMatcher, ...]:
    """Alternatives for "does not have this value". In gRPC an inverted value never holds for a missing header."""
    missing = HeaderMatcher(name=name, present_match=True, invert_match=True)
    if is_presence(value):
        return (missing,)
    other = header_matcher(name, value, invert=True)
    other.treat_missing_header_as_empty = False
    # Envoy takes a missing header for an empty one here.
    return (other,) if _accepts(value, "") else (missing, other)


def _accepts(matcher: StringMatch, text: str) -> bool:
    """Whether a valid matcher matches `text`."""
    if is_presence(matcher):
        return True
    if matcher.exact is not None:
        return matcher.exact == text
    if matcher.prefix is not None:
        return text.startswith(matcher.prefix)
    return re.fullmatch(matcher.regex or "", text) is not None


def _name(pair: tuple[str, StringMatch]) -> str:
    return pair[0]


def _with(match: RouteMatch, headers: tuple[HeaderMatcher, ...]) -> RouteMatch:
    result = RouteMatch()
    result.CopyFrom(match)
    result.headers.extend(headers)
    return result
