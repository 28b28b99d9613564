"""All streams of one server, whatever transport carries them: tasks, clocks and logs around the pure sessions.

In: calls from a transport, changes of the store. Out: raw responses on every stream, one write at a time, built only
when the one before is through, so a stalled client costs names, not bytes. Owned by `xds.server`; holds no protocol
logic and parses no resource.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext

import structlog

from xdsbpf.errors import ProtocolError
from xdsbpf.xds import protocol
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.filling import max_message_of, takes_wrapped
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.lifetimes import drain_delays, lifetime
from xdsbpf.xds.log_budget import LogBudget
from xdsbpf.xds.open_stream import OpenStream
from xdsbpf.xds.peers import Authorize, PeerRules, readable_identity
from xdsbpf.xds.request import Request, decode_delta, decode_sotw, request_node
from xdsbpf.xds.response import Response, content_version, encode_sotw
from xdsbpf.xds.roster import Roster
from xdsbpf.xds.services import METHODS, Method, Variant
from xdsbpf.xds.session import Session
from xdsbpf.xds.sotw import SotwSession
from xdsbpf.xds.status import NodeStatus, node_statuses
from xdsbpf.xds.store import AGENT, NODE_ENVOY, Changes, ResourceStore, View
from xdsbpf.xds.telemetry import Telemetry
from xdsbpf.xds.transport import Call
from xdsbpf.xds.turns import Turns

ViewResolver = Callable[[str, Mapping[str, object]], View]
"""(node id, metadata) -> view. Raises: ProtocolError for a node that gets no view."""

Preparation = Callable[[str, Mapping[str, object]], AbstractAsyncContextManager[None]]
"""(node id, metadata) -> what a stream runs in: entered once what the client sees is there, left at the stream's end.

