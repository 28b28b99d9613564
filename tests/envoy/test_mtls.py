"""Stock Envoys from what `xdsbpf bootstrap` prints, over mutual TLS; loopback only.

One whose certificate entitles it to its node id is served; one beside it with the same certificate and another node id
is refused. A replaced certificate is taken up by a running Envoy, and used when it connects again.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509

from tests.authority import SERVER, Authority, write_files
from tests.envoy.node_mesh import free_port
from tests.envoy.real_envoy import unchunked, until
from tests.raw_texts import eds_cluster, endpoint, raw_file, web_listener, web_routes
from xdsbpf.serve import ControlPlane, ServeConfig
from xdsbpf.xds.peers import AllowRule
from xdsbpf.xds.tls import TlsFiles

pytestmark = pytest.mark.envoy

DEADLINE_S = 20.0
EDGE = "spiffe://cluster.local/ns/edge/sa/one"


class Envoy:
    """A stock Envoy with its directory."""

    def __init__(self, directory: Path, process: asyncio.subprocess.Process) -> None:
        self.directory = directory
        self.process = process

    async def admin(self, path: str) -> str:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.directory / "admin.sock"))
        except OSError:
            return ""
        writer.write(f"GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return (unchunked(body) if b"chunked" in head.lower() else body).decode()

    async def serial(self) -> str:
        """Serial number of its certificate in force, as hexadecimal digits."""
        answer = await self.admin("/certs")
        certificates = json.loads(answer)["certificates"] if answer else []
        return next((entry["cert_chain"][0]["serial_number"] for entry in certificates if entry["cert_chain"]), "")

    def log(self) -> str:
        path = self.directory / "envoy.log"
        return path.read_text() if path.exists() else ""


class Edge:
    """A control plane with a mutual TLS listener, whose raw resources make an Envoy answer "one"."""

    def __init__(self, directory: Path, transport: str) -> None:
        self.directory = directory
        self.authority = Authority()
        (directory / "server").mkdir()
        self.files = write_files(directory / "server", self.authority, SERVER)
        self.raw = directory / "raw"
        self.raw.mkdir()
        self.port, self.tls_port = free_port(), free_port()
        self.config = ServeConfig(
            paths=(),
            envoy_paths=(self.raw,),
            listen=(),
            listen_tls=(f"127.0.0.1:{self.tls_port}",),
            tls=self.files,
            transport=transport,
            allow=(AllowRule(EDGE, "edge-1"),),
        )

    async def start(self) -> tuple[ControlPlane, asyncio.Task[None]]:
        plane = ControlPlane(self.config)
        task = asyncio.create_task(plane.run())
        await asyncio.wait_for(plane.ready.wait(), DEADLINE_S)
        return plane, task

    def client(self, name: str) -> tuple[Path, TlsFiles]:
        directory = self.directory / name
        (directory / "certs").mkdir(parents=True)
        return directory, write_files(directory / "certs", self.authority, EDGE)

    async def answer(self) -> str:
        """Body of one request to the Envoy that has the listener; "" if nobody listens."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return ""
        writer.write(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
        return answer.partition("\r\n\r\n")[2] if answer.startswith("HTTP/1.1 200") else ""


@asynccontextmanager
async def envoy_of(binary: str, edge: Edge, name: str, node_id: str, *arguments: str) -> AsyncIterator[Envoy]:
    directory, files = edge.client(name)
    printed = await asyncio.to_thread(
        subprocess.run,
        [
            *(sys.executable, "-m", "xdsbpf", "bootstrap", "--node-id", node_id, "--xds", f"127.0.0.1:{edge.tls_port}"),
            *("--admin", str(directory / "admin.sock"), "--sds-dir", str(directory / "sds")),
            *("--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--tls-ca", str(files.authorities)),
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    (directory / "bootstrap.yaml").write_text(printed.stdout)
    process = await asyncio.create_subprocess_exec(
        binary,
        *("-c", str(directory / "bootstrap.yaml"), "--concurrency", "1", "--use-dynamic-base-id"),
        *("--log-path", str(directory / "envoy.log"), "--drain-time-s", "1"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Envoy(directory, process)
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def serving(edge: Edge) -> AsyncIterator[ControlPlane]:
    async def answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\none")
        writer.close()

    server = await asyncio.start_server(answer_one, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    cluster = eds_cluster(endpoint("127.0.0.1", port), name="one")
    (edge.raw / "web.yaml").write_text(raw_file(web_listener(edge.port), web_routes("one"), cluster))
    plane, task = await edge.start()
    try:
        yield plane
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()


@pytest.mark.parametrize(("transport", "variant"), [("grpcio", "--delta"), ("fast", "--sotw")])
async def test_a_stock_envoy_is_served_as_itself_and_refused_as_another(
    envoy: str, tmp_path: Path, transport: str, variant: str
) -> None:
    edge = Edge(tmp_path, transport)
    async with serving(edge) as plane, envoy_of(envoy, edge, "other", "edge-2", variant) as other:

        async def is_refused() -> bool:
            return "it may claim" in other.log() and plane.access.refused["PERMISSION_DENIED"] > 0

        await until(is_refused, DEADLINE_S, other.log)
        assert f"{EDGE} claims 'edge-2'" in other.log()
        assert await edge.answer() == ""
        async with envoy_of(envoy, edge, "own", "edge-1", variant) as own:

            async def is_served() -> bool:
                return await edge.answer() == "one"

            await until(is_served, DEADLINE_S, own.log)
        assert [status.node_id for status in plane.server.status()] in ([], ["edge-1"])
        assert "LIVE" not in await other.admin("/ready")


async def test_a_replaced_certificate_is_taken_up_by_a_running_envoy(envoy: str, tmp_path: Path) -> None:
    edge = Edge(tmp_path, "grpcio")
    async with serving(edge) as plane, envoy_of(envoy, edge, "own", "edge-1") as own:

        async def is_served() -> bool:
            return await edge.answer() == "one"

        await until(is_served, DEADLINE_S, own.log)
        before = await own.serial()
        files = write_files(own.directory / "certs", edge.authority, EDGE)
        expected = x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number

        async def is_taken() -> bool:
            return int(await own.serial() or "0", 16) == expected

        await until(is_taken, DEADLINE_S, own.log)
        assert before != await own.serial()
        assert await edge.answer() == "one"
        assert [status.node_id for status in plane.server.status()] == ["edge-1"]


async def test_an_envoy_does_not_trust_a_control_plane_of_another_name(envoy: str, tmp_path: Path) -> None:
    """A workload's certificate is of the same authority, and makes no control plane."""
    edge = Edge(tmp_path, "fast")
    async with serving(edge) as plane:
        wrong = ("--tls-server-name", "spiffe://cluster.local/ns/istio-system/sa/another")
        right = ("--tls-server-name", SERVER)
        async with envoy_of(envoy, edge, "deceived", "edge-1", *wrong) as deceived:

            async def has_failed() -> bool:
                stats = await deceived.admin("/stats?filter=cluster.xds.upstream_cx_connect_fail")
                return "upstream_cx_connect_fail" in stats and not stats.strip().endswith(": 0")

            await until(has_failed, DEADLINE_S, deceived.log)
            assert plane.server.status() == ()
        async with envoy_of(envoy, edge, "own", "edge-1", *right) as own:

            async def is_served() -> bool:
                return await edge.answer() == "one"

            await until(is_served, DEADLINE_S, own.log)
