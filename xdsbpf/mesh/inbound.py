"""What a workload is asked to serve: the ports that the services selecting it send traffic to.

For proxies and servers at the destination. Several services may share a port of the workload: the oldest
decides what it speaks (istio-translation 6.2).
"""

from __future__ import annotations

import msgspec

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import Database, Index, query
from xdsbpf.mesh.clients import Client
from xdsbpf.mesh.codes import warn
from xdsbpf.mesh.inputs import SERVICES, SLICES_BY_SERVICE, object_id, settings
from xdsbpf.mesh.services import MeshService, PortInfo, Protocol, service
from xdsbpf.model.names import service_host
from xdsbpf.model.scalars import is_subset

SERVICES_BY_NAMESPACE = Index("services_by_namespace", SERVICES, keys=lambda v: (v.namespace,))


class InboundPort(msgspec.Struct, frozen=True, order=True):
    """A port of a workload, and the service port that describes it."""

    number: int
    protocol: Protocol
    host: str
    service_port: int
    object: ObjectId


@query
def inbound_ports(db: Database, workload: Client) -> tuple[InboundPort, ...]:
    """Ports of the workloads of a namespace with these labels, each once, sorted. Cost: O(services there)."""
    found: dict[int, InboundPort] = {}
    for manifest in db.bucket(SERVICES_BY_NAMESPACE, workload.namespace):
        selector = manifest.spec.selector
        if not selector or not is_subset(selector, workload.labels):
            continue
        owner = service(db, service_host(manifest.name, manifest.namespace, settings(db).domain))
        for info in owner.ports if owner is not None else ():
            number = _number(db, owner, info) if owner is not None else 0
            if owner is not None and number and number not in found:
                found[number] = InboundPort(number, info.protocol, owner.host, info.number, owner.object)
                db.cite(Origin(owner.object, "spec.ports"))
    return tuple(found[number] for number in sorted(found))


def _number(db: Database, owner: MeshService, info: PortInfo) -> int:
    """The workload's port for a service port. A named one is what the service's slices say; 0 if they do not."""
    if isinstance(info.target_port, int):
        return info.target_port
    slices = db.bucket(SLICES_BY_SERVICE, (owner.namespace, owner.name))
    numbers = {
        port.port for slice_ in slices for port in slice_.ports if port.name == info.name and port.port is not None
    }
    if len(numbers) == 1:
        return numbers.pop()
    id = object_id("Service", owner.namespace, owner.name)
    text = f"the number of the target port {info.target_port!r} is not known: it is no port of the workload's proxy"
    warn(db, "XB2003", id, "spec.ports", text, "give targetPort a number")
    return 0
