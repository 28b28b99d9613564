"""What the server's streams need of a transport, whichever carries them.

A transport (grpc.aio, or the HTTP/2 of `xds.h2`) accepts connections, looks the method up and hands a `Call` to its
handler, one task per call. Messages are raw gRPC message bytes without the length prefix. A handler that returns ends
the call with OK; one that raises ProtocolError ends it with that status and text. Knows no xDS.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import msgspec


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end.

    `address` is `ipv4:10.0.0.1:4711`, `ipv6:[::1]:4711` or `unix:`; `identities` are the URI names of its verified
    certificate, () on plaintext; `is_encrypted` tells a mutual TLS listener from a local plaintext one.
    """

    address: str
    identities: tuple[str, ...] = ()
    is_encrypted: bool = False


class Call(Protocol):
    """One call, whatever its shape: unary calls read one message and write one."""

    @property
    def method(self) -> str:
        """`/package.Service/Method`."""

    @property
    def peer(self) -> Peer:
        """The other end."""

    async def read(self) -> bytes | None:
        """The next message, or None when the client has half-closed. Raises: ProtocolError for a broken one."""

    def write_now(self, message: bytes) -> bool:
        """Send a message if the transport takes it at once; False if not, and then `write` it. Nobody else is writing.

        A transport that never does costs a task switch more per message, no more.
        """

    async def write(self, message: bytes) -> None:
        """Send a message; returns when the transport takes another one, so a slow client slows its writer.

        It may be under way when the handler ends, and must not be cancelled while the call lives: the status of the
        call goes out behind it.
        """


Handler = Callable[[Call], Awaitable[None]]
"""Serves one call to its end. Cancelled when the client gives up, or its deadline passes."""


class Transport(Protocol):
    """Listening sockets in front of handlers."""

    async def start(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Listen on loopback TCP (port 0 picks one) and unix sockets (mode 0660); returns the bound addresses.

        Raises: ConfigError if an address is not local, or taken.
        """

    async def stop(self, grace: float) -> None:
        """Take no new calls, wait at most `grace` seconds for the open ones, end the rest."""
