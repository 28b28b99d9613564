"""Validation of one entry of http[].match (istio-translation.md 9.2 rows 20, 21, 30)."""

from __future__ import annotations

from typing import Final

from xdsbpf.model import codes
from xdsbpf.model.checks import Checks, is_dns_label, is_dns_subdomain
from xdsbpf.model.matching import StringMatch
from xdsbpf.model.virtual_service import HTTPMatchRequest

CLAIM_PREFIX: Final = "@request.auth.claims"


def check_http_match(checks: Checks, path: str, match: HTTPMatchRequest, on_gateway: bool) -> None:
    """All fields of a match; `on_gateway`: whether a gateway other than mesh may use it."""
    for name, field in (
        ("uri", match.uri),
        ("scheme", match.scheme),
        ("method", match.method),
        ("authority", match.authority),
    ):
        if field is not None:
            _check_string(checks, f"{path}.{name}", field, empty_prefix=name == "uri", presence=False)
    for name, value in match.query_params:
        place = f"{path}.queryParams[{name}]"
        if not name:
            checks.error(codes.VS_MATCH, place, "the name of a query parameter is empty")
        _check_string(checks, place, value, empty_prefix=False, presence=True)
    for name, value in match.headers:
        _check_header(checks, f"{path}.headers[{name}]", name, value, on_gateway)
    for name, value in match.without_headers:
        # Istio takes the regex * here for "the header is present".
        shown = StringMatch() if value.regex == "*" else value
        _check_header(checks, f"{path}.withoutHeaders[{name}]", name, shown, on_gateway)
    checks.port(f"{path}.port", match.port)
    checks.labels(f"{path}.sourceLabels", match.source_labels)
    if match.source_namespace and not is_dns_label(match.source_namespace):
        message = f"expected a namespace, found {match.source_namespace!r}"
        checks.error(codes.BAD_NAMESPACE, f"{path}.sourceNamespace", message)
    for index, gateway in enumerate(match.gateways):
        check_gateway_name(checks, f"{path}.gateways[{index}]", gateway)


def check_gateway_name(checks: Checks, path: str, gateway: str) -> None:
    """`mesh`, `name` or `namespace/name`; the old `name.namespace.svc…` form is a warning (row 11)."""
    namespace, slash, name = gateway.rpartition("/")
    if not is_dns_subdomain(name) or (slash and namespace != "." and not is_dns_label(namespace)):
        message = f"expected mesh, name or namespace/name, found {gateway!r}"
        checks.error(codes.VS_GATEWAY, path, message)
    elif not slash and "." in name:
        hint = "write it as namespace/name"
        checks.warning(codes.DEPRECATED, path, f"the gateway {gateway} is given as a host name", hint)


def _check_header(checks: Checks, path: str, name: str, match: StringMatch, on_gateway: bool) -> None:
    if name.startswith(CLAIM_PREFIX):
        if not on_gateway:
            hint = "list the gateway in spec.gateways"
            checks.error(codes.VS_MATCH, path, "matching on JWT claims needs a gateway other than mesh", hint)
    else:
        checks.header_name(path, name)
    _check_string(checks, path, match, empty_prefix=False, presence=True)


def _check_string(checks: Checks, path: str, match: StringMatch, *, empty_prefix: bool, presence: bool) -> None:
    """Exactly one way to match; none at all means presence where that is allowed."""
    given = [
        name
        for name, text in (("exact", match.exact), ("prefix", match.prefix), ("regex", match.regex))
        if text is not None
    ]
    if len(given) > 1:
        message = f"expected one of exact, prefix and regex, found {' and '.join(given)}"
        checks.error(codes.VS_MATCH, path, message, "use two matches")
    if not given and not presence:
        checks.warning(codes.VS_MATCH, path, "an empty matcher has no effect", "give exact, prefix or regex")
    if match.prefix == "" and not empty_prefix:
        checks.error(codes.VS_MATCH, path, "the prefix is empty", "leave it out to match presence")
    if match.regex == "":
        checks.error(codes.VS_MATCH, path, "the regex is empty", "leave it out to match presence")
    elif match.regex is not None:
        checks.regex(f"{path}.regex", match.regex)


def is_catch_all(match: HTTPMatchRequest) -> bool:
    """Whether every request of the host matches: at most a uri of prefix / or regex .*"""
    everything = StringMatch(prefix="/"), StringMatch(prefix=""), StringMatch(regex=".*"), None, StringMatch()
    if match.uri not in everything:
        return False
    conditions = (
        match.scheme,
        match.method,
        match.authority,
        match.headers,
        match.without_headers,
        match.query_params,
        match.port,
        match.source_labels,
        match.source_namespace,
        match.gateways,
    )
    return not any(condition is not None and condition not in ((), "") for condition in conditions)
