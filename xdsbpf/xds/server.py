"""The gRPC shell of delta ADS: streams, tasks, clocks and logs around the pure sessions.

In: listening addresses, changes of the store. Out: raw responses on every stream, one write at a time, built
only when the one before is through, so a stalled client costs names, not bytes. Owned by `serve.py`; holds no
protocol logic and parses no resource.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import grpc
import structlog
from grpc import aio

from xdsbpf.errors import ConfigError, ProtocolError
from xdsbpf.unix_listener import claim_unix_path
from xdsbpf.xds import protocol
from xdsbpf.xds.addresses import listen_target
from xdsbpf.xds.gate import EnvoyLedger, Gate
from xdsbpf.xds.response import encode
from xdsbpf.xds.session import DeltaSession
from xdsbpf.xds.status import NodeStatus, node_statuses
from xdsbpf.xds.store import AGENT, NODE_ENVOY, Changes, ResourceStore, View

ViewResolver = Callable[[str, Mapping[str, object]], View]
"""(node id, metadata) -> view. Raises: ProtocolError for a node that gets no view."""

Context = aio.ServicerContext[bytes, bytes]

WRITE_TIMEOUT_S = 60.0
"""A stream that takes no byte for that long is reset."""

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

log = structlog.get_logger(__name__)


class _Stream:
    """A session, the event that wakes its writer, and what must be given back at its end."""

    def __init__(self, session: DeltaSession, ledger: EnvoyLedger | None) -> None:
        self.session = session
        self.ledger = ledger
        self.wake = asyncio.Event()


class XdsServer:
    """Serves one store over delta ADS. `clock` (monotonic seconds) is for the status only."""

    def __init__(self, store: ResourceStore, resolve_view: ViewResolver, clock: Callable[[], float]) -> None:
        self.store = store
        self.gate = Gate()
        self.events: Counter[tuple[str, str]] = Counter()
        """("sent" | "acked" | "nacked", type URL, "" for unknown ones) -> how many responses, for the metrics."""
        self._resolve_view = resolve_view
        self._clock = clock
        self._nonces = itertools.count(1)
        self._streams: set[_Stream] = set()
        self._stopping = asyncio.Event()
        self._server: aio.Server | None = None
        self._sockets: list[Path] = []

    async def start(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Listen on loopback TCP (`127.0.0.1:0` picks a port) and unix sockets (`unix:/path`, mode 0660).

        Returns the bound addresses in order. Raises: ConfigError if an address is not local or taken.
        """
        targets = [listen_target(address) for address in addresses]
        server = aio.server(options=_OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(self._delta)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    protocol.ADS_SERVICE, {protocol.DELTA_ADS.rpartition("/")[2]: handler}
                ),
            )
        )
        bound = tuple(_bind(server, target) for target in targets)
        self._server = server
        await server.start()
        for address in bound:
            if address.startswith("unix:"):
                path = Path(address.removeprefix("unix:"))
                path.chmod(0o660)
                self._sockets.append(path)
        log.info("xds.server_started", addresses=bound)
        return bound

    async def stop(self, grace: float) -> None:
        """Take no new streams, end the open ones with trailers, wait at most `grace` seconds for them."""
        if self._server is None:
            return
        self._stopping.set()
        for stream in self._streams:
            stream.wake.set()
        await self._server.stop(grace)
        for path in self._sockets:
            path.unlink(missing_ok=True)
        log.info("xds.server_stopped")

    def changed(self, changes: Changes) -> None:
        """Tell every session what changed in the store, and let it send. Cost: O(streams x changed keys)."""
        if not changes:
            return
        for stream in self._streams:
            stream.session.on_changes(changes)
            stream.wake.set()

    def status(self) -> tuple[NodeStatus, ...]:
        """The status of every connected client, sorted by node id."""
        return node_statuses((stream.session for stream in self._streams), self.gate, self._clock())

    async def _delta(self, _: object, context: Context) -> None:
        """One stream, from its first request to its trailers."""
        stream: _Stream | None = None
        try:
            first = await context.read()
            if first is _EOF:
                return
            stream = self._open(first)
            await self._serve(stream, context)
        except ProtocolError as error:
            level = logging.INFO if self._stopping.is_set() else logging.WARNING
            log.log(
                level,
                "xds.stream_refused",
                node=stream.session.node_id if stream else "",
                peer=context.peer(),
                status=error.status,
                error=protocol.readable_error(str(error)),
            )
            await context.abort(grpc.StatusCode[error.status], str(error))
        finally:
            if stream is not None:
                self._close(stream)

    def _open(self, first: bytes) -> _Stream:
        request = protocol.decode_request(first)
        node_id, metadata = protocol.request_node(request)
        view = self._resolve_view(node_id, metadata)
        ledger = self.gate.open(view.node) if view.kind == NODE_ENVOY else None
        session = DeltaSession(
            view,
            self.store,
            node_id=node_id,
            gate=self.gate if view.kind in (AGENT, NODE_ENVOY) else None,
            ledger=ledger,
            nonces=self._nonces,
            clock=self._clock,
        )
        stream = _Stream(session, ledger)
        self._streams.add(stream)
        try:
            session.on_request(request)
        except ProtocolError:
            self._close(stream)
            raise
        stream.wake.set()
        if ledger is not None:
            self._wake_agents(view.node)
        log.info("xds.stream_opened", node=node_id, kind=view.kind, streams=len(self._streams))
        return stream

    def _close(self, stream: _Stream) -> None:
        if stream not in self._streams:
            return
        self._streams.discard(stream)
        if stream.ledger is not None:
            self.gate.close(stream.ledger)
            self._wake_agents(stream.ledger.node)
        log.info("xds.stream_closed", node=stream.session.node_id, streams=len(self._streams))

    async def _serve(self, stream: _Stream, context: Context) -> None:
        """Read and write at once; whichever ends first ends the stream.

        A client's half-close ends it with OK, `stop` with UNAVAILABLE, so that Envoy reconnects at once.
        """
        reader = asyncio.create_task(self._read(stream, context))
        writer = asyncio.create_task(self._write(stream, context))
        try:
            done, _ = await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _read(self, stream: _Stream, context: Context) -> None:
        session = stream.session
        while True:
            data = await context.read()
            if data is _EOF:
                return
            request = protocol.decode_request(data)
            before = self.gate.revision(session.view.node)
            session.on_request(request)
            stream.wake.set()
            if request.response_nonce:
                self._count("nacked" if request.HasField("error_detail") else "acked", request.type_url)
            if stream.ledger is not None and self.gate.revision(session.view.node) != before:
                self._wake_agents(session.view.node)
            if request.HasField("error_detail"):
                log.warning(
                    "xds.response_refused",
                    node=session.node_id,
                    type_url=request.type_url,
                    nonce=request.response_nonce,
                    error=protocol.readable_error(request.error_detail.message),
                )

    async def _write(self, stream: _Stream, context: Context) -> None:
        while True:
            await stream.wake.wait()
            stream.wake.clear()
            while not self._stopping.is_set() and (response := stream.session.next_response()) is not None:
                try:
                    async with asyncio.timeout(WRITE_TIMEOUT_S):
                        await context.write(encode(response, self.store))
                    self._count("sent", response.type_url)
                except TimeoutError as error:
                    raise ProtocolError(
                        "DEADLINE_EXCEEDED", f"the client took no data for {WRITE_TIMEOUT_S:.0f} s"
                    ) from error
            if self._stopping.is_set():
                raise ProtocolError("UNAVAILABLE", "the server is stopping")

    def _count(self, event: str, type_url: str) -> None:
        known = type_url if type_url in protocol.KNOWN_TYPES else ""  # peers may ask for any number of types
        self.events[event, known] += 1

    def _wake_agents(self, node: str) -> None:
        """The gate of that node may have moved: let its agents' sessions look again."""
        for stream in self._streams:
            if stream.session.view.kind == AGENT and stream.session.view.node == node:
                stream.wake.set()


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
