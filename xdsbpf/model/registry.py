"""The only table of kinds: what is supported, and what is recognised and not yet supported."""

from __future__ import annotations

from xdsbpf.model.authorization_policy import AuthorizationPolicy
from xdsbpf.model.destination_rule import DestinationRule
from xdsbpf.model.kube import Deployment, EndpointSlice, Namespace, Node, Pod, Service, ServiceAccount
from xdsbpf.model.meta import Manifest
from xdsbpf.model.virtual_service import VirtualService

ISTIO_NETWORKING = "networking.istio.io"
ISTIO_SECURITY = "security.istio.io"
GATEWAY_API = "gateway.networking.k8s.io"

KINDS: dict[tuple[str, str], type[Manifest]] = {
    ("", "Service"): Service,
    ("", "Pod"): Pod,
    ("", "Namespace"): Namespace,
    ("", "ServiceAccount"): ServiceAccount,
    ("", "Node"): Node,
    ("apps", "Deployment"): Deployment,
    ("discovery.k8s.io", "EndpointSlice"): EndpointSlice,
    (ISTIO_NETWORKING, "VirtualService"): VirtualService,
    (ISTIO_NETWORKING, "DestinationRule"): DestinationRule,
    (ISTIO_SECURITY, "AuthorizationPolicy"): AuthorizationPolicy,
}
"""(API group without version, kind) -> struct."""

VERSIONS: dict[str, tuple[str, ...]] = {
    "": ("v1",),
    "apps": ("v1",),
    "discovery.k8s.io": ("v1",),
    ISTIO_NETWORKING: ("v1", "v1beta1", "v1alpha3"),
    ISTIO_SECURITY: ("v1", "v1beta1"),
}
"""API versions of each group that are read as the same schema."""

STRICT_GROUPS = frozenset({ISTIO_NETWORKING, ISTIO_SECURITY})
"""Groups whose objects may not have unknown fields."""

CLUSTER_SCOPED = frozenset({"Namespace", "Node", "GatewayClass"})

SECURITY_KINDS = frozenset({"AuthorizationPolicy"})
"""Kinds that deny what they select while they have no good version (fail closed)."""

NOT_YET_SUPPORTED: dict[tuple[str, str], str] = {
    (ISTIO_NETWORKING, "Gateway"): "traffic of this gateway is not configured",
    (ISTIO_NETWORKING, "ServiceEntry"): "its hosts are not known to the mesh",
    (ISTIO_NETWORKING, "WorkloadEntry"): "the workload is not known to the mesh",
    (ISTIO_NETWORKING, "WorkloadGroup"): "its workloads are not known to the mesh",
    (ISTIO_NETWORKING, "Sidecar"): "clients see every host, not only the ones listed",
    (ISTIO_NETWORKING, "EnvoyFilter"): "the patches are not applied",
    (ISTIO_NETWORKING, "ProxyConfig"): "the settings are not applied",
    (ISTIO_SECURITY, "PeerAuthentication"): "the mTLS mode that it asks for is not enforced",
    (ISTIO_SECURITY, "RequestAuthentication"): "tokens are not checked",
    ("telemetry.istio.io", "Telemetry"): "the settings are not applied",
    ("extensions.istio.io", "WasmPlugin"): "the plug-in is not loaded",
    (GATEWAY_API, "GatewayClass"): "the class is not served",
    (GATEWAY_API, "Gateway"): "traffic of this gateway is not configured",
    (GATEWAY_API, "HTTPRoute"): "its routes are not applied",
    (GATEWAY_API, "GRPCRoute"): "its routes are not applied",
    (GATEWAY_API, "TCPRoute"): "its routes are not applied",
    (GATEWAY_API, "TLSRoute"): "its routes are not applied",
    (GATEWAY_API, "ReferenceGrant"): "no reference depends on it yet",
    ("networking.k8s.io", "NetworkPolicy"): "the policy is not enforced",
    ("networking.k8s.io", "Ingress"): "its rules are not applied",
}
"""Kinds that are recognised, and what is missing while they are not supported."""
