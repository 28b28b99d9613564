"""The transports by their names on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from xdsbpf.xds.grpcio import GrpcTransport
from xdsbpf.xds.h2.server import H2Transport
from xdsbpf.xds.transport import Handler, Transport

DEFAULT_TRANSPORT = "grpcio"
FAST_TRANSPORT = "fast"


class Make(Protocol):
    """Makes a transport for handlers by method path."""

    def __call__(self, handlers: Mapping[str, Handler], /, *, max_age_s: float = 0.0) -> Transport: ...


TRANSPORTS: dict[str, Make] = {
    DEFAULT_TRANSPORT: GrpcTransport,
    FAST_TRANSPORT: H2Transport,
}
