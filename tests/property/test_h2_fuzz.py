"""Frames that no client would send, at random: nothing raises, nothing grows, and a neighbour is served meanwhile.

Seconds in CI, minutes with XDSBPF_LONG=1. A failure names the seed of its case: `run_case(SEED)` repeats it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from tests.conftest import LONG
from xdsbpf.errors import ProtocolError
from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.connection import Connection
from xdsbpf.xds.h2.events import Opened
from xdsbpf.xds.h2.faults import ErrorCode
from xdsbpf.xds.h2.headers import TRAILERS_OK
from xdsbpf.xds.h2.limits import Limits
from xdsbpf.xds.h2.sender import FrameCache
from xdsbpf.xds.h2.stream import Stream

SECONDS = 300.0 if LONG else 5.0
LIMITS = Limits(
    max_streams=20,
    stream_window=50_000,
    connection_window=100_000,
    max_message=60_000,
    max_buffered=200_000,
    idle_frames=300,
    resets=50,
)
HELD = frames.HEADER_BYTES + frames.DEFAULT_FRAME_SIZE + LIMITS.max_header_block + LIMITS.max_buffered
"""What a connection may keep at most: a frame, a header block, unread messages."""
PATHS = (b"/a.B/C", b"/", b"", b"x" * 3_000)
Piece = Callable[[random.Random], bytes]


def literal(name: bytes, value: bytes, first: int = 0) -> bytes:
    def string(raw: bytes) -> bytes:
        return (
            bytes((len(raw),)) + raw
            if len(raw) < 127
            else b"\x7f" + bytes((len(raw) - 127 & 127 | 128, len(raw) - 127 >> 7)) + raw
        )

    return bytes((first,)) + string(name) + string(value)


def request_block(rng: random.Random) -> bytes:
    """Mostly a good request; sometimes with entries of the dynamic table, repeated, or cut."""
    block = b"\x83\x86" + literal(b":path", rng.choice(PATHS)) + literal(b"content-type", b"application/grpc")
    roll = rng.random()
    if roll < 0.1:
        return block[: rng.randrange(len(block))]
    if roll < 0.2:
        return block + literal(b"a", b"v" * rng.randrange(3_900), 0x40) + b"\xbe" * rng.randrange(300)
    if roll < 0.25:
        return rng.randbytes(rng.randrange(200))
    if roll < 0.3:  # the table's size: up, down, beyond what is allowed
        return rng.choice((b"\x20", b"\x3f\xe1\x1f", b"\x3f\xff\xff\xff\x0f")) + block
    return block


def some_stream(rng: random.Random) -> int:
    return rng.choice((0, 1, 1, 1, 3, 3, 5, 7, 2, rng.randrange(1, 200, 2), rng.randrange(2**31)))


def message(rng: random.Random) -> bytes:
    size = rng.choice((0, 1, 10, 100, 5_000, 16_000))
    declared = size if rng.random() < 0.9 else rng.choice((0, size + 1, 59_999, 60_001, 2**32 - 1))
    return bytes((rng.random() < 0.02,)) + declared.to_bytes(4, "big") + bytes(min(size, 16_379))


def window(rng: random.Random) -> bytes:
    increment = rng.choice((0, 1, 100, 65_535, 2**31 - 1, 2**31 - 65_536, 2**32 - 1))
    return frames.frame(frames.WINDOW_UPDATE, 0, some_stream(rng), increment.to_bytes(4, "big"))


def settings(rng: random.Random) -> bytes:
    key = rng.choice((1, 2, 3, 4, 4, 4, 5, 6, 99))
    value = rng.choice((0, 1, 1, 65_535, 16_384, 2**31 - 1, 2**31, 2**32 - 1))
    return frames.settings({key: value}) * rng.choice((1, 1, 1, 40))


def headers(rng: random.Random) -> bytes:
    block = request_block(rng)
    flags = rng.choice((4, 4, 4, 5, 0, 4 | 8, 4 | 32, rng.randrange(256)))
    if flags & 8 and rng.random() < 0.8:
        block = b"\2" + block + b"\0\0"
    stream_id = some_stream(rng)
    whole = frames.frame(frames.HEADERS, flags, stream_id, block[:16_384])
    if not flags & 4:
        count = rng.choice((0, 1, 3, 40))
        whole += b"".join(frames.frame(frames.CONTINUATION, 0, stream_id, rng.randbytes(9)) for _ in range(count))
        whole += frames.frame(frames.CONTINUATION, 4, stream_id, b"")
    return whole


def unknown(rng: random.Random) -> bytes:
    return frames.frame(rng.randrange(256), rng.randrange(256), some_stream(rng), rng.randbytes(rng.randrange(40)))


def rapid_reset(rng: random.Random) -> bytes:
    start, count = rng.randrange(1, 100, 2), rng.choice((1, 5, 70))
    block = b"\x83\x86" + literal(b":path", b"/a.B/C")
    return b"".join(
        frames.frame(frames.HEADERS, 4, stream_id, block) + frames.rst_stream(stream_id, ErrorCode.CANCEL)
        for stream_id in range(start, start + 2 * count, 2)
    )


PIECES: tuple[Piece, ...] = (
    headers,
    headers,
    headers,
    lambda rng: frames.frame(frames.DATA, rng.choice((0, 0, 0, 1, 8)), some_stream(rng), message(rng)),
    lambda rng: frames.frame(frames.DATA, 0, some_stream(rng), message(rng)) * rng.choice((1, 10)),
    lambda rng: frames.frame(frames.DATA, 0, some_stream(rng), b"") * rng.choice((1, 400)),
    window,
    settings,
    unknown,
    rapid_reset,
    lambda rng: frames.rst_stream(some_stream(rng), ErrorCode.CANCEL),
    lambda rng: frames.ping(b"12345678", is_ack=rng.random() < 0.3) * rng.choice((1, 1, 400)),
    lambda rng: frames.frame(frames.GOAWAY, 0, 0, rng.randbytes(rng.randrange(20))),
    lambda rng: rng.randbytes(rng.randrange(100)),
)


def tame_bytes(rng: random.Random) -> bytes:
    """A long conversation that breaks few rules, so that deep states are reached."""
    raw, opened = bytearray(frames.PREFACE + frames.settings({})), 0
    good = b"\x83\x86" + literal(b":path", b"/a.B/C") + literal(b"content-type", b"application/grpc", 0x40)
    for _ in range(rng.randrange(5, 80)):
        stream_id = rng.randrange(1, max(2, 2 * opened), 2)
        match rng.randrange(8):
            case 0 | 1:
                opened += 1
                raw += frames.frame(frames.HEADERS, rng.choice((4, 4, 5)), 2 * opened - 1, good)
            case 2 | 3 | 4 if opened:
                flags = rng.choice((0, 0, 0, 0, 1))
                raw += frames.frame(frames.DATA, flags, stream_id, message(rng))
                if flags:
                    raw += frames.rst_stream(stream_id, ErrorCode.CANCEL)
            case 5 if opened:
                raw += frames.window_update(rng.choice((0, stream_id)), rng.choice((1, 1_000, 60_000)))
            case 6:
                raw += frames.settings({frames.INITIAL_WINDOW_SIZE: rng.choice((0, 10, 70_000))})
            case _:
                raw += frames.ping(b"12345678", is_ack=False)
    return bytes(raw)


def hostile_bytes(rng: random.Random) -> bytes:
    """A conversation: arbitrary bytes, a list of pieces, or such a list with some bytes changed."""
    if rng.random() < 0.5:
        return tame_bytes(rng)
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(400))
    opening = frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: rng.choice((0, 5, 65_535, 2**31 - 1))})
    pieces = [rng.choice(PIECES)(rng) for _ in range(rng.randrange(1, 40))]
    raw = bytearray(opening + frames.frame(frames.HEADERS, 4, 1, request_block(rng)) + b"".join(pieces))
    if rng.random() < 0.4:
        for _ in range(rng.choice((1, 1, 3, 20))):
            at = rng.randrange(len(raw))
            match rng.randrange(3):
                case 0:
                    raw[at] ^= 1 << rng.randrange(8)
                case 1:
                    del raw[at : at + rng.randrange(1, 12)]
                case _:
                    raw[at:at] = rng.randbytes(rng.randrange(1, 12))
            if not raw:
                break
    return bytes(raw)


class Handlers:
    """What the owner of a connection does meanwhile: reads some, answers some, ends some, late."""

    def __init__(self, connection: Connection, rng: random.Random) -> None:
        self.connection, self.rng = connection, rng
        self.running: list[Stream] = []

    def step(self) -> None:
        for stream in list(self.running):
            roll = self.rng.random()
            if roll < 0.5:
                try:
                    self.connection.read(stream)
                except ProtocolError:
                    self.end(stream)
            elif roll < 0.7 and not stream.outbox:
                self.connection.send(stream, bytes(self.rng.choice((0, 10, 20_000))))
            elif roll < 0.8 or stream.is_ended:
                self.end(stream)
        self.connection.is_writable = self.rng.random() < 0.8
        if self.connection.is_writable and self.connection.sender.has_work:
            self.connection.sender.pump(65_536)

    def end(self, stream: Stream) -> None:
        self.connection.end(stream, TRAILERS_OK)
        self.connection.release()
        self.running.remove(stream)


class Answers:
    """What the connection has said: whole frames, and nothing more on a stream that it has ended."""

    def __init__(self) -> None:
        self.ended: set[int] = set()

    def take(self, connection: Connection) -> int:
        """Check what is to be written, and take it away; its bytes."""
        raw, at = b"".join(connection.sender.out), 0
        connection.sender.out.clear()
        while at < len(raw):
            high, low, kind, flags, stream_id = frames.FRAME_HEADER.unpack_from(raw, at)
            at += frames.HEADER_BYTES + (high << 16 | low)
            if kind in (frames.DATA, frames.HEADERS):
                assert stream_id not in self.ended, f"frame {kind} on a stream that is over"
            if kind == frames.RST_STREAM or (kind == frames.HEADERS and flags & frames.END_STREAM):
                self.ended.add(stream_id)
        assert at == len(raw)
        assert not self.ended & connection.streams.keys()
        return len(raw)


class Neighbour:
    """An honest client of the same server: one stream, a message each time."""

    def __init__(self, cache: FrameCache) -> None:
        self.connection = Connection(Limits(), cache, 0.0)
        block = b"\x83\x86" + literal(b":path", b"/a.B/C")
        self.connection.receive(frames.PREFACE + frames.settings({}) + frames.frame(frames.HEADERS, 4, 1, block), 0.0)
        self.now = 0.0

    def is_served(self) -> bool:
        self.now += 1.0
        connection, stream = self.connection, self.connection.streams[1]
        sent = b"m%d" % int(self.now)
        connection.receive(
            frames.data_frame(1, sent) + frames.window_update(0, 100) + frames.window_update(1, 100), self.now
        )
        connection.sender.out.clear()
        echoed = connection.read(stream)
        return echoed == sent and connection.send(stream, sent) and frames.data_frame(1, sent) in connection.sender.out


def run_case(seed: int, cache: FrameCache | None = None) -> tuple[int, bool]:
    """One conversation; (bytes that were said, whether it ended the connection)."""
    rng = random.Random(seed)
    connection = Connection(LIMITS, cache or FrameCache(), 0.0)
    handlers, answers = Handlers(connection, rng), Answers()
    said, now, at = hostile_bytes(rng), 0.0, 0
    while at < len(said):
        size = rng.choice((1, 7, 100, 5_000, 100_000))
        piece, at, now = said[at : at + size], at + size, now + rng.choice((0.0, 0.0, 0.01))
        for event in connection.receive(piece, now):
            if isinstance(event, Opened):
                handlers.running.append(event.stream)
        answered = answers.take(connection)
        assert connection.bytes_held <= HELD, f"seed {seed}"
        assert connection.buffered == sum(stream.inbox.size for stream in connection.streams.values()), f"seed {seed}"
        assert len(connection.streams) <= connection.running <= LIMITS.max_streams, f"seed {seed}"
        assert answered <= 200_000 + 20 * len(piece), f"seed {seed}"
        handlers.step()
        answers.take(connection)
    for stream in list(handlers.running):
        handlers.end(stream)
    assert (connection.running, connection.buffered, len(connection.streams)) == (0, 0, 0), f"seed {seed}"
    return len(said), connection.is_failed


@pytest.mark.timeout(SECONDS + 60)
def test_no_frames_raise_grow_or_touch_a_neighbour(record_property: Callable[[str, object], None]) -> None:
    cache = FrameCache()
    neighbour = Neighbour(cache)
    deadline, cases, size, failed = time.monotonic() + SECONDS, 0, 0, 0
    while time.monotonic() < deadline:
        said, is_failed = run_case(cases, cache)
        cases, size, failed = cases + 1, size + said, failed + is_failed
        assert neighbour.is_served(), f"seed {cases - 1}"
    record_property("cases", cases)
    print(f"{cases} conversations, {size >> 20} MB in {SECONDS:.0f} s; {failed} ended by an error")
    assert cases > 200
    assert 0.3 < failed / cases < 0.95, "both good and bad conversations are tried"
