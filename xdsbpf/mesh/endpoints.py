"""Endpoints of a service port: EndpointSlices joined with Pods.

The slices say which addresses are ready, the pods add namespace and labels (subsets, policies).
One query per (service, port): a changed slice recomputes its own service and no other.
"""

from __future__ import annotations

from typing import Final

import msgspec

from xdsbpf.diagnostics import Items, ObjectId
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.addresses import refusal, usable
from xdsbpf.mesh.codes import refuse, warn
from xdsbpf.mesh.destination_rules import subsets
from xdsbpf.mesh.inputs import PODS, PODS_BY_ADDRESS, SLICES_BY_SERVICE
from xdsbpf.mesh.services import PortInfo, service
from xdsbpf.model.kube import EndpointSlice, Pod
from xdsbpf.model.scalars import Labels, is_subset


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """A ready server of one service port, `port` being the port of the workload.

    `namespace` and `labels` are those of the pod behind it; empty if no pod has the address.
    """

    address: str
    port: int
    namespace: str = ""
    labels: Labels = ()


class EndpointSet(msgspec.Struct, frozen=True, gc=False):
    """The ready endpoints of a service port, and what an encoder need not find out once more.

    `places` has the address (PLACE_ADDRESS bytes) and port of each in network order, PLACE bytes in all. `port` is that
    of every endpoint, or 0 if they differ.
    """

    endpoints: tuple[Endpoint, ...] = ()
    places: bytes = b""
    port: int = 0


PLACE_ADDRESS: Final = 4
PLACE: Final = PLACE_ADDRESS + 2


def endpoints(db: Database, host: str, port: int) -> tuple[Endpoint, ...]:
    """Ready endpoints of a service port, each address and port once, sorted; () for an unknown port."""
    return endpoint_set(db, host, port).endpoints


@query
def endpoint_set(db: Database, host: str, port: int) -> EndpointSet:
    """The ready endpoints of a service port; none for an unknown port.

    Terminating and not-ready ones are left out, refused addresses are reported. Cost: O(endpoints).
    """
    owner = service(db, host)
    info = owner.port(port) if owner else None
    if owner is None or info is None:
        return EndpointSet()
    found: dict[bytes, Endpoint] = {}
    ports = set()
    for slice_ in db.bucket(SLICES_BY_SERVICE, (owner.namespace, owner.name)):
        number = _slice_port(slice_, info)
        if number is not None:
            ports.add(number)
            _add_endpoints(db, slice_, number, found)
    places = sorted(found)
    return EndpointSet(tuple(map(found.__getitem__, places)), b"".join(places), ports.pop() if len(ports) == 1 else 0)


def _add_endpoints(db: Database, slice_: EndpointSlice, number: int, found: dict[bytes, Endpoint]) -> None:
    """Add the ready endpoints of a slice by their place, address and port as they sort; the first of a kind counts.

    Every endpoint of a service passes here when one of them changes: what is usual is done in line.
    """
    namespace, ending = slice_.metadata.namespace, number.to_bytes(PLACE - PLACE_ADDRESS, "big")
    pods: list[Pod] = []
    unused: list[int] = []
    for position, entry in enumerate(slice_.endpoints):
        conditions = entry.conditions
        if conditions.ready is False or conditions.terminating or not entry.addresses:
            unused.append(position)
            continue
        address = entry.addresses[0]
        octets = usable(address)
        if not octets:
            unused.append(position)
            path = f"endpoints[{position}].addresses[0]"
            refuse(db, "XB2010", slice_.id, path, f"{address} {refusal(address)}: not used")
            continue
        key, ref = octets + ending, entry.target_ref
        pod: Pod | Absent = ABSENT
        if ref is not None and ref.kind == "Pod":
            pod = db.input(PODS, ObjectId("Pod", ref.namespace or namespace, ref.name))
        if pod is ABSENT or pod.status.pod_ip != address:
            pod = _pod_at(db, address, pod, slice_, position)
            if pod is ABSENT:
                found.setdefault(key, Endpoint(address, number))
                continue
        if key not in found:
            metadata = pod.metadata
            found[key] = Endpoint(address, number, metadata.namespace, metadata.labels)
            pods.append(pod)
    used = sorted(set(range(len(slice_.endpoints))).difference(unused)) if unused else range(len(slice_.endpoints))
    db.cite(*pods, Items(slice_.id, "endpoints", tuple(used)))


def _slice_port(slice_: EndpointSlice, info: PortInfo) -> int | None:
    """Number of the slice's port for a service port: same name and protocol."""
    for port in slice_.ports:
        if port.protocol == "TCP" and port.name == info.name and port.port is not None:
            return port.port
    return None


def _pod_at(db: Database, address: str, named: Pod | Absent, slice_: EndpointSlice, position: int) -> Pod | Absent:
    """The pod behind an endpoint: the one that the slice names, if it has the address; else the one that has it.

    Security: a slice is not believed about the pod's name, or it could lend a pod's labels and
    identity to any address.
    """
    if named is not ABSENT:
        if address in named.addresses:
            return named
        warn(
            db,
            "XB2011",
            slice_.id,
            f"endpoints[{position}].targetRef",
            f"{named.id} does not have the address {address}: its labels are not used",
        )
    live = db.bucket(PODS_BY_ADDRESS, address)
    return live[0] if len(live) == 1 else ABSENT


def subset_endpoints(db: Database, host: str, port: int, subset: str) -> tuple[Endpoint, ...]:
    """Endpoints of a subset; all of them for "", none for a subset that no rule defines."""
    return _subset_endpoints(db, host, port, subset) if subset else endpoints(db, host, port)


@query
def _subset_endpoints(db: Database, host: str, port: int, subset: str) -> tuple[Endpoint, ...]:
    everything = endpoints(db, host, port)
    for rule in subsets(db, host):
        if rule.name == subset:
            db.cite(rule.origin)
            return tuple(endpoint for endpoint in everything if is_subset(rule.labels, endpoint.labels))
    return ()
