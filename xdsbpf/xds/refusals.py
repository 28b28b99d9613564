"""Long reasons of a refusal: a client may send a megabyte, of which 4 KB are ever looked at.

They are cut on the wire: bytes of a request in, the same request with a short `error_detail` out, before protobuf
copies, checks and decodes what nobody reads (called by `xds.request`). And who sends them is read more slowly, for to
receive them costs as well (`RefusalPace`, called by `xds.exchange`). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from xdsbpf.xds.protocol import MAX_ERROR_BYTES, field

WORTH_CUTTING: Final = 4 * MAX_ERROR_BYTES
"""Bytes of a request that are parsed as they are."""
_KEPT: Final = MAX_ERROR_BYTES + 4
"""More than is shown, so that whoever shows it sees that it was longer; the end of a character may be missing."""
_MAX_FIELDS: Final = 2_000
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_CODE_TAG, _MESSAGE_TAG = 0x08, 0x12  # of google.rpc.Status

_BURST_BYTES: Final = 16 << 20
_BYTES_PER_S: Final = 16 << 20
"""Of all clients together; on gRPC a megabyte is 1 to 2 ms of CPU."""
MAX_PAUSE_S: Final = 10.0
"""What keeps a connection alive is left unread as well on `fast`."""

Field = tuple[int, int, int, int]
"""Tag, where the field begins, where its value begins, where it ends."""


class RefusalPace:
    """When streams that refuse at length are read again: one after the other, so much a second of all together.

    What a client has not been let send costs the others nothing. Short refusals are not looked at.
    """

    __slots__ = ("_through_at",)

    def __init__(self) -> None:
        self._through_at = -math.inf
        """When what has come would be through, had it come at the pace."""

    def taken(self, size: int, now: float) -> float:
        """A refusal of that many bytes has come; returns how many seconds the next one of its stream is to wait."""
        if size <= WORTH_CUTTING:
            return 0.0
        through_at = max(self._through_at, now - _BURST_BYTES / _BYTES_PER_S) + size / _BYTES_PER_S
        self._through_at = min(through_at, now + MAX_PAUSE_S)
        return max(0.0, self._through_at - now)


def with_short_reason(data: bytes, error_tag: int) -> bytes:
    """The request with at most the beginning of its error's message, and without the error's details.

    `error_tag` is the tag of its field `error_detail`. What is no protobuf, or no refusal, is returned as it is. Cost:
    O(fields), for at most 2,000 of them, and no copy of the reason; a request with more is parsed as it came.
    """
    if len(data) <= WORTH_CUTTING:
        return data
    found = [each for each in _fields(data, 0, len(data)) if each[0] == error_tag and each[3] - each[2] > _KEPT]
    if len(found) != 1:
        return data
    _, start, value, end = found[0]
    status = b"".join(
        data[at:stop] if tag == _CODE_TAG else field(b"\x12", _beginning(data, inner, stop))
        for tag, at, inner, stop in _fields(data, value, end)
        if tag in (_CODE_TAG, _MESSAGE_TAG)
    )
    return data[:start] + field(bytes((error_tag,)), status) + data[end:]


def _beginning(data: bytes, start: int, end: int) -> bytes:
    """The first bytes of a text, whole characters of UTF-8 only."""
    if end - start <= _KEPT:
        return data[start:end]
    stop = start + _KEPT
    while stop > start and data[stop] & 0xC0 == 0x80:
        stop -= 1
    return data[start:stop]


def _fields(data: bytes, at: int, end: int) -> Iterator[Field]:
    """The fields of a message, up to where it is broken."""
    for _ in range(_MAX_FIELDS):
        start = at
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == _LENGTH:
            size, at = _varint(data, at, end)
            value, at = at, at + size
        elif kind == _VARINT:
            value = at
            _, at = _varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            value, at = at, at + (8 if kind == _FIXED64 else 4)
        else:
            return
        if at > end:
            return
        yield tag, start, value, at
        if at == end:
            return


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number and where it ends, which is beyond `end` if it is broken."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return value, end + 1
