"""What a lab consists of: the scheduler from Deployments to nodes, pods and addresses.

Input: options and parsed manifests. Output: a `LabPlan`, the value that everything else in this
package reads, and that `lab.json` stores. Called by `bringup`. Pure: the same manifests and options
give the same names, uids and addresses, and nothing here touches the machine.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from xdsbpf.errors import ConfigError
from xdsbpf.model.kube import Container, Deployment, Pod, PodSpec, Service
from xdsbpf.model.scalars import Labels, is_subset, lookup

DEFAULT_NAME = "xb"
DEFAULT_SERVICE_CIDR = "240.240.0.0/16"
CLUSTER_DOMAIN = "cluster.local"
MAX_NODES = 64
MAX_PODS_PER_NODE = 253

_NAME = re.compile(r"[a-z][a-z0-9]{0,19}")
_SERVER_FIRST = ("tcp", "mongo", "mysql", "redis", "tls")
_UID_SPACE = uuid.UUID("6f0fbd1d-2c43-5c63-9d4b-5a1b4f0c9a11")


class LabOptions(msgspec.Struct, frozen=True):
    """What the user asked for. `replicas` overrides by deployment or app name; `bare` means no mesh; `mtls`: agents and
    Envoys dial the control plane over the lab's network, with certificates, and not a unix socket."""

    paths: tuple[Path, ...]
    name: str = DEFAULT_NAME
    nodes: int = 2
    replicas: tuple[tuple[str, int], ...] = ()
    bare: bool = False
    service_cidr: str = DEFAULT_SERVICE_CIDR
    envoy_binary: Path | None = None
    mtls: bool = False


class NodePlan(msgspec.Struct, frozen=True):
    """A node: a namespace with an uplink; its Envoy listens on and sends from `proxy_address`."""

    name: str
    index: int
    netns: str
    address: str
    proxy_address: str


class PodPort(msgspec.Struct, frozen=True):
    """A TCP port that the stand-in listens on; `server_first` ports greet and echo, others speak HTTP."""

    number: int
    name: str = ""
    server_first: bool = False


class PodPlan(msgspec.Struct, frozen=True):
    """A pod: where it runs, who it is, and what its stand-in does. `veth` is the node's side of its link."""

    name: str
    namespace: str
    owner: str
    node: str
    address: str
    uid: str
    netns: str
    veth: str
    labels: Labels
    service_account: str
    ports: tuple[PodPort, ...]
    named_ports: tuple[tuple[str, int], ...]
    env: tuple[tuple[str, str], ...]

    @property
    def app(self) -> str:
        """The label `app`, else the name of the owner."""
        return lookup(self.labels, "app") or self.owner

    @property
    def version(self) -> str:
        return lookup(self.labels, "version") or ""


class LabPlan(msgspec.Struct, frozen=True):
    """Everything that has a name in a lab. `fabric` is the namespace that routes between the nodes."""

    name: str
    fabric: str
    service_cidr: str
    nodes: tuple[NodePlan, ...]
    pods: tuple[PodPlan, ...]

    def pods_of(self, node: str) -> tuple[PodPlan, ...]:
        """Pods of one node, by address."""
        return tuple(pod for pod in self.pods if pod.node == node)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Network namespaces in the order they are made: fabric, nodes, pods."""
        nodes = tuple(node.netns for node in self.nodes)
        return (self.fabric, *nodes, *(pod.netns for pod in self.pods))


class _Template(msgspec.Struct, frozen=True):
    namespace: str
    owner: str
    names: tuple[str, ...]
    labels: Labels
    spec: PodSpec


def check_name(name: str) -> str:
    """The lab name, which prefixes every namespace; without `-` no name can be a prefix of another lab's.

    Raises: ConfigError.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a lab",
            hint="use up to 20 lower-case letters and digits, beginning with a letter",
        )
    return name


def schedule(
    options: LabOptions, deployments: Iterable[Deployment], pods: Iterable[Pod], services: Iterable[Service]
) -> LabPlan:
    """Place every replica on a node, round robin over (namespace, owner, index), and give it its address.

    Pods of the manifests that have no address yet are run as they are. Node n is 10.88.0.n, its proxy
    10.88.255.n, its pods 10.88.n.2 and up.
    Raises: ConfigError for a bad name, an unknown name in `replicas`, too many nodes or pods.
    """
    name = check_name(options.name)
    if not 1 <= options.nodes <= MAX_NODES:
        raise ConfigError(f"a lab of {options.nodes} nodes", hint=f"use 1 to {MAX_NODES}")
    templates = sorted(
        [*_deployed(deployments, options.replicas), *_as_written(pods)], key=lambda t: (t.namespace, t.owner)
    )
    known = tuple(services)
    nodes = tuple(_node(name, index) for index in range(1, options.nodes + 1))
    placed: list[PodPlan] = []
    for position, (template, pod_name) in enumerate((t, n) for t in templates for n in t.names):
        node, slot = nodes[position % len(nodes)], position // len(nodes)
        if slot >= MAX_PODS_PER_NODE:
            raise ConfigError(
                f"more than {MAX_PODS_PER_NODE} pods on one node", hint="use more --nodes or fewer replicas"
            )
        placed.append(_pod(name, node, slot, template, pod_name, known))
    twice = [name for name, count in Counter(pod.name for pod in placed).items() if count > 1]
    if twice:
        raise ConfigError(f"two pods are named {twice[0]}", hint="the lab needs names unique over namespaces")
    if not placed:
        raise ConfigError(
            "there is nothing to run: no Deployment with replicas and no Pod",
            hint="give the files that hold the Deployments with -f",
        )
    return LabPlan(name, f"{name}-fabric", options.service_cidr, nodes, tuple(placed))


