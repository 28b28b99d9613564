"""Matchers that several Istio kinds share."""

from __future__ import annotations

import msgspec

from xdsbpf.model.scalars import Port


class StringMatch(msgspec.Struct, frozen=True):
    """Exactly one of the three; an empty matcher means presence where Istio allows it (headers, query)."""

    exact: str | None = None
    prefix: str | None = None
    regex: str | None = None


class PortSelector(msgspec.Struct, frozen=True):
    number: Port
