"""Names that gRPC clients ask for, and the scopes of the store that hold them.

A client that dials `xds:///reviews.default.svc.cluster.local:9080` asks for a Listener of exactly that name
(xds-server.md A6). A server asks for what its bootstrap's template makes of its address (gRFC A36).
"""

from __future__ import annotations

from typing import Final

from xdsbpf.compile.envoy.names import parse_cluster, parse_port
from xdsbpf.mesh.services import MeshService

SCOPE: Final = "grpc"
"""Store scope of what all gRPC clients share."""

SERVER_PREFIX: Final = "xds.istio.io/grpc/lds/inbound/"
"""What server_listener_resource_name_template makes of an address, as in Istio: this and `0.0.0.0:50051`."""

ANY_ADDRESSES: Final = ("0.0.0.0", "[::]")
"""Addresses that a server listens on."""


def route_config_name(host: str, port: int) -> str:
    """RDS name of one service port: that of its cluster."""
    return f"outbound|{port}||{host}"


def parse_route_config(name: str) -> tuple[str, int] | None:
    """Host and port of `outbound|<port>||<host>`, or None for any other name."""
    key = parse_cluster(name)
    return None if key is None or key.subset else (key.host, key.port)


def target_names(owner: MeshService, port: int) -> tuple[str, ...]:
    """What clients of every namespace may dial for a service port."""
    short = f"{owner.name}.{owner.namespace}"
    return tuple(f"{host}:{port}" for host in (owner.host, short, f"{short}.svc"))


def parse_target(name: str) -> tuple[str, int] | None:
    """Host, as written, and port of `<host>:<port>`; None for any other name."""
    host, separator, text = name.rpartition(":")
    port = parse_port(text)
    return None if not separator or not host or port is None else (host, port)
