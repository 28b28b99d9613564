"""Plug-ins applied to what the compiler makes for Envoys: generators in, generators out.

A patched resource is a query over the unpatched one, so a change re-runs the functions for what changed and no others.
Plug-ins come in the order of their names, each on the results of those before it. What raises, or returns
something else than it should, fails that one resource: its last good version stays, the finding names the plug-in.
Datapath resources are out of reach, and what is patched is not the kernel's (`kernel_listeners`). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from google.protobuf.message import Message

from xdsbpf.compile.envoy.names import MESH_SCOPE, SCOPE
from xdsbpf.compile.generator import Generator
from xdsbpf.compile.raw.resources import raw_scope
from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.errors import ConfigError, XdsbpfError
from xdsbpf.incremental import ABSENT, Database, query
from xdsbpf.model.names import CLUSTER, DATAPATH_TYPES, ENDPOINTS, EXTENSION, LISTENER, ROUTES, SECRET, TYPE_PREFIX
from xdsbpf.model.resource import AS_SERVED, Requirement, Resource, version_of
from xdsbpf.plugin import Added, LoadedPlugin, Target

NEWER: Final = "envoy_data_plane."
ADDABLE: Final = (CLUSTER, ENDPOINTS, LISTENER, ROUTES, SECRET, EXTENSION)
"""Types that may be added where the compiler makes none of them; of others only where it does."""
_NAME_FIELDS: Final = ("cluster_name", "name")


class PluginError(XdsbpfError):
    """A plug-in raised, or returned what it should not."""


class _Blame:
    """Turns whatever plug-in code raises into a PluginError that names it."""

    def __init__(self, plugin: LoadedPlugin, doing: str) -> None:
        self._text = f"plug-in {plugin} failed {doing}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception):
            raise PluginError(f"{self._text}: {type(error).__name__}: {error}") from error


def type_url_of(kind: type[Any]) -> str:
    """The type URL of a message class of xds-protos or envoy-data-plane. Raises: ConfigError for any other class."""
    if issubclass(kind, Message):
        return TYPE_PREFIX + str(kind.DESCRIPTOR.full_name)
    if kind.__module__.startswith(NEWER):
        return f"{TYPE_PREFIX}{kind.__module__.removeprefix(NEWER)}.{kind.__name__}"
    raise ConfigError(f"{kind.__module__}.{kind.__qualname__} is no message of xds-protos or envoy-data-plane")


def patched_types(plugins: Iterable[LoadedPlugin]) -> dict[str, str]:
    """type URL -> the first plug-in that patches it. Raises: ConfigError for what is no message of Envoy's API."""
    found: dict[str, str] = {}
    for entry in plugins:
        for kind in entry.plugin.patches:
            type_url = type_url_of(kind)
            if type_url in DATAPATH_TYPES:
                raise ConfigError(f"plug-in {entry}: {type_url} is not open to plug-ins")
            found.setdefault(type_url, str(entry))
    return found


def empty_families(generators: Iterable[Generator], plugins: tuple[LoadedPlugin, ...]) -> tuple[Generator, ...]:
    """Families without resources for what plug-ins may add: in these generators' scopes, and those of all Envoys."""
    if not any(entry.plugin.adds is not None for entry in plugins):
        return ()
    families = {(entry.scope, entry.type_url) for entry in generators}
    scopes = {scope for scope, type_url in families if type_url not in DATAPATH_TYPES}
    return tuple(
        Generator(scope, type_url, _no_names, _nothing)
        for scope in sorted(scopes | {MESH_SCOPE, SCOPE, raw_scope(())})
        for type_url in ADDABLE
        if (scope, type_url) not in families
    )


@query
def _no_names(db: Database) -> tuple[str, ...]:
    return ()


@query
def _nothing(db: Database, name: str) -> Any:
    return ABSENT


