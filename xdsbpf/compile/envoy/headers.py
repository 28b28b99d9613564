"""Header operations of a VirtualService (istio-translation.md 2.8), with the values Envoy would refuse.

Envoy reads header values as format strings and refuses the whole virtual host over one that it cannot
parse; so a value is passed on only if every `%` is a command that Envoy knows, and is reported otherwise.
"""

from __future__ import annotations

import re
from typing import Final

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption

from xdsbpf.compile.envoy.codes import HEADER_INVALID, Report, at, warn
from xdsbpf.diagnostics import Origin
from xdsbpf.model.scalars import Pairs
from xdsbpf.model.virtual_service import HeaderOperations, Headers

OVERWRITE: Final = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
APPEND: Final = HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
HEADER_VALUE: Final = re.compile(r"[^\x00-\x08\x0A-\x1F\x7F]*")
COMMANDS: Final = (
    "REQ|START_TIME|PROTOCOL|UPSTREAM_HOST|UPSTREAM_CLUSTER|HOSTNAME|ROUTE_NAME|REQUESTED_SERVER_NAME|STREAM_ID"
    "|DOWNSTREAM_(?:REMOTE|DIRECT_REMOTE|LOCAL)_ADDRESS(?:_WITHOUT_PORT)?|DOWNSTREAM_LOCAL_PORT"
)
FORMAT: Final = re.compile(rf"(?:[^%]|%%|%(?:{COMMANDS})(?:\([^()%]*\))?(?::[0-9]+)?%)*")
AUTHORITY: Final = ("host", ":authority")


def is_header_name(name: str) -> bool:
    """Whether `name` can be matched on: a token of RFC 9110, or a pseudo header."""
    return HEADER_NAME.fullmatch(name.removeprefix(":")) is not None


def add_headers(message: object, headers: Headers | None, where: Origin, report: Report) -> None:
    """Write the operations into a Route or ClusterWeight (their four header fields have equal names).

    The authority is not a header operation: see `authority_of`.
    """
    if headers is None:
        return
    for direction, operations in (("request", headers.request), ("response", headers.response)):
        place = at(where, f"headers.{direction}")
        getattr(message, f"{direction}_headers_to_add").extend(_additions(operations, place, report))
        getattr(message, f"{direction}_headers_to_remove").extend(
            name for name in operations.remove if _is_allowed(name)
        )


def authority_of(headers: Headers | None) -> str:
    """The authority that `set` (preferred) or `add` of Host or :authority asks for, or ""."""
    if headers is None:
        return ""
    for pairs in (headers.request.set, headers.request.add):
        for name, value in pairs:
            if name.lower() in AUTHORITY:
                return value
    return ""


def _additions(operations: HeaderOperations, where: Origin, report: Report) -> list[HeaderValueOption]:
    options: list[HeaderValueOption] = []
    for field, pairs, action in (("set", operations.set, OVERWRITE), ("add", operations.add, APPEND)):
        options += _options(pairs, action, at(where, field), report)
    return options


def _options(pairs: Pairs[str], action: int, where: Origin, report: Report) -> list[HeaderValueOption]:
    options: list[HeaderValueOption] = []
    for name, value in pairs:
        if name.lower() in AUTHORITY or name.startswith(":"):
            continue
        if not _is_allowed(name) or not HEADER_VALUE.fullmatch(value) or not FORMAT.fullmatch(value):
            warn(
                report,
                HEADER_INVALID,
                at(where, f"[{name}]"),
                f"header {name!r} with value {value!r} is left out: Envoy would refuse it",
                "write a literal percent sign as %%",
            )
            continue
        options.append(
            HeaderValueOption(
                header=HeaderValue(key=name, value=value), append_action=action, keep_empty_value=not value
            )
        )
    return options


def _is_allowed(name: str) -> bool:
    return name.lower() != "host" and HEADER_NAME.fullmatch(name) is not None
