"""Clusters: one EDS cluster per (service port, subset), handed out on demand (CDS).

A node's Envoy asks for the clusters that its pods really call; only those that requests are mirrored to
are sent unasked, because Envoy does not ask for those. The clusters of `out_tcp` are in `tcp_clusters`.
"""

from __future__ import annotations

from xdsbpf.compile.envoy.cluster_message import eds_cluster, is_withheld
from xdsbpf.compile.envoy.encoding import resource
from xdsbpf.compile.envoy.names import ClusterKey, parse_cluster
from xdsbpf.diagnostics import Origin
from xdsbpf.incremental import ABSENT, Absent, Database, Index, query
from xdsbpf.mesh.destination_rules import effective_policy, subsets
from xdsbpf.mesh.inputs import (
    DESTINATION_RULES,
    VIRTUAL_SERVICES,
    exact_key,
    host_key,
    parent_suffix,
    settings,
    suffix_keys,
)
from xdsbpf.mesh.services import service, services
from xdsbpf.model.names import CLUSTER, full_host
from xdsbpf.model.resource import Resource
from xdsbpf.model.virtual_service import VirtualService


def _mirror_hosts(virtual_service: VirtualService) -> tuple[str, ...]:
    """The hosts that requests are mirrored to, as written."""
    return tuple(
        destination.host
        for route in virtual_service.spec.http
        for destination in (route.mirror, *(mirror.destination for mirror in route.mirrors))
        if destination is not None
    )


VIRTUAL_SERVICES_BY_MIRROR = Index(
    "virtual_services_by_mirror",
    VIRTUAL_SERVICES,
    keys=lambda v: (host_key(host, v.namespace) for host in _mirror_hosts(v)),
)


DESTINATION_RULES_WITH_SUBSETS = Index(
    "destination_rules_with_subsets",
    DESTINATION_RULES,
    keys=lambda v: (host_key(v.spec.host, v.namespace),) if v.spec.subsets else (),
)


@query
def cluster_names(db: Database) -> tuple[str, ...]:
    """Names of all clusters, sorted by host: every TCP port of every service, whole and by subset."""
    written = frozenset(db.bucket_keys(DESTINATION_RULES_WITH_SUBSETS))
    found: list[str] = []
    for owner in services(db):
        host = owner.host
        # Most services have no subsets: they need no cell for that.
        may_have = written and not written.isdisjoint((exact_key(host), *suffix_keys(parent_suffix(host))))
        parts = _parts(db, host) if may_have else ("",)
        found += [str(ClusterKey(port.number, part, host)) for port in owner.ports for part in parts]
    return tuple(found)


@query
def _parts(db: Database, host: str) -> tuple[str, ...]:
    """The names of a host's subsets, after "" for the whole: these change more seldom than their rules."""
    return ("", *(subset.name for subset in subsets(db, host)))


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
    message = eds_cluster(db, name, name, name, info, policy, where)
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
    """Whether any VirtualService mirrors requests to a host. Reads the bucket of that host only."""
    domain = settings(db).domain
    return any(
        full_host(written, found.namespace, domain) == host
        for found in db.bucket(VIRTUAL_SERVICES_BY_MIRROR, exact_key(host))
        for written in _mirror_hosts(found)
    )
