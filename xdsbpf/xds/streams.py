"""All streams of one server, whatever transport carries them: who is let in, what wakes whom, when they end.

In: calls from a transport, changes of the store and of views. Out: a session per call, woken when it may have something
to send; what passes on it is `xds.exchange`'s. Owned by `xds.server`; holds no protocol logic and parses no resource.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from weakref import WeakValueDictionary

import structlog

from xdsbpf.errors import ProtocolError
from xdsbpf.xds import protocol
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.exchange import Exchange
from xdsbpf.xds.filling import max_message_of, takes_ttl
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.interest import Interest
from xdsbpf.xds.lifetimes import PATIENCE, Patience, drain_delays, lifetime
from xdsbpf.xds.limits import NameBudget
from xdsbpf.xds.log_budget import LogBudget
from xdsbpf.xds.open_stream import OpenStream
from xdsbpf.xds.pacing import unhurried
from xdsbpf.xds.peers import Authorize, PeerRules, readable_identity
from xdsbpf.xds.request import Request, decode_delta, decode_sotw, node_of
from xdsbpf.xds.resource_errors import is_told
from xdsbpf.xds.response import Response, content_version, encode_sotw, with_errors
from xdsbpf.xds.roster import Roster
from xdsbpf.xds.services import METHODS, Method, Variant
from xdsbpf.xds.session import Session
from xdsbpf.xds.siblings import LINKED_TYPES, ClientKey, Clients
from xdsbpf.xds.sotw import SotwSession
from xdsbpf.xds.status import NodeStatus, node_status, node_statuses
from xdsbpf.xds.store import AGENT, NODE_ENVOY, Changes, ResourceStore, View
from xdsbpf.xds.telemetry import Telemetry
from xdsbpf.xds.transport import Call, Peer

ViewResolver = Callable[[str, Mapping[str, object]], View]
"""(node id, metadata) -> view. Raises: ProtocolError for a node that gets no view."""

Preparation = Callable[[str, Mapping[str, object]], AbstractAsyncContextManager[None]]
"""(node id, metadata) -> what a stream runs in: entered once what the client sees is there, left at the stream's end.

