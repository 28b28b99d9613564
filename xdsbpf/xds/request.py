"""Requests of both variants of the protocol as plain values, decoded once from raw message bytes.

In: bytes of a DeltaDiscoveryRequest or a DiscoveryRequest. Out: frozen values without any protobuf, except for the
node, which is looked at once per stream. Called by `xds.streams`; must not know sessions. Pure.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.refusals import with_short_reason

MAX_NAMES = 200_000
"""Names that one request may hold, and that one stream may subscribe to of one type."""
_MAX_NODE_ID = 1024
_SHORT = 0x80  # lengths below this take one byte on the wire
_WORTH_KEEPING, _KEPT_AT_MOST = 512, 256 << 10
_LISTS_KNOWN = 32
_VERSION_TAG, _SOTW_TYPE_TAG, _SOTW_NONCE_TAG = 0x0A, 0x22, 0x2A  # of DiscoveryRequest
_TYPE_PREFIX = b"type.googleapis.com/"
_SOTW_ERROR_TAG = 0x32
_NODE_TAG, _TYPE_TAG, _NONCE_TAG, _ERROR_TAG = 0x0A, 0x12, 0x32, 0x3A  # of DeltaDiscoveryRequest: (number << 3) | 2


class DeltaRequest(msgspec.Struct, frozen=True):
    """A DeltaDiscoveryRequest. `error` is None for an ACK or no answer at all; `node` is an envoy Node, or None."""

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    claims: dict[str, str] = {}
    nonce: str = ""
    error: str | None = None
    node: Any = None


class SotwRequest(msgspec.Struct, frozen=True):
    """A DiscoveryRequest: `names` is the whole set each time, `version` what the client says it holds."""

    type_url: str
    names: tuple[str, ...] = ()
    version: str = ""
    nonce: str = ""
    error: str | None = None
    node: Any = None


Request = DeltaRequest | SotwRequest


def decode_delta(data: bytes) -> DeltaRequest:
    """Parse a request of the delta variant. A bare ACK, the most frequent one, is read without protobuf.

    Raises: ProtocolError(INVALID_ARGUMENT) if the bytes are no DeltaDiscoveryRequest, RESOURCE_EXHAUSTED if a list
    in it is longer than MAX_NAMES.
    """
    if len(data) < 2 * _SHORT and (found := _bare_ack(data)) is not None:
        return found
    start = _end_of_node(data)
    if _WORTH_KEEPING <= len(data) - start <= _KEPT_AT_MOST:
        kept = _decode_kept(data[start:])
        if not start:
            return kept
        message = DeltaDiscoveryRequest()
        _parse(message, data[:start])
        return msgspec.structs.replace(kept, node=message.node)
    return _decode_message(data)


@functools.lru_cache(maxsize=16)
def _decode_kept(data: bytes) -> DeltaRequest:
    """Long requests are often equal but for the node: all proxies ask for the same names, and share the strings."""
    return _decode_message(data)


def _end_of_node(data: bytes) -> int:
    """Where the rest of a request begins whose first field is the node; 0 if another one is first."""
    if not data or data[0] != _NODE_TAG:
        return 0
    length, shift = 0, 0
    for position in range(1, min(len(data), 5)):
        length |= (data[position] & 0x7F) << shift
        if data[position] < _SHORT:
            end = position + 1 + length
            return end if end <= len(data) else 0
        shift += 7
    return 0


def _decode_message(data: bytes) -> DeltaRequest:
    message = DeltaDiscoveryRequest()
    _parse(message, with_short_reason(data, _ERROR_TAG))
    locators = (message.resource_locators_subscribe, message.resource_locators_unsubscribe)
    subscribe, unsubscribe = message.resource_names_subscribe, message.resource_names_unsubscribe
    _check_sizes(subscribe, unsubscribe, message.initial_resource_versions, *locators)
    return DeltaRequest(
        message.type_url,
        (*subscribe, *(locator.name for locator in locators[0])),
        (*unsubscribe, *(locator.name for locator in locators[1])),
        dict(message.initial_resource_versions),
        message.response_nonce,
        message.error_detail.message if message.HasField("error_detail") else None,
        message.node if message.HasField("node") else None,
    )


def decode_sotw(data: bytes) -> SotwRequest:
    """Parse a request of the state-of-the-world variant. Raises: as `decode_delta`.

    Of an ACK, which repeats all names, the names are parsed only if no stream has sent them just before.
    """
    if len(data) >= _WORTH_KEEPING:
        found = _long_ack(data)
        if found is not None:
            return found
    message = DiscoveryRequest()
    _parse(message, with_short_reason(data, _SOTW_ERROR_TAG))
    _check_sizes(message.resource_names, message.resource_locators)
    return SotwRequest(
        message.type_url,
        (*message.resource_names, *(locator.name for locator in message.resource_locators)),
        message.version_info,
        message.response_nonce,
        message.error_detail.message if message.HasField("error_detail") else None,
        message.node if message.HasField("node") else None,
    )


def _long_ack(data: bytes) -> SotwRequest | None:
    """The request, if it is a version, names, a type and a nonce, in that order; None if it is anything else.

    A protobuf message is the same as its parts one after the other, so they may be parsed one by one.
    """
    at = data.rfind(_TYPE_PREFIX) - 2
    if at < 0 or data[at] != _SOTW_TYPE_TAG or data[at + 1] >= _SHORT:
        return None
    nonce_at = at + 2 + data[at + 1]
    if len(data) < nonce_at + 2 or data[nonce_at] != _SOTW_NONCE_TAG or data[nonce_at + 1] >= _SHORT:
        return None
    start = 2 + data[1] if data[0] == _VERSION_TAG and data[1] < _SHORT else 0
    if nonce_at + 2 + data[nonce_at + 1] != len(data) or not 0 < at - start <= _KEPT_AT_MOST:
        return None
    names = _KNOWN_NAMES.find(data, start, at)
    if names is None:
        return None
    head = DiscoveryRequest()
    _parse(head, data[:start] + data[at:])
    return SotwRequest(head.type_url, names, head.version_info, head.response_nonce)


class _KnownNames:
    """Lists of names that were asked for lately. All proxies of a kind ask for the same, again and again.

    Compared byte by byte where they lie in a request: a copy, or a hash, of a thousand names takes longer than all else
    that is done with an ACK.
    """

    def __init__(self) -> None:
        self._known: list[tuple[bytes, tuple[str, ...]]] = []

    def find(self, data: bytes, start: int, end: int) -> tuple[str, ...] | None:
        """The names in that part of a request; None if there is anything else in it."""
        size = end - start
        for position, (known, names) in enumerate(self._known):
            if len(known) == size and data.startswith(known, start):
                if position:
                    self._known.insert(0, self._known.pop(position))
                return names
        part = data[start:end]
        found = _names_alone(part)
        if found is not None:
            self._known.insert(0, (part, found))
            del self._known[_LISTS_KNOWN:]
        return found


_KNOWN_NAMES = _KnownNames()


def _names_alone(data: bytes) -> tuple[str, ...] | None:
    """The names, if the bytes are names and nothing else."""
    message = DiscoveryRequest()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return None
    names = tuple(message.resource_names)
    size = message.ByteSize()
    message.ClearField("resource_names")
    return names if size == len(data) and not message.ByteSize() and len(names) <= MAX_NAMES else None


def node_of(node: Any) -> tuple[str, dict[str, object]]:
    """Id and metadata (as JSON values) of the envoy Node in the first request of a stream.

    Without a node, or an id in it, the id is "": `peers.Authorize` knows who may leave it out. Beside the metadata
    stand `node.user_agent_name`, `node.locality` and `node.client_features` if the node gives them: a client's kind
    shows in them. Raises: ProtocolError(INVALID_ARGUMENT) if the id is over 1 KiB or not printable, or the metadata
    cannot be JSON (an infinite number).
    """
    if node is None:
        return "", {}
    node_id: str = node.id
    if len(node_id) > _MAX_NODE_ID or not node_id.isprintable():
        raise ProtocolError("INVALID_ARGUMENT", "node.id is longer than 1024 characters or not printable")
    try:
        found: dict[str, object] = json_format.MessageToDict(node.metadata)
    except (ValueError, json_format.Error) as error:
        raise ProtocolError("INVALID_ARGUMENT", f"node.metadata is no JSON: {error}") from error
    if node.user_agent_name:
        found["node.user_agent_name"] = node.user_agent_name
    if node.HasField("locality"):
        found["node.locality"] = (node.locality.region, node.locality.zone, node.locality.sub_zone)
    if node.client_features:
        found["node.client_features"] = tuple(node.client_features)
    return node_id, found


@functools.lru_cache(maxsize=256)
def _bare_ack(data: bytes) -> DeltaRequest | None:
    """The request, if it is nothing but a type URL and a nonce, in the order in which every client writes them.

    Clients that were sent the same bytes answer with the same.
    """
    if len(data) < 4 or data[0] != _TYPE_TAG or data[1] >= _SHORT:
        return None
    middle = 2 + data[1]
    if len(data) < middle + 2 or data[middle] != _NONCE_TAG or data[middle + 1] != len(data) - middle - 2:
        return None
    if data[middle + 1] >= _SHORT:
        return None
    try:
        return DeltaRequest(data[2:middle].decode(), nonce=data[middle + 2 :].decode())
    except UnicodeDecodeError as error:
        raise ProtocolError("INVALID_ARGUMENT", f"not a DeltaDiscoveryRequest: {error}") from error


def _parse(message: Any, data: bytes) -> None:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError("INVALID_ARGUMENT", f"not a {type(message).__name__}: {error}") from error


def _check_sizes(*lists: Any) -> None:
    """Refuse a request with more names than a stream may have before any is looked at."""
    if max(map(len, lists)) > MAX_NAMES:
        raise ProtocolError("RESOURCE_EXHAUSTED", f"a request with more than {MAX_NAMES} names")
