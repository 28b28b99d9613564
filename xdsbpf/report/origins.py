"""Where the manifests are that a resource was made from: what people are shown of its origins.

In: the compiler, which knows the objects, and the catalog, which knows their files. Out: `file:line object path`. Used
by every report that names a resource.
"""

from __future__ import annotations

from typing import Final

from xdsbpf.compiler import Compiler
from xdsbpf.diagnostics import Locator, Origin
from xdsbpf.model.resource import Resource
from xdsbpf.sources.catalog import Catalog

_RANK: Final = {
    **dict.fromkeys(("VirtualService", "AuthorizationPolicy", "DestinationRule", "EnvoyResource"), 0),
    "Service": 1,
}
"""By kind: which manifests come first, since a mistake is most likely there."""


def origin_text(locator: Locator, origin: Origin) -> str:
    """`file:line Kind/namespace/name path`, as far as the position is known."""
    location = locator.locate(origin.object, origin.path)
    return f"{location.file}:{location.line} {origin}" if location is not None else str(origin)


def visible(compiler: Compiler, scopes: tuple[str, ...], type_url: str, name: str) -> tuple[str, Resource] | None:
    """The scope and resource that a client of these scopes sees under that name; None if there is none."""
    for scope in reversed(scopes):
        resource = compiler.store.lookup((scope,), type_url, name)
        if resource is not None:
            return scope, resource
    return None


def manifest_places(
    compiler: Compiler, catalog: Catalog, scopes: tuple[str, ...], type_url: str, name: str
) -> tuple[str, ...]:
    """`origin_text` of everything that the resource of that name was made from, what people write by hand first; () if
    there is none.

    Cost: one visit per cell below it.
    """
    found = visible(compiler, scopes, type_url, name)
    if found is None:
        return ()
    origins = sorted(compiler.origins(*found), key=lambda origin: _RANK.get(origin.object.kind, 2))
    return tuple(origin_text(catalog, origin) for origin in origins)
