"""Hostile sockets against a running transport, while an honest client goes on being served."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from grpc import aio
from h2_wire import REQUEST, block, data, headers, hello, message

from tests.unit.xds.h2_serving import ECHO, FLOOD, HANG, Served, serving
from tests.waiting import until
from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.faults import ErrorCode
from xdsbpf.xds.h2.limits import Limits, Timing

QUICK = Timing(
    handshake_s=0.3, keepalive_s=0.3, keepalive_timeout_s=0.3, stall_s=0.5, idle_s=30.0, close_s=0.3, tick_s=0.05
)
LATENCY_S = 1.0
MEMORY = 48 << 20
LIMITS = Limits(max_buffered=4 << 20)
PING = frames.ping(b"12345678", is_ack=False)
Attack = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@asynccontextmanager
async def honest_client(address: str) -> AsyncIterator[list[float]]:
    """Calls all the time; the list fills with the seconds that each answer took."""
    took: list[float] = []

    async def call() -> None:
        async with aio.insecure_channel(address) as channel:
            stream = channel.stream_stream(ECHO)()
            while True:
                began = time.perf_counter()
                await stream.write(b"x")
                assert await stream.read() == b"x"
                took.append(time.perf_counter() - began)
                await asyncio.sleep(0.005)

    task = asyncio.create_task(call())
    try:
        yield took
        assert not task.done(), "the honest client lost its stream"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_closed(reader: asyncio.StreamReader) -> None:
    """Until the server has let go of us."""
    try:
        while await reader.read(1 << 16):
            pass
    except ConnectionError:
        return


async def flood(writer: asyncio.StreamWriter, opening: bytes, pieces: Iterable[bytes]) -> None:
    """Write until the server lets go; never read. The pieces are made before, so as not to take the server's time."""
    writer.write(opening)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # the server and the honest client live on this loop, too
            if writer.transport.is_closing():
                return
    except ConnectionError:
        return


def repeating(piece: bytes, opening: bytes = b"") -> Attack:
    async def attack(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await flood(writer, hello() + opening, itertools.repeat(piece))

    return attack


def rapid_resets() -> Attack:
    request = block()
    pairs = [
        frames.frame(frames.HEADERS, frames.END_HEADERS, item, request) + frames.rst_stream(item, ErrorCode.CANCEL)
        for item in range(1, 20_001, 2)
    ]
    pieces = [b"".join(pairs[at : at + 100]) for at in range(0, len(pairs), 100)]
    return lambda _, writer: flood(writer, hello(), itertools.chain(pieces, itertools.repeat(PING)))


def header_bombs() -> Attack:
    bomb = block() + b"\x40\x01a\x7f\x81\x1e" + b"x" * 3_968 + b"\xbe" * 9_000
    pieces = [frames.frame(frames.HEADERS, frames.END_HEADERS, item, bomb) for item in range(1, 201, 2)]
    return lambda _, writer: flood(writer, hello(), itertools.chain(pieces, itertools.repeat(PING)))


async def nobody_reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """50 streams ask for 30 MB each with open windows, and nothing is read."""
    writer.transport.pause_reading()
    path = [(name, FLOOD if name == ":path" else value) for name, value in REQUEST]
    writer.write(hello(initial_window_size=2**31 - 1) + frames.window_update(0, 2**31 - 65_536))
    for stream_id in range(1, 101, 2):
        writer.write(headers(stream_id, path) + data(stream_id, message(b"go")))
    while not writer.transport.is_closing():
        await asyncio.sleep(0.01)
        writer.write(PING)


async def window_0(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same with windows of 0; PINGs are answered, so the connection may stay: it must only cost little."""
    path = [(name, FLOOD if name == ":path" else value) for name, value in REQUEST]
    writer.write(hello(initial_window_size=0))
    for stream_id in range(1, 101, 2):
        writer.write(headers(stream_id, path) + data(stream_id, message(b"go")))
    await asyncio.sleep(0.5)
    writer.transport.abort()


async def unread_requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """20 calls whose handlers read nothing get all that their windows allow."""
    path = [(name, HANG if name == ":path" else value) for name, value in REQUEST]
    writer.write(hello())
    for stream_id in range(1, 41, 2):
        writer.write(headers(stream_id, path) + data(stream_id, message(b"x" * 16_000)) * 60)
        await writer.drain()
    await asyncio.sleep(0.2)
    writer.transport.abort()


async def one_byte_at_a_time(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        for byte in frames.PREFACE * 100:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0.05)
    except ConnectionError:
        return


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await until_closed(reader)


async def silence_after_a_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Half-open: a request, and never another byte, not even an answer to PING."""
    writer.write(hello() + headers())
    await until_closed(reader)


async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await until_closed(reader)


ATTACKS: dict[str, Attack] = {
    "ping flood": repeating(PING * 1_000),
    "settings flood": repeating(frames.settings({}) * 1_000),
    "settings flood that moves windows": repeating(
        (frames.settings({frames.INITIAL_WINDOW_SIZE: 0}) + frames.settings({frames.INITIAL_WINDOW_SIZE: 99})) * 50
    ),
    "continuation flood": repeating(frames.frame(frames.CONTINUATION, 0, 1, b"") * 1_000, headers(flags=0)),
    "long continuations": repeating(frames.frame(frames.CONTINUATION, 0, 1, b"x" * 16_000), headers(flags=0)),
    "empty data flood": repeating(data(1, b"") * 1_000, headers()),
    "window update flood": repeating(frames.window_update(0, 1) * 1_000),
    "unknown frames": repeating(frames.frame(0x77, 0, 1, b"") * 1_000),
    "rapid resets": rapid_resets(),
    "header bombs": header_bombs(),
    "nobody reads": nobody_reads,
    "window 0": window_0,
    "unread requests": unread_requests,
    "one byte at a time": one_byte_at_a_time,
    "silence": silence,
    "silence after a request": silence_after_a_request,
    "http/1.1": http1,
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_ends_and_an_honest_client_is_served_meanwhile(name: str) -> None:
    served = Served()
    async with (
        serving(served.handlers(), limits=LIMITS, timing=QUICK) as (transport, address),
        honest_client(address) as took,
    ):
        await until(lambda: len(took) >= 10)
        took.clear()
        before = resident_bytes()
        host, _, port = address.rpartition(":")

        async def strike() -> None:
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                await asyncio.wait_for(ATTACKS[name](reader, writer), 15)
            finally:
                writer.transport.abort()

        await asyncio.gather(*(strike() for _ in range(3)))
        assert resident_bytes() - before < MEMORY
        await until(lambda: transport.events["closed"] >= 3 and served.hanging == 0)
        answered = len(took)
        await until(lambda: len(took) > answered + 5)
        assert max(took) < LATENCY_S
