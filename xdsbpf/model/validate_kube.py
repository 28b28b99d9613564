"""Validation of core Kubernetes kinds: what would make our output wrong, not all that Kubernetes checks.

Pure. Addresses that reach the node itself (loopback, link-local, multicast) are refused as endpoints
(reliability.md 6 K): a service must not be a way around the network.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from xdsbpf.diagnostics import Diagnostic
from xdsbpf.model import codes
from xdsbpf.model.checks import (
    Checks,
    IPAddress,
    duplicates,
    is_address,
    is_dns_label,
    is_dns_subdomain,
    is_fqdn,
    parse_address,
)
from xdsbpf.model.kube import Deployment, EndpointSlice, Node, Pod, PodSpec, Service
from xdsbpf.model.scalars import lookup

PROXY_ADDRESS: Final = "xdsbpf.io/proxy-address"
SERVICE_NAME: Final = "kubernetes.io/service-name"


def validate_service(manifest: Service) -> tuple[Diagnostic, ...]:
    """Ports, addresses, external name and labels."""
    spec = manifest.spec
    checks = Checks(manifest.id)
    if not spec.ports and spec.type != "ExternalName" and spec.cluster_ip != "None":
        checks.warning(codes.KUBE_PORTS, "spec.ports", "the service has no ports, so nothing reaches it")
    _check_port_names(checks, "spec.ports", [port.name for port in spec.ports])
    numbers = [f"{port.protocol} {port.port}" for port in spec.ports]
    for number in duplicates(numbers):
        checks.error(codes.KUBE_PORTS, "spec.ports", f"the port {number} is given twice")
    for index, port in enumerate(spec.ports):
        target = port.target_port
        if isinstance(target, int):
            checks.port(f"spec.ports[{index}].targetPort", target)
        elif target is not None and not _is_port_name(target):
            message = f"expected a port number or a port name, found {target!r}"
            checks.error(codes.KUBE_PORTS, f"spec.ports[{index}].targetPort", message)
    checks.labels("spec.selector", spec.selector)
    addresses = [("spec.clusterIP", spec.cluster_ip)] if spec.cluster_ip not in ("", "None") else []
    addresses += [(f"spec.clusterIPs[{i}]", ip) for i, ip in enumerate(spec.cluster_ips) if ip != "None"]
    addresses += [(f"spec.externalIPs[{index}]", ip) for index, ip in enumerate(spec.external_ips)]
    _check_addresses(checks, addresses)
    if spec.type == "ExternalName":
        _check_external_name(checks, spec.external_name)
    return checks.done()


def _check_external_name(checks: Checks, name: str) -> None:
    if not is_fqdn(name):
        message = f"expected a host name, found {name!r}"
        checks.error(codes.KUBE_SERVICE, "spec.externalName", message)
    elif name.rstrip(".").lower() == "localhost" or name.rstrip(".").lower().endswith(".localhost"):
        # Security: the name would be resolved by the proxy and reach the proxy's own host.
        message = "localhost would be the proxy itself"
        checks.error(codes.KUBE_ADDRESS, "spec.externalName", message)


def validate_endpoint_slice(manifest: EndpointSlice) -> tuple[Diagnostic, ...]:
    """Addresses of the right family, ports with a name once, and a service to belong to."""
    checks = Checks(manifest.id)
    if not lookup(manifest.metadata.labels, SERVICE_NAME):
        message = f"the label {SERVICE_NAME} is missing, so the slice belongs to no service"
        checks.warning(codes.KUBE_SERVICE, "metadata.labels", message)
    _check_port_names(checks, "ports", [port.name for port in manifest.ports])
    for index, endpoint in enumerate(manifest.endpoints):
        path = f"endpoints[{index}].addresses"
        if not endpoint.addresses:
            checks.error(codes.KUBE_ADDRESS, path, "expected at least one address")
        for number, address in enumerate(endpoint.addresses):
            place = f"{path}[{number}]"
            if manifest.address_type == "FQDN":
                if not is_fqdn(address):
                    checks.error(codes.KUBE_ADDRESS, place, f"expected a host name, found {address!r}")
            else:
                _check_address(checks, place, address, manifest.address_type)
    return checks.done()


def validate_pod(manifest: Pod) -> tuple[Diagnostic, ...]:
    """Service account, addresses and container ports."""
    checks = Checks(manifest.id)
    account = manifest.spec.service_account_name
    if account and not is_dns_subdomain(account):
        # Security: the name becomes the end of a SPIFFE id and of attributes; "x/admin" would end as admin's.
        message = f"expected the name of a service account, found {account!r}"
        checks.error(codes.BAD_NAME, "spec.serviceAccountName", message)
    _check_containers(checks, "spec", manifest.spec)
    addresses = [("status.podIP", manifest.status.pod_ip)] if manifest.status.pod_ip else []
    addresses += [(f"status.podIPs[{i}].ip", entry.ip) for i, entry in enumerate(manifest.status.pod_ips)]
    _check_addresses(checks, addresses)
    return checks.done()


def validate_deployment(manifest: Deployment) -> tuple[Diagnostic, ...]:
    """The selector selects the template, and the labels are labels."""
    spec = manifest.spec
    checks = Checks(manifest.id)
    checks.labels("spec.template.metadata.labels", spec.template.metadata.labels)
    if not set(spec.selector.match_labels) <= set(spec.template.metadata.labels):
        message = "the selector does not select the pods of the template"
        checks.error(codes.KUBE_WORKLOAD, "spec.selector.matchLabels", message, "use labels of the template")
    _check_containers(checks, "spec.template.spec", spec.template.spec)
    return checks.done()


def validate_node(manifest: Node) -> tuple[Diagnostic, ...]:
    """The address of the node's proxy."""
    checks = Checks(manifest.id)
    address = lookup(manifest.metadata.annotations, PROXY_ADDRESS)
    if address is not None and not is_address(address):
        message = f"expected an IP address, found {address!r}"
        checks.error(codes.KUBE_ADDRESS, f"metadata.annotations[{PROXY_ADDRESS}]", message)
    return checks.done()


