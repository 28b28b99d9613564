"""Clusters for gRPC clients: endpoints over EDS, and the few fields of a DestinationRule that gRPC knows (CDS).

The balancer is the old enum, which every gRPC library reads; the typed policies they know differ. A cluster whose
DestinationRule asks for TLS is withheld, as for Envoy: calls fail instead of leaving as plaintext.
"""

from __future__ import annotations

from envoy.config.cluster.v3.cluster_pb2 import Cluster

from xdsbpf.compile.envoy.cluster_message import EDS, is_withheld
from xdsbpf.compile.envoy.clusters import known_cluster
from xdsbpf.compile.envoy.codes import Report, at
from xdsbpf.compile.envoy.encoding import resource
from xdsbpf.compile.envoy.hash_policy import consistent_hash
from xdsbpf.compile.envoy.load_balancing import MAXIMUM_RING_SIZE, MINIMUM_RING_SIZE
from xdsbpf.compile.proxyless.codes import without
from xdsbpf.diagnostics import Origin
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.destination_rules import EffectivePolicy, effective_policy
from xdsbpf.mesh.services import service
from xdsbpf.model.destination_rule import ConnectionPoolSettings, ConsistentHashLB, LoadBalancerSettings
from xdsbpf.model.names import CLUSTER
from xdsbpf.model.resource import Resource


@query
def grpc_cluster(db: Database, name: str) -> Resource | Absent:
    """The cluster `outbound|<port>|<subset>|<host>` for gRPC; ABSENT if unknown, or withheld (reported)."""
    key = known_cluster(db, name)
    owner = service(db, key.host) if key is not None else None
    if key is None or owner is None:
        return ABSENT
    policy = effective_policy(db, key.host, key.port, key.subset)
    where = policy.origins[-1] if policy.origins else Origin(owner.object, "spec")
    if is_withheld(db, policy, where, owner.object):
        return ABSENT
    message = Cluster(name=name, type=Cluster.EDS)
    message.eds_cluster_config.eds_config.CopyFrom(EDS)
    message.eds_cluster_config.service_name = name
    _set_balancer(message, policy.load_balancer, where, db.report)
    _set_limits(message, policy, where, db.report)
    return resource(CLUSTER, name, message, on_demand=True)


def _set_balancer(message: Cluster, settings: LoadBalancerSettings | None, where: Origin, report: Report) -> None:
    """RING_HASH for every consistent hash, ROUND_ROBIN for the rest."""
    hashing = consistent_hash(settings)
    if hashing is not None:
        message.lb_policy = Cluster.RING_HASH
        _set_ring(message, hashing)
    elif settings is not None and settings.simple not in (None, "UNSPECIFIED", "ROUND_ROBIN"):
        without(report, at(where, "loadBalancer"), "simple", "gRPC clients use ROUND_ROBIN")
    for field, value in (
        ("localityLbSetting", settings.locality_lb_setting if settings is not None else None),
        ("warmup", (settings.warmup or settings.warmup_duration_secs) if settings is not None else None),
    ):
        if value is not None:
            without(report, at(where, "loadBalancer"), field)


def _set_ring(message: Cluster, hashing: ConsistentHashLB) -> None:
    size = (hashing.ring_hash.minimum_ring_size if hashing.ring_hash is not None else 0) or hashing.minimum_ring_size
    message.ring_hash_lb_config.minimum_ring_size.value = min(size or MINIMUM_RING_SIZE, MAXIMUM_RING_SIZE)


def _set_limits(message: Cluster, policy: EffectivePolicy, where: Origin, report: Report) -> None:
    """Requests in flight are the only limit that gRPC knows (gRFC A32)."""
    pool = policy.connection_pool or ConnectionPoolSettings()
    http = pool.http
    if http is not None and http.http2_max_requests:
        message.circuit_breakers.thresholds.add().max_requests.value = http.http2_max_requests
    if pool.tcp is not None:
        without(report, at(where, "connectionPool"), "tcp")
    if http is not None and type(http)(http2_max_requests=http.http2_max_requests) != http:
        without(report, at(where, "connectionPool"), "http", "gRPC clients know http2MaxRequests only")
    for field, value in (
        ("outlierDetection", policy.outlier_detection),
        ("tunnel", policy.tunnel),
        ("proxyProtocol", policy.proxy_protocol),
        ("retryBudget", policy.retry_budget),
    ):
        if value is not None:
            without(report, where, field)