Raises: ProtocolError.
"""

WRITE_TIMEOUT_S = 60.0
"""A stream that takes no byte for that long is reset."""

_OVER = ProtocolError("CANCELLED", "the stream is over")

log = structlog.get_logger(__name__)


def unprepared(_node_id: str, _metadata: Mapping[str, object]) -> AbstractAsyncContextManager[None]:
    """The preparation where everything that clients see is there from the start."""
    return nullcontext()


class Streams:
    """Every open stream over one store. `serve` is the handler of each method in `services.METHODS`."""

    def __init__(
        self,
        store: ResourceStore,
        resolve_view: ViewResolver,
        clock: Callable[[], float],
        *,
        quarantine: bool = True,
        prepare: Preparation = unprepared,
        authorize: Authorize | None = None,
        max_age_s: float = 0.0,
    ) -> None:
        self.store = store
        self.gate = Gate()
        self.telemetry = Telemetry()
        self.roster = Roster()
        self._resolve_view = resolve_view
        # Security: without rules of its own a server trusts local peers only.
        self._authorize = authorize or PeerRules().check_claim
        self._clock = clock
        self._quarantine = quarantine
        self._prepare = prepare
        self._max_age_s = max_age_s
        self._nonces = itertools.count(1)
        self._stamps = itertools.count(1)
        self._open: set[OpenStream] = set()
        self._agents: dict[str, set[OpenStream]] = {}
        """Agents' streams by node."""
        self._turns = Turns(self._send)
        self._refusals = LogBudget()
        self._watchdog: asyncio.TimerHandle | None = None
        self._is_stopping = False

    async def serve(self, call: Call) -> None:
        """One call, from its first request to its end. Raises: ProtocolError with the status to end it with."""
        method = METHODS[call.method]
        stream: OpenStream | None = None
        try:
            first = await call.read()
            if first is None:
                return
            request: Request = decode_delta(first) if method.variant is Variant.DELTA else decode_sotw(first)
            node_id, metadata = request_node(request)
            self._authorize(call.peer, node_id, metadata)
            async with self._prepare(node_id, metadata):
                view = self._resolve(method, node_id, metadata)
                if method.variant is Variant.FETCH:
                    await call.write(self._fetch(method, request, node_id, view))
                    return
                self.telemetry.received(request.type_url or method.type_url, len(first))
                stream = self._enter(call, method, request, node_id, metadata, view)
                await self._run(stream)
        except ProtocolError as error:
            log.log(
                logging.INFO if self._is_stopping else logging.WARNING,
                "xds.stream_refused",
                node=stream.session.node_id if stream else "",
                peer=call.peer.address,
                identity=readable_identity(call.peer),
                method=call.method,
                status=error.status,
                error=protocol.readable_error(str(error)),
            )
            raise
        finally:
            if stream is not None:
                self._leave(stream)

    def changed(self, changes: Changes, taken_at: float | None = None) -> None:
        """Tell every session what changed in the store, and let it send. Cost: O(streams x changed keys).

        `taken_at`: when the change was taken from its source, by the clock of the server; None for one that has none,
        as what is compiled because a client came, which is not measured.
        """
        if not changes:
            return
        stamp = next(self._stamps)
        if taken_at is not None:
            self.telemetry.change_taken(stamp, taken_at)
        for stream in self._open:
            stream.session.on_changes(changes, stamp)
            if stream.session.has_work:
                self._turns.add(stream)

    def views_changed(self) -> None:
        """Ask again what each client sees; one that sees other scopes now is sent the difference.

        A client that gets no view any more, or one of another kind or node, is disconnected.
        """
        for stream in self._open:
            session = stream.session
            try:
                view = self._resolve_view(session.node_id, stream.metadata)
                self._authorize(stream.call.peer, session.node_id, stream.metadata)
            except ProtocolError as error:
                stream.finish(error)
                continue
            if view == session.view:
                continue
            if (view.kind, view.node) == (session.view.kind, session.view.node):
                session.change_view(view)
                self._turns.add(stream)
            else:
                stream.finish(ProtocolError("UNAVAILABLE", "the client's view has changed: connect again"))

    def barrier(self) -> int:
        """A stamp that nothing has: what any session owes at this moment has a smaller one, what comes a greater."""
        return next(self._stamps)

    def sessions(self) -> tuple[Session, ...]:
        """Every live session, to look at."""
        return tuple(stream.session for stream in self._open)

    def status(self) -> tuple[NodeStatus, ...]:
        """The status of every connected client, sorted by node id."""
        return node_statuses(self.sessions(), self.gate, self._clock())

    def drain(self, seconds: float) -> float:
        """End the open streams one by one within `seconds`; returns how long that takes at most."""
        delays = drain_delays(len(self._open), seconds, random.random)
        for stream, delay in zip(tuple(self._open), delays, strict=True):
            stream.end_after(delay)
        return max(delays, default=0.0)

    def stop(self) -> None:
        """End every stream with UNAVAILABLE, so that Envoy reconnects at once; new ones end at once as well."""
        self._is_stopping = True
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        for stream in self._open:
            stream.wake.set()

    def _resolve(self, method: Method, node_id: str, metadata: Mapping[str, object]) -> View:
        view = self._resolve_view(node_id, metadata)
        if view.kind == AGENT and method.variant is not Variant.DELTA:
            # Security: the gate between the planes is kept in the delta variant only.
            raise ProtocolError("UNIMPLEMENTED", "datapath resources are served by the delta variant only")
        return view

    def _fetch(self, method: Method, request: Request, node_id: str, view: View) -> bytes:
        """The answer of a unary call: everything that was asked for, whatever the client holds."""
        session = SotwSession(view, self.store, node_id=node_id, service_type=method.type_url)
        session.on_request(request)
        resources = session.whole(method.type_url)
        version = content_version(resources)
        self.telemetry.count("sent", method.type_url)
        return encode_sotw(Response(method.type_url, "", resources, (), self.store.revision, version=version))

    def _enter(
        self, call: Call, method: Method, request: Request, node_id: str, metadata: Mapping[str, object], view: View
    ) -> OpenStream:
        variant: type[Session] = DeltaSession if method.variant is Variant.DELTA else SotwSession
        ledger = self.gate.open(view, self.store) if view.kind == NODE_ENVOY else None
        session = variant(
            view,
            self.store,
            node_id=node_id,
            gate=self.gate if view.kind in (AGENT, NODE_ENVOY) else None,
            ledger=ledger,
            nonces=self._nonces,
            stamps=self._stamps,
            clock=self._clock,
            telemetry=self.telemetry,
            service_type=method.type_url,
            quarantine=self._quarantine,
            max_message=max_message_of(view, metadata),
            takes_ttl=method.variant is Variant.DELTA or takes_wrapped(metadata),
        )
        stream = OpenStream(call, method, session, ledger, metadata)
        self._open.add(stream)
        if self._max_age_s:
            stream.end_after(lifetime(self._max_age_s, random.random))
        self.roster.entered(view)
        if self._watchdog is None:
            self._watch_writes()
        if view.kind == AGENT:
            self._agents.setdefault(view.node, set()).add(stream)
        try:
            session.on_request(request)
        except ProtocolError:
            self._leave(stream)
            raise
        self._turns.add(stream)
        if ledger is not None:
            self._wake_agents(view.node)
        log.info(
            "xds.stream_opened",
            node=node_id,
            identity=readable_identity(call.peer),
            kind=view.kind,
            method=method.path,
            streams=len(self._open),
        )
        return stream

    def _leave(self, stream: OpenStream) -> None:
        if stream not in self._open:
            return
        self._open.discard(stream)
        stream.forget_age()
        self.roster.left(stream.session.view, self._clock())
        stream.finish(_OVER)
        node = stream.session.view.node
        agents = self._agents.get(node, set())
        agents.discard(stream)
        if not agents:
            self._agents.pop(node, None)
        if stream.ledger is not None:
            self.gate.close(stream.ledger)
            self._wake_agents(stream.ledger.node)
        log.info("xds.stream_closed", node=stream.session.node_id, streams=len(self._open))

    async def _run(self, stream: OpenStream) -> None:
        """Read here and write in a task; whichever ends first ends the stream.

        A half-close ends it with OK, once the client has what its requests are owed: they may have come in one
        segment with it. A message in flight is never cancelled while the call lives: the status could not follow it.
        """
        reader = stream.reader = asyncio.current_task()
        assert reader is not None

        def interrupt(done: asyncio.Task[None]) -> None:
            if not done.cancelled():
                done.exception()  # looked at, also when nobody waits for the writer any more
            if stream.reader is not None:
                stream.reader.cancel()

        writer = asyncio.create_task(self._write(stream))
        writer.add_done_callback(interrupt)
        try:
            await self._read(stream)
            self._send(stream)
            stream.is_half_closed = True
            stream.wake.set()
            await asyncio.Event().wait()  # for the writer's interrupt
        except ProtocolError as error:
            stream.end = stream.end or error
            raise
        except asyncio.CancelledError:
            if reader.uncancel():
                writer.cancel()
                raise
            if stream.end is not None:
                raise stream.end from None
            if not writer.done():
                writer.cancel()
                raise
            writer.result()
        finally:
            stream.reader = None
            stream.wake.set()

    async def _read(self, stream: OpenStream) -> None:
        session = stream.session
        while (data := await stream.call.read()) is not None:
            request = stream.decode(data)
            before = self.gate.revision(session.view.node) if stream.ledger is not None else 0
            session.on_request(request)
            if session.has_work:
                self._turns.add(stream)
            type_url = request.type_url or stream.type_url
            self.telemetry.received(type_url, len(data))
            if request.nonce:
                self.telemetry.count("acked" if request.error is None else "nacked", type_url)
            if stream.ledger is not None and self.gate.revision(session.view.node) != before:
                self._wake_agents(session.view.node)
            if request.error is not None:
                self._log_refusal(session.node_id, request, request.error)

    def _log_refusal(self, node_id: str, request: Request, error: str) -> None:
        """A NACK; the status has them all, the log as many as it bears."""
        unlogged = self._refusals.take(self._clock())
        if unlogged is not None:
            log.warning(
                "xds.response_refused",
                node=node_id,
                type_url=request.type_url,
                nonce=request.nonce,
                error=protocol.readable_error(error),
                unlogged=unlogged,
            )

    def _send(self, stream: OpenStream) -> None:
        """Send what may go now; what the transport does not take at once is the writer's, and the rest waits for it."""
        while stream.unsent is None and not self._is_over(stream):
            response = stream.session.next_response()
            if response is None:
                stream.note_oversized(self.telemetry)
                stream.call_at(stream.session.wake_at, self._clock(), self._turns.add)
                return
            message = stream.session.encode(response)
            if stream.call.write_now(message):
                self.telemetry.written(response.type_url, len(message))
            else:
                stream.unsent = response, message
                stream.wake.set()

    async def _write(self, stream: OpenStream) -> None:
        while True:
            await stream.wake.wait()
            stream.wake.clear()
            while stream.unsent is not None and not self._is_over(stream):
                response, message = stream.unsent
                stream.writing_since = self._clock()
                await stream.call.write(message)
                stream.unsent = stream.writing_since = None
                self.telemetry.written(response.type_url, len(message))
                del response, message  # a stream that waits keeps no bytes
                self._send(stream)
            if self._is_stopping:
                stream.end = stream.end or ProtocolError("UNAVAILABLE", "the server is stopping")
            if stream.end is not None or stream.is_half_closed:
                return

    def _look_for_stalled(self) -> None:
        """End streams whose client takes no data. One look at all of them costs less than a timer per write."""
        limit = self._clock() - WRITE_TIMEOUT_S
        for stream in self._open:
            if stream.writing_since is not None and stream.writing_since <= limit and stream.reader is not None:
                text = f"the client took no data for {WRITE_TIMEOUT_S:.0f} s"
                stream.end = ProtocolError("DEADLINE_EXCEEDED", text)
                stream.reader.cancel()
        self._watch_writes()

    def _watch_writes(self) -> None:
        loop = asyncio.get_running_loop()
        self._watchdog = loop.call_later(WRITE_TIMEOUT_S / 8, self._look_for_stalled) if self._open else None

    def _is_over(self, stream: OpenStream) -> bool:
        return self._is_stopping or stream.end is not None

    def _wake_agents(self, node: str) -> None:
        """The gate of that node may have moved: let its agents' sessions look again."""
        for stream in self._agents.get(node, ()):
            if stream.session.has_work:
                self._turns.add(stream)
