"""Builders of manifests for tests: short calls, real structs, no YAML.

`Mesh` holds a database whose values are checked; `mesh.put(...)` puts objects as a source would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from xdsbpf.diagnostics import Diagnostic, ObjectId, Origin
from xdsbpf.incremental import Database
from xdsbpf.mesh.findings import findings
from xdsbpf.mesh.inputs import MESH, SERVICE_NAME_LABEL, SETTINGS, MeshSettings, put_object, remove_object
from xdsbpf.model.authorization_policy import (
    AuthorizationPolicy,
    AuthorizationPolicySpec,
    Condition,
    From,
    Operation,
    PolicySelector,
    PolicyTargetRef,
    Rule,
    Source,
    To,
)
from xdsbpf.model.destination_rule import DestinationRule, DestinationRuleSpec, Subset, TrafficPolicy
from xdsbpf.model.kube import (
    EndpointConditions,
    EndpointSlice,
    Namespace,
    Node,
    NodeAddress,
    NodeStatus,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
    Service,
    ServicePort,
    ServiceSpec,
    SliceEndpoint,
    SlicePort,
    TargetRef,
)
from xdsbpf.model.matching import PortSelector, StringMatch
from xdsbpf.model.meta import Manifest, ObjectMeta
from xdsbpf.model.virtual_service import (
    Destination,
    HTTPMatchRequest,
    HTTPRoute,
    HTTPRouteDestination,
    RouteDestination,
    TCPRoute,
    VirtualService,
    VirtualServiceSpec,
)

Pairs = Mapping[str, str]


def meta(
    name: str,
    namespace: str = "default",
    *,
    labels: Pairs | None = None,
    annotations: Pairs | None = None,
    created: str | None = None,
) -> ObjectMeta:
    """Metadata; `created` is an RFC 3339 time."""
    return ObjectMeta(
        name, namespace, tuple(sorted((labels or {}).items())), tuple(sorted((annotations or {}).items())), created
    )


def service(
    name: str,
    *ports: ServicePort,
    namespace: str = "default",
    address: str = "",
    annotations: Pairs | None = None,
    **spec: Any,
) -> Service:
    """A Service; one HTTP port 9080 unless ports are given."""
    chosen = ports or (ServicePort(9080, "http"),)
    spec.setdefault("selector", (("app", name),))
    return Service(
        metadata=meta(name, namespace, annotations=annotations),
        spec=ServiceSpec(ports=chosen, cluster_ip=address, **spec),
    )


def pod(
    name: str,
    address: str,
    *,
    namespace: str = "default",
    labels: Pairs | None = None,
    account: str = "",
    node: str = "node1",
    phase: str = "Running",
    host_network: bool = False,
    others: tuple[str, ...] = (),
) -> Pod:
    """A running pod with one address, or `others`, too."""
    return Pod(
        metadata=meta(name, namespace, labels=labels),
        spec=PodSpec(node_name=node, service_account_name=account, host_network=host_network),
        status=PodStatus(phase=phase, pod_ip=address, pod_ips=tuple(map(PodIP, others))),  # type: ignore[arg-type]
    )


def endpoint(
    address: str,
    pod: str = "",
    *,
    namespace: str = "default",
    ready: bool | None = None,
    terminating: bool | None = None,
) -> SliceEndpoint:
    """An endpoint of a slice; `pod` names its targetRef."""
    ref = TargetRef("Pod", pod, namespace) if pod else None
    return SliceEndpoint((address,), EndpointConditions(ready, None, terminating), target_ref=ref)


def endpoint_slice(
    service: str,
    *endpoints: SliceEndpoint,
    ports: Iterable[tuple[str, int]] = (("http", 9080),),
    namespace: str = "default",
    name: str = "",
) -> EndpointSlice:
    """The EndpointSlice of a service."""
    return EndpointSlice(
        metadata=meta(name or f"{service}-1", namespace, labels={SERVICE_NAME_LABEL: service}),
        endpoints=endpoints,
        ports=tuple(SlicePort(port, port_name) for port_name, port in ports),
    )


def node(name: str, address: str = "", *, proxy: str = "") -> Node:
    """A Node with an InternalIP, a proxy address, both or none."""
    annotations = {"xdsbpf.io/proxy-address": proxy} if proxy else {}
    addresses = (NodeAddress("InternalIP", address),) if address else ()
    return Node(metadata=meta(name, "", annotations=annotations), status=NodeStatus(addresses))


def namespace(name: str, annotations: Pairs | None = None) -> Namespace:
    """A Namespace."""
    return Namespace(metadata=meta(name, "", annotations=annotations))


def destination(host: str, subset: str = "", port: int | None = None) -> Destination:
    """A destination of a route."""
    return Destination(host, subset, PortSelector(port) if port is not None else None)


def to(host: str, subset: str = "", *, weight: int = 0, port: int | None = None) -> HTTPRouteDestination:
    """A weighted HTTP destination."""
    return HTTPRouteDestination(destination(host, subset, port), weight)


def tcp_to(host: str, subset: str = "", *, weight: int = 0, port: int | None = None) -> RouteDestination:
    """A weighted TCP destination."""
    return RouteDestination(destination(host, subset, port), weight)


def route(*targets: HTTPRouteDestination, match: Iterable[HTTPMatchRequest] = (), **fields: Any) -> HTTPRoute:
    """An http route."""
    return HTTPRoute(match=tuple(match), route=targets, **fields)


def header(name: str, exact: str, **fields: Any) -> HTTPMatchRequest:
    """A match on a header's exact value."""
    return HTTPMatchRequest(headers=((name, StringMatch(exact=exact)),), **fields)


