"""The sending half of a connection: what may go out now, and in which order (RFC 9113 sections 5.2, 6.9).

Messages and trailers in, pieces of bytes out, in `out`. A message is never copied for a stream: its pieces are views
of it, or a small frame that streams with equal ids share. Owned by `connection`, drained by `protocol`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.faults import ConnectionFault, ErrorCode, StreamFault
from xdsbpf.xds.h2.headers import RESPONSE_HEAD
from xdsbpf.xds.h2.messages import PREFIX_BYTES
from xdsbpf.xds.h2.stream import Stream

MAX_FRAME_SENT = 65_536
"""A peer may allow more; one frame is what other streams of the connection wait for."""

Piece = bytes | memoryview


class FrameCache:
    """The last small frame, shared by all connections.

    Envoy and gRPC clients open stream 1 on a connection of their own, so a change is the same bytes to all of them.
    """

    __slots__ = ("_frame", "_message", "_stream_id")

    def __init__(self) -> None:
        self._message = b""
        self._stream_id = 0
        self._frame = b""

    def data_frame(self, stream_id: int, message: bytes) -> bytes:
        """The DATA frame of a message that fits into one."""
        if message is not self._message or stream_id != self._stream_id:
            self._message, self._stream_id = message, stream_id
            self._frame = frames.data_frame(stream_id, message)
        return self._frame


class Sender:
    """Windows towards the peer, its settings, and the streams that have something to send."""

    __slots__ = ("_cache", "drained", "max_frame", "out", "stream_window", "waiting", "window")

    def __init__(self, cache: FrameCache) -> None:
        self.out: list[Piece] = []
        """Pieces in the order in which they must be written; the owner takes them away."""
        self.drained: list[Stream] = []
        """Streams whose message has left; the owner takes them away."""
        self.window = frames.DEFAULT_WINDOW
        self.stream_window = frames.DEFAULT_WINDOW
        self.max_frame = frames.DEFAULT_FRAME_SIZE
        self._cache = cache
        self.waiting: dict[int, Stream] = {}
        """Streams that have bytes and a window of their own, in the order of their turns."""

    @property
    def has_work(self) -> bool:
        """`pump` would send something."""
        return bool(self.waiting) and self.window > 0

    def send_now(self, stream: Stream, message: bytes) -> bool:
        """Send a message that goes into one frame, if the windows have room and nothing is before it; else False."""
        size = len(message) + PREFIX_BYTES
        if stream.outbox or size > stream.send_window or size > self.window or size > self.max_frame:
            return False
        self._send_head(stream)
        stream.send_window -= size
        self.window -= size
        self.out.append(self._cache.data_frame(stream.id, message))
        return True

    def send(self, stream: Stream, message: bytes, *, is_writable: bool) -> bool:
        """Send a message, or queue it in the stream; False if it is queued. At most one is queued at a time."""
        if is_writable and self.send_now(stream, message):
            return True
        self._send_head(stream)
        stream.outbox.append(memoryview(b"\0" + len(message).to_bytes(4, "big")))
        if message:
            stream.outbox.append(memoryview(message))
        if stream.send_window > 0:
            self.waiting[stream.id] = stream
        return False

    def _send_head(self, stream: Stream) -> None:
        if not stream.is_head_sent:
            stream.is_head_sent = True
            self.out.append(frames.frame(frames.HEADERS, frames.END_HEADERS, stream.id, RESPONSE_HEAD))

    def end(self, stream: Stream, block: bytes) -> None:
        """Send the block that ends the stream; what was queued of a message is dropped."""
        self.forget(stream)
        flags = frames.END_HEADERS | frames.END_STREAM
        self.out.append(frames.frame(frames.HEADERS, flags, stream.id, block))

    def forget(self, stream: Stream) -> None:
        """Nothing more is sent on the stream."""
        stream.outbox.clear()
        self.waiting.pop(stream.id, None)

    def pump(self, limit: int) -> None:
        """Put about `limit` bytes of queued messages into `out`, a frame of each stream in turn."""
        while limit > 0 and self.waiting and self.window > 0:
            stream_id, stream = next(iter(self.waiting.items()))
            del self.waiting[stream_id]
            limit -= self._one_frame(stream)
            if not stream.outbox:
                self.drained.append(stream)
            elif stream.send_window > 0:
                self.waiting[stream_id] = stream

    def _one_frame(self, stream: Stream) -> int:
        room = min(self.max_frame, self.window, stream.send_window)
        pieces: list[memoryview] = []
        size = 0
        while stream.outbox and size < room:
            piece = stream.outbox[0]
            if len(piece) > room - size:
                stream.outbox[0] = piece[room - size :]
                piece = piece[: room - size]
            else:
                stream.outbox.popleft()
            pieces.append(piece)
            size += len(piece)
        self.out.append(frames.frame_header(size, frames.DATA, 0, stream.id))
        self.out.extend(pieces)
        stream.send_window -= size
        self.window -= size
        return size

    def widen(self, increment: int) -> None:
        """WINDOW_UPDATE of the connection. Raises: ConnectionFault (section 6.9.1)."""
        if increment == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
        if self.window + increment > frames.MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window exceeds 2^31-1")
        self.window += increment

    def widen_stream(self, stream: Stream, increment: int) -> None:
        """WINDOW_UPDATE of a stream. Raises: StreamFault (section 6.9.1)."""
        if increment == 0:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
        if stream.send_window + increment > frames.MAX_WINDOW:
            raise StreamFault(stream.id, ErrorCode.FLOW_CONTROL_ERROR, "the stream's window exceeds 2^31-1")
        stream.send_window += increment
        self._reconsider(stream)

    def apply(self, values: Mapping[int, int], streams: Iterable[Stream]) -> None:
        """The peer's SETTINGS. Raises: ConnectionFault if they push an open stream's window beyond its maximum."""
        if frames.MAX_FRAME_SIZE in values:
            self.max_frame = min(values[frames.MAX_FRAME_SIZE], MAX_FRAME_SENT)
        change = values.get(frames.INITIAL_WINDOW_SIZE, self.stream_window) - self.stream_window
        if not change:
            return
        self.stream_window += change
        for stream in streams:  # section 6.9.2: windows move by the difference, below zero as well
            stream.send_window += change
            if stream.send_window > frames.MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window exceeds 2^31-1")
            self._reconsider(stream)

    def _reconsider(self, stream: Stream) -> None:
        if stream.outbox and stream.send_window > 0:
            self.waiting.setdefault(stream.id, stream)
        elif stream.send_window <= 0:
            self.waiting.pop(stream.id, None)
