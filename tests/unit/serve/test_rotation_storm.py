"""Certificates that are replaced all the time, under clients that connect all the time: everybody gets a sound pair.

The server is a process, for a fault here may be a crash of gRPC as well as a refusal. Its files are replaced as kubelet
does it (three files behind one link that moves) and as people do it (one file after the other).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from serve_rig import MESH

from tests.authority import SERVER, Authority
from tests.conftest import LONG
from tests.envoy.node_mesh import free_port
from tests.waiting import until
from xdsbpf.model.names import CLUSTER
from xdsbpf.unix_http import UnixConnection
from xdsbpf.xds import protocol
from xdsbpf.xds.h2 import frames
from xdsbpf.xds.tls import TlsFiles

NODE, NODE_ID = "spiffe://cluster.local/node/node1", "node~10.0.0.1~node1~cluster.local"
CLIENTS, STREAMS = 30, 5
STORM_S = 20.0 if LONG else 2.0
REPLACED_S = (0.05, 0.1)
DEADLINE_S = 20.0


class Rotation:
    """Three files and who replaces them; `serials` are of every certificate that was ever in them."""

    def __init__(self, directory: Path, *, by_link: bool) -> None:
        self.files = TlsFiles(*(directory / name for name in ("cert.pem", "key.pem", "ca.pem")))
        self._paths = (self.files.certificate, self.files.key, self.files.authorities)
        self.authority = Authority()
        self.serials: set[int] = set()
        self.replaced = 0
        self._directory = directory
        self._by_link = by_link
        self._random = random.Random(5)
        self._former: Path | None = None

    async def replace(self) -> None:
        """Another certificate with its key, and authorities of which one is new."""
        certificate, key = self.authority.issue(SERVER)
        self.serials.add(x509.load_pem_x509_certificate(certificate).serial_number)
        contents = (certificate, key, self.authority.pem + Authority().pem)
        if self._by_link:
            self._move_link(contents)
        else:
            for path, data in zip(self._paths, contents, strict=True):
                scratch = path.with_suffix(".new")
                scratch.write_bytes(data)
                scratch.replace(path)
                await asyncio.sleep(self._random.uniform(0.0, REPLACED_S[0] / 3))
        self.replaced += 1

    def _move_link(self, contents: tuple[bytes, bytes, bytes]) -> None:
        place = self._directory / f"..{self.replaced}"
        place.mkdir()
        for path, data in zip(self._paths, contents, strict=True):
            (place / path.name).write_bytes(data)
            if not path.is_symlink():
                path.symlink_to(Path("..data") / path.name)
        link = self._directory / "..new"
        link.symlink_to(place.name)
        link.replace(self._directory / "..data")
        if self._former is not None:
            for path in self._former.iterdir():
                path.unlink()
            self._former.rmdir()
        self._former = place

    async def go_on(self) -> None:
        """Replace them until cancelled."""
        while True:
            await asyncio.sleep(self._random.uniform(*REPLACED_S))
            await self.replace()


class Server:
    """A process of `quick_reload`."""

    def __init__(self, directory: Path, files: TlsFiles, transport: str, *words: str) -> None:
        manifests = directory / "m"
        manifests.mkdir()
        (manifests / "mesh.yaml").write_text(MESH)
        self.address, self.admin = f"127.0.0.1:{free_port()}", directory / "admin.sock"
        tls = ["--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--tls-ca", str(files.authorities)]
        places = ["-f", str(manifests), "--listen", f"unix:{directory}/xds.sock", "--admin", f"unix:{self.admin}"]
        command = [sys.executable, "-m", "tests.unit.serve.quick_reload", *words, "serve", *places]
        self.log = (directory / "log").open("w+b")
        self.process = subprocess.Popen(
            [*command, "--transport", transport, "--listen-tls", self.address, *tls], stderr=self.log
        )

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an admin page; 0 while there is none."""
        connection = UnixConnection(str(self.admin), 10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def reloads(self, result: str) -> int:
        """How many sets of files were taken, or refused."""
        text = self.get("/metrics")[1]
        found = text.partition(f'xdsbpf_tls_reloads_total{{result="{result}"}} ')[2].split()
        return int(float(found[0])) if found else 0


@contextlib.asynccontextmanager
async def serving(directory: Path, rotation: Rotation, transport: str, *words: str) -> AsyncIterator[Server]:
    """A server that is ready; whatever happens, it is gone afterwards."""
    server = Server(directory, rotation.files, transport, *words)
    try:
        await until(lambda: server.process.poll() is not None or server.get("/ready")[0] == 200)
        assert server.process.poll() is None
        yield server
        assert server.process.poll() is None, "the server is gone"
    finally:
        server.process.kill()
        server.process.wait()
        server.log.close()


class Client:
    """Connects over and over, up to the server's HTTP/2 SETTINGS: the end of the handshake for both sides."""

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.context = context
        self.serials: Counter[int] = Counter()
        self.failures: list[str] = []
        self.slowest_s = 0.0

    async def go_on(self) -> None:
        """Until cancelled."""
        while True:
            before = time.monotonic()
            try:
                async with asyncio.timeout(DEADLINE_S):
                    self.serials[await self._connect()] += 1
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.failures.append(repr(error))
            self.slowest_s = max(self.slowest_s, time.monotonic() - before)

    async def _connect(self) -> int:
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.context)
        try:
            writer.write(frames.PREFACE + frames.settings({}))
            head = await reader.readexactly(frames.HEADER_BYTES)
            assert head[3] == frames.SETTINGS
            return x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(True)).serial_number
        finally:
            writer.transport.abort()