def tcp_route(*targets: RouteDestination, **fields: Any) -> TCPRoute:
    """A tcp route."""
    return TCPRoute(route=targets, **fields)


def virtual_service(
    name: str,
    hosts: str | Iterable[str],
    *http: HTTPRoute,
    namespace: str = "default",
    created: str | None = None,
    **spec: Any,
) -> VirtualService:
    """A VirtualService for one host or several."""
    chosen = (hosts,) if isinstance(hosts, str) else tuple(hosts)
    return VirtualService(
        metadata=meta(name, namespace, created=created),
        spec=VirtualServiceSpec(hosts=chosen, http=http, **spec),
    )


def subset(name: str, policy: TrafficPolicy | None = None, **labels: str) -> Subset:
    """A subset by labels; by version=<name> if none are given."""
    return Subset(name, tuple(sorted((labels or {"version": name}).items())), policy)


def destination_rule(
    name: str,
    host: str,
    *subsets: Subset,
    namespace: str = "default",
    created: str | None = None,
    **spec: Any,
) -> DestinationRule:
    """A DestinationRule."""
    return DestinationRule(
        metadata=meta(name, namespace, created=created),
        spec=DestinationRuleSpec(host=host, subsets=subsets, **spec),
    )


def from_source(**fields: Any) -> From:
    """A `from` entry."""
    return From(Source(**fields))


def to_operation(**fields: Any) -> To:
    """A `to` entry."""
    return To(Operation(**fields))


def rule(
    *entries: From | To | Condition,
) -> Rule:
    """A rule of its from, to and when entries; `rule()` matches everything."""
    return Rule(
        tuple(entry for entry in entries if isinstance(entry, From)),
        tuple(entry for entry in entries if isinstance(entry, To)),
        tuple(entry for entry in entries if isinstance(entry, Condition)),
    )


def policy(
    name: str,
    *rules: Rule,
    namespace: str = "default",
    action: str = "ALLOW",
    selector: Pairs | None = None,
    annotations: Pairs | None = None,
    created: str | None = None,
    target_refs: tuple[PolicyTargetRef, ...] = (),
) -> AuthorizationPolicy:
    """An AuthorizationPolicy."""
    chosen = PolicySelector(tuple(sorted(selector.items()))) if selector is not None else None
    return AuthorizationPolicy(
        metadata=meta(name, namespace, annotations=annotations, created=created),
        spec=AuthorizationPolicySpec(
            selector=chosen,
            rules=rules,
            action=action,
            target_refs=target_refs,  # type: ignore[arg-type]
        ),
    )


class Mesh:
    """A database with manifests in it, and short ways to ask it."""

    def __init__(self, *manifests: Manifest, settings: MeshSettings | None = None) -> None:
        self.db = Database(check_values=True)
        with self.db.change() as change:
            if settings is not None:
                change.put(SETTINGS, MESH, settings)
        self.put(*manifests)

    def put(self, *manifests: Manifest) -> None:
        """Put objects, replacing those of the same id."""
        with self.db.change() as change:
            for manifest in manifests:
                assert put_object(change, manifest.id, manifest)

    def remove(self, *ids: ObjectId) -> None:
        """Remove objects."""
        with self.db.change() as change:
            for id in ids:
                assert remove_object(change, id)

    def findings(self, code: str | None = None) -> list[Diagnostic]:
        """All findings of the mesh, or those with a code."""
        return [found for found in self.db.diagnostics(findings) if code in (None, found.code)]

    def origins(self, query: Callable[..., Any], *args: Any) -> set[str]:
        """Citations of a query as text."""
        cited: tuple[Origin, ...] = self.db.origins(query, *args)
        return {str(origin) for origin in cited}


def workload(
    app: str, version: str, address: str, *, account: str = "", namespace: str = "default", node: str = "node1"
) -> Pod:
    """The pod `<app>-<version>` with the usual labels."""
    labels = {"app": app, "version": version}
    name = f"{app}-{version}"
    return pod(name, address, namespace=namespace, labels=labels, account=account or f"bookinfo-{app}", node=node)


def bookinfo() -> tuple[Manifest, ...]:
    """Services, slices, pods and nodes shaped like Istio's Bookinfo sample, without any routing."""
    apps = {
        "productpage": {"v1": "10.10.1.11"},
        "details": {"v1": "10.10.1.12"},
        "ratings": {"v1": "10.10.2.13"},
        "reviews": {"v1": "10.10.1.21", "v2": "10.10.2.22", "v3": "10.10.2.23"},
    }
    made: list[Manifest] = [
        node("node1", "192.168.0.1", proxy="10.10.1.2"),
        node("node2", "192.168.0.2", proxy="10.10.2.2"),
    ]
    for app, versions in apps.items():
        made.append(service(app))
        for version, address in versions.items():
            made.append(workload(app, version, address, node="node1" if address.startswith("10.10.1.") else "node2"))
        entries = (endpoint(address, f"{app}-{version}") for version, address in versions.items())
        made.append(endpoint_slice(app, *entries))
    return tuple(made)


def host(name: str, namespace: str = "default") -> str:
    """The full host of a service."""
    return f"{name}.{namespace}.svc.cluster.local"
