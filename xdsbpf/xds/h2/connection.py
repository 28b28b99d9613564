"""The state machine of one server connection (RFC 9113), without I/O.

Bytes in, events out of `receive`; what must be written gathers in `sender.out`. Violations are answered here, with the
error that the RFC names. Driven by `protocol`; time is passed in. Knows gRPC only as length-prefixed messages.
"""

from __future__ import annotations

from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.accounts import Accounts
from xdsbpf.xds.h2.blocks import Block, BlockAssembly
from xdsbpf.xds.h2.closed import ClosedStreams, Ending
from xdsbpf.xds.h2.control import Control, greeting
from xdsbpf.xds.h2.events import Ended, Event, Failed, Opened, Readable
from xdsbpf.xds.h2.faults import ConnectionFault, ErrorCode, StreamFault
from xdsbpf.xds.h2.headers import check_trailers, request_head
from xdsbpf.xds.h2.limits import Limits
from xdsbpf.xds.h2.sender import FrameCache, Sender
from xdsbpf.xds.h2.stream import Stream

_TINY_BYTES = 64


class Connection:
    """One connection. `is_writable` is set by the owner: False while the socket takes no more."""

    __slots__ = (
        "_accepts_up_to",
        "_accounts",
        "_blocks",
        "_closed",
        "_control",
        "_has_preface",
        "_limits",
        "_partial",
        "buffered",
        "is_failed",
        "is_writable",
        "last_stream_id",
        "running",
        "sender",
        "streams",
    )

    def __init__(self, limits: Limits, cache: FrameCache, now: float) -> None:
        self.streams: dict[int, Stream] = {}
        self.sender = Sender(cache)
        self.is_writable = True
        self.is_failed = False
        self.running = 0
        """Requests whose handler has not ended, those of streams that are over included."""
        self.buffered = 0
        """Bytes that were received and not read."""
        self.last_stream_id = 0
        self._limits = limits
        self._accounts = Accounts(limits, now)
        self._control = Control(self.sender, self._accounts)
        self._blocks = BlockAssembly(limits)
        self._closed = ClosedStreams()
        self._partial = b""
        self._has_preface = False
        self._accepts_up_to = frames.MAX_STREAM_ID
        self.sender.out += greeting(limits)

    @property
    def is_established(self) -> bool:
        """The peer has shown that it speaks HTTP/2."""
        return self._control.has_settings

    @property
    def bytes_held(self) -> int:
        """Bytes of the peer's that this connection keeps."""
        return len(self._partial) + len(self._blocks) + self.buffered

    def is_arriving(self, size: int) -> bool:
        """Whether a request of which more than so many bytes are there is not complete."""
        if self.is_failed:
            return False
        return any(stream.inbox.size > size and not stream.inbox.is_ready for stream in self.streams.values())

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the peer at monotonic time `now` (seconds). Raises: nothing, whatever the peer sends."""
        events: list[Event] = []
        if self.is_failed:
            return events
        self._accounts.now = now
        try:
            self._parse(self._partial + data if self._partial else data, events)
        except ConnectionFault as fault:
            self.fail(fault.code, str(fault))
            events.append(Failed(fault.code, str(fault)))
        return events

    def fail(self, code: ErrorCode, text: str) -> None:
        """End the connection with a GOAWAY; nothing is received any more."""
        self.is_failed = True
        self._partial = b""
        self._blocks.drop()
        self.sender.out.append(frames.goaway(self.last_stream_id, code, text))

    # what the owner does with a stream

    def read(self, stream: Stream) -> bytes | None:
        """The next message of a request, None if there is none yet. Raises: ProtocolError if there never will be."""
        before = stream.inbox.size
        message = stream.inbox.pop()
        self.buffered -= before - stream.inbox.size
        self._return_credit(stream)
        return message

    def send_now(self, stream: Stream, message: bytes) -> bool:
        """Send a message if all of it can leave at once, else do nothing and return False."""
        if stream.is_ended:
            return True
        if not self.is_writable or not self.sender.send_now(stream, message):
            return False
        self._accounts.refund_idle()  # it may cause a PING or a WINDOW_UPDATE
        return True

    def send(self, stream: Stream, message: bytes) -> bool:
        """Send a response message; False if some of it waits for a window or the socket (`sender.drained`)."""
        if stream.is_ended:
            return True
        self._accounts.refund_idle()  # as above
        return self.sender.send(stream, message, is_writable=self.is_writable)

    def end(self, stream: Stream, block: bytes) -> None:
        """End a response with its trailers; a request that is still open is cut off (section 8.1)."""
        if stream.is_ended:
            return
        self.sender.end(stream, block)
        if not stream.is_remote_ended:
            self.sender.out.append(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))
        self._remove(stream, Ending.BY_PEER if stream.is_remote_ended else Ending.BY_US)

    def release(self) -> None:
        """A handler has ended."""
        self.running -= 1

    def ping(self, payload: bytes) -> None:
        """Ask whether the peer is there."""
        self.sender.out.append(frames.ping(payload, is_ack=False))

    def announce_goaway(self) -> None:
        """First step of a graceful end: no new requests, please; those under way are served (section 6.8)."""
        self.sender.out.append(frames.goaway(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR))

    def final_goaway(self) -> None:
        """Second step: requests above the last one are not looked at."""
        self._accepts_up_to = self.last_stream_id
        self.sender.out.append(frames.goaway(self.last_stream_id, ErrorCode.NO_ERROR))

    # what the peer does

    def _parse(self, data: bytes, events: list[Event]) -> None:
        at, size = 0, len(data)
        if not self._has_preface:
            if not frames.PREFACE.startswith(data[: len(frames.PREFACE)]):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the connection does not begin as HTTP/2 does")
            if size < len(frames.PREFACE):
                self._partial = data
                return
            self._has_preface = True
            at = len(frames.PREFACE)
        while size - at >= frames.HEADER_BYTES:
            high, low, kind, flags, stream_id = frames.FRAME_HEADER.unpack_from(data, at)
            length = high << 16 | low
            if length > frames.DEFAULT_FRAME_SIZE:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            start = at + frames.HEADER_BYTES
            if start + length > size:
                break
            at = start + length
            self._frame(kind, flags, stream_id & frames.MAX_STREAM_ID, data[start:at], events)
        self._partial = data[at:]

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if self._blocks.is_open:
            self._blocks.check_order(kind, stream_id)
        if not self._control.has_settings and kind != frames.SETTINGS:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        try:
            if kind == frames.DATA:
                self._on_data(flags, stream_id, payload, events)
            else:
                self._dispatch(kind, flags, stream_id, payload, events)
        except StreamFault as fault:
            self._reset(fault.stream_id, fault.code, events)

    def _dispatch(self, kind: int, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        match kind:  # the frequent ones first
            case frames.WINDOW_UPDATE:
                self._on_window_update(stream_id, payload)
            case frames.HEADERS:
                self._on_block(self._blocks.headers(flags, stream_id, payload), events)
            case frames.CONTINUATION:
                self._on_block(self._blocks.continuation(flags, payload), events)
            case frames.RST_STREAM:
                self._on_rst_stream(stream_id, payload, events)
            case frames.SETTINGS:
                self._control.settings(flags, stream_id, payload, self.streams.values())
            case frames.PING:
                self._control.ping(flags, stream_id, payload)
            case frames.PRIORITY:
                self._control.priority(stream_id, payload)
            case frames.GOAWAY:
                self._control.goaway(stream_id, payload)
            case frames.PUSH_PROMISE:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")
            case _:  # section 4.1: unknown ones are ignored
                self._accounts.spend_idle()

    def _on_data(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        size = len(payload)
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        if update := self._accounts.take_data(size):
            self.sender.out.append(update)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._on_late_frame(stream_id)
            return
        content = frames.unpadded(payload, flags) if flags & frames.PADDED else payload
        ends = bool(flags & frames.END_STREAM)
        stream.take_data(size, len(content), ends=ends)
        self._feed(stream, content)
        is_ready = stream.inbox.is_ready
        if is_ready:
            self._accounts.refund_idle()
        if ends:
            stream.is_remote_ended = True
        elif len(content) < _TINY_BYTES:
            self._accounts.spend_idle()
        if is_ready or ends:
            events.append(Readable(stream))
        self._return_credit(stream)

    def _feed(self, stream: Stream, content: bytes) -> None:
        before = stream.inbox.size
        if self.buffered + len(content) > self._limits.max_buffered:
            stream.inbox.fail("RESOURCE_EXHAUSTED", f"more than {self._limits.max_buffered} bytes wait to be read")
        else:
            stream.inbox.feed(content)
        self.buffered += stream.inbox.size - before

    def _on_block(self, block: Block | None, events: list[Event]) -> None:
        """A request, or its trailers; None is a block that is not complete."""
        if block is None:
            return
        stream = self.streams.get(block.stream_id)
        if stream is not None:
            self._on_trailers(stream, block, events)
        elif block.stream_id <= self.last_stream_id:
            self._on_late_frame(block.stream_id)
        elif block.stream_id <= self._accepts_up_to:
            self._open(block, events)

    def _on_trailers(self, stream: Stream, block: Block, events: list[Event]) -> None:
        if stream.is_remote_ended:
            raise StreamFault(stream.id, ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
        if not block.ends_stream:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        check_trailers(stream.id, block.fields)
        if stream.content_left:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "content-length is not that of the content")
        stream.is_remote_ended = True
        events.append(Readable(stream))

    def _open(self, block: Block, events: list[Event]) -> None:
        stream_id = self.last_stream_id = block.stream_id
        head = request_head(stream_id, block.fields, self._limits)
        if self.running >= self._limits.max_streams:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "too many requests at once")
        if block.ends_stream and head.content_length:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "content-length without content")
        limits = self._limits
        stream = Stream(stream_id, self.sender.stream_window, limits.stream_window, limits.max_message)
        stream.content_left = head.content_length
        stream.is_remote_ended = block.ends_stream
        self.streams[stream_id] = stream
        self.running += 1
        events.append(Opened(stream, head))

    def _on_late_frame(self, stream_id: int) -> None:
        """DATA or HEADERS on a stream that is not open (section 5.1)."""
        if stream_id > self.last_stream_id:
            if stream_id > self._accepts_up_to:
                return  # its HEADERS were ignored after GOAWAY
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a frame on idle stream {stream_id}")
        ending = self._closed.ending(stream_id)
        if ending is Ending.BY_PEER:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"a frame on closed stream {stream_id}")
        if ending is Ending.NEVER_OPENED:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} comes after a higher one")

    def _on_rst_stream(self, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes")
        if stream_id == 0 or stream_id > self.last_stream_id:
            if stream_id > self._accepts_up_to:
                return
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on idle stream {stream_id}")
        self._accounts.spend_reset()
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._remove(stream, Ending.BY_PEER)
            events.append(Ended(stream, frames.u32(payload)))

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes")
        self._accounts.spend_idle()
        increment = frames.u31(payload)
        if stream_id == 0:
            self.sender.widen(increment)
            return
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.sender.widen_stream(stream, increment)
        elif stream_id > self.last_stream_id and stream_id <= self._accepts_up_to:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {stream_id}")

    def _return_credit(self, stream: Stream) -> None:
        """Let the peer send as much again as has come; not while a whole message lies unread.

        A message that is under way is always credited, else one larger than the window could never arrive.
        """
        if stream.inbox.is_ready:
            return
        stream.returnable += stream.held
        stream.held = 0
        if stream.is_remote_ended or stream.is_ended or stream.returnable < self._limits.stream_window // 2:
            return
        self.sender.out.append(frames.window_update(stream.id, stream.returnable))
        stream.receive_window += stream.returnable
        stream.returnable = 0

    def _reset(self, stream_id: int, code: ErrorCode, events: list[Event]) -> None:
        """Answer a stream error. These count as resets too: the peer can provoke them at will (CVE-2025-8671).

        Raises: ConnectionFault where the stream was never opened, and so cannot be reset (section 6.4): PRIORITY alone
        may come before.
        """
        if stream_id > self.last_stream_id:
            raise ConnectionFault(code, f"a malformed frame on idle stream {stream_id}")
        self.sender.out.append(frames.rst_stream(stream_id, code))
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._remove(stream, Ending.BY_US)
            events.append(Ended(stream, code))
        else:
            self._closed.add(stream_id, Ending.BY_US)
        self._accounts.spend_reset()

    def _remove(self, stream: Stream, ending: Ending) -> None:
        stream.is_ended = True
        self.sender.forget(stream)
        self.buffered -= stream.inbox.size
        stream.inbox.fail("CANCELLED", "the stream is over")
        del self.streams[stream.id]
        self._closed.add(stream.id, ending)
