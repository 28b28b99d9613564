"""Validation of one http route of a VirtualService (istio-translation.md 9.2 rows 12 to 27)."""

from __future__ import annotations

from typing import Final

from xdsbpf.model import codes
from xdsbpf.model.checks import Checks, host_hint, is_dns_label, is_dns_subdomain, is_fqdn
from xdsbpf.model.validate_http_extras import check_cors, check_fault, check_mirrors, check_retries
from xdsbpf.model.validate_http_match import check_http_match
from xdsbpf.model.virtual_service import (
    Destination,
    HeaderOperations,
    Headers,
    HTTPDirectResponse,
    HTTPRedirect,
    HTTPRoute,
)

ENVOY_REDIRECT_CODES: Final = (301, 302, 303, 307, 308)
BODY_LIMIT: Final = 1 << 20
BODY_WARNING: Final = 100 << 10


def check_http_route(checks: Checks, path: str, route: HTTPRoute, is_root: bool, on_gateway: bool) -> None:
    """One route; `is_root`: its VirtualService has hosts, so it may delegate."""
    for index, match in enumerate(route.match):
        check_http_match(checks, f"{path}.match[{index}]", match, on_gateway)
    _check_action(checks, path, route, is_root)
    if route.redirect is not None:
        _check_redirect(checks, f"{path}.redirect", route.redirect, route)
    if route.direct_response is not None:
        _check_direct_response(checks, f"{path}.directResponse", route.direct_response)
    _check_rewrite(checks, path, route)
    for index, item in enumerate(route.route):
        check_destination(checks, f"{path}.route[{index}].destination", item.destination)
        if item.headers is not None:
            _check_headers(checks, f"{path}.route[{index}].headers", item.headers)
    check_weights(checks, f"{path}.route", tuple(item.weight for item in route.route))
    if route.headers is not None:
        _check_headers(checks, f"{path}.headers", route.headers)
    _check_authority(checks, path, route)
    checks.duration(f"{path}.timeout", route.timeout)
    if route.retries is not None:
        check_retries(checks, f"{path}.retries", route.retries)
    if route.fault is not None:
        check_fault(checks, f"{path}.fault", route.fault)
    check_mirrors(checks, path, route)
    for place, destination in _mirror_destinations(path, route):
        check_destination(checks, place, destination)
    if route.cors_policy is not None:
        check_cors(checks, f"{path}.corsPolicy", route.cors_policy)


def _mirror_destinations(path: str, route: HTTPRoute) -> list[tuple[str, Destination]]:
    found = [(f"{path}.mirror", route.mirror)] if route.mirror is not None else []
    found += [(f"{path}.mirrors[{i}].destination", item.destination) for i, item in enumerate(route.mirrors)]
    return found


def _check_action(checks: Checks, path: str, route: HTTPRoute, is_root: bool) -> None:
    """Exactly one of route, redirect, directResponse, delegate, and what each excludes (12 to 14)."""
    given = {
        "route": bool(route.route),
        "redirect": route.redirect is not None,
        "directResponse": route.direct_response is not None,
        "delegate": route.delegate is not None,
    }
    actions = [name for name, present in given.items() if present]
    if not actions:
        hint = "add a destination in route"
        checks.error(codes.VS_ACTION, path, "expected route, redirect, directResponse or delegate, found none", hint)
    elif len(actions) > 1:
        message = f"expected one of route, redirect, directResponse and delegate, found {' and '.join(actions)}"
        checks.error(codes.VS_ACTION, path, message, "split the route in two")
    for action in ("redirect", "directResponse"):
        if given[action]:
            for name, value in (("fault", route.fault), ("rewrite", route.rewrite)):
                if value is not None:
                    checks.error(codes.VS_ACTION, f"{path}.{name}", f"{name} cannot be combined with {action}")
    if route.delegate is not None:
        _check_delegate(checks, path, route, is_root)


def _check_delegate(checks: Checks, path: str, route: HTTPRoute, is_root: bool) -> None:
    place = f"{path}.delegate"
    if not is_root:
        checks.error(codes.VS_DELEGATE, place, "a delegate cannot delegate again", "give spec.hosts, or a route")
    delegate = route.delegate
    if delegate is None:
        return
    if not is_dns_subdomain(delegate.name):
        checks.error(codes.VS_DELEGATE, f"{place}.name", f"expected a VirtualService, found {delegate.name!r}")
    if delegate.namespace and not is_dns_label(delegate.namespace):
        message = f"expected a namespace, found {delegate.namespace!r}"
        checks.error(codes.BAD_NAMESPACE, f"{place}.namespace", message)
    # Istio allows beside a delegate what it merges into the delegate's routes; these it does not.
    for name, value in (("rewrite", route.rewrite), ("fault", route.fault), ("mirror", route.mirror)):
        if value is not None:
            message = f"{name} cannot be combined with delegate"
            checks.error(codes.VS_DELEGATE, f"{path}.{name}", message, "put it into the delegate")