async def storm(server: Server, rotation: Rotation, directory: Path) -> list[Client]:
    """Replace the files and connect, both without a pause."""
    certificate, key = rotation.authority.issue(NODE)
    own = directory / "client.pem"
    own.write_bytes(certificate + key)
    context = ssl.create_default_context(cadata=rotation.authority.pem.decode())
    context.load_cert_chain(own)
    context.set_alpn_protocols(["h2"])
    clients = [Client(server.address, context) for _ in range(CLIENTS)]
    tasks = [asyncio.create_task(work.go_on()) for work in (rotation, *clients)]
    done, _ = await asyncio.wait(tasks, timeout=STORM_S, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not done, done
    return clients


@pytest.mark.parametrize("by_link", [True, False], ids=["one link", "one after the other"])
@pytest.mark.parametrize("transport", ["grpcio", "fast"])
async def test_no_handshake_fails_and_no_stream_ends_while_certificates_are_replaced(
    tmp_path: Path, transport: str, by_link: bool
) -> None:
    (tmp_path / "tls").mkdir()
    rotation = Rotation(tmp_path / "tls", by_link=by_link)
    await rotation.replace()
    async with serving(tmp_path, rotation, transport) as server, contextlib.AsyncExitStack() as stack:
        streams = []
        for _ in range(STREAMS):
            channel = await stack.enter_async_context(rotation.authority.channel(server.address, NODE))
            stream: Any = channel.stream_stream(protocol.DELTA_ADS)()
            await stream.write(protocol.encode_request(CLUSTER, node_id=NODE_ID))
            await asyncio.wait_for(stream.read(), DEADLINE_S)
            streams.append(stream)
        clients = await storm(server, rotation, tmp_path)
        handshakes = sum((client.serials for client in clients), Counter[int]())
        assert [client.failures for client in clients if client.failures] == []
        assert handshakes.keys() <= rotation.serials
        assert len(handshakes) > 1
        assert server.reloads("taken") > 1
        for stream in streams:
            await stream.write(protocol.encode_request(CLUSTER, subscribe=["nosuch"]))
            assert await asyncio.wait_for(stream.read(), DEADLINE_S), "the stream goes on"


@pytest.mark.parametrize("transport", ["grpcio", "fast"])
async def test_a_key_beside_another_ones_certificate_would_be_seen(tmp_path: Path, transport: str) -> None:
    """With the check of the pair broken no new certificate is ever seen: the TLS libraries keep what they have."""
    (tmp_path / "tls").mkdir()
    rotation = Rotation(tmp_path / "tls", by_link=True)
    await rotation.replace()
    async with serving(tmp_path, rotation, transport, "broken") as server:
        clients = await storm(server, rotation, tmp_path)
        assert server.reloads("taken" if transport == "grpcio" else "refused") > 1
        assert len(set().union(*(client.serials for client in clients))) == 1
