"""Rule 48: a server that drains, and connections of an age, send their clients away one by one."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import grpc
import pytest
from grpc import aio
from xds_stream_client import CDS, ENVOY_VIEW, resource, store_with

from tests.waiting import until
from xdsbpf.xds import grpcio, lifetimes, protocol
from xdsbpf.xds.h2 import frames
from xdsbpf.xds.lifetimes import GOAWAY_AGE, drain_delays, lifetime
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.store import View
from xdsbpf.xds.transports import TRANSPORTS

DEADLINE_S = 10.0


def test_many_streams_end_evenly_over_the_time_and_few_do_not_wait() -> None:
    draws = itertools.cycle((0.0, 0.5, 0.999))
    delays = drain_delays(1000, 10.0, lambda: next(draws))
    assert len(delays) == 1000
    assert list(delays) == sorted(delays)
    assert max(delays) <= 10.0
    for second in range(10):
        assert sum(second <= delay < second + 1 for delay in delays) == 100
    assert max(drain_delays(5, 10.0, lambda: 0.999)) <= 0.1
    assert drain_delays(3, 0.0, lambda: 0.5) == (0.0, 0.0, 0.0)
    assert drain_delays(0, 10.0, lambda: 0.5) == ()


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_a_stream_lives_longer_than_its_connection_takes_new_ones(draw: float) -> None:
    """Otherwise its client would come back on the same connection, to the same server."""
    life = lifetime(100.0, lambda: draw)
    assert 60.0 <= life < 140.0
    assert life > 100.0 * GOAWAY_AGE * 1.1


def resolve(node_id: str, metadata: Mapping[str, object]) -> View:
    return ENVOY_VIEW


class Streams:
    """A server and its clients, each with a connection of its own."""

    def __init__(self, transport: str, max_age_s: float = 0.0) -> None:
        make = partial(TRANSPORTS[transport], max_age_s=max_age_s)
        self.server = XdsServer(
            store_with(resource(CDS, "a")), resolve, time.monotonic, transport=make, max_age_s=max_age_s
        )
        self.address = ""
        self.channels: list[aio.Channel] = []

    async def open(self, channel: aio.Channel | None = None) -> Any:
        """A stream that has had its first answer."""
        if channel is None:
            channel = aio.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)])
            self.channels.append(channel)
        call = channel.stream_stream(protocol.DELTA_ADS)()
        await call.write(protocol.encode_request(CDS, node_id="node~10.0.0.1~node1~cluster.local"))
        assert await asyncio.wait_for(call.read(), DEADLINE_S)
        return call

    async def start(self) -> None:
        (self.address,) = await self.server.start(["127.0.0.1:0"])

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()
        await self.server.stop(0.0)


async def ended(call: Any) -> tuple[float, grpc.StatusCode]:
    """When, and how."""
    try:
        while await asyncio.wait_for(call.read(), DEADLINE_S) is not aio.EOF:
            pass
    except aio.AioRpcError:
        pass
    return time.monotonic(), await call.code()


@pytest.mark.parametrize("transport", ["grpcio", "fast"])
async def test_a_draining_server_ends_its_streams_one_by_one_and_takes_no_new_ones(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetimes, "DRAIN_PER_S", 1.0)
    streams = Streams(transport)
    await streams.start()
    try:
        calls = [await streams.open() for _ in range(10)]
        started = time.monotonic()
        stopping = asyncio.create_task(streams.server.stop(1.0, 1.0))
        ends = [asyncio.create_task(ended(call)) for call in calls]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        late = aio.insecure_channel(streams.address, [("grpc.use_local_subchannel_pool", 1)])
        streams.channels.append(late)
        with pytest.raises(aio.AioRpcError) as refused:
            await streams.open(late)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        results = sorted(await asyncio.gather(*ends))
        assert {code for _, code in results} == {grpc.StatusCode.UNAVAILABLE}
        assert results[-1][0] - results[0][0] > 0.5, "not in one instant"
        assert results[-1][0] - started < 3.0
        await stopping
    finally:
        await streams.close()


async def test_without_the_spread_they_end_in_one_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mechanism of the test above, broken."""
    monkeypatch.setattr("xdsbpf.xds.streams.drain_delays", lambda count, seconds, draw: (0.0,) * count)
    streams = Streams("fast")
    await streams.start()
    try:
        calls = [await streams.open() for _ in range(10)]
        ends = [asyncio.create_task(ended(call)) for call in calls]
        await streams.server.stop(1.0, 1.0)
        results = sorted(await asyncio.gather(*ends))
        assert results[-1][0] - results[0][0] < 0.5
    finally:
        await streams.close()


@pytest.mark.parametrize("transport", ["grpcio", "fast"])
@pytest.mark.parametrize("max_age_s", [1.5, 0.0])
async def test_a_stream_of_an_age_ends_and_its_client_comes_back_on_another_connection(
    transport: str, max_age_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The youngest stream of that age ends 0.1 s before the look at ages, once a second, that sends the GOAWAY.
    monkeypatch.setattr("xdsbpf.xds.streams.lifetime", lambda age, draw: age)
    streams = Streams(transport, max_age_s)
    await streams.start()
    try:
        call = await streams.open()
        (session,) = streams.server.streams.sessions()
        first = peers(streams)
        if not max_age_s:
            done, _ = await asyncio.wait([asyncio.create_task(ended(call))], timeout=1.0)
            assert not done
            assert streams.server.streams.sessions() == (session,)
            return
        assert (await ended(call))[1] is grpc.StatusCode.UNAVAILABLE
        await until(lambda: not streams.server.streams.sessions())
        await streams.open(streams.channels[0])
        assert peers(streams) != first
    finally:
        await streams.close()


def peers(streams: Streams) -> set[str]:
    """The connections that have a stream."""
    return {stream.call.peer.address for stream in streams.server.streams._open.values()}


@pytest.mark.parametrize("answers", [True, False])
async def test_a_peer_that_answers_no_ping_is_let_go(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    """Rule 47 on grpc.aio, with its times divided by 20; the fast transport's is in test_h2_hostile."""
    quick = {name: value for name, value in grpcio._OPTIONS if name.endswith(("keepalive_time_ms", "timeout_ms"))}
    assert quick["grpc.keepalive_time_ms"] == 30_000
    assert quick["grpc.http2.ping_timeout_ms"] == 10_000
    quick = {name: value // 20 for name, value in quick.items()}
    monkeypatch.setattr(grpcio, "_OPTIONS", list((dict(grpcio._OPTIONS) | quick).items()))
    streams = Streams("grpcio")
    await streams.start()
    host, _, port = streams.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    pings = 0
    try:
        writer.write(frames.PREFACE + frames.settings({}))
        async with asyncio.timeout(5.0):
            while pings < 2:
                head = await reader.readexactly(frames.HEADER_BYTES)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == frames.SETTINGS and not head[4]:
                    writer.write(frames.frame(frames.SETTINGS, frames.ACK, 0, b""))
                if head[3] == frames.PING:
                    pings += 1
                    if answers:
                        writer.write(frames.ping(payload, is_ack=True))
    except asyncio.IncompleteReadError:
        assert not answers
        assert pings == 1
    else:
        assert answers, "the control is kept"
    finally:
        writer.close()
        await streams.close()
