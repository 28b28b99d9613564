"""The transports by their names on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from xdsbpf.xds.grpcio import GrpcTransport
from xdsbpf.xds.h2.server import H2Transport
from xdsbpf.xds.transport import Handler, Transport

DEFAULT_TRANSPORT = "grpcio"
FAST_TRANSPORT = "fast"
TRANSPORTS: dict[str, Callable[[Mapping[str, Handler]], Transport]] = {
    DEFAULT_TRANSPORT: GrpcTransport,
    FAST_TRANSPORT: H2Transport,
}
