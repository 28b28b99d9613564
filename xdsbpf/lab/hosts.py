"""/etc/hosts of a pod: service names to addresses, since a lab has no DNS server.

Input: service addresses as the control plane lists them. Output: the text of the file, and `write_in_place`.
Called by `bringup` and before every `lab exec`. Names follow Kubernetes' search list: `name` only in the
pod's own namespace, then `name.ns`, `name.ns.svc` and the full name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from xdsbpf.lab.plan import CLUSTER_DOMAIN, LabPlan, PodPlan, selects
from xdsbpf.model.kube import Service
from xdsbpf.model.names import service_host

RESOLV_CONF = "# The lab has no DNS: names are in /etc/hosts.\n"


class ServiceAddress(msgspec.Struct, frozen=True, order=True):
    """A host of the mesh and one address that it answers on."""

    host: str
    address: str


def render_hosts(pod: PodPlan, services: Iterable[ServiceAddress]) -> str:
    """The hosts file of one pod, sorted, each (host, address) once."""
    lines = ["127.0.0.1 localhost", f"{pod.address} {pod.name}"]
    for service in sorted(set(services)):
        lines.append(f"{service.address} {' '.join(names(service.host, pod.namespace))}")
    return "\n".join(lines) + "\n"


def names(host: str, namespace: str) -> tuple[str, ...]:
    """Every name of a host as seen from `namespace`, shortest last; a host outside the cluster has one.

    >>> names("web.shop.svc.cluster.local", "shop")
    ('web.shop.svc.cluster.local', 'web.shop.svc', 'web.shop', 'web')
    """
    suffix = f".svc.{CLUSTER_DOMAIN}"
    service, dot, owner = host.removesuffix(suffix).partition(".")
    if not host.endswith(suffix) or not dot or "." in owner:
        return (host,)
    short = (service,) if owner == namespace else ()
    return (host, f"{service}.{owner}.svc", f"{service}.{owner}", *short)


def bare_addresses(plan: LabPlan, services: Iterable[Service]) -> list[ServiceAddress]:
    """Addresses for a lab without a mesh: names lead to the first pod, as nothing translates others."""
    found = []
    for service in services:
        pods = [p for p in plan.pods if p.namespace == service.namespace and selects(service, p.labels)]
        if pods:
            host = service_host(service.name, service.namespace, CLUSTER_DOMAIN)
            found.append(ServiceAddress(host, pods[0].address))
    return found


def write_in_place(path: Path, text: str) -> None:
    """Replace the content of a file that is bind-mounted into a pod.

    Order: a rename would leave the old inode mounted, so the content is written over and then cut.
    """
    content = text.encode()
    if path.exists() and path.read_bytes() == content:
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(fd, content, 0)
        os.ftruncate(fd, len(content))
    finally:
        os.close(fd)
