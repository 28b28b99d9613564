"""Which plane carries a service port, L4 (kernel) or L7 (the node's proxy), and why.

L7 when the port speaks HTTP and something asks for what only a proxy can do; else L4 (DESIGN 7). The
annotation `xdsbpf.io/dataplane` on the Service, or else its Namespace, overrides, for TCP as for HTTP; what a
manifest asks for and the chosen plane does not do is reported as not enforced.
"""

from __future__ import annotations

import enum
import functools
from typing import Final

import msgspec

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import ABSENT, Database, query
from xdsbpf.mesh.codes import warn
from xdsbpf.mesh.destination_rules import DEFAULTS, EffectivePolicy, effective_policy, subsets
from xdsbpf.mesh.inputs import NAMESPACES, SERVICES, object_id
from xdsbpf.mesh.routes import http_rule_origins
from xdsbpf.mesh.services import MeshService, PortInfo, Protocol, service
from xdsbpf.mesh.virtual_services import owners
from xdsbpf.model.meta import Manifest
from xdsbpf.model.scalars import lookup

DATAPLANE: Final = "xdsbpf.io/dataplane"
"""Annotation "l7" or "l4" of a Service or Namespace."""
_ALSO_FOR_TCP: Final = ("outlierDetection", "loadBalancer.warmup")
"""Fields that a proxy acts on for TCP as it does for HTTP."""


class Plane(enum.StrEnum):
    """Who carries the connections of a service port."""

    L4 = "L4"
    L7 = "L7"


class Reason(msgspec.Struct, frozen=True):
    """Why a port is on its plane, for people; `origin` is the manifest that says so, if one does."""

    text: str
    origin: Origin | None = None


class TrafficMode(msgspec.Struct, frozen=True):
    """A plane and every reason for it, at least one."""

    plane: Plane
    reasons: tuple[Reason, ...]


class _Wish(msgspec.Struct, frozen=True):
    """The value of the annotation ("l4", "l7" or "" if absent) and where it stands."""

    plane: str
    origin: Origin | None


NO_WISH: Final = _Wish("", None)


@query
def traffic_mode(db: Database, host: str, port: int) -> TrafficMode:
    """Plane of a service port with its reasons; L4 for a port that does not exist."""
    return mode_of(db, host, port)


def mode_of(db: Database, host: str, port: int) -> TrafficMode:
    """The `traffic_mode` for a query that depends on all of it anyway, and spares it a cell."""
    owner = service(db, host)
    info = owner.port(port) if owner else None
    if owner is None or info is None:
        return TrafficMode(Plane.L4, (Reason("no such service port"),))
    wish = _wish(db, owner)
    if not info.is_http:
        return _tcp_mode(db, owner, info, wish)
    policies = _policies(db, host, port)
    asked = (*_route_reasons(db, host, port), *_policy_reasons(policies))
    if wish.plane == "l4":
        for reason in asked:
            if reason.origin is not None:
                text = f"NOT-ENFORCED: {reason.text}, but {DATAPLANE}: l4 keeps {host}:{port} in the kernel"
                warn(db, "XB2041", reason.origin.object, reason.origin.path, text, "remove the annotation")
        mode = TrafficMode(Plane.L4, (Reason(f"annotation {DATAPLANE}: l4", wish.origin),))
    elif wish.plane == "l7":
        mode = TrafficMode(Plane.L7, (Reason(f"annotation {DATAPLANE}: l7", wish.origin), *asked))
    elif asked:
        mode = TrafficMode(Plane.L7, asked)
    else:
        mode = _nothing_asks(info.protocol)
    if mode.plane is Plane.L4:
        _report_not_in_kernel(db, host, port, policies)
    for reason in mode.reasons:
        if reason.origin is not None:
            db.cite(reason.origin)
    return mode


@functools.cache
def _nothing_asks(protocol: Protocol) -> TrafficMode:
    """The mode of most ports; one value for all of them."""
    return TrafficMode(Plane.L4, (Reason(f"{protocol}, and nothing asks for L7"),))


def _policies(db: Database, host: str, port: int) -> list[EffectivePolicy]:
    """The policies in effect for a port: of the whole service and of each subset."""
    return [effective_policy(db, host, port, subset) for subset in ("", *(rule.name for rule in subsets(db, host)))]


@query
def _namespace_wish(db: Database, namespace: str) -> _Wish:
    """The annotation of a Namespace."""
    id = object_id("Namespace", "", namespace)
    manifest = db.input(NAMESPACES, id)
    return NO_WISH if manifest is ABSENT else _wish_of(db, id, manifest)


def _wish_of(db: Database, id: ObjectId, manifest: Manifest) -> _Wish:
    """The annotation of a Service or Namespace."""
    value = lookup(manifest.metadata.annotations, DATAPLANE)
    if value is None:
        return NO_WISH
    path = f"metadata.annotations[{DATAPLANE}]"
    if value not in ("l4", "l7"):
        warn(db, "XB2040", id, path, f"{value!r} is not a value of {DATAPLANE}: ignored", 'use "l4" or "l7"')
        return NO_WISH
    return _Wish(value, Origin(id, path))


def _wish(db: Database, owner: MeshService) -> _Wish:
    manifest = db.input(SERVICES, owner.object)
    own = NO_WISH if manifest is ABSENT else _wish_of(db, owner.object, manifest)
    return own if own.plane else _namespace_wish(db, owner.namespace)


