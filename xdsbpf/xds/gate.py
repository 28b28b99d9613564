"""The gate between the planes: a datapath resource waits for its node's Envoy.

In: what each node Envoy ACKed, NACKed or claims to hold. Out: for a resource in the view of a node, the
requirements that are not met yet. Envoy sessions write, agent sessions read. Pure; forgets a stream
when it closes, so a missing Envoy keeps the gate shut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xdsbpf.model import names
from xdsbpf.model.resource import AS_SERVED, Requirement, Resource
from xdsbpf.xds.response import Reader
from xdsbpf.xds.store import Key, View

NEVER_REQUIRED = frozenset({names.CLUSTER, names.ENDPOINTS})
"""Types that a requirement never names: clusters come when they are asked for, endpoints follow them. No book is kept
of them; they are the most of what a client holds."""


class EnvoyLedger:
    """What one stream of a node's Envoy is known to have accepted: type URL -> name -> version.

    `store` and `view` say what the stream is to have.
    """

    def __init__(self, gate: Gate, view: View, store: Reader) -> None:
        self._gate = gate
        self._view = view
        self._store = store
        self.node = view.node
        self.accepted: dict[str, dict[str, str]] = {}
        self.refused: dict[Key, tuple[str, str]] = {}

    def accept(self, type_url: str, versions: Mapping[str, str]) -> None:
        """Record an ACK, or versions that the client claims to hold."""
        if not versions or type_url in NEVER_REQUIRED:
            return
        self.accepted.setdefault(type_url, {}).update(versions)
        for name in versions if self.refused else ():
            self.refused.pop((type_url, name), None)
        self._gate.touch(self.node)

    def supersede(self, type_url: str, versions: Mapping[str, str]) -> None:
        """Record what is sent: an older version that was accepted may be out of force before the ACK arrives."""
        accepted = self.accepted.get(type_url)
        if accepted:
            for name, version in versions.items():
                if accepted.get(name, version) != version:
                    del accepted[name]

    def refuse(self, type_url: str, versions: Mapping[str, str], text: str) -> None:
        """Record a NACK: what Envoy still has counts again when it is sent and ACKed again."""
        if not versions or type_url in NEVER_REQUIRED:
            return
        for name, version in versions.items():
            self.refused[type_url, name] = (version, text)
        self._gate.touch(self.node)

    def needed(self, need: Requirement) -> str:
        """The version that meets a requirement; "" if there is none that could."""
        if need.version != AS_SERVED:
            return need.version
        served = self._store.get(self._view, need.type_url, need.name)
        return served.version if served is not None else ""

    def version(self, need: Requirement) -> str | None:
        """The version that was accepted of what `need` names, or None."""
        return self.accepted.get(need.type_url, {}).get(need.name)

    def meets(self, need: Requirement) -> bool:
        """Whether the Envoy holds what is required."""
        version = self.needed(need)
        return bool(version) and self.version(need) == version

    def forget(self, type_url: str, names: Iterable[str]) -> None:
        """Drop names that the client no longer holds (removed or unsubscribed)."""
        accepted = self.accepted.get(type_url, {})
        for name in names:
            accepted.pop(name, None)
            self.refused.pop((type_url, name), None)


class Gate:
    """Requirements of datapath resources against the ledgers of node Envoys.

    Of several streams with the same node the newest decides: a reconnect opens the new stream before
    the old one is known to be dead.
    """

    def __init__(self) -> None:
        self._streams: dict[str, list[EnvoyLedger]] = {}
        self._revisions: dict[str, int] = {}
        self._changes = 0

    def open(self, view: View, store: Reader) -> EnvoyLedger:
        """A ledger for a new stream of the Envoy of the view's node; give it back with `close`."""
        ledger = EnvoyLedger(self, view, store)
        self._streams.setdefault(view.node, []).append(ledger)
        self.touch(view.node)
        return ledger

    def close(self, ledger: EnvoyLedger) -> None:
        """Forget a stream that ended."""
        streams = self._streams[ledger.node]
        streams.remove(ledger)
        self.touch(ledger.node)
        if not streams:
            # Node names come from peers: nothing is kept of one that is gone.
            del self._streams[ledger.node], self._revisions[ledger.node]

    def touch(self, node: str) -> None:
        """Something about that node's Envoy changed: withheld resources are looked at again."""
        self._changes += 1
        self._revisions[node] = self._changes

    def revision(self, node: str) -> int:
        """Differs after every change that may open or shut the gate of that node; 0 while it has no Envoy."""
        return self._revisions.get(node, 0)

    def unmet(self, node: str, resource: Resource) -> tuple[Requirement, ...]:
        """The requirements of `resource` that the node's Envoy has not ACKed; empty means it may go."""
        if not resource.requires:
            return ()
        streams = self._streams.get(node)
        if not streams:
            return resource.requires
        return tuple(need for need in resource.requires if not streams[-1].meets(need))

    def explain(self, node: str, need: Requirement) -> str:
        """One sentence for the status: why that requirement is not met."""
        streams = self._streams.get(node)
        if not streams:
            return f"the Envoy of node {node} is not connected"
        refused = streams[-1].refused.get((need.type_url, need.name))
        version = streams[-1].needed(need)
        if refused is not None and refused[0] == version:
            return f"Envoy refused {need.name}: {refused[1]}"
        held = streams[-1].version(need)
        if held is None:
            return f"Envoy has not acknowledged {need.name} yet"
        return f"Envoy holds version {held} of {need.name}, {version or 'another one'} is needed"
