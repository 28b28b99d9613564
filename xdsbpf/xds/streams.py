"""All streams of one server, whatever transport carries them: tasks, clocks and logs around the pure sessions.

In: calls from a transport, changes of the store. Out: raw responses on every stream, one write at a time, built only
when the one before is through, so a stalled client costs names, not bytes. Owned by `xds.server`; holds no protocol
logic and parses no resource.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping

import structlog

from xdsbpf.errors import ProtocolError
from xdsbpf.xds import protocol
from xdsbpf.xds.gate import EnvoyLedger, Gate
from xdsbpf.xds.response import encode
from xdsbpf.xds.services import METHODS, Method
from xdsbpf.xds.session import DeltaSession
from xdsbpf.xds.status import NodeStatus, node_statuses
from xdsbpf.xds.store import AGENT, NODE_ENVOY, Changes, ResourceStore, View
from xdsbpf.xds.transport import Call

ViewResolver = Callable[[str, Mapping[str, object]], View]
"""(node id, metadata) -> view. Raises: ProtocolError for a node that gets no view."""

WRITE_TIMEOUT_S = 60.0
"""A stream that takes no byte for that long is reset."""

log = structlog.get_logger(__name__)


class _Stream:
    """A session, the event that wakes its writer, and what must be given back at its end."""

    def __init__(self, session: DeltaSession, ledger: EnvoyLedger | None) -> None:
        self.session = session
        self.ledger = ledger
        self.wake = asyncio.Event()


class Streams:
    """Every open stream over one store. `serve` is the handler of each method in `services.METHODS`."""

    def __init__(self, store: ResourceStore, resolve_view: ViewResolver, clock: Callable[[], float]) -> None:
        self.store = store
        self.gate = Gate()
        self.events: Counter[tuple[str, str]] = Counter()
        """("sent" | "acked" | "nacked", type URL, "" for unknown ones) -> how many responses, for the metrics."""
        self._resolve_view = resolve_view
        self._clock = clock
        self._nonces = itertools.count(1)
        self._open: set[_Stream] = set()
        self._stopping = asyncio.Event()

    async def serve(self, call: Call) -> None:
        """One call, from its first request to its end. Raises: ProtocolError with the status to end it with."""
        stream: _Stream | None = None
        try:
            first = await call.read()
            if first is None:
                return
            stream = self._enter(METHODS[call.method], first)
            await self._run(stream, call)
        except ProtocolError as error:
            log.log(
                logging.INFO if self._stopping.is_set() else logging.WARNING,
                "xds.stream_refused",
                node=stream.session.node_id if stream else "",
                peer=call.peer.address,
                status=error.status,
                error=protocol.readable_error(str(error)),
            )
            raise
        finally:
            if stream is not None:
                self._leave(stream)

    def changed(self, changes: Changes) -> None:
        """Tell every session what changed in the store, and let it send. Cost: O(streams x changed keys)."""
        if not changes:
            return
        for stream in self._open:
            stream.session.on_changes(changes)
            stream.wake.set()

    def status(self) -> tuple[NodeStatus, ...]:
        """The status of every connected client, sorted by node id."""
        return node_statuses((stream.session for stream in self._open), self.gate, self._clock())

    def stop(self) -> None:
        """End every stream with UNAVAILABLE, so that Envoy reconnects at once; new ones end at once as well."""
        self._stopping.set()
        for stream in self._open:
            stream.wake.set()

    def _enter(self, method: Method, first: bytes) -> _Stream:
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
            service_type=method.type_url,
        )
        stream = _Stream(session, ledger)
        self._open.add(stream)
        try:
            session.on_request(request)
        except ProtocolError:
            self._leave(stream)
            raise
        stream.wake.set()
        if ledger is not None:
            self._wake_agents(view.node)
        log.info("xds.stream_opened", node=node_id, kind=view.kind, method=method.path, streams=len(self._open))
        return stream

    def _leave(self, stream: _Stream) -> None:
        if stream not in self._open:
            return
        self._open.discard(stream)
        if stream.ledger is not None:
            self.gate.close(stream.ledger)
            self._wake_agents(stream.ledger.node)
        log.info("xds.stream_closed", node=stream.session.node_id, streams=len(self._open))

    async def _run(self, stream: _Stream, call: Call) -> None:
        """Read and write at once; whichever ends first ends the stream. A client's half-close ends it with OK."""
        reader = asyncio.create_task(self._read(stream, call))
        writer = asyncio.create_task(self._write(stream, call))
        try:
            done, _ = await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _read(self, stream: _Stream, call: Call) -> None:
        session = stream.session
        while (data := await call.read()) is not None:
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

    async def _write(self, stream: _Stream, call: Call) -> None:
        while True:
            await stream.wake.wait()
            stream.wake.clear()
            while not self._stopping.is_set() and (response := stream.session.next_response()) is not None:
                try:
                    async with asyncio.timeout(WRITE_TIMEOUT_S):
                        await call.write(encode(response, self.store))
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
        for stream in self._open:
            if stream.session.view.kind == AGENT and stream.session.view.node == node:
                stream.wake.set()
