"""HTTP match conditions to Envoy's RouteMatch (istio-translation.md 2.6).

Pure: a match of the manifest and the matchers on the source in, a RouteMatch out. All conditions of a
match are ANDed. Source conditions, ports and gateways of the match were folded into the rule by mesh.
"""

from __future__ import annotations

from collections.abc import Iterator

from envoy.config.route.v3.route_components_pb2 import HeaderMatcher, QueryParameterMatcher, RouteMatch
from envoy.type.matcher.v3.filter_state_pb2 import FilterStateMatcher
from envoy.type.matcher.v3.regex_pb2 import RegexMatcher
from google.protobuf.wrappers_pb2 import BoolValue

from xdsbpf.compile.envoy.headers import is_header_name
from xdsbpf.compile.envoy.string_match import is_presence, string_error, string_matcher
from xdsbpf.model.matching import StringMatch
from xdsbpf.model.virtual_service import HTTPMatchRequest

CLAIMS_PREFIX = "@request.auth.claims"


def match_error(match: HTTPMatchRequest) -> tuple[str, str]:
    """Field path inside the match and reason why it cannot be expressed; ("", "") if it can."""
    for path, value in _strings(match):
        reason = "" if is_presence(value) else string_error(value)
        if reason:
            return path, f"invalid string matcher: {reason}"
    for field, pairs in (("headers", match.headers), ("withoutHeaders", match.without_headers)):
        for name, _ in pairs:
            if name.startswith(CLAIMS_PREFIX):
                return f"{field}[{name}]", "matching on token claims is not supported yet"
            if not is_header_name(name):
                return f"{field}[{name}]", "not a header name"
    if any(not name for name, _ in match.query_params):
        return "queryParams", "empty parameter name"
    return "", ""


def route_match(match: HTTPMatchRequest | None, source: tuple[FilterStateMatcher, ...]) -> RouteMatch:
    """The RouteMatch for one match entry (None: every request) of the sources that `source` describes.

    The match must be free of `match_error`.
    """
    result = RouteMatch(filter_state=source)
    if match is None:
        result.prefix = "/"
        return result
    set_path(result, match.uri)
    result.case_sensitive.CopyFrom(BoolValue(value=not match.ignore_uri_case))
    headers = [(name, header_matcher(name, value)) for name, value in match.headers]
    headers += [(name, header_matcher(name, value, invert=True)) for name, value in match.without_headers]
    headers.sort(key=lambda header: header[0])
    result.headers.extend(matcher for _, matcher in headers)
    for name, value in (
        (":method", match.method),
        (":authority", match.authority),
        (":scheme", match.scheme),
    ):
        if value is not None:
            result.headers.append(header_matcher(name, value))
    result.query_parameters.extend(_query_matcher(name, value) for name, value in match.query_params)
    return result


def header_matcher(name: str, match: StringMatch, *, invert: bool = False) -> HeaderMatcher:
    """One header condition. An inverted value also holds for requests without the header."""
    if is_presence(match):
        return HeaderMatcher(name=name, present_match=True, invert_match=invert)
    return HeaderMatcher(
        name=name,
        string_match=string_matcher(match),
        invert_match=invert,
        treat_missing_header_as_empty=invert,
    )


def is_catch_all(match: RouteMatch) -> bool:
    """Whether no request of any source can fall through this match."""
    return match.prefix == "/" and not (match.headers or match.query_parameters or match.filter_state)


def set_path(result: RouteMatch, uri: StringMatch | None) -> None:
    """Write the path condition; none means every path."""
    if uri is None or is_presence(uri):
        result.prefix = "/"
    elif uri.exact is not None:
        result.path = uri.exact
    elif uri.prefix is not None:
        result.prefix = uri.prefix
    else:
        result.safe_regex.CopyFrom(RegexMatcher(regex=uri.regex or ""))


def _query_matcher(name: str, match: StringMatch) -> QueryParameterMatcher:
    if is_presence(match):
        return QueryParameterMatcher(name=name, present_match=True)
    return QueryParameterMatcher(name=name, string_match=string_matcher(match))


def _strings(match: HTTPMatchRequest) -> Iterator[tuple[str, StringMatch]]:
    for field in ("uri", "scheme", "method", "authority"):
        value = getattr(match, field)
        if value is not None:
            yield field, value
    for field, pairs in (
        ("headers", match.headers),
        ("withoutHeaders", match.without_headers),
        ("queryParams", match.query_params),
    ):
        for name, value in pairs:
            yield f"{field}[{name}]", value
