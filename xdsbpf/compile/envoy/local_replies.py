"""Requests that Envoy answers itself: redirects and direct responses (istio-translation.md 2.7)."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from envoy.config.route.v3.route_components_pb2 import DirectResponseAction, RedirectAction

from xdsbpf.compile.envoy.codes import FAILS, VALUE_INVALID, Report, at, warn
from xdsbpf.compile.envoy.headers import HEADER_VALUE
from xdsbpf.diagnostics import Origin
from xdsbpf.model.virtual_service import HTTPDirectResponse, HTTPRedirect

MAX_BODY: Final = 1_048_576
"""Largest direct response, in bytes."""
RESPONSE_CODES: Final = {
    0: RedirectAction.MOVED_PERMANENTLY,
    301: RedirectAction.MOVED_PERMANENTLY,
    302: RedirectAction.FOUND,
    303: RedirectAction.SEE_OTHER,
    307: RedirectAction.TEMPORARY_REDIRECT,
    308: RedirectAction.PERMANENT_REDIRECT,
}
DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def redirect_action(redirect: HTTPRedirect, port: int, where: Origin, report: Report) -> RedirectAction | None:
    """The redirect of a route that clients reach on `port`; None if Envoy would refuse it (reported)."""
    code = RESPONSE_CODES.get(redirect.redirect_code)
    if code is None:
        text = f"{redirect.redirect_code} is no redirect: {FAILS}"
        warn(report, VALUE_INVALID, at(where, "redirectCode"), text, "use 301, 302, 303, 307 or 308")
        return None
    texts = (redirect.authority, redirect.scheme, redirect.uri, redirect.uri_prefix, redirect.prefix_rewrite)
    if not all(is_header_text(text, where, report) for text in texts):
        return None
    result = RedirectAction(host_redirect=redirect.authority, response_code=code)
    if redirect.scheme:
        result.scheme_redirect = redirect.scheme
    prefix = redirect.uri_prefix or redirect.prefix_rewrite
    if prefix:
        result.prefix_rewrite = prefix
    elif redirect.uri:
        result.path_redirect = redirect.uri
    target = redirect.port or (port if redirect.derive_port == "FROM_REQUEST_PORT" else 0)
    if target and target != DEFAULT_PORTS.get(redirect.scheme or "http"):
        result.port_redirect = target
    return result


def direct_response_action(answer: HTTPDirectResponse, where: Origin, report: Report) -> DirectResponseAction | None:
    """The answer of a route; None if Envoy would refuse it (reported)."""
    if not 200 <= answer.status <= 599:
        text = f"status {answer.status} cannot be answered: {FAILS}"
        warn(report, VALUE_INVALID, at(where, "status"), text)
        return None
    result = DirectResponseAction(status=answer.status)
    if answer.body is not None and answer.body.string is not None:
        result.body.inline_string = answer.body.string
    elif answer.body is not None and answer.body.bytes is not None:
        try:
            result.body.inline_bytes = base64.b64decode(answer.body.bytes, validate=True)
        except binascii.Error:
            warn(
                report,
                VALUE_INVALID,
                at(where, "body.bytes"),
                f"not base64: {FAILS}",
            )
            return None
    if len(result.body.inline_string.encode()) + len(result.body.inline_bytes) > MAX_BODY:
        warn(
            report,
            VALUE_INVALID,
            at(where, "body"),
            f"longer than 1 MiB: {FAILS}",
        )
        return None
    return result


def is_header_text(text: str, where: Origin, report: Report) -> bool:
    """Whether a text may enter a header; reported if not."""
    if HEADER_VALUE.fullmatch(text):
        return True
    warn(
        report,
        VALUE_INVALID,
        where,
        f"{text!r} holds control characters: {FAILS}",
    )
    return False