def _check_containers(checks: Checks, path: str, spec: PodSpec) -> None:
    names = [port.name for container in spec.containers for port in container.ports if port.name]
    for name in duplicates(names):
        message = f"the container port name {name} is given twice"
        checks.warning(codes.KUBE_PORTS, f"{path}.containers", message)
    for index, container in enumerate(spec.containers):
        for number, port in enumerate(container.ports):
            if port.name and not _is_port_name(port.name):
                place = f"{path}.containers[{index}].ports[{number}].name"
                checks.error(codes.KUBE_PORTS, place, f"expected a port name, found {port.name!r}")


def _check_port_names(checks: Checks, path: str, names: list[str]) -> None:
    for name in duplicates(names):
        message = f"the port name {name} is given twice" if name else "several ports need names"
        checks.error(codes.KUBE_PORTS, path, message)
    for index, name in enumerate(names):
        if name and not is_dns_label(name):
            message = f"expected a port name, found {name!r}"
            hint = "lower-case letters, digits and inner hyphens"
            checks.error(codes.KUBE_PORTS, f"{path}[{index}].name", message, hint)


def _is_port_name(name: str) -> bool:
    return is_dns_label(name) and len(name) <= 15 and any(char.isalpha() for char in name)


def _check_addresses(checks: Checks, addresses: Iterable[tuple[str, str]]) -> None:
    for path, address in addresses:
        _check_address(checks, path, address)


def _check_address(checks: Checks, path: str, text: str, family: str = "IP") -> None:
    """An address of the family (IPv4, IPv6, or IP for either) that traffic may be sent to."""
    address = parse_address(text)
    if address is None or family not in ("IP", f"IPv{address.version}"):
        checks.error(codes.KUBE_ADDRESS, path, f"expected an {family} address, found {text!r}")
        return
    problem = unusable(address)
    if problem:
        checks.error(codes.KUBE_ADDRESS, path, f"{text} is {problem}")


def unusable(ip: IPAddress) -> str:
    """Why traffic must not be sent to an address; "" if it may."""
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return "an IPv4 address written as IPv6"
    if ip.is_loopback:
        return "a loopback address"
    if ip.is_link_local:
        return "a link-local address"
    if ip.is_multicast:
        return "a multicast address"
    return "the unspecified address" if ip.is_unspecified else ""
