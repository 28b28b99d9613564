"""Header blocks put together from HEADERS and CONTINUATION, and decoded (RFC 9113 sections 4.3, 6.2, 6.10).

Frames in, a `Block` out when it is whole. Called by `connection`; every block passes through here, because the
decoder's state belongs to the connection, not to a stream. Pure.
"""

from __future__ import annotations

import msgspec

from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.faults import ConnectionFault, ErrorCode
from xdsbpf.xds.h2.headers import Fields, HeaderReader
from xdsbpf.xds.h2.limits import Limits


class Block(msgspec.Struct, frozen=True):
    """A whole header block of one stream."""

    stream_id: int
    fields: Fields
    ends_stream: bool


class BlockAssembly:
    """The block that is under way on a connection, if one is."""

    __slots__ = ("_bytes", "_continuations", "_ends_stream", "_limits", "_reader", "_stream_id", "is_open")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._reader = HeaderReader(limits)
        self._bytes: bytearray | None = None
        self._stream_id = 0
        self._ends_stream = False
        self._continuations = 0
        self.is_open = False
        """A block has begun and is not complete."""

    def __len__(self) -> int:
        return len(self._bytes or b"")

    def check_order(self, kind: int, stream_id: int) -> None:
        """Raises: ConnectionFault if this frame may not come while a block is open (section 6.10)."""
        if self.is_open and (kind != frames.CONTINUATION or stream_id != self._stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted by another frame")

    def headers(self, flags: int, stream_id: int, payload: bytes) -> Block | None:
        """A HEADERS frame. Raises: ConnectionFault."""
        if stream_id % 2 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        self._bytes = bytearray(frames.without_priority(frames.unpadded(payload, flags), flags))
        self._stream_id = stream_id
        self._ends_stream = bool(flags & frames.END_STREAM)
        self._continuations = 0
        self.is_open = True
        return self._whole() if flags & frames.END_HEADERS else None

    def continuation(self, flags: int, payload: bytes) -> Block | None:
        """A CONTINUATION frame. Raises: ConnectionFault, and ENHANCE_YOUR_CALM for a flood (CVE-2024-27316)."""
        if self._bytes is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._continuations += 1
        if self._continuations > self._limits.max_continuations:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block of too many frames")
        if len(self._bytes) + len(payload) > self._limits.max_header_block:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block of too many bytes")
        self._bytes += payload
        return self._whole() if flags & frames.END_HEADERS else None

    def drop(self) -> None:
        """The connection is over."""
        self._bytes, self.is_open = None, False

    def _whole(self) -> Block:
        block = bytes(self._bytes or b"")
        self._bytes, self.is_open = None, False
        return Block(self._stream_id, self._reader.read(block), self._ends_stream)
