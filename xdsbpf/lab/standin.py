"""The server that stands in for every container of a pod: `python -m xdsbpf.lab.standin CONFIG`.

Input: a JSON file (`StandInConfig`). Listens on each port of the pod: HTTP ports answer who and where they
are and what arrived; server-first ports greet with a line and echo. `/status/N` and `/delay/SECONDS` answer
as asked. Touches the ready file once all ports listen. Runs inside the pod's namespaces.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop

from xdsbpf.lab.bookinfo import calls_of
from xdsbpf.lab.http1 import BadMessage, Message, MessageReader, write_response

BACKLOG = 1024
MAX_DELAY = 60.0


class StandInConfig(msgspec.Struct, frozen=True):
    """Who a pod is. `ports` are (number, server_first)."""

    pod: str
    namespace: str
    node: str
    app: str
    version: str
    address: str
    ports: tuple[tuple[int, bool], ...]
    env: dict[str, str]
    ready_file: str


class StandIn:
    """Answers requests. `answer` is immediate unless the pod calls others or was asked to wait."""

    def __init__(self, config: StandInConfig) -> None:
        self._who = {
            "service": config.app,
            "version": config.version,
            "pod": config.pod,
            "namespace": config.namespace,
            "node": config.node,
        }
        self.greeting = f"{config.app} {config.pod}\n".encode()
        self._calls = calls_of(config.app, config.version, config.env)

    def answer(self, request: Message, peer: str) -> bytes | Awaitable[bytes]:
        """The encoded response, or a coroutine for it."""
        path = request.start[1].partition("?")[0]
        if self._calls and path.startswith(self._calls[0]):
            return self._called(request, peer, self._calls[1])
        command, _, argument = path.lstrip("/").partition("/")
        if command == "delay":
            return self._delayed(request, peer, argument)
        if command == "status" and argument.isascii() and argument.isdigit() and 200 <= int(argument) <= 599:
            return self._response(request, peer, int(argument))
        return self._response(request, peer, 200)

    async def _called(
        self, request: Message, peer: str, calls: Callable[[Message], Awaitable[dict[str, Any]]]
    ) -> bytes:
        return self._response(request, peer, 200, await calls(request))

    async def _delayed(self, request: Message, peer: str, argument: str) -> bytes:
        try:
            seconds = float(argument)
        except ValueError:
            return self._response(request, peer, 400)
        await asyncio.sleep(min(max(seconds, 0.0), MAX_DELAY))
        return self._response(request, peer, 200)

    def _response(self, request: Message, peer: str, status: int, extra: dict[str, Any] | None = None) -> bytes:
        document = self._who | {
            "method": request.start[0],
            "path": request.start[1],
            "peer": peer,
            "headers": dict(request.headers),
            "body_bytes": len(request.body),
        }
        body = msgspec.json.encode(document | extra if extra else document) + b"\n"
        if status in (204, 304):
            body = b""
        head = request.start[0] == "HEAD"
        return write_response(status, body, keep_alive=request.keep_alive, head=head)


class HttpPort(asyncio.Protocol):
    """One HTTP connection; pipelined requests are answered in order, one at a time."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in
        self._reader = MessageReader()
        self._waiting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._peer = "{}:{}".format(*transport.get_extra_info("peername")[:2])

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        if self._waiting is None:
            self._serve()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._waiting is not None:
            self._waiting.cancel()

    def _serve(self) -> None:
        try:
            while self._waiting is None and not self._transport.is_closing():
                request = self._reader.next()
                if request is None:
                    return
                answer = self._stand_in.answer(request, self._peer)
                if isinstance(answer, bytes):
                    self._send(request, answer)
                else:
                    self._waiting = asyncio.ensure_future(self._wait(request, answer))
        except BadMessage as error:
            body = msgspec.json.encode({"error": str(error)})
            self._transport.write(write_response(error.status, body, keep_alive=False))
            self._transport.close()

    async def _wait(self, request: Message, answer: Awaitable[bytes]) -> None:
        self._send(request, await answer)
        self._waiting = None
        self._serve()

    def _send(self, request: Message, answer: bytes) -> None:
        self._transport.write(answer)
        if not request.keep_alive:
            self._transport.close()


class EchoPort(asyncio.Protocol):
    """One connection of a server-first protocol: a line that says who answers, then an echo."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._stand_in.greeting)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()


async def serve(config: StandInConfig) -> None:
    """Listen on every port, report ready, run until SIGTERM or SIGINT. Raises: OSError if a port is taken."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stand_in = StandIn(config)
    for port, server_first in config.ports:
        protocol: Callable[[StandIn], asyncio.Protocol] = EchoPort if server_first else HttpPort
        await loop.create_server(partial(protocol, stand_in), config.address, port, backlog=BACKLOG)
    Path(config.ready_file).touch()
    await stop.wait()


def main() -> None:
    """Entry point of the stand-in process."""
    uvloop.run(serve(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=StandInConfig)))


if __name__ == "__main__":
    main()
