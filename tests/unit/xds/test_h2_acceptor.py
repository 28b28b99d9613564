"""Handshakes begin a few at a time, and nobody who does not finish one keeps others out."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.authority import Authority, material, write_files
from tests.unit.xds.h2_serving import WHO, Served
from tests.waiting import until
from xdsbpf.xds.h2 import acceptor
from xdsbpf.xds.h2.limits import Timing
from xdsbpf.xds.h2.server import H2Transport

STORM = 60


@pytest.mark.parametrize("at_once", [acceptor.AT_ONCE, 1_000])
async def test_a_storm_is_accepted_in_parts_with_turns_of_the_loop_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(acceptor, "AT_ONCE", at_once)
    authority = Authority()
    transport = H2Transport(Served().handlers())
    (address,) = await transport.start((), ["127.0.0.1:0"], material(write_files(tmp_path, authority)))
    (listener,) = transport._tls
    host, _, port = address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(STORM):
            stack.enter_context(socket.create_connection((host, int(port))))
        most = before = 0
        while before < STORM:
            await asyncio.sleep(0)
            now = len(listener._handshakes)
            most, before = max(most, now - before), now
        assert most == min(STORM, at_once), "without a limit all come in one turn"
        async with authority.channel(address, "spiffe://cluster.local/node/n") as channel:
            assert b"node/n" in await channel.unary_unary(WHO)(b"", timeout=20)
    await transport.stop(0.0)


async def test_who_breaks_a_handshake_or_does_not_finish_it_is_let_go(tmp_path: Path) -> None:
    transport = H2Transport(Served().handlers(), timing=Timing(handshake_s=0.2))
    (address,) = await transport.start((), ["127.0.0.1:0"], material(write_files(tmp_path, Authority())))
    host, _, port = address.rpartition(":")
    for said in (b"GET / HTTP/1.1\r\n\r\n", b""):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(said)
        await asyncio.wait_for(_everything(reader), 20)  # an alert at most, then the end
        writer.close()
    await until(lambda: transport.events["failed"] == 2, "both are counted")
    assert not transport._tls[0]._handshakes
    await transport.stop(0.0)


async def _everything(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""
