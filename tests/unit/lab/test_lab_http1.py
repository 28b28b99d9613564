"""The HTTP/1.1 reader of stand-ins and client."""

from __future__ import annotations

import pytest

from xdsbpf.lab.http1 import MAX_HEAD, BadMessage, Message, MessageReader, write_request, write_response


def read_all(data: bytes, size: int, *, responses: bool = False) -> list[Message]:
    reader, found = MessageReader(responses=responses), []
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
        while (message := reader.next()) is not None:
            found.append(message)
    return found


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_pipelined_requests_are_cut_the_same_at_any_packet_size(size: int) -> None:
    data = (
        write_request("GET", "/a", [("Host", "x")])
        + write_request("POST", "/b", [("host", "x")], b"body")
        + b"PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"4;x=y\r\nwiki\r\n5\r\npedia\r\n0\r\nt: v\r\n\r\n"
        + write_request("GET", "/d", [("connection", "close")])
    )
    messages = read_all(data, size)
    assert [m.start[1] for m in messages] == ["/a", "/b", "/c", "/d"]
    assert [m.body for m in messages] == [b"", b"body", b"wikipedia", b""]
    assert [m.keep_alive for m in messages] == [True, True, True, False]
    assert messages[0].header("host") == "x"


def test_http_1_0_closes_unless_it_asks_to_keep_alive() -> None:
    (plain,) = read_all(b"GET / HTTP/1.0\r\n\r\n", 100)
    (kept,) = read_all(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", 100)
    assert (plain.keep_alive, kept.keep_alive) == (False, True)


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nname : v\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: +5\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n",
        b"x" * (MAX_HEAD + 1),
    ],
)
def test_what_is_not_clear_http_is_refused(data: bytes) -> None:
    reader = MessageReader()
    reader.feed(data)
    with pytest.raises(BadMessage):
        reader.next()


def test_a_response_without_length_lasts_until_the_connection_ends() -> None:
    reader = MessageReader(responses=True)
    reader.feed(b"HTTP/1.1 200 OK\r\n\r\nsome")
    assert reader.next() is None
    reader.feed(b"thing")
    reader.feed(b"")
    message = reader.next()
    assert message is not None
    assert (message.body, message.keep_alive) == (b"something", False)


def test_a_response_to_head_has_no_body_whatever_its_length_says() -> None:
    reader = MessageReader(responses=True)
    reader.feed(write_response(200, b"12345", head=True))
    message = reader.next(bodiless=True)
    assert message is not None
    assert message.header("content-length") == "5"
    assert not reader.pending


def test_what_is_written_is_read_back() -> None:
    (message,) = read_all(write_response(503, b"{}", keep_alive=False), 3, responses=True)
    assert (message.status, message.body, message.keep_alive) == (503, b"{}", False)
