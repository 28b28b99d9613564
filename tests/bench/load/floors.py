"""Servers without an engine: what grpc.aio, and what asyncio's sockets, cost by themselves.

In: how many streams there are is up to the clients; every stream is sent the same bytes, made beforehand. Out: the
same messages as the product sends, and the answers counted. Run by `subject`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from grpc import aio, method_handlers_generic_handler, stream_stream_rpc_method_handler

from xdsbpf.model.names import CLUSTER, ENDPOINTS
from xdsbpf.model.resource import Resource
from xdsbpf.xds import protocol
from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.headers import RESPONSE_HEAD

PAGE = 1000
_EOF: object = aio.EOF  # type: ignore[attr-defined]  # grpc-stubs lacks it


class Bytes:
    """The messages that every stream gets: pages at first, then one for each change."""

    def __init__(self, endpoints: Callable[[int, int], Resource]) -> None:
        self._endpoints = endpoints
        self.pages: list[bytes] = []
        self._nonce = 0

    def load(self, clusters: int, endpoint_sets: int) -> None:
        for type_url, count in ((CLUSTER, clusters), (ENDPOINTS, endpoint_sets)):
            for first in range(0, count, PAGE):
                page = [self._endpoints(number, 0) for number in range(first, min(count, first + PAGE))]
                self.pages.append(self._message(type_url, page))

    def change(self, first: int, count: int, content: int) -> bytes:
        return self._message(ENDPOINTS, [self._endpoints(number, content) for number in range(first, first + count)])

    def _message(self, type_url: str, resources: Sequence[Resource]) -> bytes:
        self._nonce += 1
        parts = [part for item in resources for part in (protocol.resource_header(item), item.body)]
        return protocol.encode_response(type_url, str(self._nonce), parts, (), 1)


class _Writer:
    """What one stream is still to be sent."""

    def __init__(self) -> None:
        self.queue: list[bytes] = []
        self.wake = asyncio.Event()


class BareGrpc:
    """grpc.aio: a task that reads and one that writes, as little in between as Python allows."""

    def __init__(self, endpoints: Callable[[int, int], Resource]) -> None:
        self._bytes = Bytes(endpoints)
        self._writers: set[_Writer] = set()
        self._answers = 0
        self.load = self._bytes.load

    async def start(self) -> str:
        method = protocol.DELTA_ADS.rpartition("/")[2]
        handler = stream_stream_rpc_method_handler(self._serve)
        self._server = aio.server(options=[("grpc.max_receive_message_length", -1)])
        self._server.add_generic_rpc_handlers(
            (method_handlers_generic_handler(protocol.ADS_SERVICE, {method: handler}),)
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    def change(self, first: int, count: int, content: int) -> None:
        message = self._bytes.change(first, count, content)
        for writer in self._writers:
            writer.queue.append(message)
            writer.wake.set()

    def answers(self) -> int:
        return self._answers

    def streams(self) -> int:
        return len(self._writers)

    def unsettled(self) -> int:
        return 0  # it does not look at answers

    async def _serve(self, _: object, context: aio.ServicerContext[bytes, bytes]) -> None:
        writer = _Writer()
        self._writers.add(writer)
        reading = asyncio.create_task(self._read(context))
        await self._first(context)
        try:
            while True:
                await writer.wake.wait()
                writer.wake.clear()
                messages, writer.queue = writer.queue, []
                for message in messages:
                    await context.write(message)
        finally:
            reading.cancel()
            self._writers.discard(writer)

    async def _first(self, context: aio.ServicerContext[bytes, bytes]) -> None:
        for page in self._bytes.pages:
            await context.write(page)

    async def _read(self, context: aio.ServicerContext[bytes, bytes]) -> None:
        while await context.read() is not _EOF:
            self._answers += 1


class _Socket(asyncio.Protocol):
    """A connection that is sent frames and not listened to, but for counting what looks like an answer."""

    def __init__(self, owner: BareSockets) -> None:
        self._owner = owner
        self._is_greeted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's are not of that class
        self._owner.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._is_greeted:
            self._owner.received += 1
            return
        self._is_greeted = True
        self.transport.writelines(self._owner.greeting)

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connections.discard(self)


class BareSockets:
    """asyncio's sockets (uvloop): one write a message, one read an answer, no HTTP/2."""

    def __init__(self, endpoints: Callable[[int, int], Resource]) -> None:
        self._bytes = Bytes(endpoints)
        self.connections: set[_Socket] = set()
        self.received = 0
        self.greeting: list[bytes] = []

    def load(self, clusters: int, endpoint_sets: int) -> None:
        self._bytes.load(clusters, endpoint_sets)
        wide = frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 30}) + frames.window_update(0, 1 << 30)
        head = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, RESPONSE_HEAD)
        self.greeting = [wide, head, *(_in_frames(page) for page in self._bytes.pages)]

    async def start(self) -> str:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Socket(self), "127.0.0.1", 0, backlog=4096
        )
        port: int = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{port}"

    def change(self, first: int, count: int, content: int) -> None:
        data = _in_frames(self._bytes.change(first, count, content))
        for connection in self.connections:
            connection.transport.write(data)

    def answers(self) -> int:
        return self.received

    def streams(self) -> int:
        return len(self.connections)

    def unsettled(self) -> int:
        return 0  # it does not look at answers


def _in_frames(message: bytes) -> bytes:
    whole = b"\0" + len(message).to_bytes(4, "big") + message
    size = frames.DEFAULT_FRAME_SIZE
    return b"".join(frames.frame(frames.DATA, 0, 1, whole[at : at + size]) for at in range(0, len(whole), size))
