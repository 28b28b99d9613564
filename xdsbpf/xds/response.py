"""One response: filling it up to the limits of a page, and encoding it in either variant of the protocol.

In: resources and removed names chosen by `xds.session`. Out: a `Response` value, and its bytes, joined from
headers and bodies that the store holds. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from xdsbpf.model.resource import Resource, version_of
from xdsbpf.xds import protocol, shared
from xdsbpf.xds.references import References
from xdsbpf.xds.resource_errors import ERROR_BYTES, delta_errors, sotw_errors
from xdsbpf.xds.shared import PageCache, SharedPage
from xdsbpf.xds.store import View


class Reader(Protocol):
    """What a session needs of the store."""

    revision: int
    shared: PageCache
    has_ttl: bool

    def wildcard_pages(self, view: View, type_url: str) -> tuple[SharedPage, ...]: ...

    def get(self, view: View, type_url: str, name: str) -> Resource | None: ...

    def wildcard(self, view: View, type_url: str) -> tuple[Resource, ...]: ...

    def header(self, resource: Resource) -> bytes: ...

    def references(self, resource: Resource) -> References: ...

    def unknown_clusters(self, view: View, resource: Resource) -> frozenset[str]: ...

    def knows_type(self, type_url: str) -> bool: ...


class Response(msgspec.Struct, frozen=True):
    """A response that may be sent now; its bytes are `encode(response, reader)`.

    `missing` are names that were asked for and never existed, where `removed` is not the right answer;
    `withheld` are names that exist, without content for now. `errors` are names that do not, told to a client that
    reads them.
    """

    type_url: str
    nonce: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...]
    revision: int
    missing: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    version: str = ""
    """Of the content as a whole; state of the world only."""
    heartbeats: tuple[Resource, ...] = ()
    """Resources that are still there: sent without content."""
    is_wrapped: bool = False
    """State of the world only: the client takes a time to live, so resources with one are wrapped in a Resource."""
    message: bytes = b""
    """The whole, where it has been encoded already for this and other streams."""


def encode(response: Response, reader: Reader) -> bytes:
    """Join the stored headers and bodies into a DeltaDiscoveryResponse; nothing is serialised again."""
    if response.message:
        return response.message
    segments = [part for item in response.resources for part in (reader.header(item), item.body)]
    segments.extend(protocol.missing_entry(name) for name in response.missing)
    segments.extend(protocol.withheld_entry(name) for name in response.withheld)
    segments.extend(protocol.heartbeat_entry(item) for item in response.heartbeats)
    data = protocol.encode_response(response.type_url, response.nonce, segments, response.removed, response.revision)
    return data + delta_errors(response.errors) if response.errors else data


# Field tags of DiscoveryResponse, Any and Resource: (number << 3) | 2, all length-delimited.
_VERSION, _RESOURCES, _TYPE, _NONCE = b"\x0a", b"\x12", b"\x22", b"\x2a"
_ANY_TYPE, _ANY_VALUE, _RESOURCE_ANY, _RESOURCE_NAME = b"\x0a", b"\x12", b"\x12", b"\x1a"
WRAPPER = b"type.googleapis.com/envoy.service.discovery.v3.Resource"


def encode_sotw(response: Response) -> bytes:
    """Join the bodies into a DiscoveryResponse, each behind the header of its `Any`; nothing is serialised again."""
    parts = [protocol.field(_VERSION, response.version.encode())]
    parts.extend(_wrapped(item, has_body=False) for item in response.heartbeats)
    for item in response.resources:
        if item.ttl_ms and response.is_wrapped:
            parts.append(_wrapped(item, has_body=True))
            continue
        head = protocol.field(_ANY_TYPE, item.type_url.encode())
        if item.body:
            head += _ANY_VALUE + protocol.varint(len(item.body))
        parts.append(_RESOURCES + protocol.varint(len(head) + len(item.body)) + head)
        parts.append(item.body)
    parts.append(protocol.field(_TYPE, response.type_url.encode()))
    if response.nonce:
        parts.append(protocol.field(_NONCE, response.nonce.encode()))
    parts.append(sotw_errors(response.errors))
    return b"".join(parts)


def _wrapped(item: Resource, *, has_body: bool) -> bytes:
    """A `resources` entry that is a Resource in its `Any`, with a time to live."""
    value = protocol.field(_RESOURCE_NAME, item.name.encode()) + protocol.time_to_live(item)
    if has_body:
        body = protocol.field(_ANY_TYPE, item.type_url.encode()) + protocol.field(_ANY_VALUE, item.body)
        value += protocol.field(_RESOURCE_ANY, body)
    return protocol.field(_RESOURCES, protocol.field(_ANY_TYPE, WRAPPER) + protocol.field(_ANY_VALUE, value))


def content_version(resources: Iterable[Resource]) -> str:
    """`version_info` of a state-of-the-world response: a hash of its names and versions, in any order.

    So it survives restarts and is equal on replicas. Where all resources carry one and the same version, which is
    what an explicit `version:` in a file looks like, it is that one.
    """
    pairs = sorted((resource.name, resource.version) for resource in resources)
    distinct = {version for _, version in pairs}
    if len(distinct) == 1:
        return distinct.pop()
    return version_of("".join(f"{name}\0{version}\0" for name, version in pairs).encode())


def with_errors(response: Response, names: Iterable[str]) -> Response:
    """The same, telling that these do not exist."""
    return msgspec.structs.replace(response, errors=tuple(names))


class Page:
    """A response being filled up to the limits of one page (one resource always fits).

    `whole`: everything fits, because parts of it would be wrong by themselves.
    """

    def __init__(self, reader: Reader, *, whole: bool = False) -> None:
        self._reader = reader
        self._whole = whole
        self._bytes = 0
        self.resources: list[Resource] = []
        self.removed: list[str] = []
        self.missing: list[str] = []
        self.withheld: list[str] = []
        self.errors: list[str] = []
        self.stamp: int | None = None

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes go on this page."""
        count = len(self.resources) + len(self.removed) + len(self.missing) + len(self.withheld) + len(self.errors)
        return self._whole or not count or (count < shared.PAGE_RESOURCES and self._bytes + size <= shared.PAGE_BYTES)

    def size(self, resource: Resource) -> int:
        """Bytes of the resource on the wire."""
        return len(self._reader.header(resource)) + len(resource.body)

    def add(self, resource: Resource, stamp: int) -> None:
        """Put a resource on the page; `stamp` is of the change it comes from."""
        self._bytes += self.size(resource)
        self.resources.append(resource)
        self._oldest(stamp)

    def remove(self, name: str, stamp: int) -> None:
        """Put a removal on the page."""
        self._bytes += len(name) + 4
        self.removed.append(name)
        self._oldest(stamp)

    def miss(self, name: str, stamp: int) -> None:
        """Put a name on the page that never existed."""
        self._bytes += 2 * len(name) + 8
        self.missing.append(name)
        self._oldest(stamp)

    def fail(self, name: str, stamp: int) -> None:
        """Put the error on the page that a name does not exist."""
        self._bytes += len(name) + ERROR_BYTES
        self.errors.append(name)
        self._oldest(stamp)

    def withhold(self, name: str, stamp: int) -> None:
        """Put a name on the page whose content may not go yet."""
        self._bytes += len(name) + 8
        self.withheld.append(name)
        self._oldest(stamp)

    def _oldest(self, stamp: int) -> None:
        self.stamp = stamp if self.stamp is None else min(self.stamp, stamp)
