"""Flow control both ways (RFC 9113 section 6.9), message framing, and shared bytes."""

from __future__ import annotations

import pytest
from h2_wire import Frame, Wire, data, headers, message, resets

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.faults import ErrorCode as Code
from xdsbpf.xds.h2.frames import MAX_WINDOW
from xdsbpf.xds.h2.limits import Limits
from xdsbpf.xds.h2.sender import FrameCache, Sender
from xdsbpf.xds.h2.stream import Stream

SMALL = Limits(stream_window=100_000, connection_window=150_000)


def content(answer: list[Frame], stream_id: int = 1) -> bytes:
    return b"".join(frame.payload for frame in answer if frame.kind == frames.DATA and frame.stream_id == stream_id)


def updates(answer: list[Frame]) -> dict[int, int]:
    found: dict[int, int] = {}
    for frame in answer:
        if frame.kind == frames.WINDOW_UPDATE:
            found[frame.stream_id] = found.get(frame.stream_id, 0) + frames.u31(frame.payload)
    return found


def test_we_announce_large_windows_and_our_limits() -> None:
    """Rule 47: at least 1 MB towards us."""
    settings, update = Wire().greeting
    values = frames.read_settings(settings.payload)
    assert values[frames.INITIAL_WINDOW_SIZE] >= 1 << 20
    assert values[frames.MAX_CONCURRENT_STREAMS] == Limits().max_streams
    assert frames.DEFAULT_WINDOW + frames.u31(update.payload) >= 1 << 20


def test_no_more_is_sent_than_the_stream_and_the_connection_take() -> None:
    wire = Wire(initial_window_size=10)
    wire.say(headers())
    stream = wire.connection.streams[1]
    assert not wire.connection.send(stream, b"x" * 100_000)
    assert content(wire.pump()) == message(b"x" * 100_000)[:10]
    wire.say(frames.window_update(1, 1 << 20))
    assert len(content(wire.pump())) == 65_535 - 10, "the connection's window ends it"
    assert wire.connection.sender.drained == []
    wire.say(frames.window_update(0, 1 << 20))
    assert len(content(wire.pump())) == 100_005 - 65_535
    assert wire.connection.sender.drained == [stream]


def test_a_window_that_settings_made_negative_must_be_paid_back() -> None:
    wire = Wire(initial_window_size=1_000)
    wire.say(headers())
    stream = wire.connection.streams[1]
    wire.connection.send(stream, b"x" * 5_000)
    assert len(content(wire.pump())) == 1_000
    wire.say(frames.settings({frames.INITIAL_WINDOW_SIZE: 400}))
    assert stream.send_window == -600
    wire.say(frames.window_update(1, 600))
    assert wire.pump() == []
    wire.say(frames.window_update(1, 5))
    assert len(content(wire.pump())) == 5
    wire.say(frames.settings({frames.INITIAL_WINDOW_SIZE: 65_535}))
    assert len(content(wire.pump())) == 5_005 - 1_005


def test_frames_are_no_larger_than_the_peer_takes() -> None:
    wire = Wire(initial_window_size=MAX_WINDOW, max_frame_size=20_000)
    wire.say(headers(), frames.window_update(0, 1 << 24))
    wire.connection.send(wire.connection.streams[1], b"x" * 50_000)
    assert [len(frame.payload) for frame in wire.pump() if frame.kind == frames.DATA] == [20_000, 20_000, 10_005]


def test_streams_take_turns() -> None:
    wire = Wire(initial_window_size=MAX_WINDOW)
    wire.say(headers(1), headers(3), frames.window_update(0, 1 << 24))
    for stream in wire.connection.streams.values():
        wire.connection.send(stream, b"x" * 60_000)
    order = [frame.stream_id for frame in wire.pump() if frame.kind == frames.DATA]
    assert order == [1, 3, 1, 3, 1, 3, 1, 3]


def test_while_the_socket_takes_nothing_messages_wait() -> None:
    wire = Wire()
    wire.say(headers())
    wire.connection.is_writable = False
    assert not wire.connection.send(wire.connection.streams[1], b"abc")
    assert content(wire.take()) == b""
    wire.connection.is_writable = True
    assert content(wire.pump()) == message(b"abc")


def test_streams_share_the_bytes_of_a_message() -> None:
    cache, small, large = FrameCache(), b"s" * 400, b"x" * 1_000_000
    senders = [Sender(cache) for _ in range(3)]
    for sender in senders:
        sender.window = MAX_WINDOW
        stream = Stream(1, MAX_WINDOW, 0, 0)
        assert sender.send(stream, small, is_writable=True)
        assert not sender.send(stream, large, is_writable=True)
        sender.pump(1 << 30)
    assert len({id(sender.out[1]) for sender in senders}) == 1
    views = [piece for sender in senders for piece in sender.out if isinstance(piece, memoryview) and len(piece) > 5]
    assert len(views) == 3 * 62
    assert all(view.obj is large for view in views)


