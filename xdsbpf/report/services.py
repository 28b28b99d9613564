"""Rows of `xdsbpf services`: which plane carries each service port, and why."""

from __future__ import annotations

from typing import Any

from xdsbpf.compiler import Compiler
from xdsbpf.mesh.services import service


def service_rows(compiler: Compiler) -> list[dict[str, Any]]:
    """One item per service port, sorted by host and port."""
    rows = []
    for entry in compiler.services():
        found = service(compiler.database, entry.host)
        address = found.address if found is not None else ""
        rows.append(
            {
                "host": entry.host,
                "port": entry.port,
                "address": address,
                "plane": str(entry.plane),
                "endpoints": entry.endpoints,
                "reasons": list(entry.reasons),
            }
        )
    return rows
