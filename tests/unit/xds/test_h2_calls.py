"""Calls over the HTTP/2 transport, made by the gRPC library: what any client gets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc import aio

from tests.unit.xds.h2_serving import (
    CRASH,
    ECHO,
    FAIL,
    FLOOD,
    FLOOD_BYTES,
    FLOOD_COUNT,
    GATHER,
    HANG,
    ONCE,
    Served,
    collect,
    serving,
)
from tests.waiting import until
from xdsbpf.errors import ConfigError
from xdsbpf.xds.h2.server import H2Transport


async def status_of(call: aio.Call) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()


async def test_messages_of_any_size_come_back_in_order() -> None:
    sent = [b"", b"a", b"b" * 16_379, b"c" * 16_380, b"d" * 70_000, b"e" * 3_000_000, b"f"]
    async with serving(Served().handlers()) as (_, address), aio.insecure_channel(address) as channel:
        call = channel.stream_stream(ECHO)(iter(sent))
        assert await collect(call) == sent
        assert await status_of(call) == (grpc.StatusCode.OK, "")


async def test_a_unary_call_is_a_stream_of_one_message() -> None:
    async with serving(Served().handlers()) as (_, address), aio.insecure_channel(address) as channel:
        once = channel.unary_unary(ONCE)
        assert await asyncio.gather(*(once(b"abc%d" % n) for n in range(200))) == [
            (b"abc%d" % n)[::-1] for n in range(200)
        ]


async def test_an_error_ends_the_call_with_its_status_and_text() -> None:
    async with serving(Served().handlers()) as (_, address), aio.insecure_channel(address) as channel:
        first = channel.stream_stream(FAIL)(iter([b"a"]))
        assert await collect_until_error(first) == [b"a"]
        assert await status_of(first) == (grpc.StatusCode.PERMISSION_DENIED, "no: 100 % \u00e4 \n")
        without_messages = channel.stream_stream(FAIL)(iter([]))
        assert await status_of(without_messages) == (grpc.StatusCode.PERMISSION_DENIED, "no: 100 % \u00e4 \n")


async def collect_until_error(call: aio.StreamStreamCall[bytes, bytes]) -> list[bytes]:
    got: list[bytes] = []
    try:
        while True:
            got.append(await call.read())
    except aio.AioRpcError:
        return got


async def test_a_bug_in_a_handler_tells_the_client_nothing() -> None:
    async with serving(Served().handlers()) as (_, address), aio.insecure_channel(address) as channel:
        call = channel.stream_stream(CRASH)()
        assert await status_of(call) == (grpc.StatusCode.INTERNAL, "internal error")
        assert await channel.unary_unary(ONCE)(b"ab") == b"ba"


async def test_messages_that_are_handled_where_they_are_received_come_all_and_in_order() -> None:
    async with serving(Served().handlers()) as (_, address), aio.insecure_channel(address) as channel:
        sent = [b"%d" % number for number in range(300)]
        assert await collect(channel.stream_stream(GATHER)(iter(sent))) == [b",".join(sent)]
        slowly = channel.stream_stream(GATHER)()
        for message in (b"a", b"b" * 100_000, b"c"):
            await slowly.write(message)
            await asyncio.sleep(0)
        await slowly.done_writing()
        assert await collect(slowly) == [b"a," + b"b" * 100_000 + b",c"]


@pytest.mark.parametrize("late", [False, True], ids=["with the first message", "later"])
async def test_what_handling_a_message_raises_ends_the_call(late: bool) -> None:
    expected = {
        b"no": (grpc.StatusCode.PERMISSION_DENIED, "no"),
        b"crash": (grpc.StatusCode.INTERNAL, "internal error"),
    }
    async with serving(Served().handlers()) as (_, address), aio.insecure_channel(address) as channel:
        for message, ending in expected.items():
            call = channel.stream_stream(GATHER)()
            if late:
                await call.write(b"a")
                assert await channel.unary_unary(ONCE)(b"ab") == b"ba"  # behind it on the same connection
            await call.write(message)
            assert await status_of(call) == ending
        assert await channel.unary_unary(ONCE)(b"ab") == b"ba"


async def test_an_unknown_method_is_unimplemented() -> None:
    async with serving(Served().handlers()) as (_, address), aio.insecure_channel(address) as channel:
        code, text = await status_of(channel.stream_stream("/no.Such/Method")())
        assert (code, text) == (grpc.StatusCode.UNIMPLEMENTED, "unknown method /no.Such/Method")


async def test_compressed_messages_are_refused() -> None:
    async with serving(Served().handlers()) as (_, address), compressing(address) as channel:
        code, text = await status_of(channel.unary_unary(ONCE)(b"a" * 1_000))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "compressed" in text


def compressing(address: str) -> aio.Channel:
    return aio.insecure_channel(address, compression=grpc.Compression.Gzip)


async def test_a_deadline_ends_the_handler() -> None:
    served = Served()
    async with serving(served.handlers()) as (_, address), aio.insecure_channel(address) as channel:
        call = channel.stream_stream(HANG)(timeout=0.2)
        assert (await status_of(call))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(served.cancelled.wait(), 5)


async def test_a_cancelled_call_cancels_its_handler() -> None:
    served = Served()
    async with serving(served.handlers()) as (_, address), aio.insecure_channel(address) as channel:
        call = channel.stream_stream(HANG)()
        await call.write(b"x")
        await until(lambda: served.hanging == 1)
        call.cancel()
        await asyncio.wait_for(served.cancelled.wait(), 5)


async def test_a_lost_connection_cancels_its_handlers() -> None:
    served = Served()
    async with serving(served.handlers()) as (_, address):
        async with aio.insecure_channel(address) as channel:
            await channel.stream_stream(HANG)().write(b"x")
            await until(lambda: served.hanging == 1)
        await asyncio.wait_for(served.cancelled.wait(), 5)


async def test_a_client_that_does_not_read_stops_the_writer_and_nobody_else() -> None:
    served = Served()
    async with serving(served.handlers()) as (_, address), aio.insecure_channel(address) as channel:
        slow = channel.stream_stream(FLOOD)()
        await slow.write(b"go")
        await slow.done_writing()
        await until(lambda: served.written > 0)
        assert await channel.unary_unary(ONCE)(b"ab") == b"ba"
        assert served.written < FLOOD_COUNT
        got = await collect(slow)
        assert [(message[0], len(message)) for message in got] == [(n, FLOOD_BYTES) for n in range(FLOOD_COUNT)]


async def test_stop_ends_open_calls_with_trailers() -> None:
    served = Served()
    async with serving(served.handlers()) as (transport, address), aio.insecure_channel(address) as channel:
        hanging = [channel.stream_stream(HANG)() for _ in range(3)]
        for call in hanging:
            await call.write(b"x")
        await until(lambda: served.hanging == 3)
        await transport.stop(0.1)
        for call in hanging:
            assert await status_of(call) == (grpc.StatusCode.UNAVAILABLE, "the server is stopping")


async def test_stop_waits_for_calls_that_end_in_time() -> None:
    served = Served()
    async with serving(served.handlers()) as (transport, address), aio.insecure_channel(address) as channel:
        call = channel.stream_stream(ECHO)()
        await call.write(b"x")
        assert await call.read() == b"x"
        stopping = asyncio.create_task(transport.stop(10.0))
        await asyncio.sleep(0)
        await call.write(b"y")
        assert await call.read() == b"y"
        await call.done_writing()
        assert await call.read() is aio.EOF
        assert await status_of(call) == (grpc.StatusCode.OK, "")
        await asyncio.wait_for(stopping, 5)


async def test_a_unix_socket_serves_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "xds.sock"
    transport = H2Transport(Served().handlers())
    assert await transport.start([f"unix:{path}"]) == (f"unix:{path}",)
    assert path.stat().st_mode & 0o777 == 0o660
    with pytest.raises(ConfigError, match="another process listens"):
        await H2Transport({}).start([f"unix:{path}"])
    async with aio.insecure_channel(f"unix:{path}") as channel:
        assert await channel.unary_unary(ONCE)(b"ab") == b"ba"
    await transport.stop(0.0)
    assert not path.exists()


async def test_an_address_that_is_taken_or_not_local_is_refused() -> None:
    async with serving({}) as (_, address):
        with pytest.raises(ConfigError, match="cannot listen"):
            await H2Transport({}).start([address])
    with pytest.raises(ConfigError, match="loopback"):
        await H2Transport({}).start(["10.0.0.1:0"])
