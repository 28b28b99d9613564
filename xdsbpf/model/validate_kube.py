from __future__ import annotations

from xdsbpf.diagnostics import Diagnostic
from xdsbpf.model.kube import Deployment, EndpointSlice, Node, Pod, Service


def validate_service(m: Service) -> tuple[Diagnostic, ...]:
    return ()


def validate_endpoint_slice(m: EndpointSlice) -> tuple[Diagnostic, ...]:
    return ()


def validate_pod(m: Pod) -> tuple[Diagnostic, ...]:
    return ()


def validate_deployment(m: Deployment) -> tuple[Diagnostic, ...]:
    return ()


def validate_node(m: Node) -> tuple[Diagnostic, ...]:
    return ()
