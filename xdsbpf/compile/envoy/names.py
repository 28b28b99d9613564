"""Every name that Envoy sees: clusters, virtual hosts, filters, filter-state keys, store scopes.

Envoy ignores a `typed_per_filter_config` entry whose key names no filter of the chain, so the names
of filters live here as constants and `HTTP_FILTERS` fixes their order; a test holds both together.
Names follow Istio's (istio-translation.md 1.2 to 1.5) where Istio has one.
"""

from __future__ import annotations

from typing import Final

import msgspec

MESH_SCOPE: Final = "mesh"
"""Store scope of what every kind of proxy shares: clusters and endpoints, on demand."""

SCOPE: Final = "node-envoy"
"""Store scope of the resources that all node Envoys share."""

OUT_HTTP: Final = "out_http"
OUT_HTTP_PORT: Final = 15001
OUT_TCP: Final = "out_tcp"
OUT_TCP_PORT: Final = 15002

SOURCE_IDENTITY: Final = "srcid"
ORIGINAL_DST: Final = "envoy.filters.listener.original_dst"
CONNECTION_MANAGER: Final = "envoy.filters.network.http_connection_manager"
SET_CLUSTER: Final = "envoy.filters.network.set_filter_state"
TCP_PROXY: Final = "envoy.filters.network.tcp_proxy"
IP_MATCHER: Final = "envoy.matching.custom_matchers.trie_matcher"
TCP_CHAIN: Final = "tcp"
"""The one filter chain of `out_tcp` that serves."""
CLOSED_CHAIN: Final = "closed"
"""A filter chain without filters: Envoy closes what reaches it."""

EARLY_MUTATION: Final = "envoy.http.early_header_mutation.header_mutation"

CORS: Final = "envoy.filters.http.cors"
AUTHZ_DENY: Final = "authz-deny"
AUTHZ_ALLOW: Final = "authz-allow"
FAULT: Final = "envoy.filters.http.fault"
ON_DEMAND: Final = "on_demand"
ROUTER: Final = "envoy.filters.http.router"
HTTP_FILTERS: Final = (CORS, AUTHZ_DENY, AUTHZ_ALLOW, FAULT, ON_DEMAND, ROUTER)
"""Order of the HTTP filters. A preflight is answered before authorisation, as a client-side proxy does."""

PRINCIPAL_KEY: Final = "xb.principal"
ATTRIBUTES_KEY: Final = "xb.attrs"
TCP_CLUSTER_KEY: Final = "envoy.tcp_proxy.cluster"
"""Filter state by which Envoy's TCP proxy is told its cluster."""
TCP_PREFIX: Final = "tcp|"
"""How the name of a cluster of `out_tcp` starts."""

NO_ROUTE: Final = "no_route"
DEFAULT_ROUTE: Final = "default"
CATCH_ALL_HOST: Final = "no_such_host"

NOT_ALLOWED_POLICY: Final = "not_allowed_by_policies"
"""DENY policy for whoever the ALLOW policies of some endpoints of a cluster do not name."""


class ClusterKey(msgspec.Struct, frozen=True, order=True):
    """What an outbound cluster is made for; `subset` is empty for the whole service."""

    port: int
    subset: str
    host: str

    def __str__(self) -> str:
        return f"outbound|{self.port}|{self.subset}|{self.host}"


def parse_cluster(name: str) -> ClusterKey | None:
    """The key in `outbound|<port>|<subset>|<host>`, or None for any other name."""
    fields = name.split("|")
    if len(fields) != 4:
        return None
    kind, text, subset, host = fields
    port = parse_port(text)
    return None if kind != "outbound" or not host or port is None else ClusterKey(port, subset, host)


def tcp_cluster_name(address: str, port: int) -> str:
    """`tcp|10.96.0.7:3306`, the cluster of a TCP service: the prefix and what Envoy prints of its address."""
    return f"{TCP_PREFIX}[{address}]:{port}" if ":" in address else f"{TCP_PREFIX}{address}:{port}"


def parse_tcp_cluster(name: str) -> tuple[str, int] | None:
    """Address and port in `tcp|<address>:<port>`, or None for any other name."""
    address, colon, text = name.removeprefix(TCP_PREFIX).rpartition(":")
    port = parse_port(text)
    if not name.startswith(TCP_PREFIX) or not colon or port is None:
        return None
    return (address.removeprefix("[").removesuffix("]"), port)


def virtual_host_name(port: int, host: str) -> str:
    """`<port>/<host>`: the resource name and, by VHDS's rule, the name of the virtual host itself."""
    return f"{port}/{host}"


def parse_virtual_host(name: str) -> tuple[int, str] | None:
    """Port and host of `<port>/<host>`, or None for any other name."""
    text, separator, host = name.partition("/")
    port = parse_port(text)
    return None if port is None or not separator or not host else (port, host)


def route_config_name(port: int) -> str:
    """RDS name of all hosts on one service port number."""
    return str(port)


def parse_port(text: str) -> int | None:
    """A port number in its only spelling (`80`, not `080` or `+80`), or None."""
    if not text.isascii() or not text.isdigit() or text.startswith("0") or len(text) > 5:
        return None
    port = int(text)
    return port if port <= 65535 else None


def chain_name(port: int) -> str:
    """Filter chain of `out_http` for one service port number."""
    return f"http|{port}"


def node_scope(node: str) -> str:
    """Store scope of the resources of one node's Envoy."""
    return f"{SCOPE}/{node}"
