"""An example of a plug-in: TCP keep-alive towards every endpoint, and a cluster of its own for Envoys of any kind.

Install it beside xdsbpf (`pip install deploy/examples/plugin`); `xdsbpf plugins` lists it, and `xdsbpf translate` names
it among the origins of what it changed. Both functions depend on nothing but their arguments.
"""

from __future__ import annotations

from collections.abc import Iterator

from envoy.config.cluster.v3.cluster_pb2 import Cluster

from xdsbpf.plugin import Plugin, Target

KEEPALIVE_S = 30


def keep_alive(target: Target, cluster: Cluster) -> Cluster | None:
    """Probes after 30 s of silence, unless the cluster says itself what it wants."""
    if cluster.upstream_connection_options.HasField("tcp_keepalive"):
        return None
    cluster.upstream_connection_options.tcp_keepalive.keepalive_time.value = KEEPALIVE_S
    return cluster


def audit_sink(target: Target) -> Iterator[Cluster]:
    """A cluster for access logs, for Envoys that are no proxies of the mesh."""
    if target.scope != "raw":
        return
    cluster = Cluster(name="audit", type=Cluster.STATIC)
    cluster.load_assignment.cluster_name = cluster.name
    place = cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
    place.address, place.port_value = "127.0.0.1", 9000
    yield cluster


PLUGIN = Plugin(patches={Cluster: keep_alive}, adds=audit_sink)
