"""The client's side of HTTP/2 as bytes, to say things that no library would say."""

from __future__ import annotations

from typing import NamedTuple

import hpack

from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.connection import Connection
from xdsbpf.xds.h2.events import Event
from xdsbpf.xds.h2.faults import ErrorCode
from xdsbpf.xds.h2.limits import Limits
from xdsbpf.xds.h2.sender import FrameCache

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test.Echo/Echo"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


class Frame(NamedTuple):
    kind: int
    flags: int
    stream_id: int
    payload: bytes


def split(data: bytes) -> list[Frame]:
    """Whole frames; what is left over is an error."""
    found = []
    while data:
        high, low, kind, flags, stream_id = frames.FRAME_HEADER.unpack_from(data)
        end = 9 + (high << 16 | low)
        assert len(data) >= end, "a truncated frame"
        found.append(Frame(kind, flags, stream_id, data[9:end]))
        data = data[end:]
    return found


def hello(**settings: int) -> bytes:
    values = {getattr(frames, key.upper()): value for key, value in settings.items()}
    return frames.PREFACE + frames.settings(values)


def block(fields: list[tuple[str, str]] | None = None, **changed: str) -> bytes:
    """A header block that touches no dynamic table; `changed` replaces pseudo-fields (method="GET")."""
    chosen = [(name, changed.get(name[1:], value)) for name, value in (fields or REQUEST)]
    return hpack.Encoder().encode([(name, value, True) for name, value in chosen], huffman=False)


def headers(
    stream_id: int = 1, fields: list[tuple[str, str]] | None = None, flags: int = frames.END_HEADERS, **changed: str
) -> bytes:
    return frames.frame(frames.HEADERS, flags, stream_id, block(fields, **changed))


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return frames.frame(frames.DATA, flags, stream_id, payload)


def message(content: bytes) -> bytes:
    return b"\0" + len(content).to_bytes(4, "big") + content


class Wire:
    """A connection and what it has answered."""

    def __init__(self, limits: Limits | None = None, *, greet: bool = True, **settings: int) -> None:
        self.now = 1_000.0
        self.connection = Connection(limits or Limits(), FrameCache(), self.now)
        self.greeting = self.take()
        self.events: list[Event] = []
        if greet:
            self.say(hello(**settings))

    def say(self, *pieces: bytes) -> list[Frame]:
        """Send bytes; the frames that answer them."""
        for piece in pieces:
            self.events += self.connection.receive(piece, self.now)
        return self.take()

    def take(self) -> list[Frame]:
        out, self.connection.sender.out = self.connection.sender.out, []
        return split(b"".join(out))

    def pump(self) -> list[Frame]:
        """Everything that the windows allow."""
        while self.connection.sender.has_work:
            self.connection.sender.pump(1 << 20)
        return self.take()

    @property
    def goaway(self) -> ErrorCode | None:
        """The error that ended the connection."""
        return next((event.code for event in self.events if type(event).__name__ == "Failed"), None)


def resets(answer: list[Frame]) -> list[tuple[int, ErrorCode]]:
    return [
        (frame.stream_id, ErrorCode(frames.u32(frame.payload))) for frame in answer if frame.kind == frames.RST_STREAM
    ]
