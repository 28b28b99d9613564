"""Every violation is answered with the error that RFC 9113 names for it, and nothing else suffers."""

from __future__ import annotations

import pytest
from h2_wire import REQUEST, Wire, block, data, headers, hello, message, resets

from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.events import Opened, Readable
from xdsbpf.xds.h2.faults import ErrorCode as Code

END = frames.END_HEADERS | frames.END_STREAM
MAX = 2**31 - 1


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, on: int = 0) -> bytes:
    return frames.frame(kind, flags, on, payload)


CONNECTION_ERRORS: dict[str, tuple[Code, list[bytes]]] = {
    "6.1 DATA on stream 0": (Code.PROTOCOL_ERROR, [data(0, b"x")]),
    "5.1 DATA on an idle stream": (Code.PROTOCOL_ERROR, [data(1, b"x")]),
    "5.1 WINDOW_UPDATE on an idle stream": (Code.PROTOCOL_ERROR, [frames.window_update(1, 1)]),
    "5.1 RST_STREAM on an idle stream": (Code.PROTOCOL_ERROR, [frames.rst_stream(1, Code.CANCEL)]),
    "5.1 DATA after the peer's reset": (
        Code.STREAM_CLOSED,
        [headers(), frames.rst_stream(1, Code.CANCEL), data(1, b"x")],
    ),
    "5.1 HEADERS after the peer's reset": (
        Code.STREAM_CLOSED,
        [headers(), frames.rst_stream(1, Code.CANCEL), headers()],
    ),
    "5.1.1 an even stream id": (Code.PROTOCOL_ERROR, [headers(2)]),
    "5.1.1 HEADERS on stream 0": (Code.PROTOCOL_ERROR, [headers(0)]),
    "5.1.1 a stream id lower than another": (Code.PROTOCOL_ERROR, [headers(5), headers(3)]),
    "4.2 a frame above the maximum size": (Code.FRAME_SIZE_ERROR, [headers(), data(1, b"x" * 16_385)]),
    "6.1 padding as long as the frame": (Code.PROTOCOL_ERROR, [headers(), data(1, b"\x04abc", frames.PADDED)]),
    "6.1 a padded frame that is empty": (Code.FRAME_SIZE_ERROR, [headers(), data(1, b"", frames.PADDED)]),
    "6.2 padded HEADERS": (
        Code.PROTOCOL_ERROR,
        [frame(frames.HEADERS, b"\xff" + block(), flags=frames.PADDED | frames.END_HEADERS, on=1)],
    ),
    "6.2 HEADERS without their priority": (
        Code.FRAME_SIZE_ERROR,
        [frame(frames.HEADERS, b"ab", flags=frames.PRIORITY_FLAG | frames.END_HEADERS, on=1)],
    ),
    "6.2 a block interrupted by another stream": (Code.PROTOCOL_ERROR, [headers(flags=0), headers(3)]),
    "6.2 a block interrupted by PING": (Code.PROTOCOL_ERROR, [headers(flags=0), frame(frames.PING, b"12345678")]),
    "4.1 a block interrupted by an unknown frame": (Code.PROTOCOL_ERROR, [headers(flags=0), frame(0x42, on=1)]),
    "6.3 PRIORITY on stream 0": (Code.PROTOCOL_ERROR, [frame(frames.PRIORITY, b"12345")]),
    "6.3 PRIORITY of 4 bytes on an idle stream": (Code.FRAME_SIZE_ERROR, [frame(frames.PRIORITY, b"1234", on=3)]),
    "6.4 RST_STREAM on stream 0": (Code.PROTOCOL_ERROR, [frame(frames.RST_STREAM, b"1234")]),
    "6.4 RST_STREAM of 3 bytes": (Code.FRAME_SIZE_ERROR, [headers(), frame(frames.RST_STREAM, b"123", on=1)]),
    "6.5 SETTINGS on a stream": (Code.PROTOCOL_ERROR, [frame(frames.SETTINGS, on=1)]),
    "6.5 SETTINGS of 5 bytes": (Code.FRAME_SIZE_ERROR, [frame(frames.SETTINGS, b"12345")]),
    "6.5 an acknowledgement with content": (
        Code.FRAME_SIZE_ERROR,
        [frame(frames.SETTINGS, b"\0" * 6, flags=frames.ACK)],
    ),
    "6.5.2 ENABLE_PUSH 2": (Code.PROTOCOL_ERROR, [frames.settings({frames.ENABLE_PUSH: 2})]),
    "6.5.2 a window above the maximum": (
        Code.FLOW_CONTROL_ERROR,
        [frames.settings({frames.INITIAL_WINDOW_SIZE: MAX + 1})],
    ),
    "6.5.2 frames below the minimum": (Code.PROTOCOL_ERROR, [frames.settings({frames.MAX_FRAME_SIZE: 16_383})]),
    "6.5.2 frames above the maximum": (Code.PROTOCOL_ERROR, [frames.settings({frames.MAX_FRAME_SIZE: 1 << 24})]),
    "6.6 PUSH_PROMISE": (Code.PROTOCOL_ERROR, [headers(), frame(frames.PUSH_PROMISE, b"\0\0\0\2", on=1)]),
    "6.7 PING on a stream": (Code.PROTOCOL_ERROR, [headers(), frame(frames.PING, b"12345678", on=1)]),
    "6.7 PING of 7 bytes": (Code.FRAME_SIZE_ERROR, [frame(frames.PING, b"1234567")]),
    "6.8 GOAWAY on a stream": (Code.PROTOCOL_ERROR, [frame(frames.GOAWAY, b"\0" * 8, on=1)]),
    "6.8 GOAWAY of 7 bytes": (Code.FRAME_SIZE_ERROR, [frame(frames.GOAWAY, b"\0" * 7)]),
    "6.9 WINDOW_UPDATE of 3 bytes": (Code.FRAME_SIZE_ERROR, [frame(frames.WINDOW_UPDATE, b"123")]),
    "6.9 WINDOW_UPDATE by 0": (Code.PROTOCOL_ERROR, [frames.window_update(0, 0)]),
    "6.9.1 the connection's window overflows": (Code.FLOW_CONTROL_ERROR, [frames.window_update(0, MAX)]),
    "6.9.2 a stream's window overflows by SETTINGS": (
        Code.FLOW_CONTROL_ERROR,
        [headers(), frames.window_update(1, MAX - 65_535), frames.settings({frames.INITIAL_WINDOW_SIZE: 65_536})],
    ),
    "6.10 CONTINUATION without HEADERS": (Code.PROTOCOL_ERROR, [frame(frames.CONTINUATION, block(), on=1)]),
    "6.10 CONTINUATION of another stream": (
        Code.PROTOCOL_ERROR,
        [headers(flags=0), frame(frames.CONTINUATION, b"", on=3)],
    ),
    "4.3 an index that is in no table": (
        Code.COMPRESSION_ERROR,
        [frame(frames.HEADERS, b"\xff\x80\x01", flags=frames.END_HEADERS, on=1)],
    ),
    "4.3 a truncated block": (
        Code.COMPRESSION_ERROR,
        [frame(frames.HEADERS, block()[:-1], flags=frames.END_HEADERS, on=1)],
    ),
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
def test_a_connection_error_ends_the_connection(name: str) -> None:
    code, pieces = CONNECTION_ERRORS[name]
    wire = Wire()
    answer = wire.say(*pieces)
    assert wire.goaway is code
    assert answer[-1].kind == frames.GOAWAY
    assert int.from_bytes(answer[-1].payload[4:8], "big") == code
    assert wire.say(frame(frames.PING, b"12345678")) == [], "nothing is answered any more"


STREAM_ERRORS: dict[str, tuple[Code, list[bytes]]] = {
    "5.1 DATA after END_STREAM": (Code.STREAM_CLOSED, [headers(flags=END), data(1, b"x")]),
    "5.1 HEADERS after END_STREAM": (Code.STREAM_CLOSED, [headers(flags=END), headers(flags=END)]),
    "6.3 PRIORITY of 4 bytes": (Code.FRAME_SIZE_ERROR, [headers(), frame(frames.PRIORITY, b"1234", on=1)]),
    "6.9 WINDOW_UPDATE by 0": (Code.PROTOCOL_ERROR, [headers(), frames.window_update(1, 0)]),
    "6.9.1 the window overflows": (Code.FLOW_CONTROL_ERROR, [headers(), frames.window_update(1, MAX)]),
    "8.1 trailers without END_STREAM": (Code.PROTOCOL_ERROR, [headers(), headers(fields=[("a", "b")])]),
    "8.1 pseudo-fields in trailers": (Code.PROTOCOL_ERROR, [headers(), headers(flags=END)]),
    "8.1.1 more content than content-length": (
        Code.PROTOCOL_ERROR,
        [headers(fields=[*REQUEST, ("content-length", "3")]), data(1, b"abcd")],
    ),
    "8.1.1 less content than content-length": (
        Code.PROTOCOL_ERROR,
        [headers(fields=[*REQUEST, ("content-length", "3")]), data(1, b"ab", frames.END_STREAM)],
    ),
    "8.1.1 content-length without content": (
        Code.PROTOCOL_ERROR,
        [headers(fields=[*REQUEST, ("content-length", "3")], flags=END)],
    ),
    "8.1.1 content-length that is no number": (
        Code.PROTOCOL_ERROR,
        [headers(fields=[*REQUEST, ("content-length", "+3")])],
    ),
    "8.2.1 an upper-case name": (Code.PROTOCOL_ERROR, [headers(fields=[*REQUEST, ("Name", "x")])]),
    "8.2.1 an empty name": (Code.PROTOCOL_ERROR, [headers(fields=[*REQUEST, ("", "x")])]),
    "8.2.1 a line feed in a value": (Code.PROTOCOL_ERROR, [headers(fields=[*REQUEST, ("name", "a\nb")])]),
    "8.2.1 a value that begins with a space": (Code.PROTOCOL_ERROR, [headers(fields=[*REQUEST, ("name", " a")])]),
    "8.2.2 connection": (Code.PROTOCOL_ERROR, [headers(fields=[*REQUEST, ("connection", "close")])]),
    "8.2.2 te": (Code.PROTOCOL_ERROR, [headers(fields=[*REQUEST, ("te", "gzip")])]),
    "8.3 an unknown pseudo-field": (Code.PROTOCOL_ERROR, [headers(fields=[(":status", "200"), *REQUEST])]),
    "8.3 a repeated pseudo-field": (Code.PROTOCOL_ERROR, [headers(fields=[(":path", "/"), *REQUEST])]),
    "8.3 a pseudo-field after others": (Code.PROTOCOL_ERROR, [headers(fields=[*REQUEST[1:], REQUEST[0]])]),
    "8.3.1 no path": (Code.PROTOCOL_ERROR, [headers(path="")]),
    "8.3.1 no method": (Code.PROTOCOL_ERROR, [headers(fields=REQUEST[1:])]),
}


@pytest.mark.parametrize("name", STREAM_ERRORS)
def test_a_stream_error_resets_its_stream_and_no_other(name: str) -> None:
    code, pieces = STREAM_ERRORS[name]
    wire = Wire()
    assert resets(wire.say(*pieces)) == [(1, code)]
    assert wire.goaway is None
    wire.say(data(1, b"late"), headers(1, [("a", "b")], END), frames.window_update(1, 5))  # still under way: ignored
    assert wire.goaway is None
    wire.say(headers(3), data(3, message(b"hello")))
    assert wire.connection.read(wire.connection.streams[3]) == b"hello"


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/1.0", frames.PREFACE + frame(frames.PING, b"12345678"),
     frames.PREFACE + frames.SETTINGS_ACK],
)  # fmt: skip
def test_what_does_not_begin_as_http2_is_refused(first: bytes) -> None:
    wire = Wire(greet=False)
    wire.say(first)
    assert wire.goaway is Code.PROTOCOL_ERROR


