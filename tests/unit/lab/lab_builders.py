"""Small builders of Kubernetes values for the lab's tests."""

from __future__ import annotations

from collections.abc import Mapping

from xdsbpf.model.kube import (
    Container,
    ContainerPort,
    Deployment,
    DeploymentSpec,
    PodSpec,
    PodTemplate,
    Service,
    ServicePort,
    ServiceSpec,
    TemplateMeta,
)
from xdsbpf.model.meta import ObjectMeta


def deployment(
    name: str,
    *,
    replicas: int = 1,
    namespace: str = "default",
    ports: tuple[tuple[int, str], ...] = (),
    host_network: bool = False,
    **labels: str,
) -> Deployment:
    """A Deployment of one container; `ports` are (number, name)."""
    container = Container(name="c", ports=tuple(ContainerPort(n, label) for n, label in ports))
    template = PodTemplate(
        metadata=TemplateMeta(labels=tuple(sorted(labels.items()))),
        spec=PodSpec(containers=(container,), host_network=host_network),
    )
    return Deployment(
        metadata=ObjectMeta(name=name, namespace=namespace),
        spec=DeploymentSpec(template=template, replicas=replicas),
    )


def service(
    name: str,
    selector: Mapping[str, str],
    ports: tuple[tuple[int, str, int | str | None], ...],
    namespace: str = "default",
) -> Service:
    """A Service; `ports` are (port, name, target port)."""
    return Service(
        metadata=ObjectMeta(name=name, namespace=namespace),
        spec=ServiceSpec(
            ports=tuple(ServicePort(port, label, target_port=target) for port, label, target in ports),
            selector=tuple(sorted(selector.items())),
        ),
    )
