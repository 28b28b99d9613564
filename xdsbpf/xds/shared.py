"""Pages that many streams send: rendered once per content, whoever asks.

In: a view, a type, and the names that a request holds (or none: the wildcard). Out: pages of joined bytes with the
versions in them, to be sent by every session that starts from nothing with the same question. A page that the store
has overtaken is rendered again, once for all, when it is about to be sent. Owned by `xds.store`; pure.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from xdsbpf.model.resource import Resource
from xdsbpf.xds import protocol, references
from xdsbpf.xds.references import References

PAGE_RESOURCES = 1000
PAGE_BYTES = 1 << 20
"""Limits of one response; the next page of a type goes after the ACK of the one before."""
CACHE_BYTES = 64 << 20
"""Bytes of pages that are kept for the next stream; beyond it the oldest go."""

MESSAGES = 64
"""Encoded responses that are kept for the next stream."""
PUSH_NAMES = 32
"""Changed names that are still looked up as one set; beyond it sets of streams are hardly ever equal."""

Scopes = tuple[str, ...]


class SharedPage(msgspec.Struct, frozen=True, gc=False):
    """A page of `names` as the store held them at `revision`; never changed, `versions` included.

    `segments` are complete `resources` entries of a delta response. `missing` are the names that do not exist.
    """

    type_url: str
    names: tuple[str, ...]
    revision: int
    resources: tuple[Resource, ...]
    versions: dict[str, str]
    segments: bytes
    missing: tuple[str, ...]
    references: References
    """Of all its resources together."""
    uses: dict[str, frozenset[str]]
    """Clusters by resource, for types that name clusters."""
    is_gated: bool
    """Some of it must wait for something else."""
    is_on_demand: bool
    """Some of it is sent only to those who ask for it by name."""


class SharedMessage(msgspec.Struct, frozen=True, gc=False):
    """A page as a whole response under one nonce: the same bytes to every stream that has not gone past that nonce."""

    page: SharedPage
    removed: tuple[str, ...]
    number: int
    nonce: str
    """The number as text: one value for all streams that wait for its ACK."""
    data: bytes


class Source(Protocol):
    """What the pages are made of."""

    revision: int

    def holders(self, scopes: Scopes, type_url: str) -> Scopes: ...

    def revision_of(self, scopes: Scopes, type_url: str) -> int: ...

    def lookup(self, scopes: Scopes, type_url: str, name: str) -> Resource | None: ...

    def header(self, resource: Resource) -> bytes: ...

    def references(self, resource: Resource) -> References: ...


KEPT_NAMES = 4 << 20
"""Bytes of the longest question that is kept for the next stream: about 40,000 names, of which 64 are kept."""


def plain_names(asked: tuple[str, ...]) -> frozenset[str] | None:
    """The names as a set that streams share; None if one is a wildcard, a glob or there twice."""
    return _kept_plain_names(asked) if weight_of(asked) <= KEPT_NAMES else _plain_names(asked)


def weight_of(names: Sequence[str]) -> int:
    """About the bytes that names take in memory."""
    return sum(map(len, names)) + 64 * len(names)


def _plain_names(asked: tuple[str, ...]) -> frozenset[str] | None:
    found = frozenset(asked)
    if len(found) != len(asked) or protocol.WILDCARD in found or any(name.endswith("*") for name in asked):
        return None
    return None if any("?" in name for name in asked) else found


_kept_plain_names = functools.lru_cache(maxsize=64)(_plain_names)


class PageCache:
    """Pages by the scopes that hold the type, by type and by names."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._layouts: dict[tuple[Scopes, str, tuple[str, ...]], tuple[SharedPage, ...]] = {}
        self._pages: dict[tuple[Scopes, str, tuple[str, ...]], SharedPage] = {}
        self._bytes = 0
        self._changed: dict[tuple[Scopes, str, tuple[str, ...]], SharedPage] = {}
        self._changed_at = 0
        """Pages of what has changed, current as long as the store has not changed again."""
        self.numbers: Iterator[int] = itertools.count(1)
        """Of nonces: one series for all streams over this store, unless they have another one in common."""
        self._messages: dict[int, SharedMessage] = {}
        """By the identity of their page, which each of them keeps alive."""

    def changed(self, scopes: Scopes, type_url: str, names: tuple[str, ...]) -> SharedPage:
        """One page of these names, which have just changed for many streams. Cost: O(names) once per content."""
        if self._changed_at != self._source.revision:
            self._changed_at = self._source.revision
            self._changed.clear()
        key = (self._source.holders(scopes, type_url), type_url, names)
        found = self._changed.get(key)
        if found is None:
            found = self._changed[key] = self._render(*key)
        return found

    def message(self, page: SharedPage, removed: tuple[str, ...], after: int, numbers: Iterator[int]) -> SharedMessage:
        """The response with that page under a nonce above `after`.

        Encoded again only for a stream that has gone past the nonce of the last one: nonces of a stream only grow.
        """
        found = self._messages.get(id(page))
        if found is None or found.number <= after or found.removed != removed:
            number = next(numbers)
            nonce = str(number)
            data = protocol.encode_response(page.type_url, nonce, (page.segments,), removed, page.revision)
            found = SharedMessage(page, removed, number, nonce, data)
            self._messages.pop(id(page), None)
            if len(self._messages) >= MESSAGES:
                self._messages.pop(next(iter(self._messages)))
            self._messages[id(page)] = found
        return found

    def pages(self, scopes: Scopes, type_url: str, asked: tuple[str, ...]) -> tuple[SharedPage, ...]:
        """The pages of these names, in their order. Cost: O(names) once per content."""
        scopes = self._source.holders(scopes, type_url)
        key = (scopes, type_url, asked)
        found = self._layouts.get(key)
        revision = self._source.revision_of(scopes, type_url)
        if found is None or any(page.revision != revision for page in found):
            found = tuple(self._render(scopes, type_url, names) for names in self._split(scopes, type_url, asked))
            if weight_of(asked) > KEPT_NAMES:
                return found
            if len(self._layouts) >= 64:
                self._layouts.pop(next(iter(self._layouts)))
            self._layouts[key] = found
        return found

    def current(self, scopes: Scopes, page: SharedPage) -> SharedPage:
        """The page with what the store holds now."""
        if page.revision == self._source.revision_of(scopes, page.type_url):
            return page
        return self._render(self._source.holders(scopes, page.type_url), page.type_url, page.names)

    def _split(self, scopes: Scopes, type_url: str, asked: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Names in pages, each within the limits for what they hold now."""
        pages: list[list[str]] = []
        size = 0
        for name in asked:
            resource = self._source.lookup(scopes, type_url, name)
            length = len(name) + 4 if resource is None else len(self._source.header(resource)) + len(resource.body)
            if not pages or len(pages[-1]) >= PAGE_RESOURCES or size + length > PAGE_BYTES:
                pages.append([])
                size = 0
            pages[-1].append(name)
            size += length
        return [tuple(page) for page in pages]

    def _render(self, scopes: Scopes, type_url: str, names: tuple[str, ...]) -> SharedPage:
        key = (scopes, type_url, names)
        revision = self._source.revision_of(scopes, type_url)
        cached = self._pages.get(key)
        if cached is not None and cached.revision == revision:
            return cached
        found = [(name, self._source.lookup(scopes, type_url, name)) for name in names]
        resources = tuple(resource for _, resource in found if resource is not None)
        page = SharedPage(
            type_url,
            names,
            revision,
            resources,
            {resource.name: resource.version for resource in resources},
            join(self._source, resources),
            tuple(name for name, resource in found if resource is None),
            references.merged(self._source.references(resource) for resource in resources),
            references.uses_of(resources, self._source.references),
            any(resource.requires for resource in resources),
            any(resource.on_demand for resource in resources),
        )
        self._keep(key, page)
        return page

    def _keep(self, key: tuple[Scopes, str, tuple[str, ...]], page: SharedPage) -> None:
        old = self._pages.pop(key, None)
        self._pages[key] = page
        self._bytes += _weight(page) - (_weight(old) if old is not None else 0)
        while self._bytes > CACHE_BYTES:
            self._bytes -= _weight(self._pages.pop(next(iter(self._pages))))


def _weight(page: SharedPage) -> int:
    """About what a page takes: a small one is mostly objects."""
    return len(page.segments) + 1024 + 64 * len(page.names) + weight_of(page.names)


def join(source: Source, resources: Sequence[Resource]) -> bytes:
    """Complete `resources` entries of a delta response."""
    return b"".join(part for resource in resources for part in (source.header(resource), resource.body))


MIN_NAMES = 32
"""Shorter questions are answered name by name."""
