"""One HTTP exchange or connection at a time over asyncio, for the stand-ins' calls and the lab's client.

Input: host, port, request. Output: a `Message`, or an OSError, TimeoutError or `Closed`; nothing is retried,
so that what the caller counts is what happened on the wire.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterable

from xdsbpf.lab.http1 import BadMessage, Message, MessageReader, write_request

READ_SIZE = 65536


class Closed(Exception):
    """The peer closed the connection before it had answered; `received` is how many bytes came."""

    def __init__(self, received: int) -> None:
        super().__init__(f"closed after {received} bytes")
        self.received = received


async def resolve(host: str, port: int) -> tuple[str, int]:
    """First IPv4 address of a name. Raises: OSError (socket.gaierror)."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_STREAM)
    return str(found[0][4][0]), port


async def dial(address: tuple[str, int]) -> socket.socket:
    """A connected non-blocking socket. Raises: the OSError of connect(2), with its errno untouched."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


class Connection:
    """An open connection to an HTTP server; requests one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = MessageReader(responses=True)

    @classmethod
    async def open(cls, address: tuple[str, int]) -> Connection:
        return cls(await dial(address))

    async def request(self, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> Message:
        """Send one request and wait for its answer.

        Raises: OSError, Closed, BadMessage. Usable again only if the answer keeps the connection alive.
        """
        loop, received, ended = asyncio.get_running_loop(), 0, False
        await loop.sock_sendall(self._sock, write_request(method, target, headers, body))
        while True:
            message = self._reader.next(bodiless=method == "HEAD")
            if message is not None and message.start[1] != "100":
                return message
            if ended:
                raise Closed(received)
            if message is None:
                data = await loop.sock_recv(self._sock, READ_SIZE)
                received, ended = received + len(data), not data
                self._reader.feed(data)

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._sock.close()


async def fetch(host: str, port: int, target: str, headers: Iterable[tuple[str, str]], timeout: float) -> Message:
    """GET on a connection of its own, name resolution included in the time limit.

    Raises: OSError (TimeoutError too), Closed, BadMessage.
    """
    async with asyncio.timeout(timeout):
        connection = await Connection.open(await resolve(host, port))
        try:
            return await connection.request("GET", target, headers)
        finally:
            connection.close()


def failure_name(error: OSError | Closed | BadMessage) -> str:
    """A short stable name: the errno's name, TIMEOUT, CLOSED, UNKNOWN_HOST or BAD_ANSWER."""
    if isinstance(error, Closed):
        return "CLOSED"
    if isinstance(error, BadMessage):
        return "BAD_ANSWER"
    if isinstance(error, socket.gaierror):
        return "UNKNOWN_HOST"
    if isinstance(error, TimeoutError) and not error.errno:
        return "TIMEOUT"
    return errno.errorcode.get(error.errno or 0, "OSERROR")
