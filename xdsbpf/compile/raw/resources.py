"""Raw Envoy resources -> resources of the store, one scope for each distinct list of globs.

Families come and go with the files: `families` is watched, and the compiler adds and drops generators after it.
A client's scopes are chosen by matching its node id against the globs, in `compile.views`.
"""

from __future__ import annotations

from typing import Any, Final

from xdsbpf.compile.envoy.codes import check_size
from xdsbpf.compile.raw.checks import ENDPOINTS_ODD, checked, is_api_listener, warn
from xdsbpf.compile.raw.grpc_endpoints import for_grpc
from xdsbpf.compile.raw.references import decode
from xdsbpf.diagnostics import Origin
from xdsbpf.incremental import ABSENT, Absent, Database, Index, query
from xdsbpf.mesh.inputs import ENVOY_RESOURCES
from xdsbpf.model.envoy_resource import EnvoyResource, resource_id
from xdsbpf.model.names import ENDPOINTS
from xdsbpf.model.resource import Resource, version_of

SCOPE: Final = "raw"

Globs = tuple[str, ...]
"""Globs of node ids, sorted; none: every Envoy that is no proxy of the mesh."""

BY_FAMILY: Final = Index[EnvoyResource, tuple[Globs, str]](
    "envoy_resources_by_family", ENVOY_RESOURCES, keys=lambda v: ((v.nodes, v.type_url),)
)


def raw_scope(nodes: Globs) -> str:
    """Store scope of the resources with these globs: `raw`, `raw/edge-*`."""
    return f"{SCOPE}/{','.join(nodes)}" if nodes else SCOPE


def grpc_scope(nodes: Globs) -> str:
    """Store scope of what gRPC clients get instead of some of them."""
    return f"{SCOPE}-grpc/{','.join(nodes)}" if nodes else f"{SCOPE}-grpc"


@query
def families(db: Database) -> tuple[tuple[Globs, str], ...]:
    """(globs, type URL) of everything that there is, sorted."""
    return db.bucket_keys(BY_FAMILY)


@query
def resource_names(db: Database, nodes: Globs, type_url: str) -> tuple[str, ...]:
    """Names of one family, sorted."""
    return tuple(sorted({entry.resource_name for entry in db.bucket(BY_FAMILY, (nodes, type_url))}))


@query
def raw_resource(db: Database, nodes: Globs, type_url: str, name: str) -> Resource | Absent:
    """The resource as written; ABSENT if there is none."""
    id = resource_id(type_url, name, nodes)
    entry = db.input(ENVOY_RESOURCES, id)
    if entry is ABSENT or entry.type_url != type_url:
        return ABSENT
    db.cite(Origin(id))
    checked(db, id)
    version = entry.version or _version(entry, entry.body)
    built = Resource(type_url, name, version, entry.body, on_demand=is_api_listener(entry), ttl_ms=entry.ttl_ms)
    check_size(db.report, Origin(id), built)
    return built


@query
def grpc_assignment(db: Database, nodes: Globs, name: str) -> Resource | Absent:
    """The endpoints of a raw assignment as gRPC clients take them (`for_grpc`); ABSENT if there is none."""
    id = resource_id(ENDPOINTS, name, nodes)
    entry = db.input(ENVOY_RESOURCES, id)
    message: Any = decode(ENDPOINTS, entry.body) if entry is not ABSENT else None
    if entry is ABSENT or message is None:
        return ABSENT
    db.cite(Origin(id))
    result, repairs = for_grpc(message)
    for repair in repairs:
        if not repair.is_odd:
            warn(db, ENDPOINTS_ODD, id, repair.path, repair.message, repair.hint)
    body = result.SerializeToString(deterministic=True)
    return Resource(ENDPOINTS, name, entry.version or _version(entry, body), body, ttl_ms=entry.ttl_ms)


def _version(entry: EnvoyResource, body: bytes) -> str:
    """The hash of the content, and of the time to live: another one has to reach the clients."""
    return version_of(body + f"\0ttl {entry.ttl_ms}".encode() if entry.ttl_ms else body)


@query
def assignment_names(db: Database, nodes: Globs) -> tuple[str, ...]:
    """Names of the assignments with these globs, sorted."""
    return resource_names(db, nodes, ENDPOINTS)
