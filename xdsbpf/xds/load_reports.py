"""Load that clients report, added up: requests by cluster and outcome, requests in progress, drops.

In: LoadStatsRequests of connected clients. Out: one frozen row per cluster, for `/loads` and the metrics. A client
reports what it counted since its last report, so totals are sums; what is in progress is each client's last word and
goes when the client goes. Pure: no clock, no I/O. Bounded, since peers choose the names: clusters and categories beyond
a limit, and those with long names, are counted under one name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec
from envoy.service.load_stats.v3.lrs_pb2 import LoadStatsRequest

MAX_CLUSTERS: Final = 50_000
"""Clusters that are counted by name."""
MAX_CATEGORIES: Final = 20_000
"""Categories of drops that are counted by name, over all clusters."""
MAX_IN_PROGRESS: Final = 1_000_000
"""Clusters of connected clients, each client's counted, whose requests in progress are kept by name."""
MAX_NAME: Final = 1_024
"""Characters of a name; that of a cluster of the mesh has a few hundred at most."""
OTHER: Final = "(other)"
"""Where the rest is counted."""
_CATEGORIES_OF_ONE: Final = 32


class ClusterLoad(msgspec.Struct, frozen=True):
    """One cluster. `reporters` counts connected clients that named it; drops are by category, sorted."""

    cluster: str
    successful: int
    errors: int
    issued: int
    in_progress: int
    dropped: int
    drops: tuple[tuple[str, int], ...]
    reporters: int


class LoadReports:
    """Totals since the start of the process, over all clients that ever reported."""

    def __init__(self) -> None:
        self._successful = Counter[str]()
        self._errors = Counter[str]()
        self._issued = Counter[str]()
        self._dropped = Counter[str]()
        self._drops: dict[str, Counter[str]] = {}
        self._known: set[str] = set()
        self._categories = 0
        self._in_progress: dict[object, dict[str, int]] = {}
        self._entries = 0
        """Of all dicts in `_in_progress`."""
        self.reports = 0

    def open(self, reporter: object) -> None:
        """A client begins to report; give it back with `close`."""
        self._in_progress[reporter] = {}

    def close(self, reporter: object) -> None:
        """Forget what that client had in progress; its totals stay."""
        self._entries -= len(self._in_progress.pop(reporter, ()))

    def add(self, reporter: object, request: LoadStatsRequest) -> None:
        """Count one report. Cost: O(clusters x localities in it)."""
        in_progress = self._in_progress[reporter]
        self.reports += 1
        current = Counter[str]()
        for stats in request.cluster_stats:
            cluster = self._name(stats.cluster_name)
            for locality in stats.upstream_locality_stats:
                self._successful[cluster] += locality.total_successful_requests
                self._errors[cluster] += locality.total_error_requests
                self._issued[cluster] += locality.total_issued_requests
                current[cluster] += locality.total_requests_in_progress
            self._dropped[cluster] += stats.total_dropped_requests
            for drop in stats.dropped_requests:
                categories = self._drops.setdefault(cluster, Counter())
                categories[self._category(categories, drop.category)] += drop.dropped_count
        self._keep(in_progress, current)

    def rows(self) -> tuple[ClusterLoad, ...]:
        """Every cluster that was reported, sorted by name."""
        in_progress = Counter[str]()
        reporters = Counter[str]()
        for clusters in self._in_progress.values():
            in_progress.update(clusters)
            reporters.update(clusters.keys())
        return tuple(
            ClusterLoad(
                name,
                self._successful[name],
                self._errors[name],
                self._issued[name],
                in_progress[name],
                self._dropped[name],
                tuple(sorted(self._drops.get(name, Counter()).items())),
                reporters[name],
            )
            for name in sorted(self._known)
        )

    def _name(self, cluster: str) -> str:
        if cluster in self._known:
            return cluster
        if len(self._known) >= MAX_CLUSTERS or len(cluster) > MAX_NAME:
            cluster = OTHER
        self._known.add(cluster)
        return cluster

    def _keep(self, in_progress: dict[str, int], current: Counter[str]) -> None:
        """A client's last word on each cluster, or their sum where there is no room for more names."""
        before = len(in_progress)
        if self._entries + len(current.keys() - in_progress.keys()) > MAX_IN_PROGRESS:
            in_progress.clear()
            current = Counter({OTHER: current.total()})
            self._known.add(OTHER)
        elif OTHER not in current:
            in_progress.pop(OTHER, None)
        in_progress.update(current)
        self._entries += len(in_progress) - before

    def _category(self, known: Counter[str], category: str) -> str:
        if category in known:
            return category
        if len(known) >= _CATEGORIES_OF_ONE or self._categories >= MAX_CATEGORIES or len(category) > MAX_NAME:
            return OTHER
        self._categories += 1
        return category


def clusters_named(request: LoadStatsRequest) -> Iterable[str]:
    """The clusters that a request speaks of, each once."""
    return dict.fromkeys(stats.cluster_name for stats in request.cluster_stats)
