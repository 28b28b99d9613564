"""A stock Envoy that polls: `xdsbpf serve --rest-listen` and `xdsbpf bootstrap --rest`, as a user starts them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.envoy.load import Load, Servers
from tests.envoy.node_mesh import free_port
from tests.envoy.real_envoy import admin_get, until
from tests.raw_texts import eds_cluster, endpoint, raw_file, web_listener, web_routes

pytestmark = pytest.mark.envoy

DEADLINE_S = 30.0
REFRESH = "0.05"
FAILED = "update_(failure|rejected)$"
POLLED = (
    "{resource_api_version: V3, api_config_source: {api_type: REST, transport_api_version: V3, "
    f"cluster_names: [xds], refresh_delay: {REFRESH}s, request_timeout: 5s}}}}"
)


class Polling:
    """A control plane and an Envoy, as processes, over one file."""

    def __init__(self, directory: Path, servers: Servers) -> None:
        self.directory = directory
        self.servers = servers
        self.port = free_port()
        self.load = Load(self.port)
        self._file = directory / "raw.yaml"

    def write(self, to: str) -> None:
        """Both clusters are there; the route leads to one of them."""
        ports = self.servers.ports.items()
        clusters = [eds_cluster(endpoint("127.0.0.1", port), name=name, source=POLLED) for name, port in ports]
        new = self.directory / "new"
        new.write_text(raw_file(web_listener(self.port, POLLED), web_routes(to), *clusters))
        new.replace(self._file)

    async def run(self, *command: str) -> asyncio.subprocess.Process:
        log = (self.directory / "log").open("ab")
        return await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)

    async def stat(self, name: str) -> int:
        return await self.stats(f"^{name}$")

    async def stats(self, pattern: str) -> int:
        """The sum of all that match."""
        text = await admin_get(self.directory / "envoy-admin.sock", f"/stats?filter={pattern}")
        return sum(int(line.rpartition(": ")[2]) for line in text.splitlines())

    async def until_listening(self) -> None:
        """Until Envoy has all that it polls for."""

        async def connects() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return False
            writer.close()
            return True

        await until(connects, DEADLINE_S, self.log)

    def log(self) -> str:
        return (self.directory / "log").read_text()[-3000:]

    async def until_answered_by(self, server: str) -> None:
        before = self.load.answers["any", server]

        async def is_answered() -> bool:
            return self.load.answers["any", server] > before

        await until(is_answered, DEADLINE_S, self.log)


@asynccontextmanager
async def polling(envoy: str, directory: Path) -> AsyncIterator[Polling]:
    servers = Servers()
    await servers.start("one", "two")
    found = Polling(directory, servers)
    found.write("one")
    rest = f"unix:{directory / 'rest.sock'}"
    xdsbpf = (sys.executable, "-m", "xdsbpf")
    command = [*xdsbpf, "bootstrap", "--node-id", "edge-1", "--rest", "--refresh", REFRESH, "--xds", rest]
    printed = await asyncio.to_thread(
        subprocess.run,
        [*command, "--admin", str(directory / "envoy-admin.sock")],
        capture_output=True,
        text=True,
        check=True,
    )
    (directory / "bootstrap.yaml").write_text(printed.stdout)
    plane = await found.run(
        *(*xdsbpf, "serve", "--envoy-resources", str(directory / "raw.yaml"), "--rest-listen", rest),
        *("--listen", f"unix:{directory / 'xds.sock'}", "--admin", f"unix:{directory / 'admin.sock'}"),
    )
    proxy = await found.run(
        *(envoy, "-c", str(directory / "bootstrap.yaml"), "--concurrency", "1", "--use-dynamic-base-id"),
        *("-l", "warning", "--drain-time-s", "1"),
    )
    try:
        yield found
    finally:
        for process in (proxy, plane):
            process.terminate()
            await process.wait()
        servers.stop()


async def test_an_envoy_that_polls_follows_a_change_without_a_failed_request(envoy: str, tmp_path: Path) -> None:
    async with polling(envoy, tmp_path) as found:
        await found.until_listening()
        async with found.load.running("any"):
            await found.until_answered_by("one")
            for to in ("two", "one"):
                found.write(to)
                await found.until_answered_by(to)
        assert not found.load.failures


async def test_what_has_not_changed_is_not_sent_again(envoy: str, tmp_path: Path) -> None:
    """304: Envoy counts the poll, and no update."""
    async with polling(envoy, tmp_path) as found:
        await found.until_listening()
        updates = await found.stat("cluster_manager.cds.update_success")
        polls = await found.stat("cluster_manager.cds.update_attempt")
        failed = await found.stats(FAILED)  # Envoy has polled before the control plane was there

        async def has_polled() -> bool:
            return await found.stat("cluster_manager.cds.update_attempt") >= polls + 5

        await until(has_polled, DEADLINE_S)
        assert await found.stat("cluster_manager.cds.update_success") == updates == 1
        assert await found.stats(FAILED) == failed
