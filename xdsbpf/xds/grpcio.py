"""The grpc.aio transport: listening sockets, and calls of any method handed to their handlers as a `Call`.

In: addresses and a handler per method path. Out: bound addresses; every call ends with OK when its handler returns,
with a status when it raises ProtocolError. Used by `xds.server`; knows no xDS.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

import grpc
from grpc import aio

from xdsbpf.errors import ConfigError, ProtocolError
from xdsbpf.unix_listener import claim_unix_path
from xdsbpf.xds.addresses import listen_target, tls_target
from xdsbpf.xds.lifetimes import GOAWAY_AGE
from xdsbpf.xds.tls import Material, has_ended
from xdsbpf.xds.transport import Handler, Peer, Take

Context = aio.ServicerContext[bytes, bytes]

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share it
    ("grpc.max_receive_message_length", 64 << 20),  # a reconnecting client lists every name and version
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # the one that counts: a PING is otherwise waited for a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),  # never answer a client's keepalive with ENHANCE_YOUR_CALM
    ("grpc.http2.lookahead_bytes", 1 << 20),
    # Small blocks, whatever came before on a connection: each connection keeps one.
    ("grpc.experimental.tcp_read_chunk_size", 8_192),
    ("grpc.experimental.tcp_max_read_chunk_size", 64 << 10),
    # All that come at once have their handshakes side by side: with 5 s none of 3,000 gets through, with 10 s all do.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_allowed_incoming_connections", 10_000),
    ("grpc.max_concurrent_streams", 1_000),
]

SWAP_PAUSE_S = 0.1

_USED: list[grpc.ServerCredentials] = []
"""Every credentials object ever given to a server. gRPC's C core keeps a bare pointer to it for as long as connections
are in their handshake, which can be after the server is gone: freeing it crashes the process."""

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

    async def read_all(self, handle: Take) -> None:
        while (message := await self._context.read()) is not _EOF:
            pause_s = handle(message)
            del message  # a stream that waits for the next request keeps no bytes of this one
            if pause_s:
                await asyncio.sleep(pause_s)  # gRPC takes no more of this stream than its window meanwhile

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

    def __init__(self, handlers: Mapping[str, Handler], *, max_age_s: float = 0.0) -> None:
        """`max_age_s`: age of connections, 0 for none; see `lifetimes`."""
        self._handlers = handlers
        self._max_age_s = max_age_s
        self._server: aio.Server | None = None
        self._sockets: list[Path] = []
        self._material: Material | None = None
        """What new connections should get."""
        self._in_use: Material | None = None
        """What gRPC was given last."""

    async def start(
        self, addresses: Iterable[str], tls_addresses: Iterable[str] = (), material: Material | None = None
    ) -> tuple[str, ...]:
        """See `Transport.start`."""
        targets = [listen_target(address) for address in addresses]
        tls_targets = [tls_target(address) for address in tls_addresses]
        server = aio.server(options=[*_OPTIONS, *_age_options(self._max_age_s)])
        server.add_generic_rpc_handlers((_Methods(self._handlers),))
        bound = [_bind(server, target) for target in targets]
        if material is not None:
            self._material = self._in_use = material
            credentials = grpc.dynamic_ssl_server_credentials(_configuration(material), self._fetch, True)
            _USED.append(credentials)
            bound += [_bind(server, target, credentials) for target in tls_targets]
        self._server = server
        await server.start()
        for address in bound:
            if address.startswith("unix:"):
                path = Path(address.removeprefix("unix:"))
                path.chmod(0o660)
                self._sockets.append(path)
        return tuple(bound)

    async def use_tls(self, material: Material) -> None:
        """See `Transport.use_tls`."""
        self._material = material

    def _fetch(self) -> grpc.ServerCertificateConfiguration:
        """Asked before every handshake, one at a time, on threads of gRPC's; None: the same as before.

        gRPC (1.85) frees the former configuration while another thread may be about to begin a handshake with it, and
        crashes then. That thread has been here before us: it has a tenth of a second to get done with it. For the same
        reason a configuration is never replaced without need.
        """
        if self._material is self._in_use or self._material is None:
            return None  # type: ignore[return-value]  # the stubs do not know it
        time.sleep(SWAP_PAUSE_S)
        self._in_use = self._material
        return _configuration(self._in_use)

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
    # Security: what gRPC does not call insecure is not taken for local plaintext, which may claim anything.
    is_plaintext = list(properties.get("transport_security_type", ())) == [b"insecure"]
    return Peer(context.peer(), identities, not is_plaintext, _is_expired(properties))


def _is_expired(properties: Mapping[str, Iterable[bytes]]) -> bool:
    """Whether a session was resumed by a ticket that has outlived the client's certificate.

    gRPC's tickets are good for two days, and it verifies nothing when one is used. Tickets of a former configuration,
    that is of former authorities, are worthless.
    """
    if list(properties.get("ssl_session_reused", ())) in ([], [b"false"]):
        return False
    certificates = list(properties.get("x509_pem_cert", ()))
    return len(certificates) != 1 or has_ended(certificates[0], time.time())


def _age_options(max_age_s: float) -> list[tuple[str, int]]:
    """GOAWAY at half of the age, 10 % more or less (gRPC's own jitter); what is left at twice the age is cut off."""
    if not max_age_s:
        return []
    goaway_ms, cut_ms = round(max_age_s * GOAWAY_AGE * 1e3), round(max_age_s * 1.5 * 1e3)
    return [("grpc.max_connection_age_ms", goaway_ms), ("grpc.max_connection_age_grace_ms", cut_ms)]


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.authorities)


def _bind(server: aio.Server, target: str, credentials: grpc.ServerCredentials | None = None) -> str:
    """Bind before the server starts: gRPC accepts no unix address afterwards."""
    if target.startswith("unix:"):
        # gRPC would take the socket away from another process that listens on it.
        claim_unix_path(Path(target.removeprefix("unix:")))
    before = os.umask(0o117)  # the socket's mode from its first moment, whatever the umask
    try:
        port = server.add_insecure_port(target) if credentials is None else server.add_secure_port(target, credentials)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {target}: {error}") from error
    finally:
        os.umask(before)
    return target if target.startswith("unix:") else f"{target.rpartition(':')[0]}:{port}"