Raises: ProtocolError.
"""

_OVER = ProtocolError("CANCELLED", "the stream is over")

log = structlog.get_logger(__name__)


def _stopping() -> ProtocolError:
    return ProtocolError("UNAVAILABLE", "the server is stopping")


def _client(call: Call, method: Method, node_id: str, view: View) -> ClientKey | None:
    """Who opened a stream that has siblings; None for one that needs none: it takes all types, or one of no concern."""
    if method.type_url not in LINKED_TYPES:
        return None
    return ClientKey(node_id, call.peer.identities, call.peer.is_encrypted, view.kind, view.node)


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
        resource_errors: tuple[str, ...] = (),
        patience: Patience = PATIENCE,
    ) -> None:
        self.store = store
        self.gate = Gate()
        self.telemetry = Telemetry()
        self.roster = Roster()
        self._resolve_view = resolve_view
        # Security: without rules of its own a server trusts local peers only.
        self._authorize = authorize or PeerRules().authorize
        self._clock = clock
        self._quarantine = quarantine
        self._prepare = prepare
        self._max_age_s = max_age_s
        self._resource_errors = resource_errors
        self._patience = patience
        self._nonces = itertools.count(1)
        self._stamps = itertools.count(1)
        self._open: dict[Session, OpenStream] = {}
        self._interest = Interest[Session]()
        self._agents: dict[str, set[OpenStream]] = {}
        """Agents' streams by node."""
        self._clients = Clients(clock)
        self._name_budgets: WeakValueDictionary[tuple[str, ...], NameBudget] = WeakValueDictionary()
        """By identity; the sessions of its streams keep each alive."""
        self._exchange = Exchange(clock, self.gate, self.telemetry, self._wake_agents, patience.write_s)
        self._refusals = LogBudget()
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
            said, metadata = node_of(request.node)
            node_id = self._authorize(call.peer, said, metadata)
            async with self._prepare(node_id, metadata):
                view = self._resolve(method, node_id, metadata)
                if method.variant is Variant.FETCH:
                    await call.write(self._fetch(method, request, node_id, view))
                    return
                self.telemetry.received(request.type_url or method.type_url, len(first))
                self._exchange.freed_memory.received(len(first))
                stream = self._enter(call, method, request, node_id, metadata, view)
                del first, request  # a reconnecting client's are half a megabyte, and this goes on for days
                await self._exchange.run(stream)
        except ProtocolError as error:
            self._log_end(call, stream, error)
            raise
        finally:
            if stream is not None:
                self._leave(stream)

    def _log_end(self, call: Call, stream: OpenStream | None, error: ProtocolError) -> None:
        """A peer can be refused as often as it can call: the log has as many as it bears."""
        unlogged = self._refusals.take(self._clock())
        if unlogged is None:
            return
        log.log(
            logging.INFO if self._is_stopping else logging.WARNING,
            "xds.stream_refused",
            node=stream.session.node_id if stream else "",
            peer=call.peer.address,
            identity=readable_identity(call.peer),
            method=call.method,
            status=error.status,
            error=protocol.readable_error(str(error)),
            unlogged=unlogged,
        )

    def changed(self, changes: Changes, taken_at: float | None = None) -> None:
        """Tell the sessions that asked for it what changed in the store, and let them send.

        Cost: O(changed keys), for each of those sessions again.

        `taken_at`: when the change was taken from its source, by the clock of the server; None for one that has none,
        as what is compiled because a client came, which is not measured.
        """
        if not changes:
            return
        stamp = next(self._stamps)
        if taken_at is not None:
            self.telemetry.change_taken(stamp, taken_at)
        for session in self._interest.heard_by(changes.by_scope):
            if session.on_changes(changes, stamp):
                self._exchange.turns.add(self._open[session])

    def views_changed(self) -> None:
        """Ask again what each client sees; one that sees other scopes now is sent the difference.

        A client that gets no view any more, or one of another kind or node, is disconnected.
        """
        for session, stream in self._open.items():
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
                self._exchange.turns.add(stream)
            else:
                stream.finish(ProtocolError("UNAVAILABLE", "the client's view has changed: connect again"))

    def barrier(self) -> int:
        """A stamp that nothing has: what any session owes at this moment has a smaller one, what comes a greater."""
        return next(self._stamps)

    def sessions(self) -> tuple[Session, ...]:
        """Every live session, to look at."""
        return tuple(self._open)

    def status(self) -> tuple[NodeStatus, ...]:
        """The status of every connected client, sorted by node id."""
        return node_statuses(self.sessions(), self.gate, self._clock(), self._patience.stale_s)

    async def look(self) -> tuple[NodeStatus, ...]:
        """`status`, with the streams being served in between. Cost: 40 us for each."""
        stale_s = self._patience.stale_s
        rows = [node_status(entry, self.gate, self._clock(), stale_s) async for entry in unhurried(self.sessions())]
        return tuple(sorted(rows, key=lambda row: row.node_id))

    def drain(self, seconds: float) -> float:
        """End the open streams one by one within `seconds`; returns how long that takes at most."""
        delays = drain_delays(len(self._open), seconds, random.random)
        for stream, delay in zip(tuple(self._open.values()), delays, strict=True):
            stream.end_after(delay)
        return max(delays, default=0.0)

    def stop(self) -> None:
        """End every stream with UNAVAILABLE, so that Envoy reconnects at once; new ones end at once as well."""
        self._is_stopping = True
        self._exchange.stop_watching()
        for stream in self._open.values():
            stream.finish(_stopping())

    def _resolve(self, method: Method, node_id: str, metadata: Mapping[str, object]) -> View:
        view = self._resolve_view(node_id, metadata)
        if view.kind == AGENT and method.variant is not Variant.DELTA:
            # Security: the gate between the planes is kept in the delta variant only.
            raise ProtocolError("UNIMPLEMENTED", "datapath resources are served by the delta variant only")
        return view

    def _fetch(self, method: Method, request: Request, node_id: str, view: View) -> bytes:
        """The answer of a unary call: everything that was asked for, whatever the client holds."""
        session = SotwSession(view, self.store, node_id=node_id, service_type=method.type_url)
        session.takes_errors = is_told(self._resource_errors, node_id)
        session.on_request(request)
        resources = session.whole(method.type_url)
        session.close()
        version = content_version(resources)
        self.telemetry.count("sent", method.type_url)
        response = Response(method.type_url, "", resources, (), self.store.revision, version=version)
        return encode_sotw(with_errors(response, session.lacking(method.type_url)))

    def _enter(
        self, call: Call, method: Method, request: Request, node_id: str, metadata: Mapping[str, object], view: View
    ) -> OpenStream:
        if self._is_stopping:
            raise _stopping()
        variant: type[Session] = DeltaSession if method.variant is Variant.DELTA else SotwSession
        ledger = self.gate.open(view, self.store) if view.kind == NODE_ENVOY else None
        client = _client(call, method, node_id, view)
        siblings = None if client is None else self._clients.siblings(client)
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
            takes_ttl=method.variant is Variant.DELTA or takes_ttl(view, metadata),
            siblings=siblings,
            name_budget=self._name_budget(call.peer),
            interest=self._interest,
        )
        session.takes_errors = is_told(self._resource_errors, node_id)
        stream = OpenStream(call, method, session, ledger, metadata, client)
        if siblings is not None:
            siblings.join(method.type_url, session, lambda: self._exchange.turns.add(stream))
        self._open[session] = stream
        if self._max_age_s:
            stream.end_after(lifetime(self._max_age_s, random.random))
        self.roster.entered(view)
        if view.kind == AGENT:
            self._agents.setdefault(view.node, set()).add(stream)
        try:
            session.on_request(request)
        except ProtocolError:
            self._leave(stream)
            raise
        self._exchange.turns.add(stream)
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

    def _name_budget(self, peer: Peer) -> NameBudget | None:
        """What all streams of the peer's identity share; a local peer has none."""
        if not peer.identities:
            return None
        budget = self._name_budgets.get(peer.identities)
        if budget is None:
            budget = self._name_budgets[peer.identities] = NameBudget()
        return budget

    def _leave(self, stream: OpenStream) -> None:
        if self._open.pop(stream.session, None) is None:
            return
        stream.forget_age()
        stream.session.close()
        self.roster.left(stream.session.view, self._clock())
        stream.finish(_OVER)
        node = stream.session.view.node
        agents = self._agents.get(node, set())
        agents.discard(stream)
        if not agents:
            self._agents.pop(node, None)
        if stream.client is not None:
            self._clients.leave(stream.client, stream.type_url, stream.session)
        if stream.ledger is not None:
            self.gate.close(stream.ledger)
            self._wake_agents(stream.ledger.node)
        log.info("xds.stream_closed", node=stream.session.node_id, streams=len(self._open))

    def _wake_agents(self, node: str) -> None:
        """The gate of that node may have moved: let its agents' sessions look again."""
        for stream in self._agents.get(node, ()):
            if stream.session.has_work:
                self._exchange.turns.add(stream)
