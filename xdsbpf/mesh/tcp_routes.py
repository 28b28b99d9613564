"""Where connections to a TCP port go, by the `tcp` routes of the VirtualService that owns the host.

Both planes apply one list of weights per service port, so what depends on the client or on the
original destination address is reported and left out (istio-translation 2.16).
"""

from __future__ import annotations

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import Database, query
from xdsbpf.mesh.codes import warn
from xdsbpf.mesh.destinations import resolve
from xdsbpf.mesh.route_values import RouteTarget
from xdsbpf.mesh.routes import weights_of
from xdsbpf.mesh.services import service
from xdsbpf.mesh.virtual_services import MESH_GATEWAY, owners
from xdsbpf.model.virtual_service import L4MatchAttributes, TCPRoute


def tcp_targets(db: Database, host: str, port: int) -> tuple[RouteTarget, ...]:
    """Where connections to a TCP service port go: by its tcp route, or else to the service itself."""
    return tcp_destinations(db, host, port) or (RouteTarget(host, port),)


@query
def tcp_destinations(db: Database, host: str, port: int) -> tuple[RouteTarget, ...]:
    """Weighted targets of a TCP service port; () if no tcp route applies (then: the service itself)."""
    owner = service(db, host)
    info = owner.port(port) if owner else None
    if info is None or info.is_http:
        return ()
    for entry in owners(db, host):
        id = entry.virtual_service.id
        if entry.namespaces:
            if entry.virtual_service.spec.tcp:
                text = "TCP routes for the clients of some namespaces are not supported yet: not applied"
                warn(db, "XB2037", id, "spec.exportTo", text)
            continue
        for position, route in enumerate(entry.virtual_service.spec.tcp):
            path = f"spec.tcp[{position}]"
            if _applies(db, id, path, route, port):
                return _targets(db, id, path, route, port)
    return ()


def _applies(db: Database, id: ObjectId, path: str, route: TCPRoute, port: int) -> bool:
    if not route.match:
        return True
    return any(_matches(db, id, f"{path}.match[{position}]", match, port) for position, match in enumerate(route.match))


def _matches(db: Database, id: ObjectId, path: str, match: L4MatchAttributes, port: int) -> bool:
    if match.port is not None and match.port != port:
        return False
    if match.gateways:
        # As for http: with gateways given, the source fields are not asked.
        if MESH_GATEWAY in match.gateways and not match.destination_subnets:
            return True
        field = "destinationSubnets" if MESH_GATEWAY in match.gateways else "gateways"
    elif match.destination_subnets:
        field = "destinationSubnets"
    elif match.source_labels:
        field = "sourceLabels"
    elif match.source_namespace:
        field = "sourceNamespace"
    else:
        return True
    warn(
        db,
        "XB2037",
        id,
        f"{path}.{field}",
        f"{field} is not supported for TCP yet: the match is left out",
    )
    return False


def _targets(db: Database, id: ObjectId, path: str, route: TCPRoute, port: int) -> tuple[RouteTarget, ...]:
    db.cite(Origin(id, path))
    weights = weights_of(db, id, path, tuple(entry.weight for entry in route.route))
    return tuple(
        resolve(
            db,
            id,
            f"{path}.route[{position}].destination",
            entry.destination,
            from_port=port,
            weight=weights[position],
        )
        for position, entry in enumerate(route.route)
        if weights[position]
    )
