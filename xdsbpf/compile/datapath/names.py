"""Names of datapath resources, and the scopes of the store that they are in.

`<address>:<port>/tcp` is a frontend, `<host>:<port>` the backends of a service port; the other types
are named by what they are (SPIFFE id, policy group, node).
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "datapath"
"""Scope of what every node gets."""


def node_scope(node: str) -> str:
    """Scope of what one node gets."""
    return f"{SCOPE}/{node}"


def raw_scope(globs: tuple[str, ...]) -> str:
    """Scope of what raw listeners with these globs of node ids are in the kernel: `datapath-raw/edge-*`."""
    return f"{SCOPE}-raw/{','.join(globs)}" if globs else f"{SCOPE}-raw"


def frontend_name(address: str, port: int) -> str:
    """`240.240.0.7:9080/tcp`; an IPv6 address is written in brackets."""
    return f"[{address}]:{port}/tcp" if ":" in address else f"{address}:{port}/tcp"


def parse_frontend(name: str) -> tuple[str, int] | None:
    """(address, port) in a frontend's name, or None for any other name."""
    place, slash, protocol = name.rpartition("/")
    address, colon, port = place.rpartition(":")
    if not slash or not colon or protocol != "tcp" or not _is_number(port):
        return None
    return (address.removeprefix("[").removesuffix("]"), int(port))


def backends_name(host: str, port: int) -> str:
    """`reviews.default.svc.cluster.local:9080`."""
    return f"{host}:{port}"


def parse_backends(name: str) -> tuple[str, int] | None:
    """(host, port) in the name of backends, or None for any other name."""
    host, colon, port = name.rpartition(":")
    return (host, int(port)) if colon and _is_number(port) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
