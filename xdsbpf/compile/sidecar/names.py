"""Names of a sidecar's listeners, chains, clusters and routes (istio-translation.md 1.2 to 1.6)."""

from __future__ import annotations

from typing import Final

from xdsbpf.compile.envoy import names as envoy_names
from xdsbpf.compile.envoy.names import parse_port

SCOPE: Final = "sidecar"
"""Store scope of what all sidecars share."""

OUTBOUND: Final = "virtualOutbound"
OUTBOUND_PORT: Final = 15001
INBOUND: Final = "virtualInbound"
INBOUND_PORT: Final = 15006
RESERVED_PORTS: Final = (OUTBOUND_PORT, INBOUND_PORT)

PASSTHROUGH: Final = "PassthroughCluster"
BLACK_HOLE: Final = "BlackHoleCluster"
INBOUND_PASSTHROUGH: Final = "InboundPassthroughCluster"
PASSTHROUGH_CHAIN: Final = "PassthroughFilterChain"
ALLOW_ANY: Final = "allow_any"
BLOCK_ALL: Final = "block_all"

LOOP_SOURCE: Final = "127.0.0.6"
"""Source of a sidecar's connections to its own workload: the redirection leaves these alone."""

TCP_PROXY: Final = "envoy.filters.network.tcp_proxy"
HTTP_INSPECTOR: Final = "envoy.filters.listener.http_inspector"
HTTP_FILTERS: Final = (envoy_names.FAULT, envoy_names.CORS, envoy_names.ROUTER)
"""Order of the HTTP filters of a client's side (6.3)."""

ANY_ADDRESS: Final = "0.0.0.0"


def listener_name(address: str, port: int) -> str:
    """`<address>_<port>`."""
    return f"{address}_{port}"


def parse_listener(name: str) -> tuple[str, int] | None:
    """Address and port of `<address>_<port>`, or None for any other name."""
    address, separator, text = name.rpartition("_")
    port = parse_port(text)
    return None if not separator or not address or port is None else (address, port)


def inbound_cluster(port: int) -> str:
    """The cluster of one port of the workload."""
    return f"inbound|{port}||"


def parse_inbound(name: str) -> int | None:
    """Port of `inbound|<port>||`, or None for any other name."""
    fields = name.split("|")
    return parse_port(fields[1]) if len(fields) == 4 and fields[0] == "inbound" and fields[2:] == ["", ""] else None