def _deployed(deployments: Iterable[Deployment], replicas: tuple[tuple[str, int], ...]) -> Iterable[_Template]:
    found = list(deployments)
    names = {d.name for d in found} | {_app(d) for d in found}
    for name, count in replicas:
        if name not in names:
            raise ConfigError(
                f"--replicas {name}={count}: no Deployment has that name or app label",
                hint="one of: " + ", ".join(sorted(filter(None, names))),
            )
        if count < 0:
            raise ConfigError(f"--replicas {name}={count}: the count is negative")
    wanted = dict(replicas)
    for deployment in found:
        count = wanted.get(deployment.name, wanted.get(_app(deployment), deployment.spec.replicas))
        template = deployment.spec.template
        digest = hashlib.sha256(f"{deployment.namespace}/{deployment.name}".encode()).hexdigest()[:5]
        yield _Template(
            deployment.namespace,
            deployment.name,
            tuple(f"{deployment.name}-{digest}-{index}" for index in range(count)),
            template.metadata.labels,
            template.spec,
        )


def _app(deployment: Deployment) -> str:
    return lookup(deployment.spec.template.metadata.labels, "app") or ""


def _as_written(pods: Iterable[Pod]) -> Iterable[_Template]:
    for pod in pods:
        if not pod.addresses:
            yield _Template(pod.namespace, pod.name, (pod.name,), pod.metadata.labels, pod.spec)


def _node(lab: str, index: int) -> NodePlan:
    name = f"node{index}"
    return NodePlan(name, index, f"{lab}-{name}", f"10.88.0.{index}", f"10.88.255.{index}")


def _pod(lab: str, node: NodePlan, slot: int, template: _Template, name: str, services: tuple[Service, ...]) -> PodPlan:
    if template.spec.host_network:
        raise ConfigError(
            f"pod {template.namespace}/{name} asks for hostNetwork, which the lab does not provide",
            hint="remove hostNetwork, or leave the object out",
        )
    named = {
        port.name: port.container_port
        for container in template.spec.containers
        for port in container.ports
        if port.name and port.protocol == "TCP"
    }
    return PodPlan(
        name=name,
        namespace=template.namespace,
        owner=template.owner,
        node=node.name,
        address=f"10.88.{node.index}.{slot + 2}",
        uid=str(uuid.uuid5(_UID_SPACE, f"{lab}/{template.namespace}/{name}")),
        netns=f"{lab}-{name}",
        veth=f"pod{slot + 2}",
        labels=template.labels,
        service_account=template.spec.service_account_name or "default",
        ports=_ports(template, named, services),
        named_ports=tuple(sorted(named.items())),
        env=tuple((env.name, env.value) for c in template.spec.containers for env in c.env),
    )


def _ports(template: _Template, named: dict[str, int], services: tuple[Service, ...]) -> tuple[PodPort, ...]:
    """Container ports, and numeric target ports that no container declares (Kubernetes allows both)."""
    ports: dict[int, PodPort] = {}
    for container in template.spec.containers:
        for port in _tcp_ports(container):
            ports[port.number] = port
    for service in services:
        if service.namespace != template.namespace or not selects(service, template.labels):
            continue
        for entry in service.spec.ports:
            target = entry.target_port if entry.target_port is not None else entry.port
            number = named.get(target) if isinstance(target, str) else target
            if number is None or entry.protocol != "TCP":
                continue
            known = ports.get(number, PodPort(number))
            first = known.server_first or _is_server_first(entry.app_protocol or entry.name)
            ports[number] = PodPort(number, known.name or entry.name, first)
    return tuple(ports[number] for number in sorted(ports))


def _tcp_ports(container: Container) -> Iterable[PodPort]:
    for port in container.ports:
        if port.protocol == "TCP":
            yield PodPort(port.container_port, port.name, _is_server_first(port.name))


def _is_server_first(protocol: str) -> bool:
    """Istio's rule: the protocol is the port name up to the first `-`."""
    return protocol.lower().split("-", 1)[0] in _SERVER_FIRST


def selects(service: Service, labels: Labels) -> bool:
    """Whether a service selects these labels; a service without selector selects nothing (Kubernetes)."""
    return bool(service.spec.selector) and is_subset(service.spec.selector, labels)
