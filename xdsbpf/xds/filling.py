"""Which of the queued names go on the next page of a session: what is new, may go, and fits.

In: a queue of names, the store, what is in the way (the gate between the planes, the reference guard). Out: a page
that is fuller, and names noted as withheld or waiting. The lower half of `xds.session`. Pure.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Final

import msgspec

from xdsbpf.model import names
from xdsbpf.model.resource import Requirement, Resource
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.guard import ClusterGuard
from xdsbpf.xds.response import Page, Reader
from xdsbpf.xds.store import AGENT, View
from xdsbpf.xds.subscription import Subscription

_DATAPATH = frozenset(names.DATAPATH_TYPES)


GRPC_MAX_MESSAGE: Final = 4 << 20
"""What clients of gRPC take: at a larger message they close the stream, and open it again, for ever."""
_GRPC: Final = "grpc"
_ENVELOPE: Final = 1 << 10
"""More than what a response holds beside its resources."""


class Oversized(msgspec.Struct, frozen=True):
    """A resource that a client cannot be sent, or WHOLE_SET: all of its type together, and their bytes."""

    type_url: str
    name: str
    size: int


def max_message_of(view: View, metadata: Mapping[str, object]) -> int | None:
    """What a client takes in one message: a gRPC library not much."""
    return GRPC_MAX_MESSAGE if _is_grpc(view, metadata) else None


def takes_ttl(view: View, metadata: Mapping[str, object]) -> bool:
    """Whether a client of the state of the world takes a resource in a Resource, and a Resource without content.

    The specification spells the feature in two ways. gRPC libraries have it as well, but know no time to live, and
    refuse a Resource without content.
    """
    features = metadata.get("node.client_features", ())
    assert isinstance(features, tuple)
    is_able = any(f"xds.config.{name}" in features for name in ("supports-resource-in-sotw", "resource-in-sotw"))
    return is_able and (not _is_grpc(view, metadata) or "xds.config.supports-resource-ttl" in features)


def _is_grpc(view: View, metadata: Mapping[str, object]) -> bool:
    """Its user agent tells, or its view."""
    return view.kind == _GRPC or str(metadata.get("node.user_agent_name", "")).lower().startswith(_GRPC)


class PageFiller(abc.ABC):
    """What a session has to look at before a resource goes out; the session sets the attributes."""

    view: View
    takes_errors = False
    """The client reads `resource_errors`; set by the owner of a session before its first request."""
    _reader: Reader
    _gate: Gate | None
    _gate_revision: int
    _guard: ClusterGuard
    _clock: Callable[[], float]
    _max_message: int | None
    oversized: list[Oversized]
    _stamp: int
    _subscriptions: Mapping[str, Subscription]

    @abc.abstractmethod
    def _settle_missing(self, subscription: Subscription, name: str, stamp: int, page: Page, *, forced: bool) -> bool:
        """Settle a name that does not exist; false if it needs a page of its own."""

    @property
    def _is_gate_moved(self) -> bool:
        """Whether what is withheld may go now; every ACK of the node's Envoy moves the gate."""
        return self._gate is not None and self._gate.revision(self.view.node) != self._gate_revision

    def _look_at_gate(self) -> None:
        if self._gate is None:
            return
        revision = self._gate.revision(self.view.node)
        if revision == self._gate_revision:
            return
        self._gate_revision = revision
        for subscription in self._subscriptions.values():
            waiting, subscription.withheld = subscription.withheld, {}
            for name in waiting:
                subscription.mark(name, self._stamp)

    def _visible(self, subscription: Subscription, name: str) -> Resource | None:
        """The current resource if this subscription covers it."""
        resource = self._reader.get(self.view, subscription.type_url, name)
        if resource is None or name in subscription.names:
            return resource
        return resource if not resource.on_demand and subscription.covers(name) else None

    def _is_error_due(self, subscription: Subscription, name: str) -> bool:
        """Whether the client is to read that a name does not exist; there are errors of names and globs only."""
        return self.takes_errors and (name in subscription.names or name in subscription.globs)

    def _errors_of(self, subscription: Subscription, asked: Iterable[str], found: Container[str]) -> list[str]:
        """Of the names asked for those whose absence is to be read.

        Never one that is in the same response (TP3): what is gone may have to stay in a set; nor one that has to wait.
        """
        absent = (name for name in asked if name not in found and self._visible(subscription, name) is None)
        return [name for name in absent if self._is_error_due(subscription, name)]

    def _unmet(self, resource: Resource) -> tuple[Requirement, ...]:
        return self._gate.unmet(self.view.node, resource) if self._gate is not None else ()

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
            if resource is None:
                fits = self._settle_missing(subscription, name, stamp, page, forced=forced)
                subscription.withheld.pop(name, None)
                subscription.waiting.pop(name, None)
                subscription.too_large.pop(name, None)
            else:
                fits = self._settle(subscription, resource, stamp, page, forced=forced)
            if not fits:
                break
            taken.append(name)
        for name in taken:
            del queue[name]
        if not subscription.dirty:
            subscription.changed_again.clear()

    def _settle(self, subscription: Subscription, resource: Resource, stamp: int, page: Page, *, forced: bool) -> bool:
        """Settle one resource: sent, withheld or current already; false if it needs a page of its own."""
        name = resource.name
        held = subscription.held.get(name)
        is_new = resource.version != held
        if not is_new:
            subscription.withheld.pop(name, None)
            subscription.waiting.pop(name, None)
            if name in subscription.unknown_uses:  # what the client has of another stream is there again
                self._guard.took(subscription, {name: self._reader.references(resource).clusters})
            if not forced:
                return True
        unmet = self._unmet(resource) if is_new else ()
        if unmet:
            if self._is_to_be_announced(subscription, name):
                if not page.fits(len(name) + 8):
                    return False
                page.withhold(name, stamp)
            subscription.withheld[name] = unmet
            return True
        if is_new and self._guard.holds_back(subscription, resource, stamp, self._clock()):
            return True
        if self._exceeds(subscription, name, page.size(resource)):
            subscription.waiting.pop(name, None)
            return True
        if not page.fits(page.size(resource)):
            return False
        waited = subscription.waiting.pop(name, None)
        page.add(resource, stamp if waited is None else min(stamp, waited.stamp))
        subscription.withheld.pop(name, None)
        return True

    def _is_too_long(self, size: int) -> bool:
        return self._max_message is not None and size + _ENVELOPE > self._max_message

    def _exceeds(self, subscription: Subscription, name: str, size: int) -> bool:
        """Whether that is more than the client takes in a message: it keeps what it has, and the status says so."""
        if not self._is_too_long(size):
            if subscription.too_large:
                subscription.too_large.pop(name, None)
            return False
        subscription.too_large[name] = size
        self.oversized.append(Oversized(subscription.type_url, name, size))
        return True

    def _is_to_be_announced(self, subscription: Subscription, name: str) -> bool:
        """A client that starts takes what it is not told of for removed: a withheld resource is named to it.

        Only an agent: it keeps what the kernel has. An Envoy would take a bare name for a resource.
        """
        if self.view.kind != AGENT or subscription.type_url not in _DATAPATH or not subscription.is_first:
            return False
        return name not in subscription.held and name not in subscription.announced
