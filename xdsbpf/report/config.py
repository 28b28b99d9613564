"""Every resource of one client, with its state and its manifests: the rows of `xdsbpf pc`.

In: the running server, compiler and catalog. Out: JSON rows, with the resource itself if that is asked for; of secrets
never. Called by the admin endpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

from xdsbpf.compiler import Compiler
from xdsbpf.model.names import SECRET, short_name
from xdsbpf.report.origins import manifest_places
from xdsbpf.report.translation import body_json
from xdsbpf.sources.catalog import Catalog
from xdsbpf.xds.pacing import unhurried
from xdsbpf.xds.resource_status import ResourceStatus, resource_statuses
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.session import Session


async def config_rows(
    server: XdsServer, compiler: Compiler, catalog: Catalog, node: str, types: Set[str], *, with_body: bool
) -> list[dict[str, Any]] | None:
    """A row per resource: node, type, type_url, name, state, version, error, manifests[, body]; None without a client.

    `node` is a node id, or the name of a node for its agent and its Envoy; no `types` means all. `state` is that of
    `ResourceState`, `version` what the client was sent last. The body is the present one, so it is left out where the
    client has another version, and for secrets.
    """
    sessions = sorted(server.streams.sessions(), key=lambda session: session.node_id)
    chosen = [session for session in sessions if node in (session.node_id, session.view.node)]
    rows = [
        _row(server, compiler, catalog, session, status, with_body=with_body)
        async for session, status in unhurried(_resources(chosen, server, types))
    ]
    return rows if chosen else None


def _resources(sessions: list[Session], server: XdsServer, types: Set[str]) -> Iterator[tuple[Session, ResourceStatus]]:
    for session in sessions:
        for status in resource_statuses(session, server.store):
            if not types or status.type_url in types:
                yield session, status


def _row(
    server: XdsServer,
    compiler: Compiler,
    catalog: Catalog,
    session: Session,
    status: ResourceStatus,
    *,
    with_body: bool,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "node": session.node_id,
        "type": short_name(status.type_url),
        "type_url": status.type_url,
        "name": status.name,
        "state": status.state.value,
        "version": status.version,
        "error": status.error,
        "manifests": list(manifest_places(compiler, catalog, session.view.scopes, status.type_url, status.name)),
    }
    resource = server.store.get(session.view, status.type_url, status.name) if with_body else None
    # Security: who may look at everybody's configuration is not thereby entitled to their keys.
    if resource is not None and resource.version == status.version and status.type_url != SECRET:
        row["body"] = body_json(resource)
    return row
