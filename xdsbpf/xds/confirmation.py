"""Whether a client has taken over what it was to take: the question behind `xdsbpf wait`.

In: a live session, the barrier of a change, and the resources that were made from certain manifests. Out: what is still
missing, with a reason for each. Pure; looks at a session and changes nothing.

Two questions, since neither is enough alone. Has the client answered everything up to the barrier? That covers removals
and resources that no longer come from those manifests. Does it hold the present version of each resource that does,
accepted? That covers what was refused, is withheld, or was never asked for.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from xdsbpf.model import names
from xdsbpf.model.resource import Resource
from xdsbpf.xds.barriers import Span
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.session import Session
from xdsbpf.xds.store import AGENT, NODE_ENVOY, ResourceStore
from xdsbpf.xds.subscription import Sent, Subscription

ALWAYS_ASKED: Final[Mapping[str, tuple[str, ...]]] = {
    AGENT: names.DATAPATH_TYPES,
    NODE_ENVOY: (names.LISTENER, names.VIRTUAL_HOST, names.EXTENSION),
}
"""By kind of client: types that every such client asks for, sooner or later."""


SHOWN: Final = 3
"""Names of an unanswered response that are shown."""


class Missing(enum.StrEnum):
    """Why something is missing at a client."""

    REFUSED = "refused"
    WITHHELD = "withheld"
    UNANSWERED = "unanswered"
    UNSENT = "unsent"
    UNASKED = "unasked"


class Gap(msgspec.Struct, frozen=True):
    """What a client is missing: a resource, or with an empty name an answer to something of that type."""

    type_url: str
    name: str
    missing: Missing
    reason: str


def behind(session: Session, span: Span) -> Iterator[Gap]:
    """Types of which the client has not been sent, or has not answered, something up to the end of `span`.

    Of removals only those count that belong to it: a removal waits for ever if what the client is to keep names what is
    gone. What a new stream is owed because of its first request counts as well: it may hold something older.
    Cost: O(names that wait), nothing for a stream at rest.
    """
    for subscription in session.subscriptions():
        limit = max(span.until, subscription.first_stamp)
        removals = [name for name, stamp in subscription.removals.items() if span.since < stamp <= limit]
        owed = [(nonce, sent) for nonce, sent in subscription.in_flight.items() if sent.stamp <= limit]
        if owed:
            yield Gap(subscription.type_url, "", Missing.UNANSWERED, f"no answer to {_described(*owed[0])}")
        elif subscription.answer_due or subscription.oldest_waiting() <= limit:
            yield Gap(subscription.type_url, "", Missing.UNSENT, "a change waits to be sent")
        elif removals:
            text = f"it is to be removed, when nothing that the client has accepted names it: {_listed(removals)}"
            yield Gap(subscription.type_url, "", Missing.UNSENT, text)


def _described(nonce: str, sent: Sent) -> str:
    names = [*sent.versions, *(f"{name} (removed)" for name in sent.removed)]
    return f"response {nonce}: {_listed(names) or 'nothing new'}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def gaps(session: Session, gate: Gate, store: ResourceStore, wanted: Iterable[Resource]) -> Iterator[Gap]:
    """Which of the resources `wanted` the client is to have and has not accepted in their present version.

    They are those of one scope of its view; where another scope has one of the same name, the one that it sees counts.
    What is not in its view, or not asked for, is no gap; a type that all clients of its kind ask for is.
    """
    subscriptions = {subscription.type_url: subscription for subscription in session.subscriptions()}
    at_rest = {type_url for type_url, subscription in subscriptions.items() if _is_at_rest(subscription)}
    expected = ALWAYS_ASKED.get(session.view.kind, ())
    unasked: set[str] = set()
    for found in wanted:
        type_url, name = found.type_url, found.name
        subscription = subscriptions.get(type_url)
        if subscription is None:
            if type_url in expected and type_url not in unasked:
                unasked.add(type_url)
                yield Gap(type_url, "", Missing.UNASKED, "the client has not asked for this type yet")
            continue
        if type_url in at_rest and subscription.held.get(name) == found.version:
            continue
        if name not in subscription.names and (found.on_demand or not subscription.covers(name)):
            continue
        resource = store.get(session.view, type_url, name)
        gap = _gap(subscription, gate, session.view.node, name, resource.version) if resource is not None else None
        if gap is not None:
            yield gap


def _is_at_rest(subscription: Subscription) -> bool:
    """Whether what it holds is what it has accepted; for most clients nearly always so."""
    unsettled = (subscription.in_flight, subscription.nacks, subscription.withheld, subscription.waiting)
    return not (any(unsettled) or subscription.forced)


def _gap(subscription: Subscription, gate: Gate, node: str, name: str, version: str) -> Gap | None:
    nack = subscription.nacks.get(name)
    if nack is not None and nack.version == version:
        return Gap(subscription.type_url, name, Missing.REFUSED, nack.text)
    if name in subscription.withheld:
        reasons = "; ".join(gate.explain(node, need) for need in subscription.withheld[name])
        return Gap(subscription.type_url, name, Missing.WITHHELD, reasons)
    if name in subscription.waiting:
        needs = "; ".join(map(str, subscription.waiting[name].missing))
        return Gap(subscription.type_url, name, Missing.WITHHELD, f"it waits for what it names: {needs}")
    if any(name in sent.versions for sent in subscription.in_flight.values()):
        return Gap(subscription.type_url, name, Missing.UNANSWERED, f"version {version} is sent, not answered")
    if subscription.held.get(name) != version or name in subscription.forced:
        held = subscription.held.get(name, "nothing")
        text = f"version {version} is about to be sent; the client holds {held}"
        return Gap(subscription.type_url, name, Missing.UNSENT, text)
    return None
