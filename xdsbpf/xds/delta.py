"""The delta variant: a stream carries differences of resources, names subscribed and unsubscribed, claims.

In and out: as `xds.session`. The nonce of a request only tells which response it answers; lists are honoured
whatever it says. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from xdsbpf.model import names
from xdsbpf.model.resource import Resource
from xdsbpf.xds import protocol, shared
from xdsbpf.xds.references import NONE, REFERRING_TYPES, USING_TYPES, References, collections_of, merged, uses_of
from xdsbpf.xds.request import DeltaRequest, Request
from xdsbpf.xds.resource_errors import ERROR_BYTES, delta_errors
from xdsbpf.xds.response import Page, Response, encode
from xdsbpf.xds.session import Session
from xdsbpf.xds.shared import SharedPage
from xdsbpf.xds.subscription import NO_CHANGE, Sent, Subscription, Wildcard

_OFTEN_CHANGED = frozenset({names.CLUSTER, names.ENDPOINTS})
"""Types of which nothing refers to anything that might have to be sent before."""


class DeltaSession(Session):
    """One delta stream; see `Session`."""

    variant = "delta"

    def encode(self, response: Response) -> bytes:
        return encode(response, self._reader)

    def _first_request(self, subscription: Subscription, request: Request) -> None:
        """A nonce or error that leaked from an older stream is ignored; only here claims are believed."""
        assert isinstance(request, DeltaRequest)
        type_url = subscription.type_url
        asked, claimed = request.subscribe, request.claims
        if claimed:
            subscription.charge(claimed)
            subscription.charge(claimed.values())
        if not request.unsubscribe:
            if not claimed and self._answer_in_pages(subscription, asked):
                return
            if len(claimed) >= shared.MIN_NAMES and self._take_claims_at_once(subscription, asked, claimed):
                return
        subscription.subscribe(asked)
        if not asked and type_url not in protocol.NAMED_ONLY:
            subscription.wildcard = Wildcard.LEGACY
        subscription.unsubscribe(request.unsubscribe, self._stamp)
        owed = self._owed.pop(type_url, set())
        spared = claimed.keys() - owed
        for name in asked:
            if name in subscription.names and name not in spared:
                self._force(subscription, name, spared if name not in owed else frozenset())
        self._take_claims(subscription, claimed)
        if subscription.is_wildcard:
            subscription.answer_due = True
        if subscription.is_wildcard or subscription.globs:
            self._mark_all(subscription)

    def _answer_in_pages(self, subscription: Subscription, asked: tuple[str, ...]) -> bool:
        """Answer a question that concerns nothing the client holds with pages that all streams share.

        That is a wildcard alone, or many new names; false leaves everything as it was.
        """
        type_url = subscription.type_url
        if type_url not in protocol.SHARED_TYPES or subscription.is_wildcard or subscription.globs:
            return False
        if asked in ((), (protocol.WILDCARD,)) and not subscription.names and not subscription.in_flight:
            if not asked and type_url in protocol.NAMED_ONLY:
                return False
            subscription.wildcard = Wildcard.EXPLICIT if asked else Wildcard.LEGACY
            subscription.answer_due = True
            subscription.queue_pages(self._reader.wildcard_pages(self.view, type_url), self._stamp, named=False)
            return True
        new = shared.plain_names(asked) if len(asked) >= shared.MIN_NAMES else None
        if new is None or not subscription.names.isdisjoint(new):
            return False
        subscription.add_names(new)
        pages = self._reader.shared.pages(self.view.scopes, type_url, asked)
        subscription.queue_pages(pages, self._stamp, named=True)
        self._owed.pop(type_url, None)
        return True

    def _take_claims_at_once(self, subscription: Subscription, asked: tuple[str, ...], claimed: dict[str, str]) -> bool:
        """A client is back and holds exactly what it asks for, as it is now; false leaves everything as it was."""
        type_url = subscription.type_url
        is_wildcard = asked == (protocol.WILDCARD,) or (not asked and type_url not in protocol.NAMED_ONLY)
        named = frozenset() if is_wildcard else shared.plain_names(asked)
        if named is None or type_url not in protocol.SHARED_TYPES:
            return False
        if is_wildcard:
            pages = self._reader.wildcard_pages(self.view, type_url)
        else:
            pages = self._reader.shared.pages(self.view.scopes, type_url, asked)
        for page in pages:
            if page.missing or not page.versions.items() <= claimed.items():
                return False
        if sum(len(page.versions) for page in pages) != len(claimed):
            return False
        subscription.add_names(named)
        subscription.held = dict(claimed)
        for page in pages:
            self._guard.took(subscription, page.uses)
        if is_wildcard:
            subscription.wildcard = Wildcard.EXPLICIT if asked else Wildcard.LEGACY
            subscription.answer_due = True
        for name in named & self._owed.pop(type_url, set()):
            subscription.force(name, self._stamp)
        if self._ledger is not None:
            self._ledger.accept(type_url, claimed)
        return True

    def _take_claims(self, subscription: Subscription, claimed: dict[str, str]) -> None:
        """Versions that the client says it holds: equal ones are skipped, others are sent or removed."""
        accepted: dict[str, str] = {}
        unchanged: list[Resource] = []
        gone: list[str] = []
        for name, version in claimed.items():
            if not subscription.covers(name):
                continue
            subscription.held[name] = version
            current = self._visible(subscription, name)
            if current is None:
                if subscription.type_url == names.CLUSTER and name not in subscription.names:
                    # A route that the client has of an older stream may name it: it leaves behind that.
                    subscription.remove(name, self._stamp)
                    gone.append(name)
                else:
                    subscription.force(name, self._stamp)
            elif current.version == version:
                accepted[name] = version
                unchanged.append(current)
            else:
                # In force until another one is sent, and nothing will be if the content is this one again by then.
                accepted[name] = version
                subscription.mark(name, self._stamp)
                if subscription.type_url in USING_TYPES:
                    subscription.unknown_uses.add(name)
        if gone and self._siblings is not None:
            self._siblings.clusters_gone(gone)
        self._guard.took(subscription, uses_of(unchanged, self._reader.references))
        if self._ledger is not None:
            self._ledger.accept(subscription.type_url, accepted)

    def _later_request(self, subscription: Subscription, request: Request) -> None:
        """Lists are honoured whatever the nonce; subscribe first, so a name in both ends unsubscribed."""
        assert isinstance(request, DeltaRequest)
        sent = subscription.answered(request.nonce) if request.nonce else None
        if sent is not None and request.error is None:
            self._accepted(subscription, sent)
        elif sent is not None and request.error is not None:
            others = self._refused(subscription, sent, request.error)
            for name in others if self._quarantine else ():
                # A client that stops at the first bad resource has not looked at the ones behind it.
                subscription.force(name, self._stamp)
        if not request.subscribe and not request.unsubscribe:
            return  # as with nearly every ACK
        if not request.unsubscribe and self._answer_in_pages(subscription, request.subscribe):
            return
        star = subscription.subscribe(request.subscribe)
        for name in request.subscribe:
            if name != protocol.WILDCARD:
                self._force(subscription, name)
        if request.unsubscribe:
            forgotten = subscription.unsubscribe(request.unsubscribe, self._stamp)
            self._guard.uses_changed()
            if self._ledger is not None:
                self._ledger.forget(subscription.type_url, forgotten)
        if star and subscription.is_wildcard:
            subscription.answer_due = True
            self._mark_all(subscription, forced=True)
            for on_its_way in subscription.in_flight.values():
                # Sent before a wildcard was given up that is back now: the client keeps what it is not told of.
                for name in on_its_way.versions:
                    subscription.force(name, self._stamp)

    def _force(self, subscription: Subscription, name: str, spared: Set[str] = frozenset()) -> None:
        """Answer a name; a glob with its members but for those `spared`, or as missing if it has none."""
        members: list[str] = []
        if name in subscription.globs:
            everything = self._reader.wildcard(self.view, subscription.type_url)
            members = [item.name for item in everything if protocol.glob_matches(name, item.name)]
        for member in members or (name,):
            if member not in spared:
                subscription.force(member, self._stamp)

    def _owe(self, references: References) -> None:
        super()._owe(references)
        if references.endpoints and self._reader.wildcard(self.view, protocol.LOCALITY_ENDPOINTS):
            self._owe_members(references.endpoints)

    def _owe_members(self, assignments: Iterable[str]) -> None:
        """Behind the endpoints of an updated cluster come the members of a collection that these name (LEDS), too.

        Envoy warms the cluster with them, and does not ask again for a collection that it has.
        """
        type_url = protocol.LOCALITY_ENDPOINTS
        there = (self._reader.get(self.view, names.ENDPOINTS, name) for name in assignments)
        found = frozenset().union(*(collections_of(item) for item in there if item is not None))
        subscription = self._subscriptions.get(type_url)
        if subscription is not None:
            for name in subscription.names & found:
                self._force(subscription, name)
        elif found and not self._service_type:
            self._owed.setdefault(type_url, set()).update(found)

    def _next_update(self, subscription: Subscription, earlier: tuple[Subscription, ...]) -> Response | None:
        if subscription.type_url in _OFTEN_CHANGED and (change := self._shared_change(subscription)) is not None:
            stamp = next(iter(subscription.dirty.values()))
            subscription.dirty.clear()
            return self._send_page(subscription, change, stamp)
        # Security: an address passes from one policy to another; between two pages nothing would guard it.
        page = Page(self._reader, whole=subscription.type_url == names.POLICY)
        self._fill(subscription, subscription.forced, page, forced=True)
        if subscription.backlog and page.stamp is None and (subscription.backlog_named or not subscription.in_flight):
            return self._send_shared(subscription)
        if not subscription.backlog and not subscription.in_flight and not self._held_back(subscription, earlier):
            self._fill(subscription, subscription.dirty, page, forced=False)
            settled = not subscription.forced and not subscription.dirty
            subscription.is_first = subscription.is_first and not settled
            if subscription.answer_due and settled and page.stamp is None:
                return self._send(subscription, page)
        return None if page.stamp is None else self._send(subscription, page)

    def _settle_missing(self, subscription: Subscription, name: str, stamp: int, page: Page, *, forced: bool) -> bool:
        held = subscription.held.get(name)
        if forced and self._reader.knows_type(subscription.type_url):
            is_error = self._is_error_due(subscription, name)
            if not page.fits(len(name) + 4 + (len(name) + ERROR_BYTES if is_error else 0)):
                return False
            if held is None and subscription.type_url == names.VIRTUAL_HOST:
                page.miss(name, stamp)
            else:
                page.remove(name, stamp)
                if is_error:
                    page.fail(name, stamp)
        elif held is not None and subscription.type_url == names.POLICY:
            # With what takes its place: an address that two policies claim would admit nobody meanwhile.
            page.remove(name, stamp)
        elif held is not None or name in subscription.announced:
            subscription.remove(name, stamp)
        return True

    def _heartbeat(self, subscription: Subscription, resources: list[Resource]) -> Response | None:
        nonce = self._take_off(subscription, self._sent({}, (), NO_CHANGE, {}))
        return Response(subscription.type_url, nonce, (), (), self._reader.revision, heartbeats=tuple(resources))

    def _next_removal(self, subscription: Subscription, later: tuple[Subscription, ...]) -> Response | None:
        """Removals wait for this type's own ACK, and for what may still refer to them."""
        if subscription.in_flight or subscription.dirty:
            return None
        page = Page(self._reader)
        for name in self._may_leave(subscription, later):
            if page.fits(len(name) + 4):
                page.remove(name, subscription.removals.pop(name))
        return None if page.stamp is None else self._send(subscription, page)

    def _shared_change(self, subscription: Subscription) -> SharedPage | None:
        """All that is owed of a type, as one page that other streams are sent too; None if it is not that simple."""
        dirty = subscription.dirty
        if not dirty or subscription.in_flight or subscription.backlog:
            return None
        if len(dirty) > shared.PUSH_NAMES or len(dirty) > shared.PAGE_RESOURCES:
            return None
        if subscription.forced or subscription.withheld or subscription.too_large:
            return None
        page = self._reader.shared.changed(self.view.scopes, subscription.type_url, tuple(dirty))
        if page.missing or len(page.segments) > shared.PAGE_BYTES or self._is_too_long(len(page.segments)):
            return None
        if page.is_gated or (page.is_on_demand and not subscription.names.issuperset(dirty)):
            return None
        held = subscription.held
        for name, version in page.versions.items():
            if held.get(name) == version:
                return None
        return page

    def _send_shared(self, subscription: Subscription) -> Response | None:
        """The next page of the backlog, with what the store holds now. Cost: a copy of two dicts, no step per name."""
        assert subscription.backlog
        page = self._reader.shared.current(self.view.scopes, subscription.backlog[0])
        if self._is_too_long(len(page.segments)) or not self._guard.may_go(subscription, page.references.clusters):
            subscription.unfold_backlog()
            return self._next_update(subscription, ())
        subscription.backlog.popleft()
        subscription.is_first = subscription.is_first and bool(subscription.backlog)
        return self._send_page(subscription, page, subscription.backlog_stamp, answer=subscription.backlog_named)

    def _send_page(self, subscription: Subscription, page: SharedPage, stamp: int, *, answer: bool = False) -> Response:
        """Send a page; `answer`: its names were asked for, so the missing ones are said to be."""
        removed = page.missing if answer else ()
        errors = removed if self.takes_errors else ()
        message = self._reader.shared.message(page, removed, self._last_number, self._nonces)
        self._take_off(subscription, self._sent(page.versions, removed, stamp, page.uses), message)
        if page.references is not NONE:
            self._owe(page.references)
        return Response(
            subscription.type_url,
            subscription.last_nonce,
            page.resources,
            removed,
            self._reader.revision,
            errors=errors,
            message=message.data + delta_errors(errors) if errors else message.data,
        )

    def _sent(
        self, versions: dict[str, str], removed: tuple[str, ...], stamp: int, uses: dict[str, frozenset[str]]
    ) -> Sent:
        return Sent(versions, removed, stamp, self._clock(), version=str(self._reader.revision), uses=uses)

    def _send(self, subscription: Subscription, page: Page) -> Response:
        versions = {resource.name: resource.version for resource in page.resources}
        subscription.announced.difference_update(versions, page.removed)
        subscription.announced.update(page.withheld)
        for name in page.removed:
            subscription.forget(name)
        if page.removed:
            self._guard.uses_changed()
        if self._ledger is not None:
            self._ledger.forget(subscription.type_url, page.removed)
        stamp = self._stamp if page.stamp is None else page.stamp
        uses = uses_of(page.resources, self._reader.references)
        nonce = self._take_off(subscription, self._sent(versions, tuple(page.removed), stamp, uses))
        if subscription.type_url in REFERRING_TYPES:
            self._owe(merged(self._reader.references(resource) for resource in page.resources))
        return Response(
            subscription.type_url,
            nonce,
            tuple(page.resources),
            tuple(page.removed),
            self._reader.revision,
            tuple(page.missing),
            tuple(page.withheld),
            tuple(page.errors),
        )
