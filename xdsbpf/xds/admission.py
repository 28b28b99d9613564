"""How fast new streams come in: a reconnect storm waits in line, and nobody takes the others' turn.

In: who wants a stream, which have had their first answer, which have ended, and the time. Out: who may begin now, who
has waited for too long, when to ask again. Identities take turns, so one with a thousand streams delays another's only
stream by one place. Driven by `access`, once for each new stream and never for a message. Pure (xds-server rule 49).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Iterable

import msgspec

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.token_bucket import TokenBucket


class AdmissionLimits(msgspec.Struct, frozen=True):
    """The limits of a server. An identity is a SPIFFE id; local plaintext peers have none, so no limit of their own."""

    per_s: float = 200.0
    """New streams a second, of all together, after `burst` at once."""
    burst: int = 200
    identity_per_s: float = 100.0
    identity_burst: int = 100
    streams_per_identity: int = 1_000
    """Open and waiting ones. All replicas of a deployment are one identity."""
    first_answers: int = 32
    """Streams that are at their first answer at a time: the expensive one; the open ones are served beside them."""
    max_waiting: int = 10_000
    max_wait_s: float = 10.0


class Ticket:
    """One stream, from the moment that it asks until it ends."""

    __slots__ = ("deadline", "identity", "is_admitted", "is_answering")

    def __init__(self, identity: str, deadline: float) -> None:
        self.identity = identity
        self.deadline = deadline
        self.is_admitted = False
        self.is_answering = False


class Turn(msgspec.Struct, frozen=True):
    """What to do now: let these begin, refuse those, and ask again at `again_at` (None: when something happens)."""

    admitted: list[Ticket]
    refused: list[Ticket]
    again_at: float | None


class _Account:
    """The streams of one identity."""

    __slots__ = ("rate", "streams", "waiting")

    def __init__(self, rate: TokenBucket | None) -> None:
        self.rate = rate
        self.streams = 0
        self.waiting: deque[Ticket] = deque()


class Admission:
    """All streams of one server. Times are monotonic seconds of one clock."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self.limits = limits
        self.waiting = 0
        self.answering = 0
        self._rate = TokenBucket(limits.burst, limits.per_s)
        self._accounts: dict[str, _Account] = {}
        self._resting: set[str] = set()
        """Identities without streams that have an account until their bucket is full again."""
        self._line: OrderedDict[str, _Account] = OrderedDict()
        """Identities with waiting streams, the next one first."""
        self._arrivals: OrderedDict[Ticket, None] = OrderedDict()
        """Waiting streams, the first to come first: also the first whose deadline is over."""

    def enter(self, identity: str, now: float) -> Ticket:
        """A stream wants to begin; `turn` says when it may. `identity` is "" for a local peer.

        Raises: ProtocolError(RESOURCE_EXHAUSTED) if there are too many already; the ticket does not exist then.
        """
        limits = self.limits
        account = self._accounts.get(identity) or self._open_account(identity, now)
        if identity and account.streams >= limits.streams_per_identity:
            text = f"{identity} has {account.streams} streams, which is the limit for one identity"
            raise ProtocolError("RESOURCE_EXHAUSTED", text)
        if self.waiting >= limits.max_waiting:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"{self.waiting} new streams are waiting: try again later")
        ticket = Ticket(identity, now + limits.max_wait_s)
        account.streams += 1
        self._resting.discard(identity)
        if not account.waiting:
            self._line[identity] = account
        account.waiting.append(ticket)
        self._arrivals[ticket] = None
        self.waiting += 1
        return ticket

    def turn(self, now: float) -> Turn:
        """Who may begin at `now`. Call it after every other method, and at the time that it says.

        Cost: of those that begin or are refused, and of the identities before them that have no token.
        """
        refused = self._overdue(now)
        admitted: list[Ticket] = []
        again_at: float | None = None
        while self._line and self.answering < self.limits.first_answers:
            ready_at = self._rate.ready_at(now)
            if ready_at > now:
                again_at = ready_at
                break
            ticket, again_at = self._next(now)
            if ticket is None:
                break
            self._rate.take(now)
            ticket.is_admitted = ticket.is_answering = True
            self.answering += 1
            admitted.append(ticket)
        deadlines = [ticket.deadline for ticket in itertools.islice(self._arrivals, 1)]
        return Turn(admitted, refused, min([*deadlines, *([] if again_at is None else [again_at])], default=None))

    def answered(self, ticket: Ticket) -> None:
        """The stream has had its first answer; it may be told more than once."""
        if ticket.is_answering:
            ticket.is_answering = False
            self.answering -= 1

    def leave(self, ticket: Ticket, now: float) -> None:
        """The stream has ended, whether it ever began or not."""
        self.answered(ticket)
        account = self._accounts[ticket.identity]
        account.streams -= 1
        if ticket in self._arrivals:
            account.waiting.remove(ticket)
            self._waits_no_more(ticket, account)
        if not account.streams:
            self._resting.add(ticket.identity)
            self._forget_rested((ticket.identity,), now)

    def _open_account(self, identity: str, now: float) -> _Account:
        limits = self.limits
        self._forget_rested(tuple(self._resting), now)
        rate = TokenBucket(limits.identity_burst, limits.identity_per_s) if identity else None
        account = self._accounts[identity] = _Account(rate)
        return account

    def _next(self, now: float) -> tuple[Ticket | None, float | None]:
        """The stream whose turn it is; or None, and when the first identity in line has a token again."""
        first_at: float | None = None
        for _ in range(len(self._line)):
            identity, account = next(iter(self._line.items()))
            ready_at = now if account.rate is None else account.rate.ready_at(now)
            if ready_at > now:
                first_at = ready_at if first_at is None else min(first_at, ready_at)
                self._line.move_to_end(identity)
                continue
            if account.rate is not None:
                account.rate.take(now)
            self._line.move_to_end(identity)
            ticket = account.waiting.popleft()
            self._waits_no_more(ticket, account)
            return ticket, None
        return None, first_at

    def _overdue(self, now: float) -> list[Ticket]:
        """Those that have waited for too long; within an identity, too, they are the first."""
        refused: list[Ticket] = []
        while self._arrivals and (ticket := next(iter(self._arrivals))).deadline <= now:
            account = self._accounts[ticket.identity]
            account.waiting.popleft()
            self._waits_no_more(ticket, account)
            refused.append(ticket)
        return refused

    def _waits_no_more(self, ticket: Ticket, account: _Account) -> None:
        """It has been taken from those that wait in its account."""
        del self._arrivals[ticket]
        self.waiting -= 1
        if not account.waiting:
            del self._line[ticket.identity]

    def _forget_rested(self, identities: Iterable[str], now: float) -> None:
        """Identities that have gone may be many: they are let go as soon as that changes nothing."""
        for identity in identities:
            rate = self._accounts[identity].rate
            if rate is None or rate.is_full(now):
                self._resting.discard(identity)
                del self._accounts[identity]
