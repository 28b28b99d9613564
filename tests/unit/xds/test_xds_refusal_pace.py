"""Who refuses at length is read at a pace, and nobody else waits for it: the pace alone, and on both transports."""

from __future__ import annotations

import asyncio
import time

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from test_xds_server import ENVOY_ID, Rig, Stream, running
from xds_stream_client import EDS, resource, store_with

from tests.waiting import until
from xdsbpf.xds import refusals
from xdsbpf.xds.refusals import MAX_PAUSE_S, WORTH_CUTTING, RefusalPace

MEGABYTE = 1 << 20
OFTEN = 20


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> RefusalPace:
    set_pace(monkeypatch, burst=3 * MEGABYTE, per_s=MEGABYTE)
    return RefusalPace()


def set_pace(monkeypatch: pytest.MonkeyPatch, *, burst: int, per_s: int) -> None:
    monkeypatch.setattr(refusals, "_BURST_BYTES", burst)
    monkeypatch.setattr(refusals, "_BYTES_PER_S", per_s)


def test_what_comes_beyond_a_burst_is_read_one_after_the_other(pace: RefusalPace) -> None:
    pauses = [pace.taken(MEGABYTE, now=100.0) for _ in range(6)]
    assert pauses == [0, 0, 0, 1, 2, 3], "whichever stream each of them came on"
    assert pace.taken(MEGABYTE, now=102.0) == 2
    assert [pace.taken(MEGABYTE, now=500.0) for _ in range(4)] == [0, 0, 0, 1], "a burst is free again"


def test_no_stream_waits_for_ever_and_what_came_then_is_forgotten(pace: RefusalPace) -> None:
    assert [pace.taken(50 * MEGABYTE, now=100.0) for _ in range(3)] == [MAX_PAUSE_S] * 3
    assert pace.taken(MEGABYTE, now=100.0 + MAX_PAUSE_S + 3) == 0


def test_short_refusals_do_not_count(pace: RefusalPace) -> None:
    assert {pace.taken(WORTH_CUTTING, now=100.0) for _ in range(10_000)} == {0.0}


async def refuse(stream: Stream, reason: str, nonce: str) -> None:
    request = DeltaDiscoveryRequest(type_url=EDS, response_nonce=nonce)
    request.error_detail.message = f"{reason}: " + "x" * MEGABYTE
    await stream.call.write(request.SerializeToString())


async def refuse_again_and_again(stream: Stream) -> None:
    for _ in range(8):
        await refuse(stream, "no", "a nonce that never was")


def nacked(rig: Rig) -> int:
    return rig.server.telemetry.events["nacked", EDS]


@pytest.mark.usefixtures("each_transport")
async def test_a_client_that_refuses_at_length_is_left_unread_and_one_beside_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_pace(monkeypatch, burst=3 * MEGABYTE + MEGABYTE // 2, per_s=1)
    monkeypatch.setattr(refusals, "MAX_PAUSE_S", 60.0)
    async with running(store_with(resource(EDS, "a"))) as rig:
        refusing, calm = rig.stream(), rig.stream()
        for stream in (refusing, calm):
            await stream.send(EDS, node_id=ENVOY_ID, subscribe=["a"])
            await stream.receive_and_ack()
        sending = asyncio.create_task(refuse_again_and_again(refusing))
        await until(lambda: nacked(rig) == 4, "what the burst allows, and the one that it waits for")
        many = [f"{number:04}".ljust(100, "x") for number in range(5_000)]
        for content in range(OFTEN):
            # Half a megabyte that is no refusal, and a change.
            await calm.send(EDS, subscribe=many if content % 2 else (), unsubscribe=() if content % 2 else many)
            rig.server.changed(rig.store.apply("node-envoy", [resource(EDS, "a", f"new{content}")]))
            while not any(each.name == "a" for each in (await calm.receive_and_ack()).resources):
                pass
        assert nacked(rig) == 4
        sending.cancel()


@pytest.mark.usefixtures("each_transport")
async def test_what_waited_is_read_in_the_end_and_the_last_refusal_is_in_the_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_pace(monkeypatch, burst=0, per_s=8 * MEGABYTE)
    async with running(store_with(resource(EDS, "a"))) as rig:
        stream = rig.stream()
        await stream.send(EDS, node_id=ENVOY_ID, subscribe=["a"])
        began = time.monotonic()
        for content in range(5):
            response = await stream.receive()
            rig.server.changed(rig.store.apply("node-envoy", [resource(EDS, "a", f"new{content}")]))
            await refuse(stream, f"reason {content}", response.nonce)

        def error() -> str:
            (row,) = (row for node in rig.server.status() for row in node.types)
            return row.error

        await until(lambda: error().startswith("reason 4: xx"), "the last refusal shows")
        assert time.monotonic() - began >= 4 / 8, "one after the other, an eighth of a second each"
        assert (await stream.receive()).resources[0].body == b"a=new4"
