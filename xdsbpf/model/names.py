"""Names: object ids, hostnames, SPIFFE ids, xDS node ids and type URLs.

Pure parsing and formatting; every other package spells these names through here.
"""

from __future__ import annotations

import functools
from typing import Final

import msgspec

from xdsbpf.errors import ProtocolError

RESERVED_IDENTITY: Final = "xdsbpf:"
"""How the names of identities begin that are no workload's: they are the same wherever they connect from."""

UNLOCATED: Final = "xdsbpf:unlocated"
"""Reserved identity: a caller in a network namespace that is no workload's, before its address is seen."""


class NodeId(msgspec.Struct, frozen=True):
    """An xDS node id `type~ip~name~domain` (Istio's form; ours adds the types `node` and `agent`)."""

    type: str
    ip: str
    name: str
    domain: str

    def __str__(self) -> str:
        return f"{self.type}~{self.ip}~{self.name}~{self.domain}"


def parse_node_id(text: str) -> NodeId:
    """Split `type~ip~name~domain`.

    Raises: ProtocolError(INVALID_ARGUMENT) if there are not exactly four non-empty type/name fields.
    """
    fields = text.split("~")
    if len(fields) != 4 or not fields[0] or not fields[2]:
        raise ProtocolError(
            "INVALID_ARGUMENT",
            f"node id {text!r} is not type~ip~name~domain",
            hint="for example node~10.0.0.1~node1~cluster.local",
        )
    return NodeId(*fields)


def service_host(name: str, namespace: str, domain: str) -> str:
    """Fully qualified host of a Kubernetes service: `reviews.default.svc.cluster.local`."""
    return f"{name}.{namespace}.svc.{domain}"


def full_host(host: str, namespace: str, domain: str) -> str:
    """Istio's short-name rule: a name without a dot is a service of the object's own namespace."""
    host = host.lower()
    return host if "." in host or host == "*" else service_host(host, namespace, domain)


@functools.lru_cache(maxsize=16384)
def spiffe_id(trust_domain: str, namespace: str, service_account: str) -> str:
    """`spiffe://<trust domain>/ns/<namespace>/sa/<service account>`; cached, so that pods share the text."""
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


TYPE_PREFIX = "type.googleapis.com/"
LISTENER = TYPE_PREFIX + "envoy.config.listener.v3.Listener"
CLUSTER = TYPE_PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = TYPE_PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
ROUTES = TYPE_PREFIX + "envoy.config.route.v3.RouteConfiguration"
VIRTUAL_HOST = TYPE_PREFIX + "envoy.config.route.v3.VirtualHost"
SECRET = TYPE_PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
EXTENSION = TYPE_PREFIX + "envoy.config.core.v3.TypedExtensionConfig"
FRONTEND = TYPE_PREFIX + "xdsbpf.datapath.v1.Frontend"
BACKENDS = TYPE_PREFIX + "xdsbpf.datapath.v1.Backends"
IDENTITY = TYPE_PREFIX + "xdsbpf.datapath.v1.Identity"
POLICY = TYPE_PREFIX + "xdsbpf.datapath.v1.Policy"
NODE_CONFIG = TYPE_PREFIX + "xdsbpf.datapath.v1.NodeConfig"

SHORT_TYPES = {
    "lds": LISTENER,
    "cds": CLUSTER,
    "eds": ENDPOINTS,
    "rds": ROUTES,
    "vhds": VIRTUAL_HOST,
    "sds": SECRET,
    "ecds": EXTENSION,
    "frontend": FRONTEND,
    "backends": BACKENDS,
    "identity": IDENTITY,
    "policy": POLICY,
    "node": NODE_CONFIG,
}
"""Short names for the command line and for tables."""
_SHORT_NAMES = {type_url: short for short, type_url in SHORT_TYPES.items()}


def short_name(type_url: str) -> str:
    """`cds` and so on; the type URL of a type without a short name."""
    return _SHORT_NAMES.get(type_url, type_url)


DATAPATH_TYPES = (NODE_CONFIG, IDENTITY, POLICY, BACKENDS, FRONTEND)
"""Datapath types in the order in which an agent applies them (make before break)."""
