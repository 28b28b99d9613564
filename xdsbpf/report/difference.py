"""What a change of manifests would make different in both planes, without applying it: the answer of `xdsbpf diff`.

In: the manifests in force, those that somebody wants to apply or to delete, and the settings. Out: a `Difference`. A
compiler of its own compiles the first and then, incrementally, the second; nothing that is served is touched. Called
by the command line and, in a thread, by the admin endpoint. Cost: a cold build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from xdsbpf.compile.views import ClientView, client_scopes, client_view, is_mesh_client
from xdsbpf.compiler import Compiler
from xdsbpf.diagnostics import Diagnostic, Locator, ObjectId, Origin
from xdsbpf.mesh.inputs import MeshSettings
from xdsbpf.model.meta import Manifest
from xdsbpf.model.names import DATAPATH_TYPES, SECRET, parse_node_id, short_name
from xdsbpf.model.resource import Resource
from xdsbpf.plugin import LoadedPlugin
from xdsbpf.report.listeners import listener_rows
from xdsbpf.report.origins import origin_text, visible
from xdsbpf.report.translation import body_json
from xdsbpf.sources.catalog import Catalog
from xdsbpf.sources.report import as_json, sort_by_place
from xdsbpf.xds.protocol import PUSH_ORDER

KERNEL: Final = "kernel"
ENVOY: Final = "envoy"

_Key = tuple[str, str, str]
"""(scope, "" where it is one proxy's; type URL; name)"""


class Base(msgspec.Struct, frozen=True):
    """What is in force. `views` are those of connected clients, which are compiled as well."""

    manifests: Mapping[ObjectId, Manifest]
    settings: MeshSettings
    plugins: tuple[LoadedPlugin, ...] = ()
    views: tuple[ClientView, ...] = ()


class Proxy(msgspec.Struct, frozen=True):
    """The one client whose resources are compared: its node id and metadata."""

    node_id: str
    metadata: Mapping[str, object]


class ResourceChange(msgspec.Struct, frozen=True):
    """One resource that would be `added`, `changed` or `removed`, in the plane `kernel` or `envoy`.

    `scope` says who sees it: `mesh`, `node/<name>` and so on; "" where one proxy was asked about. `before` and `after`
    are proto3 JSON; None where there is none, for secrets, and if they were not asked for. `origins` are of `after`.
    """

    plane: str
    change: str
    type: str
    type_url: str
    name: str
    scope: str
    origins: tuple[Origin, ...]
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class PlaneChange(msgspec.Struct, frozen=True):
    """A service port or raw listener that another plane would carry; "" stands for one that is not there."""

    name: str
    before: str
    after: str
    reasons: tuple[str, ...]


class Difference(msgspec.Struct, frozen=True):
    """All of it. `diagnostics` are the findings that the change would bring."""

    resources: tuple[ResourceChange, ...]
    planes: tuple[PlaneChange, ...]
    diagnostics: tuple[Diagnostic, ...]


class _Moment(msgspec.Struct, frozen=True):
    """What there is before the change, or after it."""

    resources: dict[_Key, tuple[str, Resource]]
    """(scope, resource)"""
    planes: dict[str, tuple[str, tuple[str, ...]]]
    diagnostics: frozenset[Diagnostic]


def difference(
    base: Base,
    changed: Catalog,
    *,
    is_deletion: bool = False,
    proxy: Proxy | None = None,
    with_bodies: bool = False,
) -> Difference:
    """What applying (or deleting) the objects of `changed` would change.

    Raises: ProtocolError for a node id or metadata that is not served.
    """
    compiler = Compiler(base.settings, plugins=base.plugins)
    for view in base.views:
        compiler.add_view(view)
    compiler.apply(base.manifests.items())
    before = _moment(compiler, proxy)
    wanted = changed.manifests()
    if is_deletion:
        compiler.apply((), wanted)
    else:
        compiler.apply(wanted.items())
    after = _moment(compiler, proxy)
    new = (found for found in compiler.diagnostics() if found not in before.diagnostics)
    resources = _resource_changes(compiler, before, after, with_bodies=with_bodies)
    return Difference(tuple(resources), tuple(_plane_changes(before, after)), tuple(new))


def resource_rows(found: Difference, locator: Locator) -> Iterator[dict[str, Any]]:
    """The resources as JSON items, their origins with file and line."""
    for entry in found.resources:
        yield {**msgspec.structs.asdict(entry), "origins": [origin_text(locator, origin) for origin in entry.origins]}


def finding_rows(found: Difference, locator: Locator) -> list[dict[str, str]]:
    """The findings as JSON items, in the order of files and lines."""
    return [as_json(entry, locator) for entry in sort_by_place(found.diagnostics, locator)]


def _moment(compiler: Compiler, proxy: Proxy | None) -> _Moment:
    own = None
    if proxy is not None:
        own = client_view(proxy.node_id, proxy.metadata, compiler.labels_of)
        if own is not None:
            compiler.add_view(own)
        elif is_mesh_client(proxy.node_id):
            compiler.add_nodes([parse_node_id(proxy.node_id).name])
    compiler.compile()
    store = compiler.store
    resources: dict[_Key, tuple[str, Resource]] = {}
    scopes = store.scopes() if proxy is None else client_scopes(proxy.node_id, compiler.globs, own)
    for scope in scopes:
        for type_url in store.types(scope):
            for name in store.names(scope, type_url):
                found = visible(compiler, (scope,) if proxy is None else scopes, type_url, name)
                if found is not None:
                    resources[scope if proxy is None else "", type_url, name] = found
    planes = {f"{entry.host}:{entry.port}": (str(entry.plane), entry.reasons) for entry in compiler.services()}
    for row in listener_rows(compiler, None if proxy is None else scopes):
        planes[row["object"]] = (row["plane"], tuple(row["reasons"]))
    return _Moment(resources, planes, frozenset(compiler.diagnostics()))


def _resource_changes(
    compiler: Compiler, before: _Moment, after: _Moment, *, with_bodies: bool
) -> Iterator[ResourceChange]:
    """In push order, by name and scope."""
    rank = {type_url: index for index, type_url in enumerate(PUSH_ORDER)}
    keys = before.resources.keys() | after.resources.keys()
    for key in sorted(keys, key=lambda key: (rank.get(key[1], len(rank)), key[1], key[2], key[0])):
        scope, type_url, name = key
        old, new = before.resources.get(key), after.resources.get(key)
        # What a client is sent goes by the version; a version that somebody wrote by hand may stay as it is.
        if old is not None and new is not None and (old[1].version, old[1].body) == (new[1].version, new[1].body):
            continue
        yield ResourceChange(
            plane=KERNEL if type_url in DATAPATH_TYPES else ENVOY,
            change="added" if old is None else "removed" if new is None else "changed",
            type=short_name(type_url),
            type_url=type_url,
            name=name,
            scope=scope,
            origins=() if new is None else compiler.origins(*new),
            before=_body(old) if with_bodies else None,
            after=_body(new) if with_bodies else None,
        )


def _body(found: tuple[str, Resource] | None) -> dict[str, Any] | None:
    """Security: who may look at everybody's configuration is not thereby entitled to their keys."""
    return None if found is None or found[1].type_url == SECRET else body_json(found[1])


def _plane_changes(before: _Moment, after: _Moment) -> Iterator[PlaneChange]:
    nothing: tuple[str, tuple[str, ...]] = ("", ())
    for name in sorted(before.planes.keys() | after.planes.keys()):
        old, new = before.planes.get(name, nothing), after.planes.get(name, nothing)
        if old[0] != new[0]:
            yield PlaneChange(name, old[0], new[0], new[1])
