"""Resolving a destination of a VirtualService to a service port and subset that exist.

A reference to nothing is reported with its path and what was probably meant. The target is kept,
marked unknown: its share of the requests fails visibly instead of going elsewhere.
"""

from __future__ import annotations

from xdsbpf.diagnostics import ObjectId
from xdsbpf.incremental import Database
from xdsbpf.mesh.codes import did_you_mean, refuse
from xdsbpf.mesh.destination_rules import subsets
from xdsbpf.mesh.inputs import settings
from xdsbpf.mesh.route_values import RouteTarget
from xdsbpf.mesh.services import hosts, service
from xdsbpf.model.names import full_host
from xdsbpf.model.virtual_service import Destination, Headers


def resolve(
    db: Database,
    owner: ObjectId,
    path: str,
    destination: Destination,
    *,
    from_port: int,
    weight: int = 1,
    headers: Headers | None = None,
) -> RouteTarget:
    """The target that `destination` (at `path` of `owner`) means for traffic to port `from_port`.

    Without a port: the service's only port, else the one with the number that was asked for.
    """
    host = full_host(destination.host, owner.namespace, settings(db).domain)
    port = _port(db, owner, path, destination, host, from_port)
    if port is None:
        number = destination.port.number if destination.port else from_port
        return RouteTarget(host, number, destination.subset, weight, headers, path, is_known=False)
    is_known = not destination.subset or _has_subset(db, owner, path, host, destination.subset)
    return RouteTarget(host, port, destination.subset, weight, headers, path, is_known)


def _port(db: Database, owner: ObjectId, path: str, destination: Destination, host: str, from_port: int) -> int | None:
    target = service(db, host)
    if target is None:
        hint = did_you_mean(host, hosts(db))
        refuse(db, "XB2031", owner, f"{path}.host", f"host {host!r} is not a service of the mesh", hint)
        return None
    numbers = tuple(port.number for port in target.ports)
    if destination.port is not None:
        if destination.port.number in numbers:
            return destination.port.number
        text = f"{host} has no TCP port {destination.port.number} (it has {_listed(numbers)})"
        refuse(db, "XB2033", owner, f"{path}.port.number", text)
        return None
    if len(numbers) == 1:
        return numbers[0]
    if from_port in numbers:
        return from_port
    text = f"{host} has the ports {_listed(numbers)} and not {from_port}: the destination must name one"
    refuse(db, "XB2033", owner, path, text)
    return None


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _has_subset(db: Database, owner: ObjectId, path: str, host: str, subset: str) -> bool:
    known = {rule.name: rule for rule in subsets(db, host)}
    if subset in known:
        db.cite(known[subset].origin)
        return True
    refuse(
        db,
        "XB2032",
        owner,
        f"{path}.subset",
        f"no DestinationRule for {host} defines the subset {subset!r} (it has {', '.join(known) or 'none'})",
        did_you_mean(subset, known),
    )
    return False
