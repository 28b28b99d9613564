"""The streams of one client that has a stream for each type: what its guards have to know across them.

In: streams that open and end, what clients ask and answer on them. Out: the subscriptions of the other streams, the
clusters that warm, and a call of `wake` for each stream that may go on. A client is a node id that one identity claims,
so nobody keeps anything from anybody else's streams. Streams of the same type all count: they may be one that is back
before the former one is known to be dead, or those of two processes under one node id.

Made by `xds.streams`, for types that refer to each other; aggregated streams have none, so of a client that takes some
types by one the others are guarded among themselves only. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol

import msgspec

from xdsbpf.model.names import CLUSTER, SECRET
from xdsbpf.model.resource import Resource
from xdsbpf.xds.references import USING_TYPES, References
from xdsbpf.xds.response import content_version
from xdsbpf.xds.subscription import Subscription
from xdsbpf.xds.warming import COMES_WITHIN_S, NEEDED_TYPES, Warming

LINKED_TYPES: Final = USING_TYPES | NEEDED_TYPES | {CLUSTER}

AWAY_S: Final = 30.0
"""How long listeners and routes may be without a stream: Envoy waits for up to that before it opens one again on which
nothing came the last times. It costs a cluster that nobody uses."""

Wake = Callable[[], None]
"""Let a stream look again whether it has something to send; must not do so at once."""


class ClientKey(msgspec.Struct, frozen=True):
    """Who opened a stream. `identities` are of its certificate; a local plaintext peer has none and is trusted.

    `kind` and `node` are of its view; the scopes of that may change while a stream is open.
    """

    node_id: str
    identities: tuple[str, ...]
    is_encrypted: bool
    kind: str
    node: str


class Member(Protocol):
    """What is asked of a session."""

    def subscriptions(self) -> tuple[Subscription, ...]: ...


class Siblings:
    """All streams of one client, by type, the newest of a type last."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.warming = Warming()
        self.revision = 0
        """Differs after all that may end the wait of a route or listener."""
        self.uses_revision = 0
        """Differs after all that may let a cluster leave."""
        self._clock = clock
        self._members: dict[str, dict[Member, Wake]] = {}
        self._opened_at = self._without_clusters_since = clock()
        self.had_clusters = False
        """Whether there has been a stream for clusters."""
        self._left: tuple[dict[str, Resource], ...] = ()
        """The sets of clusters that were accepted and sent last on a stream that has ended; state of the world only."""
        self._away: dict[tuple[str, str], tuple[frozenset[str], float]] = {}
        """Clusters that a route or listener names whose stream has ended, and until when it is expected back."""

    @property
    def now(self) -> float:
        return self._clock()

    @property
    def is_empty(self) -> bool:
        return not self._members

    def join(self, type_url: str, member: Member, wake: Wake) -> None:
        """A stream of that type is open; its first request has not been taken yet."""
        self._members.setdefault(type_url, {})[member] = wake

    def leave(self, type_url: str, member: Member) -> None:
        """It has ended. What its client has lives on, and so does what that names, until it is back or stays away."""
        del self._members[type_url][member]
        if not self._members[type_url]:
            del self._members[type_url]
        now = self._clock()
        for subscription in member.subscriptions():
            if type_url in NEEDED_TYPES:
                self.warming.left(subscription, now)
            elif type_url in USING_TYPES:
                self._remember(subscription, now)
            else:
                self.had_clusters = True
                self._left = (subscription.accepted or {}, subscription.state)
        if type_url == CLUSTER and not self.clusters():
            self._without_clusters_since = now
        self.clusters_moved()
        self.uses_changed()

    def clusters(self) -> list[Subscription]:
        """What the client has of clusters, on each stream for them."""
        return self._of(CLUSTER)

    def users(self) -> Iterator[Subscription]:
        """What it has of types that send traffic to clusters."""
        for type_url in USING_TYPES & self._members.keys():
            yield from self._of(type_url)

    @property
    def knows_clusters(self) -> bool:
        """Whether the client takes its clusters here, or may be about to: its streams come one by one."""
        return CLUSTER in self._members or self._clock() < self._without_clusters_since + COMES_WITHIN_S

    def uses_away(self) -> Iterator[tuple[str, frozenset[str], float]]:
        """Who uses clusters though its stream is not there, these clusters, and until when they are kept for it."""
        now = self._clock()
        for key, (_, until) in tuple(self._away.items()):
            if until <= now:
                del self._away[key]
        for (type_url, name), (clusters, until) in self._away.items():
            yield f"{type_url.rpartition('.')[2]} {name}".strip(), clusters, until

    def clusters_left(self, version: str) -> dict[str, Resource] | None:
        """The set of clusters that the client has by a stream that has ended, under that version; None if unknown."""
        return next((found for found in self._left if found and content_version(found.values()) == version), None)

    def clusters_gone(self, names: Iterable[str]) -> None:
        """A client that is back has clusters that are gone: its listeners and routes may not be back yet."""
        until = self._opened_at + COMES_WITHIN_S
        if self._clock() < until:
            self._away["", "a listener or route"] = (frozenset(names), until)

    def clusters_sent(self, new: Mapping[str, References], changed: Iterable[References]) -> None:
        """Clusters go out: those that the client does not have, or still warms, and others; see `Warming`."""
        secrets = self._of(SECRET)
        for name, references in new.items():
            self.warming.sent(name, references, secrets)
        for references in changed:
            self.warming.changed(references)

    def heard(self, subscription: Subscription, *, is_first: bool) -> None:
        """A request has been taken on the stream of that subscription."""
        if subscription.type_url == CLUSTER:
            self.warming.clusters_answered(subscription, self._clock())
            self._left = ()  # whoever is back has looked at it
        elif subscription.type_url in USING_TYPES:
            self.uses_changed()
        elif self.warming.heard(subscription, is_back=is_first and subscription.accepted is None):
            self.clusters_moved()

    def settled(self, type_url: str) -> None:
        """A stream of that type has nothing to send now; what it was owed may have come to nothing."""
        if type_url in USING_TYPES:
            self.uses_changed()

    def took(self, type_url: str, name: str) -> None:
        """The client has that listener or route by a stream that is there."""
        self._away.pop((type_url, name), None)

    def clusters_moved(self) -> None:
        """A cluster has come, gone, been answered or become warm: what waits for clusters is to be looked at."""
        self.revision += 1
        for type_url in USING_TYPES & self._members.keys():
            for member, wake in self._members[type_url].items():
                if any(subscription.waiting for subscription in member.subscriptions()):
                    wake()

    def uses_changed(self) -> None:
        """Something that sends traffic has been answered, given up or settled: clusters may be free to go."""
        self.uses_revision += 1
        for member, wake in self._members.get(CLUSTER, {}).items():
            if any(subscription.removals for subscription in member.subscriptions()):
                wake()

    def _of(self, type_url: str) -> list[Subscription]:
        return [found for member in self._members.get(type_url, ()) for found in member.subscriptions()]

    def _remember(self, subscription: Subscription, now: float) -> None:
        """Of what was sent and not answered nobody knows which version the client has; any cluster may be in use.

        What it had of an older stream still counts as remembered then.
        """
        uses = dict(subscription.uses)
        for name in subscription.unknown_uses:
            known = self._away.get((subscription.type_url, name))
            everything = frozenset[str]().union(*(clusters.held for clusters in self.clusters()))
            uses[name] = everything if known is None else known[0]
        for sent in subscription.in_flight.values():
            for name, clusters in sent.uses.items():
                uses[name] = uses.get(name, frozenset()) | clusters
        for name, clusters in uses.items():
            self._away[subscription.type_url, name] = (clusters, now + AWAY_S)


class Clients:
    """The siblings of every client that has streams of single types. Cost: one entry per such client."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._clients: dict[ClientKey, Siblings] = {}

    def siblings(self, key: ClientKey) -> Siblings:
        """Those of one client; to be joined at once."""
        found = self._clients.get(key)
        if found is None:
            found = self._clients[key] = Siblings(self._clock)
        return found

    def leave(self, key: ClientKey, type_url: str, member: Member) -> None:
        """A stream of that client has ended. Node ids come from peers: nothing is kept of one that is gone."""
        found = self._clients[key]
        found.leave(type_url, member)
        if found.is_empty:
            del self._clients[key]
