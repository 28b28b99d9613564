"""The reference guard: a route goes to a client only when its clusters are there, and they go only after it.

Envoy accepts a route to a cluster that it does not have, or that is still warming, and answers 503. So what the
client has of a listener or route stays in force until the clusters of the new version were sent and ACKed: on an
aggregated stream Envoy ACKs clusters when they are warm, on others `xds.warming` tells. No wait is for ever, except for
a cluster that the client refused. A cluster that is gone stays until no listener or route that the client has ACKed
names it.

In: the subscriptions of one session and of its siblings, a resource about to be sent, the time. Out: what is in its
way. One instance per session; a stream of a single type without siblings is not guarded. Pure; cost per resource: what
is unsettled, not what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from xdsbpf.model.names import CLUSTER
from xdsbpf.model.resource import Resource
from xdsbpf.xds.references import USING_TYPES, References
from xdsbpf.xds.response import Reader
from xdsbpf.xds.siblings import Siblings
from xdsbpf.xds.store import View
from xdsbpf.xds.subscription import Subscription
from xdsbpf.xds.waits import Missing, Reason, Waiting
from xdsbpf.xds.warming import COMES_WITHIN_S

UNKNOWN_S: Final = 0.5
"""For a cluster that nobody has written yet, or that the bootstrap of the client has: once per name and stream."""
FIRST_S: Final = 5.0
"""For a resource of which the client has no version: it may be waiting for it."""
WARM_S: Final = 20.0
"""For a cluster that the client is warming; Envoy gives up after 15 s and goes on without endpoints."""

_LIMITS: Final = {
    Reason.UNKNOWN: UNKNOWN_S,
    Reason.UNASKED: UNKNOWN_S,
    Reason.UNSENT: WARM_S,
    Reason.WARMING: WARM_S,
    Reason.REFUSED: float("inf"),
    Reason.AWAY: COMES_WITHIN_S,
    Reason.LAGGING: COMES_WITHIN_S,
    Reason.UNFED: COMES_WITHIN_S,
    Reason.INCOMPLETE: WARM_S,
}


class ClusterGuard:
    """Which resources of one stream wait for clusters, and which clusters for resources."""

    def __init__(
        self,
        view: View,
        reader: Reader,
        subscriptions: Mapping[str, Subscription],
        *,
        is_aggregated: bool,
        siblings: Siblings | None = None,
    ) -> None:
        self.view = view
        self._reader = reader
        self._subscriptions = subscriptions
        self._is_aggregated = is_aggregated
        self._siblings = siblings
        self._revision = self._uses_revision = 0
        """Of the siblings, when this was last looked at."""
        self._foreign: set[str] = set()
        """Names that were waited for in vain: the bootstrap of the client has them, or nobody."""
        self.next_limit: float | None = None
        """When the first wait ends at the latest; None if nothing waits."""
        self._has_moved = False
        self._uses_changed = False

    @property
    def wake_at(self) -> float | None:
        """When to look again although nothing has happened; None if not at all."""
        return None if self.next_limit in (None, float("inf")) else self.next_limit

    def is_due(self, now: float) -> bool:
        """Whether something that waits may go now."""
        if self.next_limit is None:
            return False
        if self._siblings is not None and self._siblings.revision != self._revision:
            return True
        return self._has_moved or now >= self.next_limit

    def clusters_moved(self) -> None:
        """A cluster has come, gone, or been answered: look again at what waits."""
        self._has_moved = True
        if self._siblings is not None:
            self._siblings.clusters_moved()

    def resume(self) -> None:
        """Queue what waits, to be looked at again."""
        self._look_from_now()
        self.next_limit = None
        self._uses_changed = self._uses_changed or self._siblings is not None  # who was away may be taken to stay away
        for subscription in self._subscriptions.values():
            if subscription.waiting:
                subscription.resume_waiting()

    def holds_back(self, subscription: Subscription, resource: Resource, stamp: int, now: float) -> bool:
        """Whether a resource that is new to the client must wait; if so, it is noted in `subscription.waiting`."""
        if subscription.type_url not in USING_TYPES or not self._is_on:
            return False
        name = resource.name
        missing = tuple(self._missing(subscription, resource))
        if not missing:
            return False
        before = subscription.waiting.get(name)
        since = now if before is None else before.since
        until = max(self._until(one, since) for one in missing)
        if name not in subscription.held:
            until = min(until, since + FIRST_S)
        if until <= now:
            self._foreign.update(one.cluster for one in missing if _LIMITS[one.reason] == UNKNOWN_S)
            return False
        oldest = stamp if before is None else min(stamp, before.stamp)
        subscription.waiting[name] = Waiting(oldest, since, until, missing)
        if self.next_limit is None:
            self._look_from_now()  # whatever moved before is in `missing`
            self.next_limit = until
        else:
            self.next_limit = min(until, self.next_limit)
        return True

    def may_go(self, subscription: Subscription, wanted: frozenset[str]) -> bool:
        """Whether resources that are new to the client and name these clusters may go, without a look at each."""
        if not wanted or not self._is_on or subscription.type_url not in USING_TYPES:
            return True
        return all(missing.reason is Reason.UNASKED for missing in self._unsettled(wanted))

    def took(self, subscription: Subscription, uses: Mapping[str, frozenset[str]]) -> None:
        """The client has these resources now, with the clusters that they name; of what it gave up nothing counts."""
        for name, clusters in uses.items():
            if clusters and name in subscription.held:
                subscription.uses[name] = clusters
            else:
                subscription.uses.pop(name, None)
            if self._siblings is not None:
                self._siblings.took(subscription.type_url, name)
        subscription.unknown_uses.difference_update(uses)
        self._uses_changed = True

    def uses_changed(self) -> None:
        """The client has lost listeners or routes: look again at clusters that they kept."""
        self._uses_changed = True

    def clusters_sent(self, subscription: Subscription, names: Iterable[str]) -> None:
        """Clusters are about to go out: those that the client does not have will warm. Before `held` has them."""
        if self._siblings is None:
            return
        new: dict[str, References] = {}
        changed: list[References] = []
        for name in names:
            cluster = self._reader.get(self.view, CLUSTER, name)
            if cluster is None:
                continue
            references = self._reader.references(cluster)
            if name not in subscription.held or name in self._siblings.warming:
                new[name] = references
            else:
                changed.append(references)
        self._siblings.clusters_sent(new, changed)

    def keeps_clusters(self, subscription: Subscription) -> bool:
        """Whether these are clusters that siblings may use: one that is gone leaves after what names it."""
        return self._siblings is not None and subscription.type_url == CLUSTER

    def users_elsewhere(self, subscription: Subscription) -> Iterator[Subscription]:
        """What a sibling of this stream of clusters has, and may name them."""
        if self.keeps_clusters(subscription) and self._siblings is not None:
            yield from self._siblings.users()

    def free(self, subscription: Subscription, leaving: Iterable[str]) -> list[str]:
        """Of clusters that are gone, those that no listener or route of the client names; all of another type.

        One that the client has of another stream, in a version that nobody knows any more, may name each of them.
        Who keeps the others is in `subscription.kept`. A cluster that the client asked for by name goes at once: with
        the next request for it the client asks again. Cost: O(resources that name clusters), if anything changed.
        """
        names = list(leaving)
        if subscription.type_url != CLUSTER or not names:
            return names
        users = (*self._subscriptions.values(), *self.users_elsewhere(subscription))
        bound = frozenset(names)
        if not any(other.unknown_uses for other in users):
            bound -= subscription.names
        if self._take_uses_changed() or not subscription.kept.keys() >= bound:
            self._uses_changed = False
            subscription.kept = dict(self._keepers(users, bound))
        return [name for name in names if name not in subscription.kept]

    @property
    def _is_on(self) -> bool:
        return self._is_aggregated or (self._siblings is not None and self._siblings.knows_clusters)

    def _look_from_now(self) -> None:
        self._has_moved = False
        if self._siblings is not None:
            self._revision = self._siblings.revision

    def _until(self, missing: Missing, since: float) -> float:
        if missing.reason is Reason.UNFED and self._siblings is not None:
            return self._siblings.warming.asked_until(missing.cluster, since)
        if missing.reason is Reason.UNASKED and self._siblings is not None:
            return since + COMES_WITHIN_S
        return since + _LIMITS[missing.reason]

    def _take_uses_changed(self) -> bool:
        if self._siblings is None:
            return self._uses_changed
        before, self._uses_revision = self._uses_revision, self._siblings.uses_revision
        return self._uses_changed or before != self._uses_revision

    def _keepers(self, users: Iterable[Subscription], names: frozenset[str]) -> Iterator[tuple[str, str]]:
        for other in users:
            kind = other.type_url.rpartition(".")[2]
            if other.unknown_uses:
                keeper = f"perhaps {kind} {min(other.unknown_uses)}".rstrip()
                yield from dict.fromkeys(names, f"{keeper} of an older stream").items()
            for user, clusters in other.uses.items():
                for cluster in clusters & names:
                    yield cluster, f"{kind} {user}"
        if self._siblings is not None:
            for user, clusters, until in self._siblings.uses_away():
                for cluster in clusters & names:
                    yield cluster, f"{user}, whose stream is expected back,"
                    self.next_limit = until if self.next_limit is None else min(until, self.next_limit)

    def _missing(self, subscription: Subscription, resource: Resource) -> Iterator[Missing]:
        """What a resource names and the client cannot use yet.

        What does not exist here is waited for only where the client has an older version that works.
        """
        wanted = self._reader.references(resource).clusters
        if not wanted:
            return
        is_update = resource.name in subscription.held
        for missing in self._unsettled(wanted):
            if is_update or missing.reason is not Reason.UNASKED:
                yield missing
        if is_update:
            unknown = self._reader.unknown_clusters(self.view, resource)
            used = subscription.uses.get(resource.name, frozenset())
            for name in sorted(unknown - used - self._foreign):
                yield Missing(name, Reason.UNKNOWN)

    def _unsettled(self, wanted: frozenset[str]) -> Iterator[Missing]:
        """Clusters of the client's view that it is to have through its wildcard, and has not.

        One that it asks for by name, or on demand, is its own concern: it may do so because of the route.
        """
        if self._siblings is not None:
            yield from self._unsettled_elsewhere(wanted, self._siblings)
            return
        clusters = self._subscriptions.get(CLUSTER)
        if clusters is not None:
            yield from self._unsettled_on(clusters, wanted)
            return
        for name in sorted(wanted - self._foreign):
            if self._is_for_all(name):
                yield Missing(name, Reason.UNASKED)

    def _unsettled_elsewhere(self, wanted: frozenset[str], siblings: Siblings) -> Iterator[Missing]:
        """The same by the streams of the siblings; what one of several has, the others are not waited for for long."""
        streams = [each for each in siblings.clusters() if each.is_wildcard or each.globs]
        if not siblings.clusters():
            absent = Reason.AWAY if siblings.had_clusters else Reason.UNASKED
            yield from (Missing(name, absent) for name in sorted(wanted) if self._is_for_all(name))
        found = [{missing.cluster: missing for missing in self._unsettled_on(each, wanted)} for each in streams]
        unsettled = frozenset[str]().union(*found)
        for name in sorted(unsettled):
            newest = found[-1].get(name)
            is_had = any(name not in one for one in found)
            yield Missing(name, Reason.LAGGING) if is_had or newest is None else newest
        for name in sorted(siblings.warming.among(wanted - unsettled)):
            if any(each.covers(name) for each in streams) and self._is_for_all(name):
                reason = siblings.warming.reason(name, siblings.now)
                if reason is not None:
                    yield Missing(name, reason)

    def _unsettled_on(self, clusters: Subscription, wanted: frozenset[str]) -> Iterator[Missing]:
        if not clusters.is_wildcard and not clusters.globs:
            return
        is_behind = clusters.has_names_queued or clusters.withheld
        unsent = wanted - clusters.held.keys() if is_behind else frozenset[str]()
        for name in sorted(unsent | (wanted & clusters.unusable)):
            if not clusters.covers(name) or not self._is_for_all(name):
                continue
            if name in clusters.nacks:
                yield Missing(name, Reason.REFUSED)
            else:
                yield Missing(name, Reason.UNSENT if name in unsent else Reason.WARMING)

    def _is_for_all(self, name: str) -> bool:
        cluster = self._reader.get(self.view, CLUSTER, name)
        return cluster is not None and not cluster.on_demand
