"""What a plug-in is: the one module that plug-ins import.

A package offers a `Plugin` under the entry point group `xdsbpf.plugins`. Its functions are pure: equal arguments, equal
results, no I/O; they are called again at any time, and in any order. `sources.plugins` finds plug-ins,
`compile.plugins` applies them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

GROUP: Final = "xdsbpf.plugins"
"""The entry point group."""


class Target(msgspec.Struct, frozen=True):
    """Whom a resource is for.

    `scope` is `mesh` (what all Envoys may ask for), `node-envoy` (the Envoys of all nodes), `node-envoy/<node>`, `raw`
    (Envoys that are no proxies of the mesh), `raw/<globs>`, or that of a kind of client. `node` is the node's name in
    a scope of one node, else "".
    """

    scope: str
    node: str = ""


@dataclass(frozen=True)
class Added:
    """A resource under a name that its message does not hold (a virtual host, an endpoint of a collection)."""

    name: str
    message: Any


@dataclass(frozen=True)
class Plugin:
    """What a plug-in does. Messages are those of xds-protos (protobuf) or of envoy-data-plane (betterproto2).

    `patches`: message class -> function of (target, message) that returns the message to serve instead, or None to
    leave it. It may change the message that it is given; the name must stay. `adds` returns the resources to serve
    besides, of names that there are not.
    """

    patches: Mapping[type[Any], Callable[[Target, Any], Any]] = field(default_factory=dict)
    adds: Callable[[Target], Iterable[Any]] | None = None


class LoadedPlugin(msgspec.Struct, frozen=True):
    """A plug-in as it was found: `name` of the entry point, `distribution` and `version` of its package."""

    name: str
    version: str
    distribution: str
    plugin: Plugin

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"