def _check_redirect(checks: Checks, path: str, redirect: HTTPRedirect, route: HTTPRoute) -> None:
    prefix = redirect.prefix_rewrite or redirect.uri_prefix
    target = (redirect.uri, prefix, redirect.authority, redirect.scheme, redirect.port, redirect.derive_port)
    if not any(target):
        checks.error(codes.VS_REDIRECT, path, "one of uri, authority, scheme and port is required")
    if redirect.uri and prefix:
        checks.error(codes.VS_REDIRECT, path, "uri and prefixRewrite exclude each other")
    if redirect.port is not None and redirect.derive_port is not None:
        checks.error(codes.VS_REDIRECT, path, "port and derivePort exclude each other")
    if prefix and any(match.uri is not None and match.uri.prefix is None for match in route.match):
        hint = "match on uri.prefix"
        checks.error(codes.VS_REDIRECT, path, "prefixRewrite needs every uri match to be a prefix", hint)
    if redirect.scheme not in ("", "http", "https"):
        checks.error(codes.VS_REDIRECT, f"{path}.scheme", f"expected http or https, found {redirect.scheme!r}")
    checks.port(f"{path}.port", redirect.port)
    code = redirect.redirect_code
    if code and not 300 <= code <= 399:
        checks.error(codes.VS_REDIRECT, f"{path}.redirectCode", f"expected 300 to 399, found {code}")
    elif code and code not in ENVOY_REDIRECT_CODES:
        hint = "use 301, 302, 303, 307 or 308"
        checks.warning(codes.VS_REDIRECT, f"{path}.redirectCode", f"Envoy has no redirect with code {code}", hint)


def _check_direct_response(checks: Checks, path: str, response: HTTPDirectResponse) -> None:
    if not 200 <= response.status <= 599:
        # Istio lets this pass and Envoy refuses it; refusing it here names the manifest.
        message = f"expected 200 to 599, found {response.status}"
        checks.error(codes.VS_DIRECT_RESPONSE, f"{path}.status", message)
    if response.body is None:
        return
    if response.body.string is not None and response.body.bytes is not None:
        checks.error(codes.VS_DIRECT_RESPONSE, f"{path}.body", "string and bytes exclude each other")
    size = len((response.body.string or "").encode()) or len(response.body.bytes or "") * 3 // 4
    if size > BODY_LIMIT:
        message = f"the body has {size} bytes, more than {BODY_LIMIT}"
        checks.error(codes.VS_DIRECT_RESPONSE, f"{path}.body", message)
    elif size > BODY_WARNING:
        checks.warning(codes.VS_DIRECT_RESPONSE, f"{path}.body", f"the body has {size} bytes")


def _check_rewrite(checks: Checks, path: str, route: HTTPRoute) -> None:
    rewrite = route.rewrite
    if rewrite is None:
        return
    place = f"{path}.rewrite"
    if not (rewrite.uri or rewrite.authority or rewrite.uri_regex_rewrite):
        checks.error(codes.VS_REWRITE, place, "one of uri, authority and uriRegexRewrite is required")
    if rewrite.uri and rewrite.uri_regex_rewrite:
        checks.error(codes.VS_REWRITE, place, "uri and uriRegexRewrite exclude each other")
    if rewrite.uri_regex_rewrite is not None:
        if not rewrite.uri_regex_rewrite.match or not rewrite.uri_regex_rewrite.rewrite:
            checks.error(codes.VS_REWRITE, f"{place}.uriRegexRewrite", "match and rewrite are required")
        checks.regex(f"{place}.uriRegexRewrite.match", rewrite.uri_regex_rewrite.match)


def check_destination(checks: Checks, path: str, destination: Destination) -> None:
    """Host and subset name (rows 18, 19); the port was checked when it was read."""
    host = destination.host
    if not host:
        checks.error(codes.VS_DESTINATION, f"{path}.host", "the host is empty")
    elif "*" in host or not is_fqdn(host):
        message = f"expected a service host, found {host!r}"
        hint = "a destination is one host, not a wildcard" if "*" in host else host_hint(host)
        checks.error(codes.VS_DESTINATION, f"{path}.host", message, hint)
    if destination.subset and not is_dns_label(destination.subset):
        message = f"expected a subset name, found {destination.subset!r}"
        checks.error(codes.VS_DESTINATION, f"{path}.subset", message)


def check_weights(checks: Checks, path: str, weights: tuple[int, ...]) -> None:
    """Several destinations need a weight above 0; they need not add up to 100 (row 18)."""
    if len(weights) > 1 and not any(weights):
        hint = "give every destination a weight"
        checks.error(codes.VS_WEIGHT, path, f"the weights of {len(weights)} destinations add up to 0", hint)


def _check_headers(checks: Checks, path: str, headers: Headers) -> None:
    for side, operations in (("request", headers.request), ("response", headers.response)):
        _check_operations(checks, f"{path}.{side}", operations, side == "request")


def _check_operations(checks: Checks, path: str, operations: HeaderOperations, is_request: bool) -> None:
    """Header names (row 22): pseudo headers are Envoy's, only :authority may be set on requests."""
    named = [(f"{path}.set[{name}]", name) for name, _ in operations.set]
    named += [(f"{path}.add[{name}]", name) for name, _ in operations.add]
    for place, name in named:
        if name.startswith(":"):
            if not is_request or name != ":authority":
                checks.error(codes.VS_HEADERS, place, f"the pseudo header {name} cannot be set")
        else:
            checks.header_name(place, name)
    for index, name in enumerate(operations.remove):
        place = f"{path}.remove[{index}]"
        if name.startswith(":") or name.lower() == "host":
            checks.error(codes.VS_HEADERS, place, f"the header {name} cannot be removed")
        else:
            checks.header_name(place, name)


def _check_authority(checks: Checks, path: str, route: HTTPRoute) -> None:
    """The authority may be set once between rewrite and headers (row 22)."""
    times = 1 if route.rewrite is not None and route.rewrite.authority else 0
    if route.headers is not None:
        request = route.headers.request
        times += sum(name.lower() in ("host", ":authority") for name, _ in (*request.set, *request.add))
    if times > 1:
        message = f"the authority is set {times} times between rewrite and headers"
        checks.error(codes.VS_HEADERS, path, message, "keep one of them")
