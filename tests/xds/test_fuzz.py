"""What no client would send, over both transports: no crash, bounded memory, and a neighbour is answered meanwhile.

Seconds in CI, minutes with XDSBPF_LONG=1. A failure names the seed of its conversation.
"""

from __future__ import annotations

import asyncio
import gc
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from grpc import aio

from tests.conftest import LONG
from tests.xds.drivers import InProcess
from tests.xds.lab import Lab, running_lab
from tests.xds.resources import CDS, EDS, LDS, RDS, UNKNOWN, VHDS, cluster, endpoints
from tests.xds.test_a5_flow import resident_bytes
from tests.xds.wire import Variant
from xdsbpf.errors import ProtocolError
from xdsbpf.xds import request as request_module
from xdsbpf.xds.services import METHODS
from xdsbpf.xds.streams import Streams
from xdsbpf.xds.transport import Call
from xdsbpf.xds.transports import TRANSPORTS

SECONDS = 120.0 if LONG else 2.5
HEAVY_ROUNDS = 10 if LONG else 1
MIB = 1 << 20
GROWTH = 350 * MIB
"""Of the whole process, client and copies of 64 MB messages included, over all conversations after the first ones."""
STALL_S = 10.0
"""How long the neighbour may wait, on a busy machine, with everything in one process."""
ENDS = {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "CANCELLED", "LOST"}
"""How a conversation may end; UNKNOWN or INTERNAL is a crash of ours."""
TYPES = (CDS, EDS, LDS, RDS, VHDS, UNKNOWN, "", "type.googleapis.com/xdsbpf.datapath.v1.Policy", "\x00", "*")
NAMES = (
    "a",
    "b",
    "c7",
    "*",
    "",
    "r/*",
    "xdstp://mesh/t/x/*",
    "xdstp://mesh/t/x/*?k=v",
    "?",
    "/*",
    "*/*",
    "x" * 5000,
    "\U0001f600",
)


def some_names(rng: random.Random) -> list[str]:
    count = rng.choice((0, 1, 1, 2, 5, 40))
    return [rng.choice((*NAMES, f"c{rng.randrange(300)}")) for _ in range(count)]


def request(rng: random.Random, is_delta: bool, type_url: str, node_id: str, nonces: list[str]) -> bytes:
    """A valid request, in every combination of lists, nonces and errors."""
    message: Any
    if is_delta:
        message = DeltaDiscoveryRequest(
            resource_names_subscribe=some_names(rng),
            resource_names_unsubscribe=some_names(rng) if rng.random() < 0.4 else [],
            initial_resource_versions={name: rng.choice(("", "1", "v" * 99)) for name in some_names(rng)},
        )
        for name in some_names(rng) if rng.random() < 0.2 else ():
            message.resource_locators_subscribe.add(name=name).dynamic_parameters["k"] = "v"
    else:
        message = DiscoveryRequest(resource_names=some_names(rng), version_info=rng.choice(("", "1", "old")))
        for name in some_names(rng) if rng.random() < 0.2 else ():
            message.resource_locators.add(name=name)
    message.type_url = type_url
    message.response_nonce = rng.choice(("", "", "1", "stale", *nonces[-3:]))
    if rng.random() < 0.3:
        message.error_detail.message = rng.choice(("a: refused", "", "c7\x1b[2J\n" * 900, "refused"))
    if rng.random() < 0.95:
        message.node.id = node_id if rng.random() < 0.98 else rng.choice(("", "\x1b", "n" * 2000))
        message.node.metadata["k"] = rng.choice((1.0, "x", True))
    return bytes(message.SerializeToString())


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """Some bits changed, cut, repeated or put in."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 4))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randrange(1, 9)]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case _:
                data += data[at : at + 30]
    return bytes(data)


def said(rng: random.Random, path: str, node_id: str, nonces: list[str]) -> bytes:
    """A message; most conversations begin and go on well, or little of the server would be reached."""
    roll, home = rng.random(), METHODS[path].type_url
    if roll < 0.05:
        return rng.randbytes(rng.randrange(200))
    type_url = home if home and rng.random() < 0.9 else rng.choice(TYPES[:5] if rng.random() < 0.9 else TYPES)
    raw = request(rng, "/Delta" in path, type_url, node_id, nonces)
    return mutated(rng, raw) if roll < 0.15 else raw


class Fuzzed:
    """A server with something to serve, a neighbour who is served, and what became of the conversations."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.ends: Counter[str] = Counter()
        self.neighbour = lab.client()
        self.edition = 1
        self.slowest_s = 0.0
        self.crashes: list[str] = []
        """What a handler raised that is no refusal."""

    async def is_served(self) -> None:
        """The neighbour gets a change, and soon."""
        self.edition += 1
        began = time.monotonic()
        await self.lab.put(endpoints("neighbour", self.edition % 50_000))
        await self.neighbour.expect(EDS, {"neighbour": self.edition % 50_000})
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        assert self.slowest_s < STALL_S

    async def converse(self, seed: int) -> None:
        """One stream of any method, and what its client does to it."""
        rng = random.Random(seed)
        path = rng.choice(sorted(METHODS))
        is_delta = "/Delta" in path
        nonces: list[str] = []
        async with aio.insecure_channel(self.lab.driver.address, options=_OPTIONS) as channel:
            call: Any = channel.stream_stream(path)()
            reader = asyncio.create_task(listen(call, nonces, is_delta) if rng.random() < 0.8 else call.code())
            try:
                for _ in range(rng.choice((1, 1, 3, 12))):
                    if call.done():
                        break
                    await call.write(said(rng, path, f"fuzz-{seed}", nonces))
                    await asyncio.sleep(rng.choice((0.0, 0.0, 0.005)))
                if rng.random() < 0.7:
                    await call.done_writing()
                    await asyncio.wait((reader,), timeout=0.1)
            except (aio.AioRpcError, asyncio.InvalidStateError):
                pass  # the stream has ended: its status says how
            call.cancel()
            status = await self.end(call)
            await asyncio.gather(reader, return_exceptions=True)
        self.ends[status] += 1
        assert status in ENDS, f"seed {seed}: {status} {await call.details()}"

    async def end(self, call: Any) -> str:
        """How a call has ended. Where it ended during a write, gRPC's client has lost the status."""
        status: grpc.StatusCode = await call.code()
        return "LOST" if await call.details() == "Internal error from Core" else status.name

    async def listen(self, call: Any, nonces: list[str], is_delta: bool) -> None:
        """A response, if one comes at once; its nonce may be used."""
        try:
            async with asyncio.timeout(0.02):
                raw = await call.read()
        except TimeoutError:
            return
        if raw is not aio.EOF:
            nonces.append((DeltaDiscoveryResponse if is_delta else DiscoveryResponse).FromString(raw).nonce)

    async def attack(self, path: str, messages: Iterator[bytes], *, is_refused: bool) -> str:
        """Send these on one stream, as long as it is open, while the neighbour is served; how the stream ended."""
        async with aio.insecure_channel(self.lab.driver.address, options=_OPTIONS) as channel:
            call: Any = channel.stream_stream(path)()
            try:
                for message in messages:
                    if call.done():
                        break
                    await call.write(message)
                    await self.is_served()
            except (aio.AioRpcError, asyncio.InvalidStateError):
                pass  # refused: its status says how
            if not is_refused:
                call.cancel()
            return await self.end(call)


