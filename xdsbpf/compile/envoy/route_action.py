"""What happens to a matched request: forward, redirect or answer (istio-translation.md 2.7 to 2.10).

Pure: the HTTP route of the manifest and its resolved clusters in, an Envoy Route with action, header
operations and per-route filter settings out. The match is set by the caller.
"""

from __future__ import annotations

import functools
import re
from typing import Final

import msgspec
from envoy.config.route.v3.route_components_pb2 import (
    Route,
    RouteAction,
    WeightedCluster,
)
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import UInt32Value

from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.codes import FAILS, REGEX_INVALID, VALUE_INVALID, Report, at, warn
from xdsbpf.compile.envoy.cors import cors_policy
from xdsbpf.compile.envoy.encoding import any_of, duration, fraction
from xdsbpf.compile.envoy.fault import http_fault
from xdsbpf.compile.envoy.hash_policy import hash_policy
from xdsbpf.compile.envoy.headers import add_headers, authority_of
from xdsbpf.compile.envoy.local_replies import direct_response_action, is_header_text, redirect_action
from xdsbpf.compile.envoy.retries import retry_policy
from xdsbpf.compile.envoy.string_match import regex_error
from xdsbpf.diagnostics import Origin
from xdsbpf.model.destination_rule import ConsistentHashLB
from xdsbpf.model.scalars import Pairs
from xdsbpf.model.virtual_service import Headers, HTTPRewrite, HTTPRoute

FULL: Final = 1_000_000


class Target(msgspec.Struct, frozen=True):
    """A destination of a route: its cluster, and what belongs to that cluster on this route.

    `filters` are per-cluster filter settings as (filter name, encoded Any); `origin` is the
    destination's field.
    """

    cluster: str
    weight: int
    origin: Origin
    headers: Headers | None = None
    hash: ConsistentHashLB | None = None
    filters: Pairs[bytes] = ()


class Mirror(msgspec.Struct, frozen=True):
    """A cluster that gets a copy of requests; `percentage` in millionths."""

    cluster: str
    percentage: int


def default_route(target: Target) -> Route:
    """The route of a service without HTTP rules (2.14), also the pass-through of one on the kernel plane."""
    route = Route()
    route.CopyFrom(_default_message(is_hashed=target.hash is not None))
    route.route.cluster = target.cluster
    _set_hashing(route.route, (target,))
    add_filters(route, target.filters)
    return route


@functools.cache
def _default_message(*, is_hashed: bool) -> Route:
    """What the default routes of all services have in common: most of the cost of one. Copy before changing."""
    action = RouteAction()
    _set_timeouts(action, None)
    action.retry_policy.CopyFrom(retry_policy(None, consistent_hash=is_hashed))
    return Route(name=names.DEFAULT_ROUTE, route=action)


def http_route(
    http: HTTPRoute,
    targets: tuple[Target, ...],
    mirrors: tuple[Mirror, ...],
    port: int,
    where: Origin,
    report: Report,
) -> Route | None:
    """The Route of one `http[]` entry, without match and name; None if it has no usable action (reported).

    `port` is the service port that clients use, `where` the `http[]` entry.
    """
    if http.redirect is not None:
        redirect = redirect_action(http.redirect, port, at(where, "redirect"), report)
        return None if redirect is None else Route(redirect=redirect)
    if http.direct_response is not None:
        answer = direct_response_action(http.direct_response, at(where, "directResponse"), report)
        return None if answer is None else Route(direct_response=answer)
    action = RouteAction()
    route = Route()
    if not _set_clusters(action, targets, where, report):
        return None
    if http.rewrite is not None and not _set_rewrite(action, http.rewrite, at(where, "rewrite"), report):
        return None
    _set_authority(action, http, targets)
    _set_timeouts(action, http.timeout)
    _set_hashing(action, targets)
    retries = retry_policy(http.retries, consistent_hash=len(targets) == 1 and targets[0].hash is not None)
    if retries is not None:
        action.retry_policy.CopyFrom(retries)
    for mirror in mirrors:
        _add_mirror(action, mirror)
    route.route.CopyFrom(action)
    add_headers(route, http.headers, where, report)
    if len(targets) == 1:
        add_headers(route, targets[0].headers, targets[0].origin, report)
        add_filters(route, targets[0].filters)
    _add_route_filters(route, http, where, report)
    return route


