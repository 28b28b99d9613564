"""Hash policies of a route from its destinations' DestinationRules (istio-translation.md 2.13)."""

from __future__ import annotations

from typing import TypeAlias

from envoy.config.route.v3.route_components_pb2 import RouteAction

from xdsbpf.compile.envoy.encoding import duration
from xdsbpf.model.destination_rule import ConsistentHashLB, LoadBalancerSettings

HashPolicy: TypeAlias = RouteAction.HashPolicy


def consistent_hash(load_balancer: LoadBalancerSettings | None) -> ConsistentHashLB | None:
    """The consistent-hash settings of a policy; `simple` wins where both are written."""
    if load_balancer is None or load_balancer.simple not in (None, "UNSPECIFIED"):
        return None
    return load_balancer.consistent_hash


def hash_policy(settings: ConsistentHashLB) -> HashPolicy | None:
    """What of a request is hashed, or None if the settings name nothing."""
    if settings.http_header_name:
        return HashPolicy(header=HashPolicy.Header(header_name=settings.http_header_name))
    if settings.http_cookie is not None and settings.http_cookie.name:
        cookie = settings.http_cookie
        result = HashPolicy(cookie=HashPolicy.Cookie(name=cookie.name, path=cookie.path))
        if cookie.ttl is not None:
            result.cookie.ttl.CopyFrom(duration(cookie.ttl))
        for attribute in cookie.attributes:
            result.cookie.attributes.add(name=attribute.name, value=attribute.value)
        return result
    if settings.use_source_ip:
        return HashPolicy(connection_properties=HashPolicy.ConnectionProperties(source_ip=True))
    if settings.http_query_parameter_name:
        return HashPolicy(query_parameter=HashPolicy.QueryParameter(name=settings.http_query_parameter_name))
    return None