async def listen(call: Any, nonces: list[str], is_delta: bool) -> None:
    """Take all responses; their nonces may be used."""
    kind: Any = DeltaDiscoveryResponse if is_delta else DiscoveryResponse
    while (raw := await call.read()) is not aio.EOF:
        nonces.append(kind.FromString(raw).nonce)


_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
_ADS = Variant.DELTA_ADS.method(CDS)
_SOTW = Variant.SOTW_ADS.method(CDS)


def delta(type_url: str, **fields: Any) -> bytes:
    message = DeltaDiscoveryRequest(type_url=type_url, **fields)
    message.node.id = "hostile"
    return bytes(message.SerializeToString())


def many_names(round_: int) -> Iterator[bytes]:
    """Others each time, so nothing is worth keeping for the next stream."""
    yield delta(EDS, resource_names_subscribe=[f"n{round_}-{number}" for number in range(200_000)])


def many_names_of_the_whole_state(round_: int) -> Iterator[bytes]:
    names = [f"n{round_}-{number}" for number in range(200_000)]
    message = DiscoveryRequest(type_url=CDS, resource_names=names)
    message.node.id = "hostile"
    yield bytes(message.SerializeToString())
    yield bytes(message.SerializeToString())


def long_names(round_: int) -> Iterator[bytes]:
    yield delta(EDS, resource_names_subscribe=[f"{round_}-{number}".ljust(MIB, "x") for number in range(40)])


def one_name_often(round_: int) -> Iterator[bytes]:
    for _ in range(3):
        yield delta(EDS, resource_names_subscribe=["c1"] * 100_000, resource_names_unsubscribe=["c1"] * 100_000)


def many_claims(round_: int) -> Iterator[bytes]:
    claims = {f"n{round_}-{number}": "1" for number in range(100_000)}
    yield delta(CDS, resource_names_subscribe=["*"], initial_resource_versions=claims)


def many_globs(round_: int) -> Iterator[bytes]:
    yield delta(CDS, resource_names_subscribe=[f"g{number}/*" for number in range(100_000)])


def some_globs(round_: int) -> Iterator[bytes]:
    for _ in range(3):
        yield delta(CDS, resource_names_subscribe=[f"g{number}/*" for number in range(100)])


def many_types(round_: int) -> Iterator[bytes]:
    for number in range(1_000):
        yield delta(f"type.googleapis.com/none.v1.T{number}", resource_names_subscribe=["*"])