def _tcp_mode(db: Database, owner: MeshService, info: PortInfo, wish: _Wish) -> TrafficMode:
    for entry in owners(db, owner.host):
        spec = entry.virtual_service.spec
        id = entry.virtual_service.id
        # With another port that speaks HTTP the routes are meant for that one.
        if spec.http and not any(port.is_http for port in owner.ports):
            text = f"NOT-ENFORCED: {owner.host} has no port that speaks HTTP"
            warn(
                db,
                "XB2038",
                id,
                "spec.http",
                text,
                "name the service's port http-..., or set appProtocol: http",
            )
        if spec.tls:
            warn(db, "XB2038", id, "spec.tls", "NOT-ENFORCED: TLS routes are not supported yet")
    gaps = _tcp_gaps_of_proxy if wish.plane == "l7" else _l7_fields
    policies = _policies(db, owner.host, info.number)
    for policy in policies:
        for text, origin in gaps(policy):
            warn(
                db,
                "XB2041",
                origin.object,
                origin.path,
                f"NOT-ENFORCED: {text}, but port {info.number} is TCP",
            )
    if wish.plane != "l7":
        _report_not_in_kernel(db, owner.host, info.number, policies)
        return TrafficMode(Plane.L4, (Reason(f"port {info.number} is {info.protocol}"),))
    if wish.origin is not None:
        db.cite(wish.origin)
    return TrafficMode(Plane.L7, (Reason(f"annotation {DATAPLANE}: l7", wish.origin),))


def _route_reasons(db: Database, host: str, port: int) -> tuple[Reason, ...]:
    return tuple(Reason("HTTP route", origin) for origin in http_rule_origins(db, host, port))


def _policy_reasons(policies: list[EffectivePolicy]) -> tuple[Reason, ...]:
    return tuple(dict.fromkeys(Reason(text, at) for policy in policies for text, at in _l7_fields(policy)))


def _l7_fields(policy: EffectivePolicy) -> list[tuple[str, Origin]]:
    """What of a policy only a proxy does: (field, where)."""
    if policy is DEFAULTS:
        return []
    pool, balancer = policy.connection_pool, policy.load_balancer
    hashed = balancer.consistent_hash if balancer is not None else None
    is_warming = balancer is not None and bool(balancer.warmup or balancer.warmup_duration_secs)
    asked = (
        ("connectionPool", "http", pool is not None and pool.http is not None),
        (
            "loadBalancer",
            "consistentHash.httpHeaderName",
            hashed is not None and bool(hashed.http_header_name),
        ),
        ("loadBalancer", "consistentHash.httpCookie", hashed is not None and hashed.http_cookie is not None),
        (
            "loadBalancer",
            "consistentHash.httpQueryParameterName",
            hashed is not None and bool(hashed.http_query_parameter_name),
        ),
        ("loadBalancer", "warmup", is_warming),
        ("outlierDetection", "", policy.outlier_detection is not None),
        ("retryBudget", "", policy.retry_budget is not None),
    )
    return [_place(policy, block, field) for block, field, is_set in asked if is_set]


def _tcp_gaps_of_proxy(policy: EffectivePolicy) -> list[tuple[str, Origin]]:
    """What of a policy the proxy does not do for TCP: what is about requests, and what its one chain would fix."""
    tcp = policy.connection_pool.tcp if policy.connection_pool is not None else None
    found = [(name, at) for name, at in _l7_fields(policy) if name not in _ALSO_FOR_TCP]
    asked = (
        ("connectionPool", "tcp.maxConnectionDuration", tcp is not None and tcp.max_connection_duration),
        ("connectionPool", "tcp.idleTimeout", tcp is not None and tcp.idle_timeout),
    )
    return found + [_place(policy, block, field) for block, field, is_set in asked if is_set]


def _place(policy: EffectivePolicy, block: str, field: str) -> tuple[str, Origin]:
    """(name of a field, where it stands)."""
    at = dict(policy.blocks)[block]
    return (f"{block}.{field}", Origin(at.object, f"{at.path}.{field}")) if field else (block, at)


def _report_not_in_kernel(db: Database, host: str, port: int, policies: list[EffectivePolicy]) -> None:
    """Report the L4 fields in effect that the kernel does not act on yet."""
    for policy in policies:
        for name, at in _kernel_gaps(policy):
            text = f"NOT-ENFORCED: the kernel does not act on {name} yet ({host}:{port})"
            hint = f"a service can be carried by the proxy: annotate it {DATAPLANE}: l7"
            warn(db, "XB2024", at.object, at.path, text, hint)


def _kernel_gaps(policy: EffectivePolicy) -> list[tuple[str, Origin]]:
    if policy is DEFAULTS:
        return []
    balancer = policy.load_balancer
    tcp = policy.connection_pool.tcp if policy.connection_pool is not None else None
    hashed = balancer.consistent_hash if balancer is not None else None
    simple = balancer.simple if balancer is not None else None
    found = (
        ("connectionPool", "tcp.maxConnections", tcp is not None and tcp.max_connections),
        ("connectionPool", "tcp.connectTimeout", tcp is not None and tcp.connect_timeout),
        ("connectionPool", "tcp.tcpKeepalive", tcp is not None and tcp.tcp_keepalive),
        ("connectionPool", "tcp.maxConnectionDuration", tcp is not None and tcp.max_connection_duration),
        ("connectionPool", "tcp.idleTimeout", tcp is not None and tcp.idle_timeout),
        # It picks at random.
        ("loadBalancer", "simple", simple not in (None, "UNSPECIFIED", "RANDOM")),
        ("loadBalancer", "consistentHash.useSourceIp", hashed is not None and hashed.use_source_ip),
        ("loadBalancer", "localityLbSetting", balancer is not None and balancer.locality_lb_setting),
        ("tls", "mode", policy.tls is not None and policy.tls.mode != "DISABLE"),
        ("tunnel", "", policy.tunnel),
        ("proxyProtocol", "", policy.proxy_protocol),
    )
    return [_place(policy, block, field) for block, field, is_set in found if is_set]
