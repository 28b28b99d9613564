"""Why a client does not have a resource: the rows of `/debug/whynot`, one per stream of that client and type.

In: the xDS server. Out: JSON rows. A name may be that of resources of several types, so without a type every type is
looked at that the client has asked for or that has such a resource.
"""

from __future__ import annotations

from xdsbpf.model.names import SHORT_TYPES
from xdsbpf.xds.resource_status import explain
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.session import Session
from xdsbpf.xds.store import ResourceStore


def whynot_rows(server: XdsServer, node_id: str, name: str, type_url: str) -> list[dict[str, str]]:
    """[{"node", "type", "resource", "answer"}]; [] if no such client is connected; `type_url` "" for every type."""
    gate, store = server.gate, server.store
    return [
        {"node": node_id, "type": url, "resource": name, "answer": explain(session, gate, store, url, name)}
        for session in server.streams.sessions()
        if session.node_id == node_id
        for url in ((type_url,) if type_url else _types_of(store, session, name))
    ]


def _types_of(store: ResourceStore, session: Session, name: str) -> list[str]:
    scopes = store.scopes()
    have_it = [url for url in SHORT_TYPES.values() if any(name in store.names(scope, url) for scope in scopes)]
    return have_it or sorted({subscription.type_url for subscription in session.subscriptions()})
