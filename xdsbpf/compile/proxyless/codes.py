"""Findings about what gRPC libraries leave out of a route or policy (gRFCs A27 to A45), and how they are reported."""

from __future__ import annotations

from typing import Final

from xdsbpf.compile.envoy.codes import Report, at, note, warn
from xdsbpf.diagnostics import Origin

WITHOUT: Final = "XB3051"
"""A field that gRPC clients do not know; their calls go on without it."""
LEFT_OUT: Final = "XB3052"
"""A match that gRPC clients cannot evaluate: the route is not for them."""
FAILS: Final = "XB3053"
"""An action that gRPC clients cannot take: calls that match fail with UNAVAILABLE."""


def without(report: Report, where: Origin, field: str, hint: str = "") -> None:
    """Report a set field that gRPC clients do not know."""
    note(report, WITHOUT, at(where, field), f"gRPC clients do not know {field}: it has no effect for them", hint)


def left_out(report: Report, where: Origin, field: str, reason: str) -> None:
    """Report a match that makes its route none for gRPC clients."""
    text = f"{reason}: for gRPC clients the route does not exist, their calls go on to the routes after it"
    warn(report, LEFT_OUT, at(where, field), text)


def fails(report: Report, where: Origin, field: str) -> None:
    """Report an action that gRPC clients cannot take."""
    warn(report, FAILS, at(where, field), f"gRPC clients cannot do {field}: their calls fail with UNAVAILABLE")
