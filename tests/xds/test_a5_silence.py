"""Rule 43: a client that never answers, and one that takes nothing any more, beside one that does both."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.waiting import until
from tests.xds.client import DEADLINE_S
from tests.xds.lab import Lab
from tests.xds.resources import EDS, RTDS, endpoints, runtime
from tests.xds.wire import ADS, ALL
from xdsbpf.xds.lifetimes import Patience
from xdsbpf.xds.status import SyncState, TypeStatus

SHORT = Patience(stale_s=0.2, write_s=0.25)
STOPPED = "stopped"
LARGE = 8 << 20
"""Bytes: more than the window of a stream, and than a socket takes."""


def status(lab: Lab, node_id: str) -> TypeStatus | None:
    """What the server thinks of the only type of a client; None if it has no stream."""
    rows = (row for row in lab.own.server.status() if row.node_id == node_id)
    return next((entry for row in rows for entry in row.types), None)


def is_in(lab: Lab, node_id: str, state: SyncState) -> bool:
    """Whether that is its state."""
    found = status(lab, node_id)
    return found is not None and found.state is state


@pytest.mark.rule(43, on=ALL, needs="own server")
async def test_who_reads_and_never_answers_is_stale_and_is_kept(lab: Lab) -> None:
    await lab.own.hurry(SHORT)
    await lab.put(endpoints("a"))
    silent, good = lab.client(), lab.client()
    for client in (silent, good):
        await client.subscribe(EDS, "a")
    await good.expect(EDS, {"a": 1})
    response = await silent.receive(EDS)
    await until(lambda: is_in(lab, silent.node_id, SyncState.STALE), "STALE", lab.deadline_s)
    assert is_in(lab, good.node_id, SyncState.SYNCED)
    waits_s = 2 * SHORT.write_s
    await until(lambda: (status(lab, silent.node_id) or TypeStatus("")).waits_s > waits_s, "kept", lab.deadline_s)
    await silent.ack(response)
    await until(lambda: is_in(lab, silent.node_id, SyncState.SYNCED), "SYNCED", lab.deadline_s)
    await lab.put(endpoints("a", 2))
    await silent.expect(EDS, {"a": 2})


class Proxy:
    """A process of `tests.xds.proxy`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        """The next one that it prints."""
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 4 * DEADLINE_S)).decode().strip()


@asynccontextmanager
async def proxy(lab: Lab) -> AsyncIterator[Proxy]:
    """A client of one resource, "a", as a process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.xds.proxy", lab.driver.address, lab.variant.value, STOPPED, RTDS, "a"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Proxy(process)
    finally:
        process.kill()
        await process.wait()


@pytest.mark.rule(43, on=ADS, needs="own server")
async def test_a_stopped_process_is_stale_and_is_reset_when_it_takes_no_data(lab: Lab) -> None:
    await lab.own.hurry(SHORT)
    await lab.put(runtime("a"))
    good = lab.client(takes_all=True)
    await good.subscribe(RTDS, "a")
    await good.expect(RTDS, {"a": 1})
    async with proxy(lab) as stopped:
        assert await stopped.line() == "holds 1"
        await until(lambda: is_in(lab, STOPPED, SyncState.SYNCED))
        stopped.process.send_signal(signal.SIGSTOP)
        await lab.put(runtime("a", 2))
        await good.expect(RTDS, {"a": 2})
        await until(lambda: is_in(lab, STOPPED, SyncState.STALE), "STALE", lab.deadline_s)
        stopped.process.send_signal(signal.SIGCONT)
        assert await stopped.line() == "holds 2", "it took data all the time, so its stream was kept"
        await until(lambda: is_in(lab, STOPPED, SyncState.SYNCED))
        stopped.process.send_signal(signal.SIGSTOP)
        large = runtime("a", 3)
        large.message.layer["ballast"] = "x" * LARGE
        await lab.put(large)
        await good.expect(RTDS, {"a": 3})
        await until(lambda: status(lab, STOPPED) is None, "reset", lab.deadline_s)
        assert is_in(lab, good.node_id, SyncState.SYNCED)
        stopped.process.send_signal(signal.SIGCONT)
        lines = [await stopped.line()]
        while not lines[-1].startswith("ended"):
            lines.append(await stopped.line())
        # Its library may say INTERNAL where an ACK of what came in the end crosses DEADLINE_EXCEEDED.
        assert lines[-1] != "ended OK"
    await good.quiet()
