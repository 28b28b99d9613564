"""What every client has of what it asked for: the rows of `xdsbpf ps`.

In: live sessions and the gate, with the time passed in. Out: frozen values per (node id, type), each with
exactly one state, the last error and the withheld resources with their reasons. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from xdsbpf.xds.filling import GRPC_MAX_MESSAGE
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.lifetimes import PATIENCE
from xdsbpf.xds.session import Session
from xdsbpf.xds.subscription import Subscription


class SyncState(enum.Enum):
    """State of one type on one stream; the first that applies, in this order."""

    NACKED = "NACKED"
    STALE = "STALE"
    PENDING = "PENDING"
    NOT_SENT = "NOT-SENT"
    SYNCED = "SYNCED"


class NackedResource(msgspec.Struct, frozen=True):
    """A resource whose current or an earlier version the client refused; cleared by the next ACK of it."""

    name: str
    version: str
    text: str


class WithheldResource(msgspec.Struct, frozen=True):
    """A resource that waits for the node's Envoy or for its clusters, or one that is gone and that another one keeps.

    `reasons` are sentences, one for each thing in the way.
    """

    name: str
    reasons: tuple[str, ...]


class TypeStatus(msgspec.Struct, frozen=True):
    """One type of one client.

    `subscribed` counts names, without what a wildcard covers; `held` counts the resources that it was sent or
    claimed, `accepted` those of them that it did not refuse and that no unanswered response holds. `revision` is the
    store's at the last response (0: none was sent). `version` is what the last response said of itself, and
    `acked_version` the last accepted one: the revision as text, for state of the world `version_info`. Ages are in
    seconds, None for what never happened; `waits_s` is how long the oldest unanswered response has been out.
    """

    type_url: str
    state: SyncState
    subscribed: int = 0
    wildcard: bool = False
    held: int = 0
    accepted: int = 0
    revision: int = 0
    nonce: str = ""
    version: str = ""
    acked_version: str = ""
    sent_age_s: float | None = None
    acked_age_s: float | None = None
    nacked_age_s: float | None = None
    waits_s: float | None = None
    error: str = ""
    nacked: tuple[NackedResource, ...] = ()
    withheld: tuple[WithheldResource, ...] = ()


class NodeStatus(msgspec.Struct, frozen=True):
    """One stream of a connected client and its types in push order.

    `scopes` of the store are what it sees; `age_s`: for how long it has been open.
    """

    node_id: str
    kind: str
    node: str
    types: tuple[TypeStatus, ...]
    variant: str = "delta"
    age_s: float = 0.0
    scopes: tuple[str, ...] = ()


def node_statuses(
    sessions: Iterable[Session], gate: Gate, now: float, stale_s: float = PATIENCE.stale_s
) -> tuple[NodeStatus, ...]:
    """Status of all sessions, sorted by node id; `now` is of the same clock as the sessions' own."""
    rows = [node_status(session, gate, now, stale_s) for session in sessions]
    return tuple(sorted(rows, key=lambda row: row.node_id))


def node_status(session: Session, gate: Gate, now: float, stale_s: float = PATIENCE.stale_s) -> NodeStatus:
    """Status of one session."""
    view = session.view
    types = tuple(_type_status(subscription, gate, view.node, now, stale_s) for subscription in session.subscriptions())
    age_s = now - session.opened_at
    return NodeStatus(session.node_id, view.kind, view.node, types, session.variant, age_s, view.scopes)


def _type_status(subscription: Subscription, gate: Gate, node: str, now: float, stale_s: float) -> TypeStatus:
    return TypeStatus(
        type_url=subscription.type_url,
        state=_state(subscription, now, stale_s),
        subscribed=len(subscription.names),
        wildcard=subscription.is_wildcard,
        held=len(subscription.held),
        accepted=_accepted(subscription),
        revision=subscription.last_revision,
        nonce=subscription.last_nonce,
        version=subscription.last_version,
        acked_version=subscription.acked_version,
        sent_age_s=_age(subscription.sent_at, now),
        acked_age_s=_age(subscription.acked_at, now),
        nacked_age_s=_age(subscription.nacked_at, now),
        waits_s=_age(min((sent.at for sent in subscription.in_flight.values()), default=None), now),
        error=subscription.last_error,
        nacked=tuple(
            NackedResource(name, nack.version, nack.text) for name, nack in sorted(subscription.nacks.items())
        ),
        withheld=tuple(
            WithheldResource(name, reasons) for name, reasons in sorted(_withheld(subscription, gate, node).items())
        ),
    )


def _accepted(subscription: Subscription) -> int:
    """Cost: O(names in unanswered responses), nothing while all is answered."""
    unsettled = set(subscription.nacks).union(*(sent.versions for sent in subscription.in_flight.values()))
    return len(subscription.held) - len(unsettled & subscription.held.keys())


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else now - at


def too_large(size: int) -> str:
    """Why something of that many bytes is not sent."""
    limit = GRPC_MAX_MESSAGE >> 20
    return f"it takes a message of {size / (1 << 20):.1f} MiB, and the client takes {limit}: it keeps what it has"


def _withheld(subscription: Subscription, gate: Gate, node: str) -> dict[str, tuple[str, ...]]:
    found = {name: tuple(gate.explain(node, need) for need in unmet) for name, unmet in subscription.withheld.items()}
    for name, waiting in subscription.waiting.items():
        found[name] = (*found.get(name, ()), *(str(missing) for missing in waiting.missing))
    for name, size in subscription.too_large.items():
        found[name or "(all)"] = (too_large(size),)
    for name, keeper in subscription.kept.items():
        found[name] = (f"it is gone, and {keeper} that the client has still names it",)
    return found


def _state(subscription: Subscription, now: float, stale_s: float) -> SyncState:
    if subscription.nacks or subscription.last_error:
        return SyncState.NACKED
    if any(now - sent.at >= stale_s for sent in subscription.in_flight.values()):
        return SyncState.STALE
    kept_back = subscription.withheld or subscription.waiting or subscription.too_large
    if subscription.in_flight or kept_back or subscription.has_work:
        return SyncState.PENDING
    if not subscription.held and not subscription.last_nonce:
        return SyncState.NOT_SENT
    return SyncState.SYNCED
