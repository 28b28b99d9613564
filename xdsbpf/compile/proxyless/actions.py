"""What gRPC libraries do with a matched call: weighted clusters, deadline, retries, hashing, faults (A28 to A44).

Pure: the HTTP route of the manifest and its resolved clusters in, a Route without match out. What the libraries
ignore is reported; what they must not do without, such as a rewrite, becomes a route that fails.
"""

from __future__ import annotations

from typing import Final

from envoy.config.route.v3.route_components_pb2 import NonForwardingAction, RetryPolicy, Route, RouteAction
from google.protobuf.wrappers_pb2 import UInt32Value

from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.codes import VALUE_INVALID, Report, at, warn
from xdsbpf.compile.envoy.encoding import any_of, duration
from xdsbpf.compile.envoy.fault import http_fault
from xdsbpf.compile.envoy.hash_policy import hash_policy
from xdsbpf.compile.envoy.headers import authority_of
from xdsbpf.compile.envoy.retries import retry_policy
from xdsbpf.compile.envoy.route_action import Target
from xdsbpf.compile.proxyless.codes import FAILS, fails, without
from xdsbpf.diagnostics import Origin
from xdsbpf.model.virtual_service import HTTPRoute

RETRY_CONDITIONS: Final = ("cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable")
"""The conditions that gRPC knows (gRFC A44)."""


def default_action(target: Target) -> Route:
    """The route of a service port without rules."""
    route = Route(name=names.DEFAULT_ROUTE)
    route.route.cluster = target.cluster
    route.route.retry_policy.CopyFrom(_known(retry_policy(None, consistent_hash=False)))
    _set_hashing(route.route, (target,), target.origin, None)
    return route


def grpc_action(http: HTTPRoute, targets: tuple[Target, ...], where: Origin, report: Report) -> Route:
    """The Route of one `http[]` entry, without match and name; `where` is that entry."""
    for field, value in (
        ("redirect", http.redirect),
        ("directResponse", http.direct_response),
        ("rewrite", http.rewrite),
    ):
        if value is not None:
            fails(report, where, field)
            return Route(non_forwarding_action=NonForwardingAction())
    action = RouteAction()
    if not _set_clusters(action, targets, where, report):
        return Route(non_forwarding_action=NonForwardingAction())
    if http.timeout:
        action.max_stream_duration.max_stream_duration.CopyFrom(duration(http.timeout))
    _set_retries(action, http, where, report)
    _set_hashing(action, targets, where, report)
    route = Route(route=action)
    if http.fault is not None:
        fault = http_fault(http.fault, at(where, "fault"), report)
        if fault is not None:
            route.typed_per_filter_config[names.FAULT].CopyFrom(any_of(fault))
    _report_ignored(http, targets, where, report)
    return route


def _set_clusters(action: RouteAction, targets: tuple[Target, ...], where: Origin, report: Report) -> bool:
    if len(targets) == 1:
        action.cluster = targets[0].cluster
        return True
    weighted = [target for target in targets if target.weight > 0]
    for target in weighted:
        action.weighted_clusters.clusters.add(name=target.cluster, weight=UInt32Value(value=target.weight))
    if not weighted:
        warn(report, VALUE_INVALID, at(where, "route"), "no destination has a weight: calls fail with UNAVAILABLE")
    return bool(weighted)


def _set_retries(action: RouteAction, http: HTTPRoute, where: Origin, report: Report) -> None:
    retries = retry_policy(http.retries, consistent_hash=False)
    if retries is None:
        return
    known = _known(retries)
    if known.retry_on:
        action.retry_policy.CopyFrom(known)
    if http.retries is None:
        return
    place = at(where, "retries")
    if known.retry_on != retries.retry_on and http.retries.retry_on:
        without(report, place, "retryOn", f"gRPC retries on {', '.join(RETRY_CONDITIONS)}")
    if http.retries.per_try_timeout:
        without(report, place, "perTryTimeout")
    if http.retries.retry_remote_localities:
        without(report, place, "retryRemoteLocalities")


def _known(policy: RetryPolicy | None) -> RetryPolicy:
    """The part of a retry policy that gRPC knows."""
    result = RetryPolicy()
    if policy is None:
        return result
    conditions = policy.retry_on.split(",")
    result.retry_on = ",".join(condition for condition in conditions if condition in RETRY_CONDITIONS)
    result.num_retries.CopyFrom(policy.num_retries)
    if policy.HasField("retry_back_off"):
        result.retry_back_off.CopyFrom(policy.retry_back_off)
    return result


def _set_hashing(action: RouteAction, targets: tuple[Target, ...], where: Origin, report: Report | None) -> None:
    """A header is the only thing of a call that gRPC hashes; without one it hashes the channel."""
    for target in targets:
        policy = hash_policy(target.hash) if target.hash is not None else None
        if policy is None:
            continue
        if policy.HasField("header"):
            action.hash_policy.append(policy)
        elif report is not None:
            without(report, where, "route", "consistentHash needs httpHeaderName for gRPC clients")


def _report_ignored(http: HTTPRoute, targets: tuple[Target, ...], where: Origin, report: Report) -> None:
    if http.mirror is not None or http.mirrors:
        without(report, where, "mirror" if http.mirror is not None else "mirrors")
    if http.cors_policy is not None:
        without(report, where, "corsPolicy")
    owners = [(where, http.headers), *((target.origin, target.headers) for target in targets)]
    for place, headers in owners:
        if headers is None:
            continue
        if authority_of(headers):
            warn(report, FAILS, at(place, "headers"), "gRPC clients do not rewrite the authority: it stays as dialled")
        else:
            without(report, place, "headers")
