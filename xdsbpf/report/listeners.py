"""Rows about raw listeners in `xdsbpf services`, `ps` and `translate`: which plane carries each, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xdsbpf.compile.datapath.names import raw_scope as kernel_scope
from xdsbpf.compile.raw.kernel_listeners import raw_listeners, raw_mode
from xdsbpf.compile.raw.resources import raw_scope
from xdsbpf.compiler import Compiler


def listener_rows(compiler: Compiler, scopes: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """One item per raw listener, sorted by globs and name; `scopes` limits them to what a client sees."""
    rows = []
    seen = None if scopes is None else frozenset(scopes)
    for nodes in sorted(compiler.globs):
        if seen is not None and seen.isdisjoint((raw_scope(nodes), kernel_scope(nodes))):
            continue
        for id in raw_listeners(compiler.database, nodes):
            mode = raw_mode(compiler.database, id)
            rows.append(
                {
                    "object": str(id),
                    "address": mode.place,
                    "plane": str(mode.plane),
                    "endpoints": len(mode.carried.backends) if mode.carried is not None else 0,
                    "reasons": [mode.reason],
                }
            )
    return rows
