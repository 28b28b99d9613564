"""The endpoints behind a raw tcp_proxy, with the weights that the kernel draws them by.

In: raw Clusters (EDS over ADS with a ClusterLoadAssignment, or STATIC) by name and share. Out: (address, port, weight)
in whole numbers. A cluster that does more than pick an endpoint raises `NotForKernel`. The kernel picks at random:
round robin is the same but for the order. `connect_timeout` bounds Envoy's own connects; a client in the kernel's
path has its own. Pure.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2

from xdsbpf.compile.raw.kernel_fields import NotForKernel, join, only, place_of, seen
from xdsbpf.compile.raw.resources import Globs
from xdsbpf.incremental import Database
from xdsbpf.mesh.weights import MAX_WEIGHT
from xdsbpf.model.names import CLUSTER, ENDPOINTS

MAX_WEIGHTED: Final = 1024
"""As many endpoints of unequal weight as an agent has slots for."""

_CLUSTER: Final = frozenset(
    {"name", "alt_stat_name", "type", "eds_cluster_config", "connect_timeout", "lb_policy", "load_assignment"}
    | {"metadata", "per_connection_buffer_limit_bytes"}
)
_ASSIGNMENT: Final = frozenset({"cluster_name", "endpoints", "policy"})
_POLICY: Final = frozenset({"overprovisioning_factor"})
_LOCALITY: Final = frozenset({"locality", "metadata", "lb_endpoints", "load_balancing_weight", "priority"})
_LB_ENDPOINT: Final = frozenset({"endpoint", "health_status", "metadata", "load_balancing_weight"})
_ENDPOINT: Final = frozenset({"address", "hostname"})
_USABLE: Final = (health_check_pb2.UNKNOWN, health_check_pb2.HEALTHY)


class RawBackend(msgspec.Struct, frozen=True, order=True):
    """An endpoint and its weight relative to the others, 1 to 65535."""

    address: str
    port: int
    weight: int


class Share(msgspec.Struct, frozen=True):
    """A cluster and its part of the connections; `path` is where the listener names it."""

    cluster: str
    weight: int
    path: str


def raw_backends(db: Database, nodes: Globs, shares: tuple[Share, ...]) -> tuple[RawBackend, ...]:
    """Endpoints of clusters by share, sorted; none if the one cluster has none. Raises: NotForKernel."""
    weights: dict[tuple[str, int], int] = {}
    found = [(share, _endpoints(db, nodes, share)) for share in shares if share.weight]
    if len(found) > 1:
        for share, members in found:
            if not members:
                text = f"Cluster {share.cluster!r} has no endpoint: the kernel cannot fail a share of connections"
                raise NotForKernel(share.path, text)
    common = math.lcm(*(sum(members.values()) or 1 for _, members in found))
    for share, members in found:
        total = sum(members.values())
        for place, weight in members.items():
            weights[place] = weights.get(place, 0) + share.weight * weight * (common // total)
    divisor = math.gcd(*weights.values()) or 1
    largest = max(weights.values(), default=0) // divisor
    scale = max(1, -(-largest // MAX_WEIGHT)) * divisor
    scaled = {place: max(1, weight // scale) for place, weight in weights.items()}
    if len(scaled) > MAX_WEIGHTED and len(set(scaled.values())) > 1:
        raise NotForKernel(
            shares[0].path, f"{len(scaled)} endpoints of unequal weight; the kernel takes {MAX_WEIGHTED}"
        )
    return tuple(RawBackend(*place, scaled[place]) for place in sorted(scaled))


def _endpoints(db: Database, nodes: Globs, share: Share) -> dict[tuple[str, int], int]:
    """(address, port) -> weight within a cluster, of the endpoints that may be used."""
    entry = seen(db, nodes, CLUSTER, share.cluster, share.path)
    cluster = cluster_pb2.Cluster.FromString(entry.body)
    where = f"Cluster {share.cluster!r}"
    try:
        only(cluster, _CLUSTER, "")
        if cluster.lb_policy not in (cluster.ROUND_ROBIN, cluster.RANDOM):
            raise NotForKernel("", f"only Envoy does lb_policy {cluster.LbPolicy.Name(cluster.lb_policy)}")
        if cluster.type == cluster.STATIC:
            return _assigned(cluster.load_assignment)
        if cluster.type != cluster.EDS:
            raise NotForKernel("", f"its type is {cluster.DiscoveryType.Name(cluster.type)}, not EDS or STATIC")
        config = cluster.eds_cluster_config
        only(config, frozenset({"eds_config", "service_name"}), "eds_cluster_config")
        if config.eds_config.WhichOneof("config_source_specifier") not in ("ads", "self"):
            raise NotForKernel("", "its endpoints do not come over ADS")
        name = config.service_name or cluster.name
        assignment = seen(db, nodes, ENDPOINTS, name, share.path)
        return _assigned(endpoint_pb2.ClusterLoadAssignment.FromString(assignment.body))
    except NotForKernel as error:
        # The finding is the listener's: the field is in another object, so its path goes into the text.
        text = f"{where} {error.path}: {error}" if error.path not in ("", share.path) else f"{where}: {error}"
        raise NotForKernel(share.path, text) from error


def _assigned(assignment: Any) -> dict[tuple[str, int], int]:
    only(assignment, _ASSIGNMENT, "")
    only(assignment.policy, _POLICY, "policy")
    weights: dict[tuple[str, int], int] = {}
    for index, group in enumerate(assignment.endpoints):
        path = f"endpoints[{index}]"
        only(group, _LOCALITY, path)
        if group.priority:
            raise NotForKernel(join(path, "priority"), "only Envoy fails over between priorities")
        for position, entry in enumerate(group.lb_endpoints):
            at = f"{path}.lb_endpoints[{position}]"
            only(entry, _LB_ENDPOINT, at)
            only(entry.endpoint, _ENDPOINT, join(at, "endpoint"))
            if entry.health_status == health_check_pb2.DEGRADED:
                raise NotForKernel(join(at, "health_status"), "only Envoy knows degraded endpoints")
            place = place_of(entry.endpoint.address, f"{at}.endpoint.address")
            if entry.health_status in _USABLE:
                weight = entry.load_balancing_weight.value or 1
                weights[place] = weights.get(place, 0) + weight
    return weights
