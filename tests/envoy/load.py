"""A load of which every request is counted, and the servers that answer it; HTTP/1.1 over loopback.

In: the port of a proxy, and the hosts to ask for. Out: who answered how often, and every request that was not answered
with 200, with the reason. Nothing is tried again: a request that fails is a failure of the test.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

PAUSE_S = 0.002
"""Between two requests of one client: the load is continuous, and leaves the machine to others."""
ANSWER_WITHIN_S = 10.0
KEPT_ALIVE, SHORT = 2, 1
"""Clients for each host: with a connection that they keep, and with a connection for each request."""


class Servers:
    """HTTP servers on loopback that answer with their names."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []

    async def start(self, *names: str) -> None:
        """One server for each name; `ports` says where."""
        for name in names:
            server = await asyncio.start_server(_answering(name), "127.0.0.1", 0)
            self._servers.append(server)
            self.ports[name] = int(server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        for server in self._servers:
            server.close()


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _answering(name: str) -> Answer:
    body = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(name), name.encode())

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    return answer


class Load:
    """Clients that ask `http://127.0.0.1:port/` for `<host>.test` until they are stopped."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: Counter[tuple[str, str]] = Counter()
        """(host, name of the server) -> requests that it answered."""
        self.failures: dict[str, list[str]] = defaultdict(list)
        """Host -> what went wrong, one text for each request."""
        self._is_stopping = False

    @property
    def total(self) -> int:
        """Requests answered with 200 so far."""
        return self.answers.total()

    def forgive(self, host: str) -> list[str]:
        """Take the failures of a host that were to be expected."""
        return self.failures.pop(host, [])

    @asynccontextmanager
    async def running(self, *hosts: str) -> AsyncIterator[None]:
        """Ask for these hosts while the context is open; every request has ended when it closes."""
        clients = [self._keep(host, is_kept=True) for host in hosts for _ in range(KEPT_ALIVE)]
        clients += [self._keep(host, is_kept=False) for host in hosts for _ in range(SHORT)]
        tasks = [asyncio.create_task(client) for client in clients]
        try:
            yield
        finally:
            self._is_stopping = True
            await asyncio.gather(*tasks)
            self._is_stopping = False

    async def _keep(self, host: str, *, is_kept: bool) -> None:
        """One client: connections one after the other, on each as many requests as it carries."""
        while not self._is_stopping:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError as error:
                self.failures[host].append(f"cannot connect: {error}")
                await asyncio.sleep(PAUSE_S)
                continue
            try:
                while not self._is_stopping:
                    is_open = await self._ask(host, reader, writer, is_kept=is_kept)
                    await asyncio.sleep(PAUSE_S)
                    if not is_open:
                        break
            finally:
                writer.close()

    async def _ask(
        self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_kept: bool
    ) -> bool:
        """One request, counted; whether the connection takes another one."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                connection = b"keep-alive" if is_kept else b"close"
                writer.write(b"GET / HTTP/1.1\r\nhost: %s.test\r\nconnection: %s\r\n\r\n" % (host.encode(), connection))
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                body = (await reader.readexactly(length)).decode()
        except (OSError, asyncio.IncompleteReadError) as error:  # a timeout is an OSError, too
            self.failures[host].append(f"{type(error).__name__}: {error}")
            return False
        if head.startswith("http/1.1 200 "):
            self.answers[host, body] += 1
        else:
            self.failures[host].append(f"{head.partition(chr(13))[0]} {body}")
        return is_kept and "connection: close" not in head