def plugged(generator: Generator, plugins: tuple[LoadedPlugin, ...]) -> Generator:
    """The generator with plug-ins applied; itself if none has to do with it. Cost: new queries, so once per family."""
    scope, type_url = generator.scope, generator.type_url
    patched = frozenset(patched_types(plugins))
    if type_url in DATAPATH_TYPES:
        return _loosened(generator, patched) if patched else generator
    head, _, node = scope.partition("/")
    target = Target(scope, node if head == SCOPE else "")
    adders = tuple(entry for entry in plugins if entry.plugin.adds is not None)
    patchers = tuple(
        (index, entry, kind, patch)
        for index, entry in enumerate(plugins)
        for kind, patch in entry.plugin.patches.items()
        if type_url_of(kind) == type_url
    )
    if not adders and not patchers:
        return _loosened(generator, patched) if patched else generator

    @query
    def added(db: Database) -> tuple[tuple[int, str, bytes], ...]:
        """(index of the plug-in, name, body) of what is added, in order."""
        found = ((plugins.index(entry), *made) for entry in adders for made in _added(entry, target, type_url))
        return tuple(found)

    @query
    def names(db: Database, *args: Any) -> tuple[str, ...]:
        own = generator.names(db, *args)
        more = [name for _, name, _ in added(db)]
        for index, name, _ in added(db):
            if name in own or more.count(name) > 1:
                text = f"plug-in {plugins[index]} adds {name!r}, which is there; patch it instead"
                raise PluginError(text)
        return tuple(sorted((*own, *more)))

    @query
    def build(db: Database, *args: Any) -> Any:
        name = args[-1]
        resource, since = _loosen(generator.build(db, *args), patched), -1
        if resource is ABSENT:
            for index, found, body in added(db):
                if found == name:
                    resource, since = Resource(type_url, name, version_of(body), body), index
                    db.cite(_origin(plugins[index]))
        for index, entry, kind, patch in patchers:
            if resource is not ABSENT and index > since:
                result = _patched(entry, kind, patch, target, resource)
                if result not in (None, resource.body):
                    resource = msgspec.structs.replace(resource, body=result, version=version_of(result))
                    db.cite(_origin(entry))
        return resource

    return Generator(scope, type_url, names, build, generator.args)


def _loosened(generator: Generator, patched: frozenset[str]) -> Generator:
    """The generator, where what is required is not the version that the compiler made but the one that is served."""

    @query
    def build(db: Database, *args: Any) -> Any:
        return _loosen(generator.build(db, *args), patched)

    return Generator(generator.scope, generator.type_url, generator.names, build, generator.args)


def _loosen(resource: Any, patched: frozenset[str]) -> Any:
    if resource is ABSENT or not any(need.type_url in patched for need in resource.requires):
        return resource
    needs = (
        Requirement(need.type_url, need.name, AS_SERVED if need.type_url in patched else need.version)
        for need in resource.requires
    )
    return msgspec.structs.replace(resource, requires=tuple(needs))


def _origin(entry: LoadedPlugin) -> Origin:
    return Origin(ObjectId("Plugin", "", str(entry)), "")


def _patched(
    entry: LoadedPlugin, kind: type[Any], patch: Callable[[Target, Any], Any], target: Target, resource: Resource
) -> bytes | None:
    """The body that a patch makes of a resource; None if it leaves it. Raises: PluginError."""
    with _Blame(entry, f"on {kind.__name__} {resource.name!r}"):
        message = _decode(kind, resource.body)
        before = _name_of(message)
        result = patch(target, message)
        if result is None:
            return None
        if type(result) is not kind:
            raise TypeError(f"it returned {type(result).__name__}")
        if _name_of(result) != before:
            raise ValueError(f"it changed the name to {_name_of(result)!r}")
        return _encode(result)


def _added(entry: LoadedPlugin, target: Target, type_url: str) -> list[tuple[str, bytes]]:
    """(name, body) of what a plug-in adds of one type. Raises: PluginError."""
    with _Blame(entry, f"to add to {target.scope}"):
        adds = entry.plugin.adds
        found = []
        for item in adds(target) if adds is not None else ():
            message = item.message if isinstance(item, Added) else item
            if type_url_of(type(message)) != type_url:
                continue
            name = item.name if isinstance(item, Added) else _name_of(message)
            if not name:
                raise ValueError(f"a {type(message).__name__} has no name")
            found.append((name, _encode(message)))
        return found


def _decode(kind: type[Any], body: bytes) -> Any:
    return kind.FromString(body) if issubclass(kind, Message) else kind.parse(body)


def _encode(message: Any) -> bytes:
    return bytes(message.SerializeToString(deterministic=True) if isinstance(message, Message) else bytes(message))


def _name_of(message: Any) -> str:
    return next((str(getattr(message, field)) for field in _NAME_FIELDS if hasattr(message, field)), "")
