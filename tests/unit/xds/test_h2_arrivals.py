"""Large requests take turns to arrive: what the server holds is bounded, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from grpc import aio

from tests.unit.xds.h2_serving import ECHO, ONCE, REST, Served, serving
from tests.unit.xds.h2_wire import data, headers, hello, message
from tests.waiting import DEADLINE_S, until
from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.arrivals import AT_A_TIME
from xdsbpf.xds.h2.faults import ErrorCode
from xdsbpf.xds.h2.limits import Timing

BODY = message(b"x" * 900_000)
WAITING = 3


class Sender:
    """A client that sends one large message, in two parts."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        self.reader, self.writer = reader, writer
        writer.write(hello(initial_window_size=1 << 20) + frames.window_update(0, 1 << 20) + headers(path=path))
        self.begin()

    def begin(self) -> None:
        self._send(BODY[:200_000])

    def _send(self, part: bytes) -> None:
        for at in range(0, len(part), 16_384):
            self.writer.write(data(1, part[at : at + 16_384]))

    def finish(self) -> None:
        self._send(BODY[200_000:])

    async def answer(self) -> None:
        got = 0
        while got < len(BODY):
            part = await self.reader.read(1 << 16)
            assert part, "the connection is over"
            got += len(part)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


async def connect(stack: AsyncExitStack, address: str, path: str = ECHO) -> Sender:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    stack.callback(writer.close)
    return Sender(reader, writer, path)


async def test_large_requests_take_turns_and_small_ones_do_not_wait(stack: AsyncExitStack) -> None:
    transport, address = await stack.enter_async_context(serving(Served().handlers()))
    first = [await connect(stack, address) for _ in range(AT_A_TIME)]
    await until(lambda: transport.arrivals.reading == AT_A_TIME, "the first ones come")
    later = [await connect(stack, address) for _ in range(WAITING)]
    await until(lambda: transport.arrivals.waiting == WAITING, "the others wait")
    channel = await stack.enter_async_context(aio.insecure_channel(address))
    assert await channel.unary_unary(ONCE)(b"ab") == b"ba"
    for sender in later:
        sender.finish()
    assert transport.arrivals.waiting == WAITING
    first[0].finish()  # one that has come lets all the others through, one after the other
    await asyncio.gather(first[0].answer(), *(sender.answer() for sender in later))
    assert transport.arrivals.waiting == 0
    for sender in first[1:]:
        sender.finish()
    await asyncio.gather(*(sender.answer() for sender in first[1:]))
    await until(lambda: transport.arrivals.reading == 0, "nobody is left")


async def test_who_never_finishes_and_who_goes_away_keep_their_turn_from_nobody(stack: AsyncExitStack) -> None:
    timing = Timing(arrival_s=0.4, tick_s=0.02)  # longer than eight connections take
    transport, address = await stack.enter_async_context(serving(Served().handlers(), timing=timing))
    for _ in range(AT_A_TIME):
        await connect(stack, address)
    await until(lambda: transport.arrivals.reading == AT_A_TIME, "the first ones come")
    assert transport.events["failed"] == 0
    later = [await connect(stack, address) for _ in range(AT_A_TIME)]
    gone = later.pop()
    gone.writer.transport.abort()
    for sender in later:
        sender.finish()
    await asyncio.gather(*(sender.answer() for sender in later))
    await until(lambda: transport.arrivals.waiting == 0, "nobody waits")
    assert transport.events["failed"] > 0


async def test_a_call_that_ends_in_the_middle_of_its_request_gives_its_turn_back(stack: AsyncExitStack) -> None:
    transport, address = await stack.enter_async_context(serving(Served().handlers(), timing=Timing(tick_s=0.02)))
    senders = [await connect(stack, address) for _ in range(AT_A_TIME + WAITING)]
    await until(lambda: transport.arrivals.waiting == WAITING, "some wait")
    for sender in senders:
        sender.writer.write(frames.rst_stream(1, ErrorCode.CANCEL))
    await until(lambda: transport.arrivals.reading == transport.arrivals.waiting == 0, "all turns are free")


async def test_who_is_left_unread_for_a_while_keeps_no_turn_from_others(stack: AsyncExitStack) -> None:
    served = Served()
    transport, address = await stack.enter_async_context(serving(served.handlers()))
    for number in range(AT_A_TIME):
        sender = await connect(stack, address, REST)
        sender.finish()
        sender.begin()  # of the next one some may be there already
        await until(lambda count=number + 1: served.rested == count, "its first message is taken")
    later = [await connect(stack, address) for _ in range(WAITING)]
    for sender in later:
        sender.finish()
    await asyncio.wait_for(asyncio.gather(*(sender.answer() for sender in later)), DEADLINE_S)
    assert transport.arrivals.reading == transport.arrivals.waiting == 0
    assert served.rested == AT_A_TIME
