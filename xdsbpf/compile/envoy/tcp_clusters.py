"""Clusters of the listener `out_tcp`: one per TCP service port, named after its address (CDS and EDS, on demand).

`tcp|10.96.0.7:3306` exists whichever plane carries the port, so that a change of plane fails no connection that is
on its way. Without a tcp route, or with one target, its endpoints are the target's own assignment; a route that
splits gets one of its own, weighted as in the kernel.
"""

from __future__ import annotations

import msgspec
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.cluster_message import eds_cluster, is_withheld
from xdsbpf.compile.envoy.codes import TCP_POLICIES_DIFFER, warn
from xdsbpf.compile.envoy.encoding import resource
from xdsbpf.diagnostics import Origin
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import service_at
from xdsbpf.mesh.destination_rules import EffectivePolicy, effective_policy
from xdsbpf.mesh.inputs import settings
from xdsbpf.mesh.route_values import RouteTarget
from xdsbpf.mesh.services import service, tcp_ports
from xdsbpf.mesh.tcp_routes import tcp_targets
from xdsbpf.mesh.weights import weighted_endpoints
from xdsbpf.model.destination_rule import LoadBalancerSettings
from xdsbpf.model.names import CLUSTER, ENDPOINTS, service_host
from xdsbpf.model.resource import Resource


@query
def tcp_cluster_names(db: Database) -> tuple[str, ...]:
    """Names of the clusters of all service ports that do not speak HTTP, sorted by host and port."""
    return tuple(name for host, port in tcp_ports(db) if (name := _name(db, host, port)))


@query
def tcp_assignment_names(db: Database) -> tuple[str, ...]:
    """Those of them that have an assignment of their own, because a route splits."""
    return tuple(
        name
        for host, port in tcp_ports(db)
        if (name := _name(db, host, port)) and _single(tcp_targets(db, host, port)) is None
    )


def _name(db: Database, host: str, port: int) -> str:
    owner = service(db, host)
    info = owner.port(port) if owner is not None else None
    if owner is None or info is None or info.is_http:
        return ""
    return names.tcp_cluster_name(owner.address, port)


def service_port_at(db: Database, name: str) -> tuple[str, int] | None:
    """(host, port) of the service port behind `tcp|<address>:<port>`; None if none is, or it speaks HTTP."""
    parsed = names.parse_tcp_cluster(name)
    found = service_at(db, parsed[0]) if parsed is not None else None
    if parsed is None or found is None:
        return None
    host = service_host(found[1], found[0], settings(db).domain)
    return (host, parsed[1]) if _name(db, host, parsed[1]) == name else None


@query
def tcp_cluster(db: Database, name: str) -> Resource | Absent:
    """The cluster `tcp|<address>:<port>`; ABSENT if no TCP service is there, or withheld (reported)."""
    found = service_port_at(db, name)
    owner = service(db, found[0]) if found is not None else None
    info = owner.port(found[1]) if owner is not None and found is not None else None
    if found is None or owner is None or info is None:
        return ABSENT
    targets = tcp_targets(db, *found)
    known = tuple(target for target in targets if target.is_known)
    policies = [effective_policy(db, target.host, target.port, target.subset) for target in known]
    for target, policy in zip(known, policies, strict=True):
        where = policy.origins[-1] if policy.origins else Origin(owner.object, "spec")
        callee = service(db, target.host)
        if is_withheld(db, policy, where, callee.object if callee is not None else owner.object):
            return ABSENT
    single = _single(targets)
    policy = policies[0] if policies else EffectivePolicy()
    if single is None:
        _report_other_policies(db, policies)
        policy = _keeping_weights(policy)
    where = policy.origins[-1] if policy.origins else Origin(owner.object, "spec")
    stat_name = f"{names.TCP_PREFIX}{info.number}|{owner.host}"
    assignment = name if single is None else str(names.ClusterKey(single.port, single.subset, single.host))
    message = eds_cluster(db, name, stat_name, assignment, info, policy, where)
    return resource(CLUSTER, name, message, on_demand=True)


@query
def tcp_assignment(db: Database, name: str) -> Resource | Absent:
    """The endpoints of a TCP service that a route splits; ABSENT for any other name."""
    found = service_port_at(db, name)
    if found is None or _single(tcp_targets(db, *found)) is not None:
        return ABSENT
    message = ClusterLoadAssignment(cluster_name=name)
    members = weighted_endpoints(db, *found)
    if members:
        add = message.endpoints.add().lb_endpoints.add
        for entry in members:
            member = add()
            member.endpoint.address.socket_address.address = entry.endpoint.address
            member.endpoint.address.socket_address.port_value = entry.endpoint.port
            member.load_balancing_weight.value = entry.weight
    return resource(ENDPOINTS, name, message, on_demand=True)


def _single(targets: tuple[RouteTarget, ...]) -> RouteTarget | None:
    """The one target whose endpoints are all that there are."""
    return targets[0] if len(targets) == 1 and targets[0].is_known else None


def _keeping_weights(policy: EffectivePolicy) -> EffectivePolicy:
    """The policy with a balancer that keeps to the endpoints' weights.

    A random one ignores them, and a least-request one moves them as connections stay. Hashing keeps them.
    """
    balancer = policy.load_balancer or LoadBalancerSettings()
    if balancer.consistent_hash is not None:
        return policy
    balancer = msgspec.structs.replace(balancer, simple="ROUND_ROBIN")
    return msgspec.structs.replace(policy, load_balancer=balancer)


def _report_other_policies(db: Database, policies: list[EffectivePolicy]) -> None:
    """One cluster has one set of limits: the first target's. Those of the others that differ are reported."""
    for policy in policies[1:]:
        if policy.origins and _settings(policy) != _settings(policies[0]):
            text = "a TCP route splits: through the proxy the settings of its first destination hold for all"
            warn(db.report, TCP_POLICIES_DIFFER, policy.origins[-1], text, "give the subsets equal traffic policies")


def _settings(policy: EffectivePolicy) -> EffectivePolicy:
    return msgspec.structs.replace(policy, load_balancer=None, origins=(), blocks=())