def test_data_beyond_a_window_is_a_flow_control_error() -> None:
    wire = Wire(SMALL)
    wire.say(headers())
    chunk = data(1, b"\0\0\0\x20\0" + b"x" * 9_995)  # one message after the other, none read
    assert resets(wire.say(*(chunk for _ in range(10)))) == []
    assert resets(wire.say(chunk)) == [(1, Code.FLOW_CONTROL_ERROR)]
    assert wire.goaway is None


def test_the_connection_credit_does_not_wait_for_a_reader() -> None:
    wire = Wire(SMALL)
    answers: list[Frame] = []
    for stream_id in (1, 3, 5):
        answers += wire.say(headers(stream_id), *(data(stream_id, message(b"x" * 9_995)) for _ in range(9)))
    assert wire.goaway is None
    assert updates(answers) == {0: 240_000}


def test_the_streams_credit_waits_for_its_reader() -> None:
    wire = Wire(SMALL)
    answers = wire.say(headers(), *(data(1, message(b"x" * 9_995)) for _ in range(9)))
    assert 1 not in updates(answers)
    stream = wire.connection.streams[1]
    while wire.connection.read(stream) is not None:
        pass
    assert updates(wire.take())[1] == 90_000


def test_a_message_larger_than_the_window_arrives() -> None:
    wire = Wire(SMALL)
    wire.say(headers())
    sent = message(b"x" * 1_000_000)
    window, at = SMALL.stream_window, 0
    while at < len(sent):
        size = min(window, 16_384, len(sent) - at)
        assert size > 0, "the window is closed in the middle of a message"
        window += updates(wire.say(data(1, sent[at : at + size]))).get(1, 0) - size
        at += size
    assert wire.connection.read(wire.connection.streams[1]) == sent[5:]
    assert wire.connection.buffered == 0


def test_padding_counts_and_is_credited() -> None:
    wire = Wire(SMALL)
    wire.say(headers())
    answers: list[Frame] = []
    for _ in range(400):
        answers += wire.say(data(1, b"\xff" + message(b"abc") + b"\0" * 255, frames.PADDED))
        assert wire.connection.read(wire.connection.streams[1]) == b"abc"
        answers += wire.take()
    assert resets(answers) == []
    assert updates(answers)[1] >= 400 * 264 - SMALL.stream_window // 2


def test_messages_are_cut_wherever_frames_are() -> None:
    sent = [b"", b"a", b"bc" * 500, b"", b"d"]
    raw = b"".join(message(item) for item in sent)
    for step in (1, 3, 5, 7, 100, 5_000):
        wire = Wire()
        wire.say(headers(), *(data(1, raw[at : at + step]) for at in range(0, len(raw), step)))
        stream = wire.connection.streams[1]
        assert [wire.connection.read(stream) for _ in range(6)] == [*sent, None]
        assert wire.connection.buffered == 0


def test_what_a_reset_stream_held_is_given_back() -> None:
    wire = Wire()
    wire.say(headers(), data(1, message(b"x" * 1_000)))
    assert wire.connection.bytes_held == 1_005
    wire.say(frames.rst_stream(1, Code.CANCEL))
    assert wire.connection.bytes_held == 0


def test_a_compressed_message_is_unimplemented() -> None:
    wire = Wire()
    wire.say(headers(), data(1, b"\x01\0\0\0\x01a"))
    with pytest.raises(ProtocolError, match="compressed") as caught:
        wire.connection.read(wire.connection.streams[1])
    assert caught.value.status == "UNIMPLEMENTED"


def test_an_answer_before_the_request_has_ended_cuts_it_off() -> None:
    """Section 8.1: RST_STREAM(NO_ERROR) after the trailers; what is still under way is ignored."""
    wire = Wire()
    wire.say(headers())
    wire.connection.end(wire.connection.streams[1], b"\x88")
    answer = wire.take()
    assert [(frame.kind, frame.flags) for frame in answer] == [
        (frames.HEADERS, frames.END_HEADERS | frames.END_STREAM),
        (frames.RST_STREAM, 0),
    ]
    assert resets(answer) == [(1, Code.NO_ERROR)]
    wire.say(data(1, b"late", frames.END_STREAM))
    assert wire.goaway is None
    assert wire.connection.bytes_held == 0
