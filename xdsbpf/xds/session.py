"""The state machine of one stream, without I/O: what the two variants of the protocol have in common.

In: decoded requests, changes of the store. Out: the responses that may be sent now, one at a time, each
made of what the store holds at that moment (latest wins). Driven by `xds.exchange`, one instance per stream;
`xds.delta` and `xds.sotw` say what a request means and how a response is put together. Must not know gRPC,
tasks or the time.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterator

from xdsbpf.errors import ProtocolError
from xdsbpf.model import names
from xdsbpf.model.resource import Resource
from xdsbpf.xds import protocol
from xdsbpf.xds.answers import AnswerTaker
from xdsbpf.xds.filling import Oversized, PageFiller
from xdsbpf.xds.gate import NEVER_REQUIRED, EnvoyLedger, Gate
from xdsbpf.xds.guard import ClusterGuard
from xdsbpf.xds.heartbeats import Heartbeats
from xdsbpf.xds.interest import Interest, Listening
from xdsbpf.xds.limits import MAX_TYPES, NameAccount, NameBudget, check_limits
from xdsbpf.xds.references import References
from xdsbpf.xds.request import Request
from xdsbpf.xds.response import Reader, Response
from xdsbpf.xds.shared import SharedMessage
from xdsbpf.xds.siblings import Siblings
from xdsbpf.xds.store import AGENT, Changes, View
from xdsbpf.xds.subscription import Sent, Subscription
from xdsbpf.xds.telemetry import Telemetry

_RANK = {type_url: rank for rank, type_url in enumerate(protocol.PUSH_ORDER)}


class Session(PageFiller, AnswerTaker):
    """One stream.

    `gate` is given for an agent's stream (its resources may be withheld), `ledger` for a node Envoy's
    (what it ACKs opens that gate). `nonces` is shared by all streams of a server, so a nonce of another
    stream is stale here, and so is `stamps`: what happened earlier has the smaller one on all of them. `clock`
    (seconds) ends the waits of the reference guard, and is recorded for the status and the `telemetry`. `service_type`
    is the type of a per-type service, "" for the aggregated one; `siblings` are then the streams of the same client,
    which its owner lets it join. `quarantine`: what a NACK names is held back alone, and what came with it is sent
    again. `max_message`: bytes that the client takes in one message; None: any number. `takes_ttl`: it knows the time
    to live of a resource, and is told in time that one is still there. `name_budget` is what all streams of its
    identity share. `interest` tells which sessions a change may concern: the owner asks no others.
    """

    def __init__(
        self,
        view: View,
        reader: Reader,
        *,
        node_id: str = "",
        gate: Gate | None = None,
        ledger: EnvoyLedger | None = None,
        nonces: Iterator[int] | None = None,
        stamps: Iterator[int] | None = None,
        clock: Callable[[], float] = lambda: 0.0,
        telemetry: Telemetry | None = None,
        service_type: str = "",
        quarantine: bool = True,
        max_message: int | None = None,
        takes_ttl: bool = True,
        siblings: Siblings | None = None,
        name_budget: NameBudget | None = None,
        interest: Interest[Session] | None = None,
    ) -> None:
        self.view = view
        self.node_id = node_id
        self._service_type = service_type
        self._reader = reader
        self._gate = gate
        self._gate_revision = gate.revision(view.node) if gate else 0
        self._ledger = ledger
        self._nonces = reader.shared.numbers if nonces is None else nonces
        self._stamps = itertools.count(1) if stamps is None else stamps
        self._last_number = 0
        """The last nonce: each is higher than the one before, on one stream."""
        self._clock = clock
        self._telemetry = Telemetry() if telemetry is None else telemetry
        self.opened_at = clock()
        # Security: a part of an agent's policies is never put in force without the others.
        self._quarantine = quarantine and view.kind != AGENT
        self._max_message = max_message
        self._takes_ttl = takes_ttl
        self._heartbeats = Heartbeats()
        self.oversized: list[Oversized] = []
        """What could not be sent since somebody emptied this, for the log."""
        self._stamp = 0
        """Of the last request, change or change of view that concerned it; others have later ones."""
        self._subscriptions: dict[str, Subscription] = {}
        self._name_account = NameAccount(name_budget)
        self._interest = Interest[Session]() if interest is None else interest
        self._number = self._interest.enter(self, view.scopes)
        """In the index."""
        self._siblings = siblings
        self._guard = ClusterGuard(view, reader, self._subscriptions, is_aggregated=not service_type, siblings=siblings)
        self._owed: dict[str, set[str]] = {}
        """Type -> names that clusters and listeners sent before the first request of the type refer to (rule 34)."""

    variant: str
    """`delta` or `sotw`, for the status."""

    @abc.abstractmethod
    def encode(self, response: Response) -> bytes:
        """The message bytes of a response of this session."""

    @abc.abstractmethod
    def _first_request(self, subscription: Subscription, request: Request) -> None:
        """The first request of a type: whatever it says of the past may have leaked from an older stream."""

    @abc.abstractmethod
    def _later_request(self, subscription: Subscription, request: Request) -> None:
        """Any other request: ACK, NACK, other names."""

    @abc.abstractmethod
    def _next_update(self, subscription: Subscription, earlier: tuple[Subscription, ...]) -> Response | None:
        """The next additions and updates of a type; `earlier` come before it in push order."""

    @abc.abstractmethod
    def _next_removal(self, subscription: Subscription, later: tuple[Subscription, ...]) -> Response | None:
        """The next removals of a type; `later` come after it in push order and may refer to it."""

    @abc.abstractmethod
    def _heartbeat(self, subscription: Subscription, resources: list[Resource]) -> Response | None:
        """Tell the client that these are still there."""

    def subscriptions(self) -> tuple[Subscription, ...]:
        """Every type the client has asked for, in push order; read-only, for the status."""
        return tuple(self._subscriptions.values())

    @property
    def has_work(self) -> bool:
        """Whether `next_response` may find anything before the next event; cheap, and never wrongly false."""
        for subscription in self._subscriptions.values():
            if subscription.has_work or (subscription.withheld and self._is_gate_moved):
                return True
        if self._guard.next_limit is None and not self._heartbeats.due:
            return False  # the clock is not asked for nothing
        now = self._clock()
        return self._guard.is_due(now) or self._heartbeats.is_due(now)

    @property
    def wake_at(self) -> float | None:
        """When (by the clock) to call `next_response` although nothing has happened; None if not at all."""
        if self._guard.next_limit is None and not self._heartbeats.due:
            return None
        times = [at for at in (self._guard.wake_at, self._heartbeats.at) if at is not None]
        return min(times, default=None)

    def on_request(self, request: Request) -> None:
        """Take one request: ACK or NACK, subscriptions, claims.

        Raises: ProtocolError if the stream must be closed (another node, no type, too many names).
        """
        type_url = self._type_of(request)
        self._stamp = next(self._stamps)
        subscription = self._subscriptions.get(type_url)
        is_first = subscription is None
        bytes_before = 0 if subscription is None else subscription.name_bytes
        if subscription is None:
            if len(self._subscriptions) >= MAX_TYPES:
                raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {MAX_TYPES} types on one stream")
            listening = Listening(self._interest, self._number, type_url)
            subscription = Subscription(type_url, self._stamp, listening)
            self._insert(subscription)
            self._first_request(subscription, request)
            self._hear_claims(subscription)
        else:
            self._later_request(subscription, request)
        if self._siblings is not None:
            self._siblings.heard(subscription, is_first=is_first)
        if type_url == names.CLUSTER:
            self._guard.clusters_moved()
        subscription.listening.hear_all(hears=subscription.is_wildcard or bool(subscription.globs))
        check_limits(subscription, self._subscriptions)
        self._name_account.changed(subscription.name_bytes - bytes_before)

    def on_changes(self, changes: Changes, stamp: int | None = None) -> bool:
        """Note which of the changed names concern this client; whether any does. Cost: O(changed keys in its scopes).

        `stamp` is that of the change on all streams, taken from `stamps`.
        """
        self._stamp = next(self._stamps) if stamp is None else stamp
        is_concerned = have_clusters_moved = False
        for scope in self.view.scopes:
            for type_url, name in changes.by_scope.get(scope, ()):
                subscription = self._subscriptions.get(type_url)
                if subscription is not None and subscription.covers(name):
                    subscription.mark(name, self._stamp)
                    is_concerned = True
                    have_clusters_moved |= type_url == names.CLUSTER
        if have_clusters_moved:
            self._guard.clusters_moved()
        return is_concerned

    def change_view(self, view: View) -> None:
        """The client sees other scopes from now on: whatever differs is sent, what is gone is removed.

        Raises: ValueError if the client would be of another kind or node; that takes a new stream.
        Cost: O(names that it subscribes to or holds).
        """
        if (view.kind, view.node) != (self.view.kind, self.view.node):
            raise ValueError(f"{self.node_id} cannot change from {self.view} to {view} on an open stream")
        self._interest.move(self._number, self.view.scopes, view.scopes)
        self.view = self._guard.view = view
        self._guard.clusters_moved()
        self._stamp = next(self._stamps)
        for subscription in self._subscriptions.values():
            subscription.unfold_backlog()
            for name in (*subscription.names, *subscription.held, *subscription.withheld, *subscription.waiting):
                if name != protocol.WILDCARD:
                    subscription.mark(name, self._stamp)
            if subscription.is_wildcard or subscription.globs:
                self._mark_all(subscription)

    def close(self) -> None:
        """The stream has ended: nobody keeps anything for it, and it hears of nothing. Cost: O(names of its own)."""
        self._name_account.close()
        for subscription in self._subscriptions.values():
            subscription.listening.close(subscription.names)
        self._interest.leave(self._number, self.view.scopes)

    def poll(self) -> tuple[Response, ...]:
        """Everything that may be sent now."""
        return tuple(iter(self.next_response, None))

    def next_response(self) -> Response | None:
        """The response to send next, or None if there is nothing to send before the next event.

        Additions and updates go in push order, removals afterwards in reverse. Call it only when the
        transport takes another message: what changes meanwhile is then in it.
        """
        if not self.has_work:
            return None
        response = self._next_change() or self._next_heartbeat()
        if response is not None and self._takes_ttl and self._reader.has_ttl:
            self._heartbeats.heard(response.type_url, response.resources, self._clock())
        if response is None and self._siblings is not None:
            self._siblings.settled(self._service_type)
        return response

    def _next_change(self) -> Response | None:
        self._look_at_gate()
        if self._guard.next_limit is not None and self._guard.is_due(self._clock()):
            self._guard.resume()
        ordered = tuple(self._subscriptions.values())
        for position, subscription in enumerate(ordered):
            if subscription.has_work:
                response = self._next_update(subscription, ordered[:position])
                if response is not None:
                    return response
        for position in reversed(range(len(ordered))):
            if ordered[position].removals:
                response = self._next_removal(ordered[position], ordered[position + 1 :])
                if response is not None:
                    return response
        return None

    def _hear_claims(self, subscription: Subscription) -> None:
        """What a client that is back holds lives on from now."""
        if self._takes_ttl and self._reader.has_ttl:
            found = (self._reader.get(self.view, subscription.type_url, name) for name in subscription.held)
            self._heartbeats.heard(subscription.type_url, (item for item in found if item is not None), self._clock())

    def _next_heartbeat(self) -> Response | None:
        """Tell the client that what it holds and was not sent lately is still there; not while one is unanswered."""
        now = self._clock()
        for type_url, due in self._heartbeats.take(now).items():
            subscription = self._subscriptions[type_url]
            current = (self._reader.get(self.view, type_url, name) for name in due)
            kept = [item for item in current if item is not None and subscription.held.get(item.name) == item.version]
            self._heartbeats.heard(type_url, kept, now)
            if kept and subscription.last_heartbeat not in subscription.in_flight:
                response = self._heartbeat(subscription, kept)
                subscription.last_heartbeat = subscription.last_nonce
                if response is not None:
                    return response
        return None

    def _type_of(self, request: Request) -> str:
        """The type that a request is about, after the checks that concern the stream as a whole."""
        if request.node is not None and request.node.id and self.node_id and request.node.id != self.node_id:
            raise ProtocolError("INVALID_ARGUMENT", f"node.id changed from {self.node_id!r} to {request.node.id!r}")
        type_url = request.type_url or self._service_type
        if not type_url:
            raise ProtocolError("INVALID_ARGUMENT", "a request on an ADS stream has no type_url")
        if self._service_type not in ("", type_url):
            raise ProtocolError("INVALID_ARGUMENT", f"this service serves {self._service_type}, not {type_url}")
        return type_url

    def _insert(self, subscription: Subscription) -> None:
        """Keep the types in push order; unknown types come last, in order of arrival."""
        self._subscriptions[subscription.type_url] = subscription
        ordered = sorted(self._subscriptions.items(), key=lambda item: _RANK.get(item[0], len(_RANK)))
        self._subscriptions.clear()
        self._subscriptions.update(ordered)

    def _mark_all(self, subscription: Subscription, *, forced: bool = False) -> None:
        """Queue what a wildcard or glob covers: what the client has not got, or everything (`forced`)."""
        for resource in self._reader.wildcard(self.view, subscription.type_url):
            if not subscription.is_wildcard and not subscription.in_glob(resource.name):
                continue
            if forced:
                subscription.force(resource.name, self._stamp)
            elif subscription.held.get(resource.name) != resource.version:
                subscription.mark(resource.name, self._stamp)

    def _may_leave(self, subscription: Subscription, later: tuple[Subscription, ...]) -> list[str]:
        """Removals that may be sent: nothing that the client has, or was sent, refers to them any more.

        So every update of a later type that belongs to the same or an older change has been ACKed (endpoints refer
        to nothing), and no ACKed listener or route names a cluster.
        """
        users = (*later, *self._guard.users_elsewhere(subscription))
        unsettled = [other.oldest_unacked() for other in users if other.type_url != names.ENDPOINTS]
        limit = min((stamp for stamp in unsettled if stamp is not None), default=self._stamp + 1)
        return self._guard.free(subscription, (name for name, stamp in subscription.removals.items() if stamp < limit))

    def _take_off(self, subscription: Subscription, sent: Sent, message: SharedMessage | None = None) -> str:
        """Note that a response goes out; returns its nonce: that of the message if there is one already.

        To be called before `held` has what is in it.
        """
        if subscription.type_url == names.CLUSTER:
            self._guard.clusters_sent(subscription, sent.versions)
            subscription.unusable.update(sent.versions.keys() - subscription.held.keys())
        subscription.held.update(sent.versions)
        if message is None:
            self._last_number = next(self._nonces)
            nonce = str(self._last_number)
        else:
            self._last_number, nonce = message.number, message.nonce
        subscription.in_flight[nonce] = sent
        if self._ledger is not None and subscription.type_url not in NEVER_REQUIRED:
            self._ledger.supersede(subscription.type_url, sent.versions)
        subscription.answer_due = False
        subscription.last_nonce = nonce
        subscription.last_version = sent.version
        subscription.last_revision = self._reader.revision
        subscription.sent_at = sent.at
        has_more = subscription.has_names_queued
        self._telemetry.response_made(subscription.type_url, sent.stamp, sent.at, has_more=has_more)
        return nonce

    def _owe(self, references: References) -> None:
        """Envoy waits 15 s for what an updated cluster or listener needs unless it follows, changed or not.

        That is the endpoints of a cluster, under its service name, and the secrets of both; a secret that does not
        exist is answered as removed, which ends the wait.
        """
        for type_url, wanted in ((names.ENDPOINTS, references.endpoints), (names.SECRET, references.secrets)):
            if not wanted:
                continue
            subscription = self._subscriptions.get(type_url)
            if subscription is not None:
                for name in subscription.names & wanted:
                    subscription.force(name, self._stamp)
            elif not self._service_type:
                self._owed.setdefault(type_url, set()).update(wanted)
