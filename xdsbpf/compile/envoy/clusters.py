"""Clusters: one EDS cluster per (service port, subset), handed out on demand (CDS).

A node's Envoy asks for the clusters that its pods really call; only those that requests are mirrored to
are sent unasked, because Envoy does not ask for those. A cluster whose DestinationRule asks for
TLS that cannot be originated yet is withheld: Envoy answers 503 instead of sending plaintext.
"""

from __future__ import annotations

import functools

from envoy.config.cluster.v3.cluster_pb2 import Cluster

from xdsbpf.compile.envoy.codes import TLS_UNSUPPORTED, at, fail, ignored
from xdsbpf.compile.envoy.connection_pool import set_connection_pool
from xdsbpf.compile.envoy.encoding import over_ads, resource
from xdsbpf.compile.envoy.load_balancing import (
    default_load_balancing_policy,
    load_balancing_policy,
    set_outlier_detection,
)
from xdsbpf.compile.envoy.names import ClusterKey, parse_cluster
from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import ABSENT, Absent, Database, Index, query
from xdsbpf.mesh.destination_rules import DEFAULTS, EffectivePolicy, effective_policy, subsets
from xdsbpf.mesh.inputs import VIRTUAL_SERVICES, host_key, host_keys, settings
from xdsbpf.mesh.services import PortInfo, hosts, service
from xdsbpf.model.names import CLUSTER
from xdsbpf.model.resource import Resource
from xdsbpf.model.virtual_service import VirtualService

EDS = over_ads()


def _mirror_hosts(virtual_service: VirtualService) -> tuple[tuple[str, str], ...]:
    destinations = [
        destination
        for route in virtual_service.spec.http
        for destination in (route.mirror, *(mirror.destination for mirror in route.mirrors))
        if destination is not None
    ]
    namespace = virtual_service.namespace
    return tuple(dict.fromkeys(host_key(destination.host, namespace) for destination in destinations))


VIRTUAL_SERVICES_BY_MIRROR = Index("virtual_services_by_mirror", VIRTUAL_SERVICES, keys=_mirror_hosts)


@query
def cluster_names(db: Database) -> tuple[str, ...]:
    """Names of all clusters, sorted by host: every TCP port of every service, whole and by subset."""
    return tuple(name for host in hosts(db) for name in _names_of_host(db, host))


@query
def _names_of_host(db: Database, host: str) -> tuple[str, ...]:
    owner = service(db, host)
    if owner is None:
        return ()
    parts = ("", *(subset.name for subset in subsets(db, host)))
    return tuple(str(ClusterKey(port.number, part, host)) for port in owner.ports for part in parts)


@query
def cluster(db: Database, name: str) -> Resource | Absent:
    """The cluster `outbound|<port>|<subset>|<host>`; ABSENT if unknown, or withheld (reported)."""
    key = known_cluster(db, name)
    owner = service(db, key.host) if key is not None else None
    info = owner.port(key.port) if owner is not None and key is not None else None
    if key is None or owner is None or info is None:
        return ABSENT
    policy = effective_policy(db, key.host, key.port, key.subset)
    where = policy.origins[-1] if policy.origins else Origin(owner.object, "spec")
    if is_withheld(db, policy, where, owner.object):
        return ABSENT
    message = _message(db, name, info, policy, where)
    return resource(CLUSTER, name, message, on_demand=not _is_mirrored_to(db, key.host))


def known_cluster(db: Database, name: str) -> ClusterKey | None:
    """The key of a cluster whose service, port and subset exist; None for any other name."""
    key = parse_cluster(name)
    owner = service(db, key.host) if key is not None else None
    if key is None or owner is None or owner.port(key.port) is None:
        return None
    if key.subset and all(rule.name != key.subset for rule in subsets(db, key.host)):
        return None
    return key


def _is_mirrored_to(db: Database, host: str) -> bool:
    """Whether any VirtualService mirrors requests to a host. Reads the buckets of that host only."""
    keys = (key for key in host_keys(host, settings(db).domain) if key[0] != "suffix")
    return any(db.bucket(VIRTUAL_SERVICES_BY_MIRROR, key) for key in keys)


def is_withheld(db: Database, policy: EffectivePolicy, where: Origin, owner: ObjectId) -> bool:
    """Whether a cluster asks for TLS, reported. Security: what was asked to be encrypted never leaves as plaintext."""
    if policy.tls is None or policy.tls.mode == "DISABLE":
        return False
    fail(
        db.report,
        TLS_UNSUPPORTED,
        at(where, "tls.mode"),
        f"TLS mode {policy.tls.mode} is not supported yet: requests to {owner.name} by the proxy fail (503)",
        "remove the tls block or set mode: DISABLE",
    )
    return True


def _message(db: Database, name: str, info: PortInfo, policy: EffectivePolicy, where: Origin) -> Cluster:
    message = Cluster()
    if policy == DEFAULTS:
        message.CopyFrom(_default_message(info.is_http, info.is_http2))
    else:
        _set_policy(db, message, info, policy, where)
    message.name = name
    message.alt_stat_name = f"{name};"
    message.type = Cluster.EDS
    message.eds_cluster_config.eds_config.CopyFrom(EDS)
    message.eds_cluster_config.service_name = name
    return message


@functools.cache
def _default_message(is_http: bool, is_http2: bool) -> Cluster:
    """What every cluster without a DestinationRule has in common: half of the cost of one. Copy before changing."""
    message = Cluster()
    message.load_balancing_policy.CopyFrom(default_load_balancing_policy())
    message.common_lb_config.SetInParent()
    set_connection_pool(message, None, None, is_http=is_http, is_http2=is_http2)
    return message


def _set_policy(db: Database, message: Cluster, info: PortInfo, policy: EffectivePolicy, where: Origin) -> None:
    message.load_balancing_policy.CopyFrom(
        load_balancing_policy(policy.load_balancer, at(where, "loadBalancer"), db.report)
    )
    message.common_lb_config.SetInParent()
    if policy.outlier_detection is not None:
        set_outlier_detection(message, policy.outlier_detection, at(where, "outlierDetection"), db.report)
    set_connection_pool(
        message, policy.connection_pool, policy.retry_budget, is_http=info.is_http, is_http2=info.is_http2
    )
    if policy.tunnel is not None:
        ignored(db.report, where, "tunnel")
    if policy.proxy_protocol is not None:
        ignored(db.report, where, "proxyProtocol", "servers that expect a PROXY header refuse connections")
