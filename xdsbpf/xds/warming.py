"""Which clusters of one client warm, where their own stream does not tell: Envoy ACKs them there at once.

A new cluster is warm when what it needs was asked for and ACKed: its endpoints, for which Envoy opens a stream of its
own, and secrets. Its main thread warms it and tells its workers before that ACK leaves, so what is sent after the ACK
finds it. Addresses from DNS and first health checks nobody sees but Envoy: they are given a moment.

In: clusters as they are sent, requests on the streams of the other types. Out: why a cluster cannot be used yet. Owned
by `xds.siblings`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from xdsbpf.model.names import ENDPOINTS, SECRET
from xdsbpf.xds.references import References
from xdsbpf.xds.subscription import Subscription
from xdsbpf.xds.waits import Reason

NEEDED_TYPES: Final = frozenset({ENDPOINTS, SECRET})
"""What a cluster may warm with."""
COMES_WITHIN_S: Final = 2.0
"""How long a client may take to open a stream that it needs; Envoy opens one at once, and again in half a second."""
_Key = tuple[str, str]
_UNSEEN: Final[_Key] = ("", "")
"""A need that nobody asks this server for."""


class _Need:
    """An assignment or a secret that clusters warm with."""

    def __init__(self) -> None:
        self.clusters: set[str] = set()
        self.streams: dict[Subscription, bool] = {}
        """Where it was asked for since they were sent, and whether the answer has been accepted."""
        self.expected = 0
        """As many streams ask at most."""


class _Cluster:
    """A cluster that was sent, and is not known to be warm."""

    def __init__(self, needs: Iterable[_Key]) -> None:
        self.needs = set(needs)
        self.asks_from: float | None = None
        """Since when the client has been free to ask; None before it has accepted the cluster."""


class Warming:
    """Clusters that one client warms, by name."""

    def __init__(self) -> None:
        self._clusters: dict[str, _Cluster] = {}
        self._needs: dict[str, dict[str, _Need]] = {}
        """By type and name."""

    def __contains__(self, cluster: str) -> bool:
        return cluster in self._clusters

    def among(self, wanted: frozenset[str]) -> frozenset[str]:
        """Those of the clusters that may not be warm."""
        return wanted & self._clusters.keys()

    def sent(self, cluster: str, references: References, secrets: Iterable[Subscription]) -> None:
        """A cluster of which no version is warm goes out; `secrets` are what the client has of these.

        It does not ask again for a secret that it has.
        """
        self.forget(cluster)
        needs = [(ENDPOINTS, name) for name in references.endpoints]
        if references.secrets:
            had = frozenset[str]().union(*(entry.held for entry in secrets))
            needs.extend((SECRET, name) for name in references.secrets - had)
        if references.warms_unseen:
            needs.append(_UNSEEN)
        if not needs:
            return
        self._clusters[cluster] = _Cluster(needs)
        for type_url, name in needs:
            need = self._needs.setdefault(type_url, {}).setdefault(name, _Need())
            need.clusters.add(cluster)
            need.expected += 1
            need.streams = {stream: False for stream, is_accepted in need.streams.items() if not is_accepted}

    def changed(self, references: References) -> None:
        """Another version of a warm cluster goes out: the client asks for endpoints for that one, too."""
        needs = self._needs.get(ENDPOINTS, {})
        for name in references.endpoints & needs.keys():
            needs[name].expected += 1

    def forget(self, cluster: str) -> None:
        """It is warm, or gone."""
        found = self._clusters.pop(cluster, None)
        for type_url, name in found.needs if found is not None else ():
            need = self._needs[type_url][name]
            need.clusters.discard(cluster)
            if not need.clusters:
                del self._needs[type_url][name]

    def clusters_answered(self, subscription: Subscription, now: float) -> None:
        """The client has said something on its stream for clusters. Cost: O(clusters that warm)."""
        for name, found in tuple(self._clusters.items()):
            if name not in subscription.held and name not in subscription.state:
                self.forget(name)
            elif found.asks_from is None and name not in subscription.unusable:
                found.asks_from = now

    def heard(self, subscription: Subscription, *, is_back: bool) -> bool:
        """The client has asked for something needed, or answered it; whether a cluster is warm now that was not.

        A question counts, and an answer to it: not the answer to a change, for another cluster may have that, too, and
        not the question of a stream that `is_back`, for the same reason.
        """
        needs = self._needs.get(subscription.type_url)
        if not needs:
            return False
        has_warmed = False
        for name in needs.keys() & subscription.names:
            need = needs[name]
            if subscription.is_asked(name):
                if not is_back:
                    need.streams[subscription] = False
            elif subscription in need.streams and subscription.is_settled(name):
                need.streams[subscription] = True
                has_warmed |= self._is_met(subscription.type_url, name, need)
        return has_warmed

    def left(self, subscription: Subscription, now: float) -> None:
        """A stream has ended: the client has to ask anew for what it was still to be answered."""
        needs = self._needs.get(subscription.type_url, {})
        for name in needs.keys() & subscription.names:
            if needs[name].streams.pop(subscription, True):
                continue
            for cluster in needs[name].clusters:
                found = self._clusters[cluster]
                found.asks_from = found.asks_from and now

    def reason(self, cluster: str, now: float) -> Reason | None:
        """Why the client cannot use a cluster that it has accepted; None if it can, as far as anybody knows."""
        found = self._clusters.get(cluster)
        if found is None:
            return None
        if any(not all(self._needs[type_url][name].streams.values()) for type_url, name in found.needs):
            return Reason.INCOMPLETE
        if found.asks_from is None or now < found.asks_from + COMES_WITHIN_S:
            return Reason.UNFED
        self.forget(cluster)  # it has them from elsewhere
        return None

    def asked_until(self, cluster: str, since: float) -> float:
        """Until when the client may take to ask for what that cluster needs; it was waited for `since`."""
        found = self._clusters.get(cluster)
        return (since if found is None or found.asks_from is None else found.asks_from) + COMES_WITHIN_S

    def _is_met(self, type_url: str, name: str, need: _Need) -> bool:
        """Settle a need that was answered wherever it was asked for; whether that makes a cluster warm.

        Each cluster has a stream of its own for its endpoints, and nobody sees which. Secrets they share.
        """
        enough = need.expected if type_url == ENDPOINTS else 1
        if len(need.streams) < enough or not all(need.streams.values()):
            return False
        del self._needs[type_url][name]
        has_warmed = False
        for cluster in need.clusters:
            self._clusters[cluster].needs.discard((type_url, name))
            if not self._clusters[cluster].needs:
                del self._clusters[cluster]
                has_warmed = True
        return has_warmed
