"""What of the mesh depends on who asks: the routes that one class of clients sees.

A proxy of its own (a sidecar, a gRPC library) gets the routes of its namespace and labels; the shared proxy of
a node gets all of them with guards (`routes`). A class is the part of a client that any route asks for, so that
workloads that no rule tells apart share what is compiled.
"""

from __future__ import annotations

import msgspec

from xdsbpf.incremental import Database, Index, query
from xdsbpf.mesh.inputs import VIRTUAL_SERVICES
from xdsbpf.mesh.route_values import RouteRule, RuleKind
from xdsbpf.mesh.routes import covers, http_routes
from xdsbpf.mesh.services import service
from xdsbpf.model.scalars import Labels
from xdsbpf.model.virtual_service import VirtualService


class Client(msgspec.Struct, frozen=True, order=True):
    """A class of clients: namespace and labels of their workloads; "" and () where they are not known."""

    namespace: str = ""
    labels: Labels = ()


ANYBODY = Client()
"""Whoever is not known: only rules for every client are meant for it."""


def _source_labels(virtual_service: VirtualService) -> tuple[tuple[str, str], ...]:
    matches = (match for route in virtual_service.spec.http for match in route.match)
    return tuple(dict.fromkeys(label for match in matches for label in match.source_labels))


VIRTUAL_SERVICES_BY_SOURCE_LABEL = Index("virtual_services_by_source_label", VIRTUAL_SERVICES, keys=_source_labels)


def client_class(db: Database, client: Client) -> Client:
    """The client reduced to the labels that a route asks for. Reads one bucket per label."""
    asked = tuple(label for label in client.labels if db.bucket(VIRTUAL_SERVICES_BY_SOURCE_LABEL, label))
    return Client(client.namespace, asked)


def client_routes(db: Database, host: str, port: int, client: Client) -> tuple[RouteRule, ...]:
    """The routes of a service port that `client` sees, in order, up to the first catch-all.

    Empty where a port does not speak HTTP. A request that none of them matches has no route: 404 at a proxy.
    """
    owner = service(db, host)
    info = owner.port(port) if owner is not None else None
    if info is None or not info.is_http:
        return ()
    found: list[RouteRule] = []
    for rule in http_routes(db, host, port):
        if not covers(rule.guard, client.namespace, client.labels):
            continue
        if rule.kind is RuleKind.NOT_FOUND:
            break
        found.append(rule)
        if rule.catch_all:
            break
    return tuple(found)


@query
def has_guards(db: Database, host: str, port: int) -> bool:
    """Whether different clients see different routes of a service port."""
    return any(not rule.guard.is_open for rule in http_routes(db, host, port))
