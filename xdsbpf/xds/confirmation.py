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
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.session import Session
from xdsbpf.xds.store import AGENT, NODE_ENVOY, Key, ResourceStore
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


def behind(session: Session, barrier: int) -> Iterator[Gap]:
    """Types of which the client has not been sent, or has not answered, something up to `barrier`.

    What a new stream is owed because of its first request counts as well: it may hold something older.
    Cost: O(names that wait), nothing for a stream at rest.
    """
    for subscription in session.subscriptions():
        limit = max(barrier, subscription.first_stamp)
        owed = [(nonce, sent) for nonce, sent in subscription.in_flight.items() if sent.stamp <= limit]
        if owed:
            yield Gap(subscription.type_url, "", Missing.UNANSWERED, f"no answer to {_described(*owed[0])}")
        elif subscription.answer_due or subscription.oldest_waiting() <= limit:
            yield Gap(subscription.type_url, "", Missing.UNSENT, "a change waits to be sent")


def _described(nonce: str, sent: Sent) -> str:
    names = [*sent.versions, *(f"{name} (removed)" for name in sent.removed)]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"response {nonce}: {', '.join(names[:SHOWN]) or 'nothing new'}{more}"


def gaps(session: Session, gate: Gate, store: ResourceStore, wanted: Iterable[Key]) -> Iterator[Gap]:
    """Which of the resources `wanted` (type, name) the client is to have and has not accepted in their present version.

    What is not in its view, or not asked for, is no gap; a type that all clients of its kind ask for is.
    """
    subscriptions = {subscription.type_url: subscription for subscription in session.subscriptions()}
    unasked: set[str] = set()
    for type_url, name in wanted:
        resource = store.get(session.view, type_url, name)
        if resource is None:
            continue
        subscription = subscriptions.get(type_url)
        if subscription is None:
            if type_url in ALWAYS_ASKED.get(session.view.kind, ()) and type_url not in unasked:
                unasked.add(type_url)
                yield Gap(type_url, "", Missing.UNASKED, "the client has not asked for this type yet")
            continue
        if name in subscription.names or (subscription.covers(name) and not resource.on_demand):
            gap = _gap(subscription, gate, session.view.node, name, resource.version)
            if gap is not None:
                yield gap


def _gap(subscription: Subscription, gate: Gate, node: str, name: str, version: str) -> Gap | None:
    nack = subscription.nacks.get(name)
    if nack is not None and nack.version == version:
        return Gap(subscription.type_url, name, Missing.REFUSED, nack.text)
    if name in subscription.withheld:
        reasons = "; ".join(gate.explain(node, need) for need in subscription.withheld[name])
        return Gap(subscription.type_url, name, Missing.WITHHELD, reasons)
    if any(name in sent.versions for sent in subscription.in_flight.values()):
        return Gap(subscription.type_url, name, Missing.UNANSWERED, f"version {version} is sent, not answered")
    if subscription.held.get(name) != version or name in subscription.forced:
        held = subscription.held.get(name, "nothing")
        text = f"version {version} is about to be sent; the client holds {held}"
        return Gap(subscription.type_url, name, Missing.UNSENT, text)
    return None
