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
from xdsbpf.xds.subscription import Reason, Subscription

NEEDED_TYPES: Final = frozenset({ENDPOINTS, SECRET})
"""What a cluster may warm with."""
COMES_WITHIN_S: Final = 2.0
"""How long a client may take to open a stream that it needs; Envoy opens one at once, and again in half a second."""
_UNSEEN: Final = ("", "")
"""A need that nobody asks this server for."""


class _Need:
    """One assignment or secret that one cluster waits for, since a stamp."""

    def __init__(self, stamp: int) -> None:
        self.stamp = stamp
        self.asking: set[Subscription] = set()
        """Asked for there, and not accepted yet."""
        self.is_met = False


class _Cluster:
    """A cluster that was sent, and is not known to be warm."""

    def __init__(self) -> None:
        self.needs: dict[tuple[str, str], _Need] = {}
        self.asks_from: float | None = None
        """Since when the client has been free to ask; None before it has accepted the cluster."""


class Warming:
    """Clusters that one client warms, by name."""

    def __init__(self) -> None:
        self._clusters: dict[str, _Cluster] = {}
        self._users: dict[str, dict[str, set[str]]] = {}
        """Type -> name of what is needed -> the clusters that need it."""

    def __contains__(self, cluster: str) -> bool:
        return cluster in self._clusters

    def among(self, wanted: frozenset[str]) -> frozenset[str]:
        """Those of the clusters that may not be warm."""
        return wanted & self._clusters.keys()

    def sent(self, cluster: str, references: References, stamp: int, secrets: Iterable[Subscription]) -> None:
        """A cluster of which no version is warm goes out; `secrets` are what the client has of these.

        It does not ask again for a secret that it has. `stamp` is that of the last event on the cluster's stream.
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
        found = self._clusters[cluster] = _Cluster()
        for type_url, name in needs:
            found.needs[type_url, name] = _Need(stamp)
            self._users.setdefault(type_url, {}).setdefault(name, set()).add(cluster)

    def forget(self, cluster: str) -> None:
        """It is warm, or gone."""
        found = self._clusters.pop(cluster, None)
        for type_url, name in found.needs if found is not None else ():
            users = self._users[type_url][name]
            users.discard(cluster)
            if not users:
                del self._users[type_url][name]

    def clusters_answered(self, subscription: Subscription, now: float) -> None:
        """The client has said something on its stream for clusters. Cost: O(clusters that warm)."""
        for name, found in tuple(self._clusters.items()):
            if name not in subscription.held:
                self.forget(name)
            elif found.asks_from is None and name not in subscription.unusable:
                found.asks_from = now

    def heard(self, subscription: Subscription) -> bool:
        """The client has asked for something needed, or answered it; whether a cluster is warm now that was not.

        A question counts, and an answer to it; not the answer to a change that another cluster shares.
        """
        users = self._users.get(subscription.type_url)
        if not users:
            return False
        has_warmed = False
        for name in users.keys() & subscription.names:
            is_asked = subscription.is_asked(name)
            is_settled = not is_asked and subscription.is_settled(name)
            for cluster in tuple(users[name]):
                need = self._clusters[cluster].needs[subscription.type_url, name]
                if is_asked:
                    need.asking.add(subscription)
                elif is_settled and (subscription in need.asking or subscription.first_stamp > need.stamp):
                    need.asking.discard(subscription)
                    need.is_met = True
                    has_warmed |= self._is_warm(cluster)
        return has_warmed

    def left(self, subscription: Subscription, now: float) -> None:
        """A stream has ended: the client has to ask anew for what it was still to be answered."""
        for name in self._users.get(subscription.type_url, {}).keys() & subscription.names:
            for cluster in self._users[subscription.type_url][name]:
                found = self._clusters[cluster]
                asking = found.needs[subscription.type_url, name].asking
                if subscription in asking:
                    asking.discard(subscription)
                    found.asks_from = found.asks_from and now

    def reason(self, cluster: str, now: float) -> Reason | None:
        """Why the client cannot use a cluster that it has accepted; None if it can, as far as anybody knows."""
        found = self._clusters.get(cluster)
        if found is None:
            return None
        if any(need.asking for need in found.needs.values()):
            return Reason.INCOMPLETE
        if found.asks_from is None or now < found.asks_from + COMES_WITHIN_S:
            return Reason.UNFED
        self.forget(cluster)  # it has them from elsewhere
        return None

    def asked_until(self, cluster: str, since: float) -> float:
        """Until when the client may take to ask for what that cluster needs; it was waited for `since`."""
        found = self._clusters.get(cluster)
        return (since if found is None or found.asks_from is None else found.asks_from) + COMES_WITHIN_S

    def _is_warm(self, cluster: str) -> bool:
        """Forget a cluster that has all that it needs, on all streams that ask for it."""
        if all(need.is_met and not need.asking for need in self._clusters[cluster].needs.values()):
            self.forget(cluster)
            return True
        return False
