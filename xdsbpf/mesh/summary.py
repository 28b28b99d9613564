"""One line per service port, for tables: plane, reasons, number of endpoints."""

from __future__ import annotations

import msgspec

from xdsbpf.incremental import Database, query
from xdsbpf.mesh.endpoints import endpoints
from xdsbpf.mesh.services import service_ports
from xdsbpf.mesh.traffic_mode import Plane, Reason, traffic_mode


class ServiceSummary(msgspec.Struct, frozen=True):
    """A service port; a reason reads like `HTTP route (VirtualService/default/reviews spec.http[0])`."""

    host: str
    port: int
    plane: Plane
    reasons: tuple[str, ...]
    endpoints: int


@query
def service_summary(db: Database, host: str, port: int) -> ServiceSummary:
    """The summary of one service port."""
    mode = traffic_mode(db, host, port)
    return ServiceSummary(host, port, mode.plane, tuple(map(_sentence, mode.reasons)), len(endpoints(db, host, port)))


@query
def summaries(db: Database) -> tuple[ServiceSummary, ...]:
    """All service ports, sorted by host and port."""
    return tuple(service_summary(db, host, port) for host, port in service_ports(db))


def _sentence(reason: Reason) -> str:
    return f"{reason.text} ({reason.origin})" if reason.origin is not None else reason.text
