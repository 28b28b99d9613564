"""Raw Envoy resources -> resources of the store, one scope for each distinct list of globs.

Families come and go with the files: `families` is watched, and the compiler adds and drops generators after it.
A client's scopes are chosen by matching its node id against the globs, in `compile.views`.
"""

from __future__ import annotations

from typing import Final

from xdsbpf.compile.raw.checks import checked
from xdsbpf.diagnostics import Origin
from xdsbpf.incremental import ABSENT, Absent, Database, Index, query
from xdsbpf.mesh.inputs import ENVOY_RESOURCES
from xdsbpf.model.envoy_resource import EnvoyResource, resource_id
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
    return Resource(type_url, name, entry.version or version_of(entry.body), entry.body)
