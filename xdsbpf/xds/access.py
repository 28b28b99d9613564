"""What stands before every handler: who may call a service at all, and when its turn is.

In: handlers by method path, and what each service asks of a peer. Out: the same handlers behind the check; a peer that
fails it is refused before a byte of its request is looked at, counted and logged. What a peer may claim in its request
is checked where the request is read, with the same `PeerRules`; how many may begin at a time is `admission`'s. Bound by
the composition root.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import structlog

from xdsbpf.errors import ProtocolError
from xdsbpf.xds import protocol
from xdsbpf.xds.admission import Admission, AdmissionLimits, Ticket
from xdsbpf.xds.log_budget import LogBudget
from xdsbpf.xds.peers import PeerRules, readable_identity
from xdsbpf.xds.transport import Call, Handler, Peer, Take

REFUSALS: Final = ("UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED")
"""Statuses that tell a peer that it may not, or may not now."""

ANSWER_S: Final = 0.05
"""How long after its first request a stream is taken to be at its first answer, if it does not write for longer."""

FIRST_REQUEST_S: Final = 1.0
"""How long the first request may take before somebody else's first answer is served in its place."""

log = structlog.get_logger(__name__)


class Access(enum.Enum):
    """Who may call a service."""

    ANYONE = "anyone"
    """Whoever has a certificate of our authorities, whatever it names: nothing of the mesh is in the answers."""
    MEMBER = "member"
    """An identity of this mesh, whatever it may be."""
    PEER = "peer"
    """An identity of this mesh that may claim some node id, if only it claims the right one."""
    ADMIN = "admin"
    """An identity that may see what others are served."""


_IN_TURN: Final = (Access.MEMBER, Access.PEER)


class AccessControl:
    """The check of one server. `access` is by full name of a service; PEER for those it does not name."""

    def __init__(
        self,
        rules: PeerRules,
        access: Mapping[str, Access],
        clock: Callable[[], float],
        limits: AdmissionLimits | None = None,
    ) -> None:
        self.admission = Admission(limits or AdmissionLimits())
        self.refused: Counter[str] = Counter()
        """Calls that ended with a status of `REFUSALS`, whoever refused them."""
        self._rules = rules
        self._access = access
        self._clock = clock
        self._log_budget = LogBudget()
        self._is_closed = False
        self._turns: dict[Ticket, asyncio.Future[bool]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """The server is stopping: nobody new begins."""
        self._is_closed = True

    def protect(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """The same handlers behind the check."""
        return {path: self._guarded(path, handler) for path, handler in handlers.items()}

    def _guarded(self, path: str, handler: Handler) -> Handler:
        access = self._access.get(path.split("/")[1], Access.PEER)

        async def guarded(call: Call) -> None:
            try:
                self._check(access, call.peer)
            except ProtocolError as error:
                self._refuse(call, error)
                raise
            try:
                # Whoever only asks how we are is not kept waiting, and keeps nobody waiting.
                await (self._in_turn(call, handler) if access in _IN_TURN else handler(call))
            except ProtocolError as error:
                if error.status in REFUSALS:
                    self.refused[error.status] += 1
                raise

        return guarded

    async def _in_turn(self, call: Call, handler: Handler) -> None:
        """Run the handler when it is its turn. Raises: ProtocolError(RESOURCE_EXHAUSTED) if that does not come."""
        identity = self._rules.identify(call.peer)
        ticket = self.admission.enter("" if identity is None else str(identity), self._clock())
        try:
            turn = self._turns[ticket] = asyncio.get_running_loop().create_future()
            self._give_turns()
            if not await turn:
                text = f"no turn for a new stream within {self.admission.limits.max_wait_s:g} s: try again later"
                raise ProtocolError("RESOURCE_EXHAUSTED", text)
            await handler(_FirstAnswer(call, lambda: self._answered(ticket)))
        finally:
            self._turns.pop(ticket, None)
            self.admission.leave(ticket, self._clock())
            self._give_turns()

    def _answered(self, ticket: Ticket) -> None:
        self.admission.answered(ticket)
        self._give_turns()

    def _give_turns(self) -> None:
        """Wake whose turn it is, and come again when the next one's is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        turn = self.admission.turn(now)
        for tickets, is_admitted in ((turn.admitted, True), (turn.refused, False)):
            for ticket in tickets:
                future = self._turns.get(ticket)
                if future is not None and not future.done():
                    future.set_result(is_admitted)
        if turn.again_at is not None:
            self._timer = asyncio.get_running_loop().call_later(max(turn.again_at - now, 0.001), self._give_turns)

    def _check(self, access: Access, peer: Peer) -> None:
        if self._is_closed and access is not Access.ANYONE:
            raise ProtocolError("UNAVAILABLE", "the server is stopping")
        match access:
            case Access.MEMBER:
                self._rules.identify(peer)
            case Access.PEER:
                self._rules.identify_client(peer)
            case Access.ADMIN:
                self._rules.check_admin(peer)
            case Access.ANYONE:
                return

    def _refuse(self, call: Call, error: ProtocolError) -> None:
        """At most about one line a second: a peer can be refused as often as it can call."""
        self.refused[error.status] += 1
        unlogged = self._log_budget.take(self._clock())
        if unlogged is None:
            return
        log.warning(
            "xds.call_refused",
            peer=call.peer.address,
            identity=readable_identity(call.peer),
            method=call.method,
            status=error.status,
            error=protocol.readable_error(str(error)),
            unlogged=unlogged,
        )


class _FirstAnswer:
    """A call that tells once when its first answer is over; then it costs nothing any more.

    Nobody says so: it is over when the handler waits for the second request, has had a moment to answer the first, and
    is not in the middle of a write that the client does not take.
    """

    def __init__(self, call: Call, tell: Callable[[], None]) -> None:
        self.method = call.method
        self.peer = call.peer
        self.write_now = call.write_now
        self.read: Callable[[], Coroutine[Any, Any, bytes | None]] = self._read
        self.write: Callable[[bytes], Coroutine[Any, Any, None]] = self._write
        self._call = call
        self._tell = tell
        self._reads = 0
        self._writes = 0
        self._timer = asyncio.get_running_loop().call_later(FIRST_REQUEST_S, self._look)

    async def _read(self) -> bytes | None:
        self._reads += 1
        if self._reads == 2:
            self.read = self._call.read
            self._look_in(ANSWER_S)
        return await self._call.read()

    async def read_all(self, handle: Take) -> None:
        """Every request behind the first one."""
        self._look_in(ANSWER_S)
        await self._call.read_all(handle)

    async def _write(self, message: bytes) -> None:
        self._writes += 1
        try:
            await self._call.write(message)
        finally:
            self._writes -= 1

    def _look_in(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        if self._writes:
            self._look_in(ANSWER_S)
            return
        self.read, self.write = self._call.read, self._call.write
        self._tell()
