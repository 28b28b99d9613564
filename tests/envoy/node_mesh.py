"""A compiled mesh served to a real Envoy, with stand-in servers and clients, moved onto loopback.

The mesh refuses loopback addresses, so manifests use 100.1.x.y and what was compiled is moved to
127.1.x.y: endpoint addresses, identity table, TCP clusters, and the listeners, which then bind to the service
port itself (so that the original destination is what eBPF would have reported).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from envoy.config.listener.v3.listener_pb2 import Listener

from tests.compiling import NODE, Mesh
from tests.envoy.real_envoy import RealEnvoy, unchunked, until
from xdsbpf.compile.envoy.names import OUT_TCP
from xdsbpf.model.names import CLUSTER, ENDPOINTS, EXTENSION, LISTENER
from xdsbpf.model.resource import Resource, make_resource
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.status import SyncState
from xdsbpf.xds.store import Batch, ResourceStore, View

MESH_PREFIX = "100.1."
LOOPBACK_PREFIX = "127.1."
"""Of equal length, so that encoded messages can be rewritten in place."""
SETTLED = (SyncState.SYNCED, SyncState.NACKED, SyncState.NOT_SENT)
NODE_ID = f"node~127.0.0.1~{NODE}~cluster.local"


class Answer(msgspec.Struct, frozen=True):
    """What a client got: status 0 if the connection was closed without an answer."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @property
    def seen(self) -> dict[str, Any]:
        """What the stand-in server saw of the request."""
        value: dict[str, Any] = json.loads(self.body)
        return value

    def header(self, name: str) -> str:
        return dict(self.headers).get(name, "")


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_port_everywhere() -> int:
    """A TCP port that is free on every address, and that no client is given: below the ephemeral ports."""
    first = 20_000 + os.getpid() * 7 % 10_000
    for port in range(first, first + 2_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
    raise AssertionError("no port is free on every address")


def moved(resource: Resource, port: int, tcp_port: int) -> Resource:
    """The same resource for loopback; the ports are where the listeners for HTTP and for TCP bind."""
    if resource.type_url not in (CLUSTER, LISTENER, ENDPOINTS, EXTENSION):
        return resource
    body = resource.body.replace(MESH_PREFIX.encode(), LOOPBACK_PREFIX.encode())
    if resource.type_url == LISTENER:
        message = Listener.FromString(body)
        address = message.address.socket_address
        # Each TCP service has an address of its own.
        is_tcp = resource.name == OUT_TCP
        address.address, address.port_value = ("0.0.0.0", tcp_port) if is_tcp else ("127.0.0.1", port)
        body = message.SerializeToString(deterministic=True)
    return make_resource(
        resource.type_url,
        loopback(resource.name),
        body,
        on_demand=resource.on_demand,
        requires=resource.requires,
    )


def loopback(address: str) -> str:
    """Where an address of the mesh is found in the test."""
    return address.replace(MESH_PREFIX, LOOPBACK_PREFIX)


class NodeMesh:
    """Control plane, Envoy and stand-in servers of one node."""

    def __init__(self, mesh: Mesh, binary: str, directory: Path, port: int, tcp_port: int = 0) -> None:
        self.mesh = mesh
        self.port = port
        self.tcp_port = tcp_port or free_port_everywhere()
        self.store = ResourceStore()
        view = View(scopes=("mesh", "node-envoy", f"node-envoy/{NODE}"), node=NODE, kind="node-envoy")
        self.server = XdsServer(self.store, lambda node_id, metadata: view, time.monotonic)
        self.socket = directory / "xds.sock"
        self.envoy = RealEnvoy(binary, directory, self.socket, NODE_ID)
        self.requests: Counter[str] = Counter()
        """How many requests each stand-in server has read."""
        self._handlers: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._published: dict[tuple[str, str, str], Resource] = {}

    async def start(self) -> None:
        """Serve what is compiled and wait for a live Envoy."""
        self.publish()
        await self.server.start([f"unix:{self.socket}"])
        await self.envoy.start()

    async def stop(self) -> None:
        await self.envoy.stop()
        await self.server.stop(0.1)
        for server in self._servers:
            server.close()
        for handler in tuple(self._handlers):
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    def publish(self) -> None:
        """Compile again and push what changed."""
        resources = self.mesh.resources().items()
        current = {
            (scope, type_url, loopback(name)): moved(found, self.port, self.tcp_port)
            for (scope, type_url, name), found in resources
        }
        batches = []
        for scope in {key[0] for key in (*current, *self._published)}:
            puts = tuple(found for key, found in current.items() if key[0] == scope)
            gone = tuple((key[1], key[2]) for key in self._published if key[0] == scope and key not in current)
            batches.append(Batch(scope, puts, gone))
        self._published = current
        self.server.changed(self.store.apply_all(batches))

    async def settled(self) -> None:
        """Wait until Envoy has taken or refused all that was pushed."""

        async def is_settled() -> bool:
            types = [found for node in self.server.status() for found in node.types]
            return bool(types) and all(found.state in SETTLED for found in types)

        await until(is_settled, 10.0, lambda: f"not settled: {self.server.status()}")

    def nacks(self) -> list[str]:
        """Errors that Envoy has answered with."""
        types = [found for node in self.server.status() for found in node.types]
        return [f"{found.type_url} {found.error} {found.nacked}" for found in types if found.error or found.nacked]

    async def serve(self, name: str, address: str, port: int) -> None:
        """A stand-in server at a mesh address that answers with what it saw.

        Request headers steer it: `x-sleep` seconds before the answer, `x-answer` its status.
        """

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._handlers.add(task)
            try:
                while True:
                    writer.write(await self._answer(name, reader))
            except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                return  # the connection, or the test, has ended
            finally:
                self._handlers.discard(task)
                writer.close()

        self._servers.append(await asyncio.start_server(handle, loopback(address), port))

    async def greet(self, name: str, address: str, port: int) -> None:
        """A server at a mesh address that speaks first: its name and a line feed, then an echo."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.requests[name] += 1
            writer.write(f"{name}\n".encode())
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    writer.write(data)
            writer.close()

        self._servers.append(await asyncio.start_server(handle, loopback(address), port))

    async def dial(self, source: str, address: str, data: bytes = b"") -> bytes:
        """What a client gets on a TCP connection from a pod's address to a service's, to which it says `data`.

        It reads until it has a line and the echo of `data`, or the connection ends.
        """
        received = b""
        reader, writer = await asyncio.open_connection(
            loopback(address), self.tcp_port, local_addr=(loopback(source), 0)
        )
        try:
            writer.write(data)
            while b"\n" not in received or len(received.partition(b"\n")[2]) < len(data):
                some = await asyncio.wait_for(reader.read(65536), 10.0)
                if not some:
                    return received
                received += some
        except ConnectionError:
            return received
        finally:
            writer.close()
        return received

    async def _answer(self, name: str, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        headers = _headers(head)
        self.requests[name] += 1
        await reader.readexactly(int(headers.get("content-length", "0")))
        await asyncio.sleep(float(headers.get("x-sleep", "0")))
        body = json.dumps({"name": name, "method": method, "path": path, "headers": headers}).encode()
        start = f"HTTP/1.1 {headers.get('x-answer', '200')} X\r\ncontent-length: {len(body)}\r\nserver: {name}\r\n\r\n"
        return start.encode() + body

    async def request(
        self,
        source: str,
        host: str,
        path: str = "/",
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own from a pod's address."""
        client = loopback(source)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(client, 0))
        try:
            lines = [f"{method} {path} HTTP/1.1", f"host: {host}", "connection: close"]
            lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            return await asyncio.wait_for(_read_answer(reader, method), 10.0)
        except (asyncio.IncompleteReadError, ConnectionError):
            return Answer(0)
        finally:
            writer.close()


async def _read_answer(reader: asyncio.StreamReader, method: str) -> Answer:
    """By length, not to the end of the connection: Envoy holds that open for a second."""
    head = await reader.readuntil(b"\r\n\r\n")
    status, headers = int(head.split(b" ", 2)[1]), _headers(head)
    if headers.get("transfer-encoding") == "chunked":
        return Answer(status, tuple(headers.items()), unchunked(await reader.read()))
    has_body = method != "HEAD" and status not in (204, 304)
    body = await reader.readexactly(int(headers.get("content-length", "0"))) if has_body else b""
    return Answer(status, tuple(headers.items()), body)


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode().strip().split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
