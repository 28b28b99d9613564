"""The resource store: sole owner of the resources that the server serves now.

In: batches of puts and removes per scope (from `xds.publisher`). Out: lookups through a view, and the set
of what really changed, which the server hands to its sessions. A scope is a string; a client's view is an
ordered list of scopes, later ones overlay earlier ones. Pure: no I/O, no clock, no locks (one owner task).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from xdsbpf.model.names import CLUSTER
from xdsbpf.model.resource import Resource
from xdsbpf.xds import protocol, references
from xdsbpf.xds.references import References
from xdsbpf.xds.shared import PageCache, SharedPage

Key = tuple[str, str]
"""(type_url, name)"""

_UNKNOWN_AT_MOST = 20_000
"""Answers to `unknown_clusters` that are kept."""
_NOTHING: Mapping[str, Resource] = {}
_HOLDERS = 32_768
_NO_TYPES: Mapping[str, Mapping[str, Resource]] = {}

NODE_ENVOY = "node-envoy"
AGENT = "agent"
ENVOY = "envoy"


class View(msgspec.Struct, frozen=True):
    """What one client may see: `scopes` in order (later overlays earlier).

    `node` is the name of the machine that the client belongs to ("" if none): what a node's Envoy ACKs
    opens the gate of the same node's agent. `kind` is `node-envoy`, `agent` or any other word.
    """

    scopes: tuple[str, ...]
    node: str
    kind: str


class Batch(msgspec.Struct, frozen=True):
    """Puts and removes of one scope, applied together with the other batches of the same call."""

    scope: str
    puts: tuple[Resource, ...] = ()
    removes: tuple[Key, ...] = ()


class Changes(msgspec.Struct, frozen=True):
    """What one call changed: scope -> keys that differ from before. Falsy if nothing did."""

    revision: int
    by_scope: Mapping[str, tuple[Key, ...]]

    def __bool__(self) -> bool:
        return bool(self.by_scope)


def _header_key(resource: Resource) -> tuple[str, str, str, int]:
    return resource.type_url, resource.name, resource.version, len(resource.body)


class ResourceStore:
    """Current resources by scope, type and name, with the wire header of each."""

    def __init__(self) -> None:
        self._scopes: dict[str, dict[str, dict[str, Resource]]] = {}
        self._headers: dict[tuple[str, str, str, int], bytes] = {}
        self._references: dict[tuple[str, str, str, int], References] = {}
        self._wildcards: dict[tuple[tuple[str, ...], str], tuple[Resource, ...]] = {}
        self._wildcards_with: dict[tuple[str, str], set[tuple[tuple[str, ...], str]]] = {}
        """(scope, type) -> keys that a change of it makes wrong: every node has a scope, so there are many others."""
        self._wildcard_names: dict[tuple[tuple[str, ...], str], tuple[str, ...]] = {}
        self._unknown: dict[tuple[tuple[str, ...], str, str], tuple[tuple[str, int], frozenset[str]]] = {}
        self._types: set[str] = set()
        self.has_ttl = False
        """Whether there has been a resource with a time to live."""
        self._holders: dict[tuple[tuple[str, ...], str], tuple[str, ...]] = {}
        self._changed: dict[tuple[str, str], int] = {}
        """(scope, type) -> revision of its last change"""
        self.shared = PageCache(self)
        self.revision = 0

    def apply(self, scope: str, puts: Iterable[Resource] = (), removes: Iterable[Key] = ()) -> Changes:
        """Change one scope; see `apply_all`."""
        return self.apply_all((Batch(scope, tuple(puts), tuple(removes)),))

    def apply_all(self, batches: Iterable[Batch]) -> Changes:
        """Apply batches as one revision, removes of a batch before its puts; see `set_all`."""
        changes: dict[str, dict[Key, Resource | None]] = {}
        for batch in batches:
            wanted = changes.setdefault(batch.scope, {})
            wanted.update(dict.fromkeys(batch.removes))
            wanted.update({(resource.type_url, resource.name): resource for resource in batch.puts})
        return self.set_all(changes)

    def set_all(self, changes: Mapping[str, Mapping[Key, Resource | None]]) -> Changes:
        """Make resources what they are to be, by scope; None removes.

        What is equal to before, or not there as before, changes nothing. The revision grows by one if
        anything changed. Cost: O(changes).
        """
        by_scope: dict[str, tuple[Key, ...]] = {}
        for scope, wanted in changes.items():
            types = self._scopes.setdefault(scope, {})
            keys = [key for key, resource in wanted.items() if self._set(types, key, resource)]
            if keys:
                by_scope[scope] = tuple(keys)
        if by_scope:
            self.revision += 1
            self._forget_wildcards(by_scope)
        return Changes(self.revision, by_scope)

    def _set(self, types: dict[str, dict[str, Resource]], key: Key, new: Resource | None) -> bool:
        """Put a resource into one scope, or remove it; whether that is a change."""
        type_url, name = key
        bodies = types.get(type_url)
        if bodies is None:
            if new is None:
                return False
            bodies = types[type_url] = {}
            self._holders.clear()
            self._types.add(type_url)
        old = bodies.get(name)
        if new is not None:
            bodies[name] = new
            if new.ttl_ms:
                self.has_ttl = True
        elif old is not None:
            del bodies[name]
        if old == new:
            return False
        if old is not None and (new is None or new.version != old.version):
            header = _header_key(old)
            self._headers.pop(header, None)
            self._references.pop(header, None)
        return True

    def get(self, view: View, type_url: str, name: str) -> Resource | None:
        """The resource that `view` sees under that name, on demand or not; None if there is none."""
        return self.lookup(view.scopes, type_url, name)

    def lookup(self, scopes: tuple[str, ...], type_url: str, name: str) -> Resource | None:
        """As `get`, by the scopes of a view."""
        for scope in reversed(scopes):
            types = self._scopes.get(scope)
            resource = types.get(type_url, _NOTHING).get(name) if types is not None else None
            if resource is not None:
                return resource
        return None

    def revision_of(self, scopes: tuple[str, ...], type_url: str) -> int:
        """The revision of the last change of a type in any of the scopes; 0 before the first."""
        return max((self._changed.get((scope, type_url), 0) for scope in scopes), default=0)

    def wildcard_pages(self, view: View, type_url: str) -> tuple[SharedPage, ...]:
        """What a wildcard subscription is sent that starts from nothing, in pages that streams share."""
        everything = self.wildcard(view, type_url)
        key = (self.holders(view.scopes, type_url), type_url)
        names = self._wildcard_names.get(key)
        if names is None:
            names = self._wildcard_names[key] = tuple(resource.name for resource in everything)
        return self.shared.pages(view.scopes, type_url, names)

    def holders(self, scopes: tuple[str, ...], type_url: str) -> tuple[str, ...]:
        """Those of the scopes that hold that type, or did once: all that an answer about the type depends on.

        Every node has a scope of its own, and nearly everything is in a scope that all of them see.
        """
        key = (scopes, type_url)
        found = self._holders.get(key)
        if found is None:
            if len(self._holders) >= _HOLDERS:
                self._holders.clear()  # node names come from peers
            found = tuple(scope for scope in scopes if type_url in self._scopes.get(scope, _NO_TYPES))
            self._holders[key] = found
        return found

    def wildcard(self, view: View, type_url: str) -> tuple[Resource, ...]:
        """Everything of that type that a wildcard subscription covers (not on demand), sorted by name.

        Cost: O(n log n) once per (scopes that hold the type, type) and revision, shared by all streams.
        """
        key = (self.holders(view.scopes, type_url), type_url)
        found = self._wildcards.get(key)
        if found is None:
            merged: dict[str, Resource] = {}
            for scope in key[0]:
                merged.update(self._scopes[scope][type_url])
            found = tuple(merged[name] for name in sorted(merged) if not merged[name].on_demand)
            self._wildcards[key] = found
            for scope in key[0]:
                self._wildcards_with.setdefault((scope, type_url), set()).add(key)
        return found

    def _forget_wildcards(self, by_scope: Mapping[str, tuple[Key, ...]]) -> None:
        for scope, keys in by_scope.items():
            for type_url in dict(keys):
                self._changed[scope, type_url] = self.revision
                for key in self._wildcards_with.pop((scope, type_url), ()):
                    self._wildcards.pop(key, None)
                    self._wildcard_names.pop(key, None)

    def knows_type(self, type_url: str) -> bool:
        """True for a type of xDS or of ours, or one that the store has held."""
        return type_url in protocol.KNOWN_TYPES or type_url in self._types

    def header(self, resource: Resource) -> bytes:
        """The wire header of a resource (`protocol.resource_header`), encoded once for all streams."""
        key = _header_key(resource)
        header = self._headers.get(key)
        if header is None:
            header = self._headers[key] = protocol.resource_header(resource)
        return header

    def references(self, resource: Resource) -> References:
        """What a resource refers to (`references.references_of`), found once for all streams."""
        if resource.type_url not in references.REFERRING_TYPES:
            return references.NONE
        key = _header_key(resource)
        found = self._references.get(key)
        if found is None:
            found = self._references[key] = references.references_of(resource)
        return found

    def unknown_clusters(self, view: View, resource: Resource) -> frozenset[str]:
        """Clusters that a resource names and the view does not have. Cost: O(names) per content of either, not more."""
        wanted = self.references(resource).clusters
        if not wanted:
            return wanted
        key = (view.scopes, resource.type_url, resource.name)
        since = (resource.version, self.revision_of(view.scopes, CLUSTER))
        found = self._unknown.get(key)
        if found is None or found[0] != since:
            if len(self._unknown) >= _UNKNOWN_AT_MOST:
                self._unknown.clear()
            names = frozenset(name for name in wanted if self.lookup(view.scopes, CLUSTER, name) is None)
            found = self._unknown[key] = (since, names)
        return found[1]

    def names(self, scope: str, type_url: str) -> tuple[str, ...]:
        """Names of that type in one scope, sorted."""
        return tuple(sorted(self._scopes.get(scope, {}).get(type_url, {})))

    def types(self, scope: str) -> tuple[str, ...]:
        """Types of which one scope holds something, sorted."""
        return tuple(sorted(kind for kind, held in self._scopes.get(scope, {}).items() if held))

    def scopes(self) -> tuple[str, ...]:
        """Every scope that holds something, sorted."""
        return tuple(sorted(scope for scope, types in self._scopes.items() if any(types.values())))
