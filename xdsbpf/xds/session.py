"""The state machine of one delta ADS stream, without I/O.

In: decoded requests, changes of the store. Out: the responses that may be sent now, one at a time, each
made of what the store holds at that moment (latest wins). Driven by `xds.server`, one instance per stream;
must not know gRPC, tasks or the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from xdsbpf.errors import ProtocolError
from xdsbpf.model import names
from xdsbpf.model.resource import Requirement, Resource
from xdsbpf.xds import protocol
from xdsbpf.xds.gate import EnvoyLedger, Gate
from xdsbpf.xds.response import Page, Reader, Response
from xdsbpf.xds.store import AGENT, Changes, View
from xdsbpf.xds.subscription import Nack, Sent, Subscription, Wildcard

MAX_NAMES = 200_000
"""Names of one type that one stream may subscribe to, or that one request may hold."""
MAX_TYPES = 64
"""Types that one stream may ask for; Envoy knows about twenty."""
MAX_UNANSWERED = 10_000
"""Responses of one type that may wait for an ACK: a name asked for again is answered at once."""

_RANK = {type_url: rank for rank, type_url in enumerate(protocol.PUSH_ORDER)}
_DATAPATH = frozenset(names.DATAPATH_TYPES)


def _still(versions: dict[str, str], held: dict[str, str]) -> dict[str, str]:
    """What of a response concerns names that were not removed or unsubscribed since."""
    return {name: version for name, version in versions.items() if name in held}


def _check_size(request: DeltaDiscoveryRequest) -> None:
    """Refuse a request with more names than a stream may have before any is looked at."""
    lists = (request.resource_names_subscribe, request.resource_names_unsubscribe, request.initial_resource_versions)
    if max(map(len, lists)) > MAX_NAMES:
        raise ProtocolError("RESOURCE_EXHAUSTED", f"a request with more than {MAX_NAMES} names")


class DeltaSession:
    """One stream.

    `gate` is given for an agent's stream (its resources may be withheld), `ledger` for a node Envoy's
    (what it ACKs opens that gate). `nonces` is shared by all streams of a server, so a nonce of another
    stream is stale here. `clock` (seconds) is only recorded, for the status. `service_type` is the type of a
    per-type service, "" for the aggregated one.
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
        clock: Callable[[], float] = lambda: 0.0,
        service_type: str = "",
    ) -> None:
        self.view = view
        self._service_type = service_type
        self.node_id = node_id
        self._reader = reader
        self._gate = gate
        self._gate_revision = gate.revision(view.node) if gate else 0
        self._ledger = ledger
        self._nonces = itertools.count(1) if nonces is None else nonces
        self._clock = clock
        self._stamp = 0
        self._subscriptions: dict[str, Subscription] = {}
        self._clusters_sent: set[str] = set()
        """Clusters sent before the first EDS request: their endpoints are owed (rule 34)."""

    def subscriptions(self) -> tuple[Subscription, ...]:
        """Every type the client has asked for, in push order; read-only, for the status."""
        return tuple(self._subscriptions.values())

    def on_request(self, request: DeltaDiscoveryRequest) -> None:
        """Take one request: ACK or NACK, subscriptions, claims.

        Raises: ProtocolError if the stream must be closed (another node, no type, too many names).
        """
        self._check_node(request)
        type_url: str = request.type_url or self._service_type
        if not type_url:
            raise ProtocolError("INVALID_ARGUMENT", "a request on an ADS stream has no type_url")
        if self._service_type not in ("", type_url):
            raise ProtocolError("INVALID_ARGUMENT", f"this service serves {self._service_type}, not {type_url}")
        _check_size(request)
        self._stamp += 1
        subscription = self._subscriptions.get(type_url)
        if subscription is None:
            if len(self._subscriptions) >= MAX_TYPES:
                raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {MAX_TYPES} types on one stream")
            subscription = Subscription(type_url)
            self._insert(subscription)
            self._first_request(subscription, request)
        else:
            self._acknowledge(subscription, request)
            self._later_request(subscription, request)
        if len(subscription.names) > MAX_NAMES:
            raise ProtocolError(
                "RESOURCE_EXHAUSTED", f"more than {MAX_NAMES} names of {type_url} subscribed on one stream"
            )
        if len(subscription.in_flight) > MAX_UNANSWERED:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {MAX_UNANSWERED} responses without an ACK")

    def on_changes(self, changes: Changes) -> None:
        """Note which of the changed names concern this client. Cost: O(changed keys in its scopes)."""
        self._stamp += 1
        for scope in self.view.scopes:
            for type_url, name in changes.by_scope.get(scope, ()):
                subscription = self._subscriptions.get(type_url)
                if subscription is not None and (subscription.is_wildcard or name in subscription.names):
                    subscription.mark(name, self._stamp)

    def poll(self) -> tuple[Response, ...]:
        """Everything that may be sent now."""
        return tuple(iter(self.next_response, None))

    def next_response(self) -> Response | None:
        """The response to send next, or None if there is nothing to send before the next event.

        Additions and updates go in push order, removals afterwards in reverse. Call it only when the
        transport takes another message: what changes meanwhile is then in it.
        """
        self._look_at_gate()
        ordered = tuple(self._subscriptions.values())
        for position, subscription in enumerate(ordered):
            response = self._next_update(subscription, ordered[:position])
            if response is not None:
                return response
        for position in reversed(range(len(ordered))):
            response = self._next_removal(ordered[position], ordered[position + 1 :])
            if response is not None:
                return response
        return None

    def _check_node(self, request: DeltaDiscoveryRequest) -> None:
        node_id: str = request.node.id
        if node_id and self.node_id and node_id != self.node_id:
            raise ProtocolError("INVALID_ARGUMENT", f"node.id changed from {self.node_id!r} to {node_id!r}")

    def _insert(self, subscription: Subscription) -> None:
        """Keep the types in push order; unknown types come last, in order of arrival."""
        self._subscriptions[subscription.type_url] = subscription
        ordered = sorted(self._subscriptions.items(), key=lambda item: _RANK.get(item[0], len(_RANK)))
        self._subscriptions = dict(ordered)

    def _first_request(self, subscription: Subscription, request: DeltaDiscoveryRequest) -> None:
        """A nonce or error that leaked from an older stream is ignored; only here claims are believed."""
        type_url = subscription.type_url
        asked = tuple(request.resource_names_subscribe)
        claimed = dict(request.initial_resource_versions)
        subscription.subscribe(asked)
        if not asked and type_url not in protocol.NAMED_ONLY:
            subscription.wildcard = Wildcard.LEGACY
        subscription.unsubscribe(request.resource_names_unsubscribe, self._stamp)
        owed: set[str] = set()
        if type_url == names.ENDPOINTS:
            owed, self._clusters_sent = self._clusters_sent, owed
        for name in asked:
            if name in subscription.names and (name not in claimed or name in owed):
                subscription.force(name, self._stamp)
        accepted: dict[str, str] = {}
        for name, version in claimed.items():
            if name not in subscription.names and not subscription.is_wildcard:
                continue
            subscription.held[name] = version
            current = self._visible(subscription, name)
            if current is None:
                subscription.force(name, self._stamp)
            elif current.version == version:
                accepted[name] = version
            else:
                subscription.mark(name, self._stamp)
        if self._ledger is not None:
            self._ledger.accept(type_url, accepted)
        if subscription.is_wildcard:
            subscription.answer_due = True
            for resource in self._reader.wildcard(self.view, type_url):
                if subscription.held.get(resource.name) != resource.version:
                    subscription.mark(resource.name, self._stamp)

    def _later_request(self, subscription: Subscription, request: DeltaDiscoveryRequest) -> None:
        """Lists are honoured whatever the nonce; subscribe first, so a name in both ends unsubscribed."""
        asked = tuple(request.resource_names_subscribe)
        star = subscription.subscribe(asked)
        for name in asked:
            if name != protocol.WILDCARD:
                subscription.force(name, self._stamp)
        forgotten = subscription.unsubscribe(request.resource_names_unsubscribe, self._stamp)
        if self._ledger is not None:
            self._ledger.forget(subscription.type_url, forgotten)
        if star and subscription.is_wildcard:
            subscription.answer_due = True
            for resource in self._reader.wildcard(self.view, subscription.type_url):
                subscription.force(resource.name, self._stamp)

    def _acknowledge(self, subscription: Subscription, request: DeltaDiscoveryRequest) -> None:
        if not request.response_nonce:
            return
        sent = subscription.answered(request.response_nonce)
        if sent is None:
            return
        if not request.HasField("error_detail"):
            subscription.last_error = ""
            for name in (*sent.versions, *sent.removed):
                subscription.nacks.pop(name, None)
            if self._ledger is not None:
                self._ledger.accept(subscription.type_url, _still(sent.versions, subscription.held))
            return
        text = protocol.readable_error(request.error_detail.message)
        subscription.last_error = text
        refused = _still(sent.versions, subscription.held)
        for name in protocol.blamed(text, tuple(refused)):
            subscription.nacks[name] = Nack(refused[name], text)
        if self._ledger is not None:
            self._ledger.refuse(subscription.type_url, refused, text)

    def _look_at_gate(self) -> None:
        if self._gate is None or self._gate.revision(self.view.node) == self._gate_revision:
            return
        self._gate_revision = self._gate.revision(self.view.node)
        for subscription in self._subscriptions.values():
            waiting, subscription.withheld = subscription.withheld, {}
            for name in waiting:
                subscription.mark(name, self._stamp)

    def _visible(self, subscription: Subscription, name: str) -> Resource | None:
        """The current resource if this subscription covers it."""
        resource = self._reader.get(self.view, subscription.type_url, name)
        if resource is None or name in subscription.names:
            return resource
        return resource if subscription.is_wildcard and not resource.on_demand else None

    def _unmet(self, resource: Resource) -> tuple[Requirement, ...]:
        return self._gate.unmet(self.view.node, resource) if self._gate is not None else ()

    def _next_update(self, subscription: Subscription, earlier: tuple[Subscription, ...]) -> Response | None:
        # Security: an address passes from one policy to another; between two pages nothing would guard it.
        page = Page(self._reader, whole=subscription.type_url == names.POLICY)
        self._fill(subscription, subscription.forced, page, forced=True)
        if not subscription.in_flight and not self._held_back(subscription, earlier):
            self._fill(subscription, subscription.dirty, page, forced=False)
            settled = not subscription.forced and not subscription.dirty
            subscription.is_first = subscription.is_first and not settled
            if subscription.answer_due and settled and page.stamp is None:
                return self._send(subscription, page)
        return None if page.stamp is None else self._send(subscription, page)

    def _held_back(self, subscription: Subscription, earlier: tuple[Subscription, ...]) -> bool:
        """A datapath type waits until what earlier datapath types owe of the same change has been sent.

        Not so for Envoy: its ACK of clusters comes only after their endpoints, so waiting would stall it.
        """
        if subscription.type_url not in _DATAPATH or not subscription.dirty:
            return False
        stamp = next(iter(subscription.dirty.values()))
        return any(
            other.type_url in _DATAPATH and other.dirty and next(iter(other.dirty.values())) <= stamp
            for other in earlier
        )

    def _fill(self, subscription: Subscription, queue: dict[str, int], page: Page, *, forced: bool) -> None:
        """Move names from a queue to the page until it is full; names with nothing to say just leave."""
        taken: list[str] = []
        for name, stamp in queue.items():
            resource = self._visible(subscription, name)
            if not self._place(subscription, name, resource, stamp, page, forced=forced):
                break
            taken.append(name)
        for name in taken:
            del queue[name]

    def _place(
        self,
        subscription: Subscription,
        name: str,
        resource: Resource | None,
        stamp: int,
        page: Page,
        *,
        forced: bool,
    ) -> bool:
        """Settle one name; false if it needs a page of its own."""
        held = subscription.held.get(name)
        if resource is None:
            if forced and self._reader.knows_type(subscription.type_url):
                if not page.fits(len(name) + 4):
                    return False
                if held is None and subscription.type_url == names.VIRTUAL_HOST:
                    page.miss(name, stamp)
                else:
                    page.remove(name, stamp)
            elif held is not None and subscription.type_url == names.POLICY:
                # With what takes its place: an address that two policies claim would admit nobody meanwhile.
                page.remove(name, stamp)
            elif held is not None or name in subscription.announced:
                subscription.removals.setdefault(name, stamp)
            subscription.withheld.pop(name, None)
            return True
        if not forced and resource.version == held:
            subscription.withheld.pop(name, None)
            return True
        unmet = () if resource.version == held else self._unmet(resource)
        if unmet:
            if self._is_to_be_announced(subscription, name):
                if not page.fits(len(name) + 8):
                    return False
                page.withhold(name, stamp)
            subscription.withheld[name] = unmet
            return True
        if not page.fits(page.size(resource)):
            return False
        page.add(resource, stamp)
        subscription.withheld.pop(name, None)
        return True

    def _is_to_be_announced(self, subscription: Subscription, name: str) -> bool:
        """A client that starts takes what it is not told of for removed: a withheld resource is named to it.

        Only an agent: it keeps what the kernel has. An Envoy would take a bare name for a resource.
        """
        if self.view.kind != AGENT or subscription.type_url not in _DATAPATH or not subscription.is_first:
            return False
        return name not in subscription.held and name not in subscription.announced

    def _next_removal(self, subscription: Subscription, later: tuple[Subscription, ...]) -> Response | None:
        """Removals wait for this type's own ACK, and for what may still refer to them.

        That is: every update of a later type that belongs to the same or an older change must be ACKed.
        Endpoints refer to nothing.
        """
        if not subscription.removals or subscription.in_flight or subscription.dirty:
            return None
        unsettled = [other.oldest_unacked() for other in later if other.type_url != names.ENDPOINTS]
        limit = min((stamp for stamp in unsettled if stamp is not None), default=self._stamp + 1)
        page = Page(self._reader)
        for name, stamp in tuple(subscription.removals.items()):
            if stamp < limit and page.fits(len(name) + 4):
                page.remove(name, stamp)
                del subscription.removals[name]
        return None if page.stamp is None else self._send(subscription, page)

    def _send(self, subscription: Subscription, page: Page) -> Response:
        nonce = str(next(self._nonces))
        versions = {resource.name: resource.version for resource in page.resources}
        subscription.held.update(versions)
        subscription.announced.difference_update(versions, page.removed)
        subscription.announced.update(page.withheld)
        for name in page.removed:
            subscription.held.pop(name, None)
            subscription.nacks.pop(name, None)
        if self._ledger is not None:
            self._ledger.forget(subscription.type_url, page.removed)
        stamp = self._stamp if page.stamp is None else page.stamp
        subscription.in_flight[nonce] = Sent(versions, tuple(page.removed), stamp, self._clock())
        subscription.answer_due = False
        subscription.last_nonce = nonce
        subscription.last_revision = self._reader.revision
        if subscription.type_url == names.CLUSTER:
            self._owe_endpoints(versions)
        return Response(
            subscription.type_url,
            nonce,
            tuple(page.resources),
            tuple(page.removed),
            self._reader.revision,
            tuple(page.missing),
            tuple(page.withheld),
        )

    def _owe_endpoints(self, clusters: dict[str, str]) -> None:
        """Envoy waits 15 s for the endpoints of an updated cluster unless they follow it, changed or not."""
        endpoints = self._subscriptions.get(names.ENDPOINTS)
        if endpoints is None:
            self._clusters_sent.update(clusters)
            return
        for name in clusters:
            if name in endpoints.names:
                endpoints.force(name, self._stamp)
