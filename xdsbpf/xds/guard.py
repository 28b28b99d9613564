"""The reference guard: a route goes to a client only when its clusters are there, and they go only after it.

Envoy accepts a route to a cluster that it does not have, or that is still warming, and answers 503. So what the
client has of a listener or route stays in force until the clusters of the new version were sent on this stream and
ACKed: Envoy ACKs clusters when they are warm. No wait is for ever, except for a cluster that the client refused.
A cluster that is gone stays until no listener or route that the client has ACKed names it.

In: the subscriptions of one session, a resource about to be sent, the time. Out: what is in its way. One instance
per session; only aggregated streams are guarded, others cannot be ordered. Pure; cost per resource: what is
unsettled, not what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from xdsbpf.model.names import CLUSTER
from xdsbpf.model.resource import Resource
from xdsbpf.xds.references import USING_TYPES
from xdsbpf.xds.response import Reader
from xdsbpf.xds.store import View
from xdsbpf.xds.subscription import Missing, Reason, Subscription, Waiting

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
}


class ClusterGuard:
    """Which resources of one stream wait for clusters, and which clusters for resources."""

    def __init__(
        self, view: View, reader: Reader, subscriptions: Mapping[str, Subscription], *, is_aggregated: bool
    ) -> None:
        self.view = view
        self._reader = reader
        self._subscriptions = subscriptions
        self._is_aggregated = is_aggregated
        self._foreign: set[str] = set()
        """Names that were waited for in vain: the bootstrap of the client has them, or nobody."""
        self._next_limit: float | None = None
        """When the first wait ends at the latest; None if nothing waits."""
        self._has_moved = False
        self._uses_changed = False

    @property
    def wake_at(self) -> float | None:
        """When to look again although nothing has happened; None if not at all."""
        return None if self._next_limit in (None, float("inf")) else self._next_limit

    def is_due(self, now: float) -> bool:
        """Whether something that waits may go now."""
        return self._next_limit is not None and (self._has_moved or now >= self._next_limit)

    def clusters_moved(self) -> None:
        """A cluster has come, gone, or been answered: look again at what waits."""
        self._has_moved = True

    def resume(self) -> None:
        """Queue what waits, to be looked at again."""
        self._has_moved, self._next_limit = False, None
        for subscription in self._subscriptions.values():
            if subscription.waiting:
                subscription.resume_waiting()

    def holds_back(self, subscription: Subscription, resource: Resource, stamp: int, now: float) -> bool:
        """Whether a resource that is new to the client must wait; if so, it is noted in `subscription.waiting`."""
        if not self._is_aggregated or subscription.type_url not in USING_TYPES:
            return False
        name = resource.name
        missing = tuple(self._missing(subscription, resource))
        if not missing:
            return False
        before = subscription.waiting.get(name)
        since = now if before is None else before.since
        limit = FIRST_S if name not in subscription.held else max(_LIMITS[one.reason] for one in missing)
        until = since + limit
        if until <= now:
            self._foreign.update(one.cluster for one in missing if _LIMITS[one.reason] == UNKNOWN_S)
            return False
        oldest = stamp if before is None else min(stamp, before.stamp)
        subscription.waiting[name] = Waiting(oldest, since, until, missing)
        if self._next_limit is None:
            self._has_moved, self._next_limit = False, until  # whatever moved before is in `missing`
        else:
            self._next_limit = min(until, self._next_limit)
        return True

    def may_go(self, subscription: Subscription, wanted: frozenset[str]) -> bool:
        """Whether resources that are new to the client and name these clusters may go, without a look at each."""
        if not wanted or not self._is_aggregated or subscription.type_url not in USING_TYPES:
            return True
        return all(missing.reason is Reason.UNASKED for missing in self._unsettled(wanted))

    def took(self, subscription: Subscription, uses: Mapping[str, frozenset[str]]) -> None:
        """The client has these resources now, with the clusters that they name; of what it gave up nothing counts."""
        for name, clusters in uses.items():
            if clusters and name in subscription.held:
                subscription.uses[name] = clusters
            else:
                subscription.uses.pop(name, None)
        subscription.unknown_uses.difference_update(uses)
        self._uses_changed = True

    def uses_changed(self) -> None:
        """The client has lost listeners or routes: look again at clusters that they kept."""
        self._uses_changed = True

    def free(self, subscription: Subscription, leaving: Iterable[str]) -> list[str]:
        """Of clusters that are gone, those that no listener or route of the client names; all of another type.

        One that the client has of another stream, in a version that nobody knows any more, may name each of them.
        Who keeps the others is in `subscription.kept`. A cluster that the client asked for by name goes at once: with
        the next request for it the client asks again. Cost: O(resources that name clusters), if anything changed.
        """
        names = list(leaving)
        if subscription.type_url != CLUSTER or not names:
            return names
        bound = frozenset(names)
        if not any(other.unknown_uses for other in self._subscriptions.values()):
            bound -= subscription.names
        if self._uses_changed or not subscription.kept.keys() >= bound:
            self._uses_changed = False
            subscription.kept = dict(self._keepers(bound))
        return [name for name in names if name not in subscription.kept]

    def _keepers(self, names: frozenset[str]) -> Iterator[tuple[str, str]]:
        for other in self._subscriptions.values():
            kind = other.type_url.rpartition(".")[2]
            if other.unknown_uses:
                keeper = f"perhaps {kind} {min(other.unknown_uses)}".rstrip()
                yield from dict.fromkeys(names, f"{keeper} of an older stream").items()
            for user, clusters in other.uses.items():
                for cluster in clusters & names:
                    yield cluster, f"{kind} {user}"

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
        clusters = self._subscriptions.get(CLUSTER)
        if clusters is None:
            for name in sorted(wanted - self._foreign):
                if self._is_for_all(name):
                    yield Missing(name, Reason.UNASKED)
            return
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