def test_the_first_bytes_may_come_one_by_one() -> None:
    wire = Wire(greet=False)
    sent = hello() + headers() + data(1, message(b"abc"))
    answers = [answer for byte in sent for answer in wire.say(bytes((byte,)))]
    assert answers == [(frames.SETTINGS, frames.ACK, 0, b"")]
    assert [type(event) for event in wire.events] == [Opened, Readable]
    assert wire.connection.read(wire.connection.streams[1]) == b"abc"


def test_what_must_be_ignored_is_ignored() -> None:
    """Priorities, unknown frames, unknown settings, flags and the reserved bit (sections 4.1, 5.3, 6.5.2)."""
    wire = Wire()
    reserved = bytearray(headers(1))
    reserved[5] |= 0x80
    priority = frame(frames.HEADERS, b"\0\0\0\0\x10" + block(), flags=END | frames.PRIORITY_FLAG, on=3)
    padded = data(1, b"\x03" + message(b"abc") + b"\0\0\0", frames.PADDED)
    answer = wire.say(
        *(
            bytes(reserved),
            priority,
            padded,
            frame(0x42, b"?", flags=0xFF, on=1),
            frame(frames.PRIORITY, b"12345", on=9),
        ),
        *(frames.settings({0x99: 7}), frame(frames.GOAWAY, b"\0" * 8), frames.SETTINGS_ACK),
    )
    assert answer == [(frames.SETTINGS, frames.ACK, 0, b"")]
    assert wire.connection.read(wire.connection.streams[1]) == b"abc"
    assert set(wire.connection.streams) == {1, 3}


def test_ping_is_answered_with_its_payload() -> None:
    assert Wire().say(frame(frames.PING, b"12345678")) == [(frames.PING, frames.ACK, 0, b"12345678")]


def test_after_the_final_goaway_new_streams_are_ignored_and_old_ones_served() -> None:
    wire = Wire()
    wire.say(headers(1))
    wire.connection.announce_goaway()
    assert wire.take()[0].payload[:4] == MAX.to_bytes(4, "big")
    wire.say(headers(3))
    wire.connection.final_goaway()
    assert wire.take()[0].payload[:4] == (3).to_bytes(4, "big")
    wire.say(headers(5), data(5, b"x"), frames.window_update(5, 1), frames.rst_stream(5, Code.CANCEL))
    wire.say(data(3, message(b"abc")))
    assert wire.goaway is None
    assert set(wire.connection.streams) == {1, 3}
    assert wire.connection.read(wire.connection.streams[3]) == b"abc"
