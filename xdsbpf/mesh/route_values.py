"""Values of the route queries: where a request may go, and for which clients.

`routes` and `tcp_routes` make them; `traffic_mode` and the compilers read them. No queries here.
"""

from __future__ import annotations

import enum

import msgspec

from xdsbpf.diagnostics import ObjectId
from xdsbpf.model.scalars import Labels
from xdsbpf.model.virtual_service import Headers, HTTPMatchRequest, HTTPRoute


class RouteTarget(msgspec.Struct, frozen=True):
    """A resolved destination; `path` is its place in the VirtualService, "" for the service itself.

    `is_known` is False if host, port or subset do not exist (reported): requests sent there fail,
    they are not sent elsewhere.
    """

    host: str
    port: int
    subset: str = ""
    weight: int = 1
    headers: Headers | None = None
    path: str = ""
    is_known: bool = True


class MirrorTarget(msgspec.Struct, frozen=True):
    """A mirror destination and the share of requests that is copied; 1_000_000 = 100 %."""

    target: RouteTarget
    percentage: int


class SourceGuard(msgspec.Struct, frozen=True):
    """Which clients a rule is for: of any of `namespaces` (() = every), with all of `labels`."""

    namespaces: tuple[str, ...] = ()
    labels: Labels = ()

    @property
    def is_open(self) -> bool:
        """Whether the rule is for every client."""
        return not self.namespaces and not self.labels


class RuleKind(enum.StrEnum):
    """ROUTE: as the manifest says. DEFAULT: forward to the service. NOT_FOUND: answer 404."""

    ROUTE = "route"
    DEFAULT = "default"
    NOT_FOUND = "not-found"


class RouteRule(msgspec.Struct, frozen=True):
    """One entry of a virtual host's ordered list: one (http route, match) pair.

    `path` is `spec.http[0]`, `match_path` `spec.http[0].match[1]` or "" without a match. The match's
    source fields, gateways and port are already decided: they are in `guard` or made the rule absent.
    """

    kind: RuleKind
    guard: SourceGuard
    targets: tuple[RouteTarget, ...] = ()
    mirrors: tuple[MirrorTarget, ...] = ()
    virtual_service: ObjectId | None = None
    path: str = ""
    match_path: str = ""
    name: str = ""
    match: HTTPMatchRequest | None = None
    http: HTTPRoute | None = None
    catch_all: bool = False
