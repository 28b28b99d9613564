"""What one peer may ask for, each limit beside a control below it, and each limit broken on purpose once."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from h2_wire import REQUEST, Wire, block, data, headers, message, resets

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.events import Opened
from xdsbpf.xds.h2.faults import ErrorCode as Code
from xdsbpf.xds.h2.limits import Limits

SMALL = Limits(
    max_streams=8,
    max_header_block=2_000,
    max_continuations=4,
    max_header_list=1_000,
    hard_header_list=4_000,
    stream_window=70_000,
    connection_window=140_000,
    max_message=100_000,
    max_buffered=120_000,
    idle_frames=50,
    idle_frames_per_s=10.0,
    resets=20,
    resets_per_s=2.0,
)
HUGE = 1 << 30
CALM = Code.ENHANCE_YOUR_CALM
PING = frames.ping(b"12345678", is_ack=False)


def continuation(payload: bytes, flags: int = 0) -> bytes:
    return frames.frame(frames.CONTINUATION, flags, 1, payload)


def continuations(wire: Wire, count: int) -> None:
    wire.say(headers(flags=0), *(continuation(b"") for _ in range(count - 1)), continuation(b"", frames.END_HEADERS))


def block_bytes(wire: Wire, size: int) -> None:
    first = block()
    wire.say(frames.frame(frames.HEADERS, 0, 1, first), continuation(b"\0" * (size - len(first))))


def header_list(wire: Wire, size: int) -> None:
    """A bomb: one entry of the dynamic table, named again and again by one byte."""
    entry = b"\x40\x01a\x7f\x81\x01" + b"x" * 256  # 289 bytes of a list
    wire.say(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block() + entry + b"\xbe" * (size // 289)))


def pings(wire: Wire, count: int) -> None:
    wire.say(*(PING for _ in range(count)))


def settings(wire: Wire, count: int) -> None:
    wire.say(*(frames.settings({}) for _ in range(count // 10)))


def window_updates(wire: Wire, count: int) -> None:
    wire.say(*(frames.window_update(0, 1) for _ in range(count)))


def priorities(wire: Wire, count: int) -> None:
    wire.say(*(frames.frame(frames.PRIORITY, 0, 1, b"12345") for _ in range(count)))


def unknown_frames(wire: Wire, count: int) -> None:
    wire.say(*(frames.frame(0x42, 0, 1, b"") for _ in range(count)))


def empty_data(wire: Wire, count: int) -> None:
    wire.say(headers(), *(data(1, b"") for _ in range(count)))


def rapid_resets(wire: Wire, count: int) -> None:
    for number in range(count):
        stream_id = 2 * number + 1
        wire.say(headers(stream_id), frames.rst_stream(stream_id, Code.CANCEL))
        wire.connection.release()  # its handler has ended at once


def provoked_resets(wire: Wire, count: int) -> None:
    """MadeYouReset: the server resets what the client breaks on purpose."""
    for number in range(count):
        stream_id = 2 * number + 1
        wire.say(headers(stream_id), headers(stream_id))  # trailers without END_STREAM
        wire.connection.release()


Attack = Callable[[Wire, int], None]
LIMITS: list[tuple[str, Attack, int, dict[str, float]]] = [
    ("continuations", continuations, SMALL.max_continuations, {"max_continuations": HUGE}),
    ("block_bytes", block_bytes, SMALL.max_header_block, {"max_header_block": HUGE}),
    ("header_list", header_list, SMALL.hard_header_list - 600, {"hard_header_list": HUGE}),
    ("pings", pings, SMALL.idle_frames - 10, {"idle_frames": HUGE}),
    ("settings", settings, SMALL.idle_frames - 10, {"idle_frames": HUGE}),
    ("window_updates", window_updates, SMALL.idle_frames - 10, {"idle_frames": HUGE}),
    ("priorities", priorities, SMALL.idle_frames - 10, {"idle_frames": HUGE}),
    ("unknown_frames", unknown_frames, SMALL.idle_frames - 10, {"idle_frames": HUGE}),
    ("empty_data", empty_data, SMALL.idle_frames - 10, {"idle_frames": HUGE}),
    ("rapid_resets", rapid_resets, SMALL.resets, {"resets": HUGE}),
    ("provoked_resets", provoked_resets, SMALL.resets, {"resets": HUGE}),
]


@pytest.mark.parametrize(("name", "attack", "allowed", "broken"), LIMITS, ids=[row[0] for row in LIMITS])
def test_a_flood_ends_its_connection(name: str, attack: Attack, allowed: int, broken: dict[str, float]) -> None:
    below, above = Wire(SMALL), Wire(SMALL)
    attack(below, allowed)
    assert below.goaway is None
    attack(above, allowed * 2 + 20)
    assert above.goaway is CALM
    # the mutant: without the limit the flood is not noticed
    unlimited = Wire(msgspec.structs.replace(SMALL, **broken))
    attack(unlimited, allowed * 2 + 20)
    assert unlimited.goaway is None


def test_floods_over_time_are_keepalives() -> None:
    """Rule 47: a client may ping every second, for ever."""
    wire = Wire(SMALL)
    for _ in range(1_000):
        wire.now += 1.0
        wire.say(PING)
    assert wire.goaway is None


def test_what_our_own_data_provokes_is_no_flood() -> None:
    """gRPC clients ping and update windows for the data that they get."""
    wire = Wire(SMALL)
    wire.say(headers())
    for _ in range(1_000):
        wire.connection.send(wire.connection.streams[1], b"x")
        wire.say(PING)
    assert wire.goaway is None


@pytest.mark.parametrize(("limits", "opened"), [(SMALL, 8), (msgspec.structs.replace(SMALL, max_streams=HUGE), 12)])
def test_calls_at_once_are_limited_and_more_are_refused(limits: Limits, opened: int) -> None:
    wire = Wire(limits)
    answer = wire.say(*(headers(2 * number + 1) for number in range(12)))
    assert len(wire.connection.streams) == opened
    assert resets(answer) == [(2 * number + 1, Code.REFUSED_STREAM) for number in range(opened, 12)]


def test_a_reset_call_counts_until_its_handler_has_ended() -> None:
    wire = Wire(SMALL)
    for number in range(8):
        wire.say(headers(2 * number + 1), frames.rst_stream(2 * number + 1, Code.CANCEL))
    assert resets(wire.say(headers(101))) == [(101, Code.REFUSED_STREAM)]
    wire.connection.release()
    assert resets(wire.say(headers(103))) == []


@pytest.mark.parametrize(("limit", "refused"), [(1_000, True), (HUGE, False)])
def test_a_header_list_above_the_announced_size_is_marked(limit: int, refused: bool) -> None:
    wire = Wire(msgspec.structs.replace(SMALL, max_header_list=limit))
    wire.say(headers(fields=[*REQUEST, ("name", "x" * 900)]))
    (event,) = wire.events
    assert isinstance(event, Opened)
    assert event.head.is_oversized is refused


@pytest.mark.parametrize(("limit", "refused"), [(100_000, True), (HUGE, False)])
def test_a_message_that_is_too_large_is_refused_by_its_prefix(limit: int, refused: bool) -> None:
    wire = Wire(msgspec.structs.replace(SMALL, max_message=limit))
    wire.say(headers(), data(1, message(b"x" * 100_001)[:1_000]))
    stream = wire.connection.streams[1]
    if not refused:
        assert wire.connection.read(stream) is None
        return
    with pytest.raises(ProtocolError, match="larger than 100000") as caught:
        wire.connection.read(stream)
    assert caught.value.status == "RESOURCE_EXHAUSTED"
    assert wire.connection.bytes_held == 0


@pytest.mark.parametrize(("limit", "held"), [(120_000, 120_000), (HUGE, 240_000)])
def test_unread_bytes_of_all_streams_are_limited(limit: int, held: int) -> None:
    wire = Wire(msgspec.structs.replace(SMALL, max_buffered=limit))
    for stream_id in (1, 3, 5, 7):
        wire.say(headers(stream_id), *(data(stream_id, message(b"x" * 9_995)) for _ in range(6)))
    assert wire.connection.buffered == held
    last = wire.connection.streams[7]
    if limit == 120_000:
        with pytest.raises(ProtocolError, match="wait to be read"):
            wire.connection.read(last)
    assert wire.connection.read(wire.connection.streams[1]) == b"x" * 9_995
    assert wire.goaway is None
