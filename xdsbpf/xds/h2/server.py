"""The HTTP/2 transport: listening sockets, plaintext and mutual TLS, and the connections that they accept.

In: addresses, and a handler per method path. Out: bound addresses; every call ends with OK when its handler returns,
with a status when it raises ProtocolError, and its handler is cancelled when the client gives up. The counterpart of
`xds.grpcio`; knows no xDS.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import structlog

from xdsbpf.errors import ConfigError, ProtocolError
from xdsbpf.unix_listener import bind_unix
from xdsbpf.xds.addresses import listen_target, tls_target
from xdsbpf.xds.h2.acceptor import TlsAcceptor
from xdsbpf.xds.h2.arrivals import Arrivals
from xdsbpf.xds.h2.limits import Limits, Timing
from xdsbpf.xds.h2.protocol import H2Protocol
from xdsbpf.xds.h2.sender import FrameCache
from xdsbpf.xds.h2.tls import server_context
from xdsbpf.xds.lifetimes import GOAWAY_AGE
from xdsbpf.xds.log_budget import LogBudget
from xdsbpf.xds.tls import Material
from xdsbpf.xds.transport import Handler

MAX_CONNECTIONS = 10_000
_BACKLOG = 4_096
_END_S = 1.0

log = structlog.get_logger(__name__)


class H2Transport:
    """Serves gRPC over HTTP/2. Raises on `start`: ConfigError if an address is not local, or taken."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        limits: Limits | None = None,
        timing: Timing | None = None,
        max_connections: int = MAX_CONNECTIONS,
        max_age_s: float = 0.0,
    ) -> None:
        """`max_age_s`: age of connections, 0 for none; see `lifetimes`."""
        self.limits = limits or Limits()
        self.timing = timing or Timing(goaway_s=max_age_s * GOAWAY_AGE)
        self.frame_cache = FrameCache()
        self.arrivals = Arrivals()
        self.events: Counter[str] = Counter()
        """"accepted", "closed" and "failed" connections, for the metrics."""
        self._handlers = handlers
        self._max_connections = max_connections
        self._connections: set[H2Protocol] = set()
        self._plain: list[asyncio.Server] = []
        self._tls: list[TlsAcceptor] = []
        self._paths: list[Path] = []
        self._changed = asyncio.Event()
        self._tick: asyncio.TimerHandle | None = None
        self._log_budget = LogBudget()

    async def start(
        self, addresses: Iterable[str], tls_addresses: Iterable[str] = (), material: Material | None = None
    ) -> tuple[str, ...]:
        """See `Transport.start`."""
        loop = asyncio.get_running_loop()
        bound = []
        for target in [listen_target(address) for address in addresses]:
            if target.startswith("unix:"):
                path = Path(target.removeprefix("unix:"))
                sock = bind_unix(path, 0o660)
                path.chmod(0o660)  # whatever the umask has taken away
                self._paths.append(path)
                server = await loop.create_unix_server(self._protocol, sock=sock, backlog=_BACKLOG)
                bound.append(target)
            else:
                sock = _bind_tcp(target)
                bound.append(_name(sock))
                server = await loop.create_server(self._protocol, sock=sock, backlog=_BACKLOG)
            self._plain.append(server)
        if material is not None:
            bound += [self._start_tls(address, material) for address in tls_addresses]
        self._start_clock()
        return tuple(bound)

    async def use_tls(self, material: Material) -> None:
        """See `Transport.use_tls`: open connections lose nothing, and neither do those that wait to be accepted."""
        context = server_context(material)
        for acceptor in self._tls:
            acceptor.context = context

    async def stop(self, grace: float) -> None:
        """Take no new connections, wait at most `grace` seconds for open calls, end the rest with UNAVAILABLE."""
        for server in self._plain:
            server.close()
        for acceptor in self._tls:
            acceptor.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
        for connection in self._connections:
            connection.announce_goaway()
        if not await self._wait(self._has_no_calls, grace):
            ending = ProtocolError("UNAVAILABLE", "the server is stopping")
            for connection in self._connections:
                connection.end_calls(ending)
            await self._wait(self._has_no_calls, _END_S)
        for connection in self._connections:
            connection.finish()
        if not await self._wait(lambda: not self._connections, _END_S):
            for connection in self._connections:
                connection.abort()
            await self._wait(lambda: not self._connections, _END_S)
        if self._tick is not None:
            self._tick.cancel()

    # Owner, for the connections

    def handler(self, method: str) -> Handler | None:
        """See `Owner.handler`."""
        return self._handlers.get(method)

    def accept(self, connection: H2Protocol) -> bool:
        """See `Owner.accept`."""
        if len(self._connections) >= self._max_connections:
            return False
        self._connections.add(connection)
        self.events["accepted"] += 1
        return True

    def lost(self, connection: H2Protocol) -> None:
        """See `Owner.lost`."""
        if connection in self._connections:
            self._connections.remove(connection)
            self.events["closed"] += 1
        self._changed.set()

    def failed(self, peer: str, reason: str) -> None:
        """See `Owner.failed`. At most about one line a second: a peer can fail as often as it can connect."""
        self.events["failed"] += 1
        unlogged = self._log_budget.take(asyncio.get_running_loop().time())
        if unlogged is not None:
            log.warning("xds.connection_failed", peer=peer, reason=reason, unlogged=unlogged)

    def call_ended(self) -> None:
        """See `Owner.call_ended`."""
        self._changed.set()

    def _protocol(self) -> H2Protocol:
        return H2Protocol(self)

    def _start_tls(self, address: str, material: Material) -> str:
        context = server_context(material)
        sock = _bind_tcp(tls_target(address))
        self._tls.append(TlsAcceptor(sock, context, self._protocol, self.failed, self.timing.handshake_s))
        return _name(sock)

    def _has_no_calls(self) -> bool:
        return not any(connection.calls for connection in self._connections)

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Until the condition holds; False after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _start_clock(self) -> None:
        if self._tick is None:
            self._tick = asyncio.get_running_loop().call_later(self.timing.tick_s, self._on_tick)

    def _on_tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._connections):
            connection.tick(now)
        self._tick = loop.call_later(self.timing.tick_s, self._on_tick)


def _bind_tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, int(port)))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {address}: {error.strerror}") from error
    return sock


def _name(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"
