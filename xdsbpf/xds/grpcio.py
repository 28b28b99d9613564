"""The grpc.aio transport: listening sockets, and calls of any method handed to their handlers as a `Call`.

In: addresses and a handler per method path. Out: bound addresses; every call ends with OK when its handler returns,
with a status when it raises ProtocolError. Used by `xds.server`; knows no xDS.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

import grpc
from grpc import aio

from xdsbpf.errors import ConfigError, ProtocolError
from xdsbpf.unix_listener import claim_unix_path
from xdsbpf.xds.addresses import listen_target
from xdsbpf.xds.transport import Handler, Peer

Context = aio.ServicerContext[bytes, bytes]

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share it
    ("grpc.max_receive_message_length", 64 << 20),  # a reconnecting client lists every name and version
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),  # never answer a client's keepalive with ENHANCE_YOUR_CALM
    ("grpc.http2.lookahead_bytes", 1 << 20),
]

_EOF: object = aio.EOF  # type: ignore[attr-defined]  # grpc-stubs lacks it


class _GrpcCall:
    """A `Call` on top of a servicer context."""

    __slots__ = ("_context", "_is_writing", "_written", "method", "peer")

    def __init__(self, context: Context, method: str) -> None:
        self._context = context
        self._is_writing = False
        self._written: asyncio.Future[None] | None = None
        self.method = method
        self.peer = _peer_of(context)

    async def read(self) -> bytes | None:
        message = await self._context.read()
        return None if message is _EOF else message

    def write_now(self, message: bytes) -> bool:  # noqa: ARG002  # of every transport
        """gRPC takes messages from a coroutine only."""
        return False

    async def write(self, message: bytes) -> None:
        self._is_writing = True
        try:
            await self._context.write(message)
        finally:
            self._is_writing = False
            if self._written is not None:
                self._written.set_result(None)

    async def abort(self, error: ProtocolError) -> None:
        """End the call with that status, behind a message in flight: gRPC refuses it before, and the call would hang.

        A client that reads nothing gets it when it reads again; until then gRPC holds that one message.
        """
        if self._is_writing:
            self._written = asyncio.get_running_loop().create_future()
            await self._written
        await self._context.abort(grpc.StatusCode[error.status], str(error))


class _Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Looks a method up; each call is served as a stream, for on the wire a unary call is one with one message."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._served = {path: _method_handler(path, handler) for path, handler in handlers.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return self._served.get(handler_call_details.method)


def _method_handler(path: str, handler: Handler) -> grpc.RpcMethodHandler[bytes, bytes]:
    async def serve(_: object, context: Context) -> None:
        call = _GrpcCall(context, path)
        try:
            await handler(call)
        except ProtocolError as error:
            await call.abort(error)

    behaviour: Callable[[object, Context], Awaitable[None]] = serve
    return grpc.stream_stream_rpc_method_handler(behaviour)


class GrpcTransport:
    """One grpc.aio server. Raises on `start`: ConfigError if an address is not local, or taken."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._server: aio.Server | None = None
        self._sockets: list[Path] = []

    async def start(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Listen on loopback TCP (port 0 picks one) and unix sockets (mode 0660); returns the bound addresses."""
        targets = [listen_target(address) for address in addresses]
        server = aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((_Methods(self._handlers),))
        bound = tuple(_bind(server, target) for target in targets)
        self._server = server
        await server.start()
        for address in bound:
            if address.startswith("unix:"):
                path = Path(address.removeprefix("unix:"))
                path.chmod(0o660)
                self._sockets.append(path)
        return bound

    async def stop(self, grace: float) -> None:
        """Send GOAWAY, take no new calls, wait at most `grace` seconds for the open ones."""
        if self._server is None:
            return
        await self._server.stop(grace)
        for path in self._sockets:
            path.unlink(missing_ok=True)


def _peer_of(context: Context) -> Peer:
    properties = context.auth_context()
    identities = tuple(value.decode("utf-8", "replace") for value in properties.get("peer_uri", ()))
    encrypted = b"ssl" in properties.get("transport_security_type", ())
    return Peer(context.peer(), identities, encrypted)


def _bind(server: aio.Server, target: str) -> str:
    """Bind before the server starts: gRPC accepts no unix address afterwards."""
    if target.startswith("unix:"):
        # gRPC would take the socket away from another process that listens on it.
        claim_unix_path(Path(target.removeprefix("unix:")))
    before = os.umask(0o117)  # the socket's mode from its first moment, whatever the umask
    try:
        port = server.add_insecure_port(target)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {target}: {error}") from error
    finally:
        os.umask(before)
    return target if target.startswith("unix:") else f"{target.rpartition(':')[0]}:{port}"
