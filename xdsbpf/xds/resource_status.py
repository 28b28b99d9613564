"""Where every resource stands with one client, and why one has not arrived: rows for CSDS, sentences for `whynot`.

In: a live session, the gate and the store. Out: frozen rows, or an explanation that names the first thing that is in
the way. Pure; looks at a session and changes nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import msgspec

from xdsbpf.xds.gate import Gate
from xdsbpf.xds.session import Session
from xdsbpf.xds.status import too_large
from xdsbpf.xds.store import ResourceStore
from xdsbpf.xds.subscription import WHOLE_SET, Subscription


class ResourceState(enum.Enum):
    """State of one resource at one client; the first that applies, in this order."""

    NACKED = "NACKED"
    WITHHELD = "WITHHELD"
    SENT = "SENT"
    ACKED = "ACKED"
    REQUESTED = "REQUESTED"
    MISSING = "MISSING"


class ResourceStatus(msgspec.Struct, frozen=True):
    """One resource of one client; `version` is what was sent last, "" if nothing was; `error` is the client's text."""

    type_url: str
    name: str
    state: ResourceState
    version: str = ""
    error: str = ""


def resource_statuses(session: Session, store: ResourceStore) -> Iterator[ResourceStatus]:
    """Every resource that a client holds, asked for by name or refused, by type in push order, then by name."""
    for subscription in session.subscriptions():
        known = {
            *subscription.names,
            *subscription.held,
            *subscription.withheld,
            *subscription.waiting,
            *subscription.nacks,
        }
        for name in sorted(known):
            yield _status(session, subscription, name, store)


def _status(session: Session, subscription: Subscription, name: str, store: ResourceStore) -> ResourceStatus:
    type_url = subscription.type_url
    nack = subscription.nacks.get(name)
    if nack is not None:
        return ResourceStatus(type_url, name, ResourceState.NACKED, nack.version, nack.text)
    held = subscription.held.get(name, "")
    if name in subscription.withheld or name in subscription.waiting:
        return ResourceStatus(type_url, name, ResourceState.WITHHELD, held)
    if any(name in sent.versions for sent in subscription.in_flight.values()):
        return ResourceStatus(type_url, name, ResourceState.SENT, held)
    if held:
        return ResourceStatus(type_url, name, ResourceState.ACKED, held)
    exists = store.get(session.view, type_url, name) is not None
    return ResourceStatus(type_url, name, ResourceState.REQUESTED if exists else ResourceState.MISSING)


def explain(session: Session, gate: Gate, store: ResourceStore, type_url: str, name: str) -> str:
    """One sentence: why that client does not have the current version of that resource, or that it has.

    Looked at in the order in which a resource travels: asked for, in the view, let through, sent, accepted.
    """
    asked = next((found for found in session.subscriptions() if found.type_url == type_url), None)
    if asked is None:
        return "the client has not asked for this type"
    resource = store.get(session.view, type_url, name)
    if resource is None and name in asked.kept:
        return f"it is gone, but the client keeps it: {asked.kept[name]} that it has names it"
    if resource is None:
        return _absence(session, store, type_url, name)
    if name not in asked.names and not asked.covers(name):
        return "it is in the client's view, but the client has not asked for it"
    if name not in asked.names and resource.on_demand:
        return "it is sent on demand only: the client has to ask for it by name"
    status = _status(session, asked, name, store)
    if status.state is ResourceState.NACKED and status.version == resource.version:
        return f"the client refused version {status.version}: {status.error}"
    if status.state is ResourceState.WITHHELD:
        if name in asked.waiting:
            return f"it waits for what it names: {'; '.join(map(str, asked.waiting[name].missing))}"
        needs = "; ".join(gate.explain(session.view.node, need) for need in asked.withheld[name])
        return f"it is withheld until the node's Envoy is ready for it: {needs}"
    version = resource.version
    size = asked.too_large.get(name, asked.too_large.get(WHOLE_SET))
    if size is not None and status.version != version:
        return f"version {version} is not sent: {too_large(size)}"
    if status.version == version:
        has_ack = status.state is ResourceState.ACKED
        text = f"it has version {version}" if has_ack else f"version {version} is sent, not acknowledged"
        unknown = ", ".join(sorted(store.unknown_clusters(session.view, resource)))
        return f"{text}; it names clusters that are not in the client's view: {unknown}" if unknown else text
    if asked.in_flight:
        return f"version {version} waits until the client answers response {asked.last_nonce} of this type"
    return f"version {version} is about to be sent; the client holds {status.version or 'none'}"


def _absence(session: Session, store: ResourceStore, type_url: str, name: str) -> str:
    elsewhere = [scope for scope in store.scopes() if name in store.names(scope, type_url)]
    if not elsewhere:
        return "no manifest makes such a resource"
    scopes = ", ".join(session.view.scopes)
    return f"it is not in the client's view ({scopes}); it exists for {', '.join(elsewhere)}"
