"""Handlers to serve over a transport, and grpc.aio clients that call them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from grpc import aio

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.h2.limits import Limits, Timing
from xdsbpf.xds.h2.server import H2Transport
from xdsbpf.xds.transport import Call, Handler

ECHO, ONCE, FAIL, CRASH, HANG, FLOOD, WHO, GATHER, REST = (
    f"/test.Echo/{name}" for name in ("Echo", "Once", "Fail", "Crash", "Hang", "Flood", "Who", "Gather", "Rest")
)
FLOOD_BYTES = 200_000
FLOOD_COUNT = 150


class Served:
    """What the handlers saw."""

    def __init__(self) -> None:
        self.hanging = 0
        self.cancelled = asyncio.Event()
        self.written = 0
        self.rested = 0

    async def echo(self, call: Call) -> None:
        while (message := await call.read()) is not None:
            await call.write(message)

    async def once(self, call: Call) -> None:
        message = await call.read()
        assert message is not None
        await call.write(message[::-1])

    async def fail(self, call: Call) -> None:
        while (message := await call.read()) is not None:
            await call.write(message)
        raise ProtocolError("PERMISSION_DENIED", "no: 100 % \u00e4 \n")

    async def crash(self, call: Call) -> None:
        raise ZeroDivisionError("a bug of ours")

    async def hang(self, call: Call) -> None:
        self.hanging += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.hanging -= 1

    async def flood(self, call: Call) -> None:
        await call.read()
        for number in range(FLOOD_COUNT):
            await call.write(bytes([number]) * FLOOD_BYTES)
            self.written += 1

    async def who(self, call: Call) -> None:
        await call.read()
        await call.write(repr((call.peer.address.split(":")[0], call.peer.identities, call.peer.is_encrypted)).encode())

    async def gather(self, call: Call) -> None:
        """All messages in one, at the end; `no` is refused, and `crash` is a bug of ours."""
        gathered: list[bytes] = []

        def take(message: bytes) -> None:
            if message == b"no":
                raise ProtocolError("PERMISSION_DENIED", "no")
            if message == b"crash":
                raise ZeroDivisionError("a bug of ours")
            gathered.append(message)

        await call.read_all(take)
        await call.write(b",".join(gathered))

    async def rest(self, call: Call) -> None:
        """Every message makes the next one wait for a minute."""

        def take(_: bytes) -> float:
            self.rested += 1
            return 60.0

        await call.read_all(take)

    def handlers(self) -> dict[str, Handler]:
        return {
            ECHO: self.echo,
            ONCE: self.once,
            FAIL: self.fail,
            CRASH: self.crash,
            HANG: self.hang,
            FLOOD: self.flood,
            WHO: self.who,
            GATHER: self.gather,
            REST: self.rest,
        }


@asynccontextmanager
async def serving(
    handlers: Mapping[str, Handler], *, limits: Limits | None = None, timing: Timing | None = None
) -> AsyncIterator[tuple[H2Transport, str]]:
    """A transport on a loopback port."""
    transport = H2Transport(handlers, limits=limits, timing=timing)
    (address,) = await transport.start(["127.0.0.1:0"])
    try:
        yield transport, address
    finally:
        await transport.stop(0.0)


async def collect(call: aio.StreamStreamCall[bytes, bytes]) -> list[bytes]:
    """All messages of a stream."""
    got: list[bytes] = []
    while (message := await call.read()) is not aio.EOF:
        got.append(message)
    return got
