"""A stock Envoy, started from what `xdsbpf bootstrap` prints, served raw resources from files; loopback only."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.envoy.node_mesh import free_port
from tests.envoy.real_envoy import until
from tests.raw_texts import T, eds_cluster, endpoint, raw_file, web_listener, web_routes
from xdsbpf.model.names import CLUSTER
from xdsbpf.report.objects import object_rows
from xdsbpf.serve import ControlPlane, ServeConfig
from xdsbpf.xds.heartbeats import Heartbeats
from xdsbpf.xds.status import SyncState

pytestmark = pytest.mark.envoy

NODE_ID = "edge-1"
DEADLINE_S = 20.0


def cluster(name: str, port: int, extra: str = "") -> str:
    return raw_file(eds_cluster(endpoint("127.0.0.1", port), name=name, extra=extra))


def routes(cluster: str) -> str:
    return raw_file(web_routes(cluster))


class Fixture:
    """Control plane over one directory, one Envoy, and servers that answer with their names."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = directory / "raw"
        self.files.mkdir()
        self.xds = f"unix:{directory / 'xds.sock'}"
        self.port = free_port()
        self.servers: dict[str, asyncio.Server] = {}
        self.plane = ControlPlane(ServeConfig(paths=(), envoy_paths=(self.files,), listen=(self.xds,)))

    def write(self, name: str, text: str) -> None:
        (self.files / name).write_text(text)

    async def serve(self, name: str) -> int:
        """A server on loopback that answers with `name`; its port."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while (await reader.readuntil(b"\r\n\r\n")) is not None:
                    writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(name)}\r\n\r\n{name}".encode())
                    await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        self.servers[name] = server
        return int(server.sockets[0].getsockname()[1])

    async def get(self) -> str:
        """The answer of one request to the listener; "" if nobody listens."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except ConnectionError:
            return ""
        try:
            writer.write(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")
            async with asyncio.timeout(DEADLINE_S):
                answer = (await reader.read()).decode()
        finally:
            writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        return body if head.startswith("HTTP/1.1 200") else head.partition("\r\n")[0]

    async def until_answer(self, wanted: str) -> None:
        async def holds() -> bool:
            return await self.get() == wanted

        await until(holds, DEADLINE_S, lambda: f"never answered {wanted!r}\n{self.log()}")

    async def until_true(self, condition: Callable[[], object]) -> None:
        async def holds() -> bool:
            return bool(condition())

        await until(holds, DEADLINE_S, self.log)

    def log(self) -> str:
        path = self.directory / "envoy.log"
        return "\n".join(path.read_text().splitlines()[-20:]) if path.exists() else "no log"

    def holds(self, type_name: str, count: int) -> bool:
        """Whether Envoy has ACKed that many resources of a type; clusters it ACKs once they are warm."""
        return any(
            entry.held == count and entry.state is SyncState.SYNCED
            for client in self.plane.server.status()
            for entry in client.types
            if entry.type_url.endswith(f".{type_name}")
        )

    def rows(self) -> dict[str, tuple[str, str, str]]:
        """object -> (state, detail, location)"""
        items = object_rows(self.plane.compiler, self.plane.catalog, self.plane.server.status())
        return {item["object"]: (item["state"], item["detail"], item["location"]) for item in items}


@asynccontextmanager
async def running(envoy: str, directory: Path, *arguments: str) -> AsyncIterator[Fixture]:
    fixture = Fixture(directory)
    port = await fixture.serve("one")
    fixture.write("listener.yaml", raw_file(web_listener(fixture.port)))
    fixture.write("routes.yaml", routes("one"))
    fixture.write("one.yaml", cluster("one", port))
    command = [sys.executable, "-m", "xdsbpf", "bootstrap", "--node-id", NODE_ID, "--xds", fixture.xds]
    printed = await asyncio.to_thread(
        subprocess.run,
        [*command, "--admin", str(directory / "admin.sock"), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    (directory / "bootstrap.yaml").write_text(printed.stdout)
    plane = asyncio.create_task(fixture.plane.run())
    await asyncio.wait_for(fixture.plane.ready.wait(), DEADLINE_S)
    process = await asyncio.create_subprocess_exec(
        envoy,
        *("-c", str(directory / "bootstrap.yaml"), "--concurrency", "1", "--use-dynamic-base-id"),
        *("--log-path", str(directory / "envoy.log"), "--drain-time-s", "1"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await fixture.until_answer("one")
        yield fixture
    finally:
        process.terminate()
        await process.wait()
        plane.cancel()
        await asyncio.gather(plane, return_exceptions=True)
        for server in fixture.servers.values():
            server.close()


async def failures_during(fixture: Fixture, change: Callable[[], Awaitable[None]]) -> tuple[int, list[str]]:
    """(requests answered, wrong answers) of a stream of requests while `change` runs."""
    done = asyncio.Event()
    good, wrong = 0, []

    async def ask() -> None:
        nonlocal good
        while not done.is_set():
            answer = await fixture.get()
            if answer in ("one", "two"):
                good += 1
            else:
                wrong.append(answer)

    asking = asyncio.create_task(ask())
    await change()
    done.set()
    await asking
    return good, wrong


async def test_files_are_served_to_a_stock_envoy_and_edits_are_live_without_a_failed_request(
    envoy: str, tmp_path: Path
) -> None:
    async with running(envoy, tmp_path) as fixture:
        second = await fixture.serve("two")

        async def change() -> None:
            fixture.write("two.yaml", cluster("two", second))
            await fixture.until_true(lambda: fixture.holds("Cluster", 2))
            await fixture.until_true(lambda: fixture.holds("ClusterLoadAssignment", 2))
            fixture.write("routes.yaml", routes("two"))
            await fixture.until_answer("two")
            (fixture.files / "one.yaml").unlink()  # nothing refers to it any more
            await fixture.until_true(lambda: "EnvoyResource/Cluster/one" not in fixture.rows())

        good, wrong = await failures_during(fixture, change)
        assert good > 20
        assert wrong == []
        assert {state for state, _, _ in fixture.rows().values()} == {"APPLIED"}

        # The control: a route to nothing is seen as a failed request.
        fixture.write("routes.yaml", routes("nobody"))
        await fixture.until_answer("HTTP/1.1 503 Service Unavailable")


async def test_a_broken_edit_changes_nothing_and_a_removed_file_removes(envoy: str, tmp_path: Path) -> None:
    async with running(envoy, tmp_path) as fixture:
        text = routes("one").replace("name: web", "name: web\n  no_such_field: 1").replace("cluster: one", "cluster: x")
        fixture.write("routes.yaml", text)
        await fixture.until_true(lambda: fixture.rows()["EnvoyResource/RouteConfiguration/web"][0] == "REJECTED")
        assert "no_such_field" in fixture.rows()["EnvoyResource/RouteConfiguration/web"][1]
        assert await fixture.get() == "one"
        fixture.write("routes.yaml", routes("one"))
        await fixture.until_true(lambda: fixture.rows()["EnvoyResource/RouteConfiguration/web"][0] == "APPLIED")

        (fixture.files / "listener.yaml").unlink()
        await fixture.until_answer("")


@pytest.mark.parametrize("protocol", ["--delta", "--sotw"])
async def test_what_envoy_refuses_is_rejected_at_its_line(envoy: str, tmp_path: Path, protocol: str) -> None:
    async with running(envoy, tmp_path, protocol) as fixture:
        port = fixture.servers["one"].sockets[0].getsockname()[1]
        bad = "lb_policy: RING_HASH\n  ring_hash_lb_config: {minimum_ring_size: 9, maximum_ring_size: 3}"
        fixture.write("one.yaml", cluster("one", port, bad))
        name = "EnvoyResource/Cluster/one"
        await fixture.until_true(lambda: fixture.rows()[name][0] == "REJECTED")
        _, reason, location = fixture.rows()[name]
        assert "minimum_ring_size" in reason
        assert location == f"{fixture.files / 'one.yaml'}:2:3"
        assert await fixture.get() == "one"
        fixture.write("one.yaml", cluster("one", port))
        await fixture.until_true(lambda: fixture.rows()[name][0] == "APPLIED")


async def test_files_for_some_nodes_reach_an_envoy_that_is_connected_already(envoy: str, tmp_path: Path) -> None:
    async with running(envoy, tmp_path) as fixture:
        second = await fixture.serve("two")
        fixture.write("not-mine.yaml", "nodes: [core-*]\n" + cluster("not-mine", second))
        fixture.write("two.yaml", "nodes: [edge-?]\n" + cluster("two", second))
        await fixture.until_true(lambda: fixture.holds("Cluster", 2))
        assert "EnvoyResource/Cluster/not-mine@core-*" in fixture.rows()
        fixture.write("mine.yaml", "nodes: [edge-?]\n" + routes("two"))
        await fixture.until_answer("two")
        (fixture.files / "mine.yaml").unlink()  # the routes for everybody are there still
        await fixture.until_answer("one")


@pytest.mark.parametrize("protocol", ["--delta", pytest.param("--sotw", marks=pytest.mark.slow)])
async def test_a_resource_with_a_time_to_live_stays_while_the_server_beats_and_expires_without(
    envoy: str, tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 52; what is broken on purpose is the heartbeat."""
    async with running(envoy, tmp_path, protocol) as fixture:
        port = fixture.servers["one"].sockets[0].getsockname()[1]
        head, mortal, lasting = cluster("one", port).split("- ", 2)
        wrapper = f'- "@type": {T}.service.discovery.v3.Resource\n  ttl: 1s\n  resource:\n    '
        fixture.write("one.yaml", head + wrapper + mortal.replace("\n", "\n  ").rstrip() + "\n- " + lasting)
        await fixture.until_true(lambda: fixture.plane.compiler.store.has_ttl)
        acked = fixture.plane.server.telemetry.events
        start = acked["acked", CLUSTER]

        async def beats() -> None:
            await fixture.until_true(lambda: acked["acked", CLUSTER] >= start + 10)

        good, wrong = await failures_during(fixture, beats)
        assert good >= 20
        assert wrong == []
        monkeypatch.setattr(Heartbeats, "is_due", lambda *_: False)
        await fixture.until_answer("HTTP/1.1 503 Service Unavailable")