def add_filters(message: Route | WeightedCluster.ClusterWeight, filters: Pairs[bytes]) -> None:
    """Put encoded per-route filter settings into a Route or ClusterWeight."""
    for name, encoded in filters:
        message.typed_per_filter_config[name].CopyFrom(Any.FromString(encoded))


def _add_route_filters(route: Route, http: HTTPRoute, where: Origin, report: Report) -> None:
    if http.fault is not None:
        fault = http_fault(http.fault, at(where, "fault"), report)
        if fault is not None:
            route.typed_per_filter_config[names.FAULT].CopyFrom(any_of(fault))
    if http.cors_policy is not None:
        policy = cors_policy(http.cors_policy, at(where, "corsPolicy"), report)
        route.typed_per_filter_config[names.CORS].CopyFrom(any_of(policy))


def _set_clusters(action: RouteAction, targets: tuple[Target, ...], where: Origin, report: Report) -> bool:
    if len(targets) == 1:
        action.cluster = targets[0].cluster
        return True
    weighted = [target for target in targets if target.weight > 0]
    if not weighted:
        warn(
            report,
            VALUE_INVALID,
            at(where, "route"),
            f"no destination has a weight: {FAILS}",
        )
        return False
    for target in weighted:
        entry = action.weighted_clusters.clusters.add(name=target.cluster, weight=UInt32Value(value=target.weight))
        add_headers(entry, target.headers, target.origin, report)
        authority = authority_of(target.headers)
        if authority:
            entry.host_rewrite_literal = authority
        add_filters(entry, target.filters)
    return True


def _set_authority(action: RouteAction, http: HTTPRoute, targets: tuple[Target, ...]) -> None:
    authority = (http.rewrite.authority if http.rewrite else "") or authority_of(http.headers)
    if not authority and len(targets) == 1:
        authority = authority_of(targets[0].headers)
    if authority:
        action.host_rewrite_literal = authority


def _set_timeouts(action: RouteAction, timeout: int | None) -> None:
    """No timeout unless written. Without one, a client's `grpc-timeout` is honoured, without limit.

    Envoy ignores `timeout` where `max_stream_duration` stands next to it, so there is only ever one of them.
    """
    action.timeout.CopyFrom(duration(timeout) if timeout else Duration())
    if not timeout:
        action.max_stream_duration.grpc_timeout_header_max.CopyFrom(Duration())


def _set_hashing(action: RouteAction, targets: tuple[Target, ...]) -> None:
    for target in targets:
        policy = hash_policy(target.hash) if target.hash is not None else None
        if policy is not None:
            action.hash_policy.append(policy)


def _set_rewrite(action: RouteAction, rewrite: HTTPRewrite, where: Origin, report: Report) -> bool:
    if not all(is_header_text(text, where, report) for text in (rewrite.uri, rewrite.authority)):
        return False
    if rewrite.uri_regex_rewrite is not None:
        pattern, substitution = rewrite.uri_regex_rewrite.match, rewrite.uri_regex_rewrite.rewrite
        reason = regex_error(pattern) or _substitution_error(pattern, substitution)
        if reason:
            warn(
                report,
                REGEX_INVALID,
                at(where, "uriRegexRewrite"),
                f"{FAILS}: {reason}",
            )
            return False
        action.regex_rewrite.pattern.regex = pattern
        action.regex_rewrite.substitution = substitution
    elif rewrite.uri:
        action.prefix_rewrite = rewrite.uri
    return True


def _substitution_error(pattern: str, substitution: str) -> str:
    """Why RE2 would refuse the replacement text: every backslash is a digit's or escapes a backslash."""
    groups = re.compile(pattern).groups
    for escape in re.findall(r"\\(.?)", substitution, re.DOTALL):
        if escape.isdigit() and int(escape) > groups:
            return f"\\{escape} names no group of {pattern!r}"
        if escape != "\\" and not escape.isdigit():
            return f"a backslash in {substitution!r} must precede a digit or a backslash"
    return ""


def _add_mirror(action: RouteAction, mirror: Mirror) -> None:
    policy = action.request_mirror_policies.add(cluster=mirror.cluster, disable_shadow_host_suffix_append=True)
    policy.runtime_fraction.default_value.CopyFrom(fraction(min(mirror.percentage, FULL)))
    policy.trace_sampled.value = False
