"""Why a client does not have a resource: the rows of `/debug/whynot` and `xdsbpf why`, one per stream and type.

In: the xDS server, the compiler and the catalog. Out: JSON rows. A name may be that of resources of several types, so
without a type every type is looked at that has such a resource, or else that the client has asked for.
"""

from __future__ import annotations

from typing import Any

from xdsbpf.compiler import Compiler
from xdsbpf.model.names import SHORT_TYPES, short_name
from xdsbpf.report.origins import manifest_places
from xdsbpf.sources.catalog import Catalog
from xdsbpf.xds.resource_status import explain
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.session import Session
from xdsbpf.xds.store import ResourceStore


def whynot_rows(
    server: XdsServer, compiler: Compiler, catalog: Catalog, node: str, name: str, type_url: str
) -> list[dict[str, Any]]:
    """[{"node", "type", "type_url", "resource", "answer", "manifests"}]; [] if no such client is connected.

    `node` is a node id, or the name of a node for its agent and its Envoy; `type_url` "" stands for every type.
    """
    return [
        {
            "node": session.node_id,
            "type": short_name(url),
            "type_url": url,
            "resource": name,
            "answer": _answer(server, compiler, session, url, name),
            "manifests": list(manifest_places(compiler, catalog, session.view.scopes, url, name)),
        }
        for session in sorted(server.streams.sessions(), key=lambda session: session.node_id)
        if node in (session.node_id, session.view.node)
        for url in ((type_url,) if type_url else _types_of(server.store, session, name))
    ]


def _answer(server: XdsServer, compiler: Compiler, session: Session, type_url: str, name: str) -> str:
    """What the session says; a build that failed comes first, since what the client has is then an older version."""
    scopes = session.view.scopes
    broken = [
        text
        for slot, text in compiler.publisher.failures.items()
        if slot.scope in scopes and slot.type_url == type_url and slot.name in ("", name)
    ]
    answer = explain(session, server.gate, server.store, type_url, name)
    return f"the present one could not be built ({broken[0]}); of the last one: {answer}" if broken else answer


def _types_of(store: ResourceStore, session: Session, name: str) -> list[str]:
    """Types with such a resource in the client's view, else anywhere, else those that the client asked for."""
    for scopes in (session.view.scopes, store.scopes()):
        found = [url for url in SHORT_TYPES.values() if any(name in store.names(scope, url) for scope in scopes)]
        if found:
            return found
    return sorted({subscription.type_url for subscription in session.subscriptions()})