def long_errors(round_: int) -> Iterator[bytes]:
    for _ in range(2):
        message = DeltaDiscoveryRequest(type_url=CDS, response_nonce="1")
        message.node.id = "hostile"
        message.error_detail.message = "\n" * (16 * MIB)
        yield bytes(message.SerializeToString())


GRPC_OWN = re.compile("PollerCompletionQueue|ExecuteBatchError")
"""What gRPC raises by itself: a call-back of another test's loop, a write to a client that has just gone."""
EXHAUSTED, OPEN = "RESOURCE_EXHAUSTED", "CANCELLED"
ATTACKS: tuple[tuple[str, Callable[[int], Iterator[bytes]], str], ...] = (
    (_ADS, many_names, OPEN),
    (_SOTW, many_names_of_the_whole_state, OPEN),
    (_ADS, long_names, OPEN),
    (_ADS, one_name_often, OPEN),
    (_ADS, many_claims, OPEN),
    (_ADS, many_globs, EXHAUSTED),
    (_ADS, some_globs, OPEN),
    (_ADS, many_types, EXHAUSTED),
    (_ADS, long_errors, OPEN),
)


@pytest.fixture(params=sorted(TRANSPORTS))
async def fuzzed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fuzzed]:
    """Whatever a handler raises but a refusal is a crash."""
    serve = Streams.serve
    crashes: list[str] = []

    async def watched(streams: Streams, call: Call) -> None:
        try:
            await serve(streams, call)
        except (ProtocolError, asyncio.CancelledError):
            raise
        except BaseException as error:
            crashes.append(repr(error))
            raise

    monkeypatch.setattr(Streams, "serve", watched)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: crashes.append(str(context)))
    async with running_lab(InProcess(request.param), Variant.DELTA_ADS, 0.05, STALL_S) as lab:
        found = Fuzzed(lab)
        found.crashes = crashes
        await lab.put(*(cluster(f"c{number}") for number in range(1_000)), endpoints("neighbour"), endpoints("c1"))
        await found.neighbour.subscribe(EDS, "neighbour")
        await found.neighbour.expect(EDS, {"neighbour": 1})
        yield found
    assert not [crash for crash in crashes if not GRPC_OWN.search(crash)]


@pytest.mark.timeout(2 * SECONDS + 120)
async def test_no_conversation_crashes_or_harms_a_neighbour(
    fuzzed: Fuzzed, record_property: Callable[[str, object], None]
) -> None:
    deadline, seed, before = time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < deadline:
        await asyncio.gather(*(fuzzed.converse(seed + number) for number in range(10)), fuzzed.is_served())
        seed += 10
        if seed == 100:
            gc.collect()
            before = resident_bytes()
    sessions = fuzzed.lab.own.server.streams.sessions
    async with asyncio.timeout(STALL_S):
        while len(sessions()) > 1:
            await asyncio.sleep(0.01)
    gc.collect()
    grown = resident_bytes() - before if before else 0
    record_property("conversations", seed)
    print(f"{seed} conversations, {dict(fuzzed.ends)}, slowest answer {fuzzed.slowest_s:.2f} s, +{grown >> 20} MB")
    assert seed > 50
    assert {"OK", "INVALID_ARGUMENT"} <= fuzzed.ends.keys(), "both good and bad conversations are tried"
    assert grown < GROWTH


@pytest.mark.timeout(2 * SECONDS + 120)
async def test_hostile_lists_cost_a_bounded_amount(
    fuzzed: Fuzzed, record_property: Callable[[str, object], None]
) -> None:
    """Each attack must end as foreseen; a second round must not add to the first."""
    slowest: dict[str, float] = {}
    after: list[int] = []
    for round_ in range(1 + HEAVY_ROUNDS):
        for path, messages, end in ATTACKS:
            fuzzed.slowest_s = 0.0
            ended = await fuzzed.attack(path, messages(round_), is_refused=end == EXHAUSTED)
            assert ended == end or (ended, end) == ("LOST", EXHAUSTED), messages.__name__
            slowest[messages.__name__] = max(fuzzed.slowest_s, slowest.get(messages.__name__, 0.0))
        gc.collect()
        after.append(resident_bytes())
    print({name: round(seconds, 2) for name, seconds in slowest.items()}, [size >> 20 for size in after], "MB")
    record_property("slowest", slowest)
    assert max(after[1:]) - after[0] < GROWTH


async def test_a_crash_is_seen(fuzzed: Fuzzed, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(request_module, "_parse", lambda message, data: message.ParseFromString(data))
        for seed in range(0, 400, 10):
            await asyncio.gather(*(fuzzed.converse(seed + n) for n in range(10)), return_exceptions=True)
            if any("DecodeError" in crash for crash in fuzzed.crashes):
                break
    assert fuzzed.crashes
    fuzzed.crashes.clear()
    await fuzzed.is_served()
