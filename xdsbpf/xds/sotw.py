"""The state-of-the-world variant: every request holds all names, and a response of some types the whole set.

In and out: as `xds.session`. Of LDS, CDS and other whole sets absence means deletion, so every response holds all that
is there, what may not leave yet included; of EDS, RDS, SDS and their like a response holds what changed, and nothing
can be deleted. At most one response of a type is out, and only a request with its nonce counts. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from xdsbpf.model.names import CLUSTER
from xdsbpf.model.resource import Resource
from xdsbpf.xds import protocol
from xdsbpf.xds.references import REFERRING_TYPES, USING_TYPES, merged, uses_of
from xdsbpf.xds.request import Request, SotwRequest
from xdsbpf.xds.resource_errors import ERROR_BYTES
from xdsbpf.xds.response import Page, Response, content_version, encode_sotw, with_errors
from xdsbpf.xds.session import Session
from xdsbpf.xds.subscription import NO_CHANGE, WHOLE_SET, Sent, Subscription, Wildcard

_ANY_HEAD = 16
"""Tags and lengths around a body in a response; as much as they take at most."""


class SotwSession(Session):
    """One state-of-the-world stream; see `Session`."""

    variant = "sotw"

    def encode(self, response: Response) -> bytes:
        return encode_sotw(response)

    def whole(self, type_url: str) -> tuple[Resource, ...]:
        """Everything that the client subscribes to of a type it has asked for, sorted by name."""
        subscription = self._subscriptions[type_url]
        return tuple(self._state(subscription, retries=True).values()) if self._is_served(subscription) else ()

    def lacking(self, type_url: str) -> list[str]:
        """What is not in `whole`, and the client is to read that."""
        subscription = self._subscriptions[type_url]
        return self._errors_of(subscription, subscription.names, {item.name for item in self.whole(type_url)})

    def _first_request(self, subscription: Subscription, request: Request) -> None:
        """Nonce and error are of an older stream; an equal version may spare a whole set that was asked for as `*`."""
        assert isinstance(request, SotwRequest)
        if request.version:
            subscription.accepted = None
        if not request.names and subscription.type_url not in protocol.NAMED_ONLY:
            subscription.wildcard = Wildcard.LEGACY
        self._take_names(subscription, request.names)
        if request.version and subscription.type_url in USING_TYPES:
            is_whole = _is_whole(subscription)
            known = (name for name in subscription.names if self._visible(subscription, name) is not None)
            subscription.unknown_uses.update((WHOLE_SET,) if is_whole else known)
        if not subscription.is_wildcard:
            return
        subscription.answer_due = True
        self._mark_all(subscription)
        if self._guard.keeps_clusters(subscription) and self._siblings is not None:
            self._adopt(subscription, self._siblings.clusters_left(request.version))
        if _is_whole(subscription) and request.version and not subscription.names:
            state = self._state(subscription, retries=True)
            if content_version(state.values()) == request.version:
                subscription.state = subscription.accepted = state
                subscription.held = {name: item.version for name, item in state.items()}
                self._guard.took(subscription, uses_of(tuple(state.values()), self._reader.references))
                subscription.dirty.clear()
                subscription.unknown_uses.clear()
                subscription.answer_due = False
                if self._ledger is not None:
                    self._ledger.accept(subscription.type_url, subscription.held)

    def _adopt(self, subscription: Subscription, left: dict[str, Resource] | None) -> None:
        """What the client has by its former stream, if that is known: what is gone of it stays until it may leave."""
        if left is None:
            return
        subscription.state = subscription.accepted = left
        subscription.held = {name: item.version for name, item in left.items()}
        for name in left:
            if self._visible(subscription, name) is None:
                subscription.remove(name, self._stamp)

    def _later_request(self, subscription: Subscription, request: Request) -> None:
        assert isinstance(request, SotwRequest)
        if request.nonce != subscription.last_nonce:
            # Older knowledge, the names too: the client repeats them with its answer to the newest response.
            if subscription.in_flight:
                self._note_crossed(subscription, request.names)
            return
        sent = subscription.answered(request.nonce)
        taken: Iterable[str] = ()
        if sent is not None and request.error is None:
            self._accepted(subscription, sent)
            taken = sent.versions
            if sent.state is not None:
                taken = subscription.accepted = sent.state
                self._settle_nacks(subscription, sent.state)
                subscription.unknown_uses.clear()
                self._guard.uses_changed()
        elif sent is not None and request.error is not None:
            state = sent.state or {}  # what it had given up is new to it
            sent.versions.update((name, state[name].version) for name in subscription.crossed & state.keys())
            self._refuse(subscription, sent, request.error)
        self._take_names(subscription, request.names)
        if subscription.crossed:
            self._send_crossed(subscription, taken)

    def _note_crossed(self, subscription: Subscription, asked: tuple[str, ...]) -> None:
        """What a request gives up that the client sent before it saw the newest response, and may take back."""
        wanted = set(asked)
        if subscription.wildcard is Wildcard.LEGACY:
            if not wanted:
                return
            # From now on an empty list means nothing; the next list is to be looked at, whatever it is.
            subscription.wildcard, subscription.asked = Wildcard.EXPLICIT, None
        if subscription.is_wildcard and protocol.WILDCARD in wanted:
            return
        globs = subscription.globs & wanted
        for name in subscription.held.keys() - wanted:
            if not any(protocol.glob_matches(glob, name) for glob in globs):
                subscription.crossed.add(name)
        if subscription.type_url == CLUSTER:
            subscription.unusable.update(subscription.crossed)

    def _send_crossed(self, subscription: Subscription, taken: Iterable[str]) -> None:
        """The client forgot what it gave up, though it asks for it again: only what the newest response had it has."""
        lost = [name for name in subscription.crossed.difference(taken) if subscription.covers(name)]
        subscription.crossed.clear()
        self._forget(subscription, lost)
        for name in lost:
            subscription.force(name, self._stamp)

    def _forget(self, subscription: Subscription, names: Iterable[str]) -> None:
        """The client gave these up."""
        for name in names:
            subscription.forget(name)
            subscription.state.pop(name, None)
            if subscription.accepted:
                subscription.accepted.pop(name, None)
        self._guard.uses_changed()
        if self._ledger is not None:
            self._ledger.forget(subscription.type_url, names)

    def _settle_nacks(self, subscription: Subscription, taken: dict[str, Resource]) -> None:
        """A set was accepted as a whole: what is in it was not refused after all, and is in force."""
        for name in [name for name, nack in subscription.nacks.items() if name in taken]:
            if subscription.nacks[name].version == taken[name].version:
                del subscription.nacks[name]
        subscription.unusable.difference_update(taken)

    def _refuse(self, subscription: Subscription, sent: Sent, error: str) -> None:
        """A client that stops at the first bad resource took none of the others: they go again without it."""
        others = self._refused(subscription, sent, error)
        if not self._quarantine:
            return
        if sent.state is None:
            for name in others:
                subscription.force(name, self._stamp)
        elif subscription.accepted is not None:
            # It goes on with the set before: what came with a refused resource is as new as it was.
            subscription.state = subscription.accepted
            for name in others:
                subscription.held.pop(name, None)
                if name in subscription.accepted:
                    subscription.held[name] = subscription.accepted[name].version
                subscription.mark(name, self._stamp)

    def _take_names(self, subscription: Subscription, asked: tuple[str, ...]) -> None:
        """The names of a request are the whole subscription; new ones are answered, dropped ones are forgotten."""
        if asked is subscription.asked:
            return  # as with nearly every ACK
        if asked == subscription.asked:
            subscription.asked = asked  # the next ones share it
            return
        subscription.asked = asked
        wanted = set(asked)
        star = protocol.WILDCARD in wanted
        wanted.discard(protocol.WILDCARD)
        dropped = subscription.names - wanted
        new = [name for name in asked if name in wanted and name not in subscription.names]
        was_wildcard = subscription.is_wildcard
        subscription.subscribe(tuple(new))
        gone = list(dropped)
        if was_wildcard and not star and (wanted or subscription.wildcard is Wildcard.EXPLICIT):
            gone.append(protocol.WILDCARD)
        elif star:
            subscription.wildcard = Wildcard.EXPLICIT
        owed = set(subscription.forced)
        forgotten = subscription.unsubscribe(gone, self._stamp)
        self._forget(subscription, forgotten)
        for name in dropped & (subscription.forced.keys() - owed):
            # Still covered by the wildcard: a whole set follows only if that makes a difference.
            subscription.dirty[name] = subscription.forced.pop(name)
        for name in new:
            subscription.force(name, self._stamp)
        if star and not was_wildcard:
            subscription.answer_due = True
        if (star and not was_wildcard) or (new and subscription.globs):
            self._mark_all(subscription)

    def _next_update(self, subscription: Subscription, earlier: tuple[Subscription, ...]) -> Response | None:
        del earlier  # Envoy's types wait for none: see `_held_back`
        if not self._is_served(subscription):
            subscription.forced.clear()  # or what other types give up would wait for these names for ever
            subscription.dirty.clear()
            return None
        if subscription.in_flight:
            return None
        if _is_whole(subscription):
            return self._next_state(subscription)
        page = Page(self._reader)
        self._fill(subscription, subscription.forced, page, forced=True)
        self._fill(subscription, subscription.dirty, page, forced=False)
        if page.stamp is None:
            return self._empty_answer(subscription)
        return with_errors(self._send(subscription, page.resources, page.stamp, None), page.errors)

    def _empty_answer(self, subscription: Subscription) -> Response | None:
        """A wildcard with nothing in it is answered; names that do not exist are not, the client has a timer."""
        if not subscription.answer_due or subscription.has_names_queued:
            return None
        return self._send(subscription, [], self._stamp, None)

    def _is_served(self, subscription: Subscription) -> bool:
        """A type that nobody has heard of is quiet until there is something of it."""
        type_url = subscription.type_url
        return type_url not in protocol.DELTA_ONLY and self._reader.knows_type(type_url)

    def _settle_missing(self, subscription: Subscription, name: str, stamp: int, page: Page, *, forced: bool) -> bool:
        """A name that is not there: most clients can be told nothing of it; if it comes back, it is new."""
        if forced and self._is_error_due(subscription, name):
            if not page.fits(len(name) + ERROR_BYTES):
                return False
            page.fail(name, stamp)
        subscription.held.pop(name, None)
        return True

    def _next_state(self, subscription: Subscription) -> Response | None:
        """A whole set, if anything in it is new to the client; what is gone stays in it until it may leave."""
        stamp = min((*subscription.forced.values(), *subscription.dirty.values()), default=self._stamp)
        is_asked = is_due = subscription.answer_due or bool(subscription.forced or subscription.too_large)
        retries = bool(subscription.forced)
        for name, since in (*subscription.forced.items(), *subscription.dirty.items()):
            resource = self._visible(subscription, name)
            if resource is None:
                subscription.waiting.pop(name, None)
                if name in subscription.held:
                    subscription.remove(name, since)
            elif resource.version == subscription.held.get(name):
                subscription.waiting.pop(name, None)
            elif not self._guard.holds_back(subscription, resource, since, self._clock()):
                waited = subscription.waiting.pop(name, None)
                stamp = stamp if waited is None else min(stamp, waited.stamp)
                is_due = retries = True
        state = self._state(subscription, retries=retries) if is_due else {}
        errors = self._errors_of(subscription, subscription.forced, state)
        subscription.forced.clear()
        subscription.dirty.clear()
        subscription.changed_again.clear()
        if not is_due or (not is_asked and state == subscription.state):
            return None
        response = self._send_state(subscription, state, stamp)
        return None if response is None else with_errors(response, errors)

    def _heartbeat(self, subscription: Subscription, resources: list[Resource]) -> Response | None:
        """Under the version of the last response, or the client takes it for an update.

        A whole set goes with its content: in one without, Envoy and gRPC would miss what is not named.
        """
        if subscription.in_flight:
            return None
        if _is_whole(subscription):
            return self._send_state(subscription, self._state(subscription, retries=False), NO_CHANGE)
        version = subscription.last_version
        nonce = self._take_off(subscription, Sent({}, (), NO_CHANGE, self._clock(), None, version, {}))
        return Response(
            subscription.type_url,
            nonce,
            (),
            (),
            self._reader.revision,
            version=version,
            heartbeats=tuple(resources),
            is_wrapped=True,
        )

    def _next_removal(self, subscription: Subscription, later: tuple[Subscription, ...]) -> Response | None:
        """A whole set without what is gone; it waits for this type's own ACK and for what may refer to it."""
        if subscription.in_flight or subscription.dirty:
            return None
        leaving = {name: subscription.removals[name] for name in self._may_leave(subscription, later)}
        for name in leaving:
            del subscription.removals[name]
            if name not in subscription.state:  # it was refused, and the client has been without it
                subscription.held.pop(name, None)
                subscription.nacks.pop(name, None)
        if subscription.state.keys().isdisjoint(leaving):
            return None
        return self._send_state(subscription, self._state(subscription, retries=False), min(leaving.values()), leaving)

    def _send_state(
        self, subscription: Subscription, state: dict[str, Resource], stamp: int, leaving: Iterable[str] = ()
    ) -> Response | None:
        """Send it, unless it is more than the client takes: it cannot be paged, so the last one stays in force."""
        head = len(subscription.type_url) + _ANY_HEAD
        if self._exceeds(subscription, WHOLE_SET, sum(len(item.body) + head for item in state.values())):
            subscription.answer_due = False
            for name in leaving:
                subscription.remove(name, stamp)
            return None
        current = [item for item in state.values() if self._is_wanted(subscription, item)]
        versions = {item.name: item.version for item in current if self._is_new(subscription, item)}
        if self._ledger is not None:
            self._ledger.forget(subscription.type_url, leaving)
        subscription.state = state
        for name in leaving:
            subscription.forget(name)
        if leaving:
            self._guard.uses_changed()
        response = self._send(subscription, list(state.values()), stamp, versions)
        subscription.held.update((item.name, item.version) for item in current)  # what it had before, too
        return response

    def _state(self, subscription: Subscription, *, retries: bool) -> dict[str, Resource]:
        """The whole set as the client should have it now, sorted by name.

        The place of a refused version is taken by the one that was accepted before, that of a version that waits for
        clusters by the one that was sent before, if there was one. What was refused without a word on which of several
        is bad goes once more with a change of any of them (`retries`), not with what only takes away. A client that has
        a set of another stream gets what it refused once more with the next change: it would take the absence of a
        resource for its deletion, and nobody knows what it accepted.
        """
        found: dict[str, Resource] = {}
        if subscription.is_wildcard or subscription.globs:
            everything = self._reader.wildcard(self.view, subscription.type_url)
            found = {item.name: item for item in everything if subscription.covers(item.name)}
        for name in subscription.names:
            resource = self._reader.get(self.view, subscription.type_url, name)
            if resource is not None:
                found[name] = resource
        for name in subscription.waiting:
            found.pop(name, None)
        for name in (*subscription.waiting, *subscription.removals):
            if name in subscription.state:
                found[name] = subscription.state[name]
        accepted = subscription.accepted or {}
        for name in subscription.nacks:
            if name in found and not self._is_wanted(subscription, found[name], retries=retries):
                del found[name]
                if name in accepted:
                    found[name] = accepted[name]
        return {name: found[name] for name in sorted(found)}

    def _is_new(self, subscription: Subscription, resource: Resource) -> bool:
        """Whether the client may refuse it: it has not accepted it, though it may have come in a set it refused."""
        if subscription.accepted is None:
            return subscription.held.get(resource.name) != resource.version
        accepted = subscription.accepted.get(resource.name)
        return accepted is None or accepted.version != resource.version

    def _is_wanted(self, subscription: Subscription, resource: Resource, *, retries: bool = True) -> bool:
        """Whether this version may be sent: the client has not refused it, or nothing is to be kept from it."""
        nack = subscription.nacks.get(resource.name)
        if nack is None or not self._quarantine or subscription.accepted is None:
            return True
        if self._reader.get(self.view, subscription.type_url, resource.name) != resource:
            return False
        return nack.version != resource.version or (retries and not nack.is_certain)

    def _send(
        self, subscription: Subscription, resources: list[Resource], stamp: int, versions: dict[str, str] | None
    ) -> Response:
        state = None if versions is None else subscription.state
        if versions is None:
            versions = {resource.name: resource.version for resource in resources}
        uses = uses_of([item for item in resources if item.name in versions], self._reader.references)
        version = content_version(resources)
        nonce = self._take_off(subscription, Sent(versions, (), stamp, self._clock(), state, version, uses))
        if subscription.type_url in REFERRING_TYPES:
            self._owe(merged(self._reader.references(item) for item in resources if item.name in versions))
        return Response(
            subscription.type_url,
            nonce,
            tuple(resources),
            (),
            self._reader.revision,
            version=version,
            is_wrapped=self._takes_ttl,
        )


def _is_whole(subscription: Subscription) -> bool:
    return subscription.type_url not in protocol.STATELESS_SETS
