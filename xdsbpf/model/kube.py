"""Core Kubernetes kinds: only the fields that xdsbpf reads; others are ignored when read.

There are several of these per pod, and values without cycles: the collector need not know them (`gc=False`), which
saves a header each.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from xdsbpf.model.meta import Manifest, ObjectMeta
from xdsbpf.model.scalars import Count, IntOrString, Labels, Port, Shared, SharedLabels


class ServicePort(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """One port; `target_port` defaults to `port`."""

    port: Port
    name: Shared = ""
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    target_port: IntOrString | None = None
    app_protocol: str = ""
    node_port: Port | None = None


class ServiceSpec(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    ports: tuple[ServicePort, ...] = ()
    selector: SharedLabels = ()
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: tuple[str, ...] = msgspec.field(default=(), name="clusterIPs")
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    external_name: str = ""
    external_ips: tuple[str, ...] = msgspec.field(default=(), name="externalIPs")
    session_affinity: Literal["None", "ClientIP"] = "None"
    publish_not_ready_addresses: bool = False
    internal_traffic_policy: Literal["Cluster", "Local"] = "Cluster"


class Service(Manifest, frozen=True, gc=False, kw_only=True):
    spec: ServiceSpec = ServiceSpec()


class EndpointConditions(msgspec.Struct, frozen=True, gc=False):
    """Absent conditions mean ready (Kubernetes: nil is to be read as true)."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class TargetRef(msgspec.Struct, frozen=True, gc=False):
    kind: Shared = ""
    name: str = ""
    namespace: Shared = ""


class SliceEndpoint(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    addresses: tuple[str, ...]
    conditions: EndpointConditions = EndpointConditions()
    node_name: Shared = ""
    zone: Shared = ""
    target_ref: TargetRef | None = None


class SlicePort(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    port: Port | None = None
    name: Shared = ""
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    app_protocol: str = ""


class EndpointSlice(Manifest, frozen=True, gc=False, kw_only=True, rename="camel"):
    """The label `kubernetes.io/service-name` says which service it belongs to."""

    address_type: Literal["IPv4", "IPv6", "FQDN"] = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] = ()
    ports: tuple[SlicePort, ...] = ()


class ContainerPort(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    container_port: Port
    name: str = ""
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class EnvVar(msgspec.Struct, frozen=True, gc=False):
    name: str
    value: str = ""


class Container(msgspec.Struct, frozen=True, gc=False):
    name: str
    image: str = ""
    ports: tuple[ContainerPort, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()


class PodSpec(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    node_name: Shared = ""
    service_account_name: Shared = ""
    host_network: bool = False
    containers: tuple[Container, ...] = ()


class PodIP(msgspec.Struct, frozen=True, gc=False):
    ip: str


class PodStatus(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"] = "Pending"
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: tuple[PodIP, ...] = msgspec.field(default=(), name="podIPs")
    host_ip: str = msgspec.field(default="", name="hostIP")


class Pod(Manifest, frozen=True, gc=False, kw_only=True):
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def service_account(self) -> str:
        """Kubernetes' rule: an unnamed service account is `default`."""
        return self.spec.service_account_name or "default"

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses of the pod, the primary first."""
        first, others = self.status.pod_ip, self.status.pod_ips
        if not others:
            return (first,) if first else ()
        rest = tuple(entry.ip for entry in others if entry.ip != first)
        return (first, *rest) if first else rest


class LabelSelector(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    match_labels: Labels = ()


class TemplateMeta(msgspec.Struct, frozen=True, gc=False):
    labels: Labels = ()
    annotations: Labels = ()


class PodTemplate(msgspec.Struct, frozen=True, gc=False):
    metadata: TemplateMeta = TemplateMeta()
    spec: PodSpec = PodSpec()


class DeploymentSpec(msgspec.Struct, frozen=True, gc=False):
    template: PodTemplate
    replicas: Count = 1
    selector: LabelSelector = LabelSelector()


class Deployment(Manifest, frozen=True, gc=False, kw_only=True):
    """Read by the lab, which is what turns Deployments into pods; the mesh reads Pods only."""

    spec: DeploymentSpec


class Namespace(Manifest, frozen=True, gc=False, kw_only=True):
    pass


class ServiceAccount(Manifest, frozen=True, gc=False, kw_only=True):
    pass


class NodeAddress(msgspec.Struct, frozen=True, gc=False):
    type: str
    address: str


class NodeStatus(msgspec.Struct, frozen=True, gc=False):
    addresses: tuple[NodeAddress, ...] = ()


class Node(Manifest, frozen=True, gc=False, kw_only=True):
    """The annotation `xdsbpf.io/proxy-address` names the source address of the node's proxy."""

    status: NodeStatus = NodeStatus()


__all__ = [
    "Container", "ContainerPort", "Deployment", "DeploymentSpec", "EndpointConditions", "EndpointSlice",
    "EnvVar", "LabelSelector", "Namespace", "Node", "NodeAddress", "NodeStatus", "ObjectMeta", "Pod", "PodIP",
    "PodSpec", "PodStatus", "PodTemplate", "Service", "ServiceAccount", "ServicePort", "ServiceSpec",
    "SliceEndpoint", "SlicePort", "TargetRef", "TemplateMeta",
]  # fmt: skip
