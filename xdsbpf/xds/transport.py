"""What the server's streams need of a transport, whichever carries them.

A transport (grpc.aio, or the HTTP/2 of `xds.h2`) accepts connections, looks the method up and hands a `Call` to its
handler, one task per call. Messages are raw gRPC message bytes without the length prefix. A handler that returns ends
the call with OK; one that raises ProtocolError ends it with that status and text. Knows no xDS.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import msgspec

from xdsbpf.xds.tls import Material


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end.

    `address` is `ipv4:10.0.0.1:4711`, `ipv6:[::1]:4711` or `unix:`; `identities` are the URI names of its verified
    certificate, () on plaintext; `is_encrypted` tells a mutual TLS listener from a local plaintext one. `is_expired`:
    the certificate was verified in an earlier handshake, and has ended since (a resumed TLS session).
    """

    address: str
    identities: tuple[str, ...] = ()
    is_encrypted: bool = False
    is_expired: bool = False


Take = Callable[[bytes], float | None]
"""Takes one message; returns how many seconds the next one of its stream is to wait, if it is."""


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

    async def read_all(self, handle: Take) -> None:
        """Call `handle` with every message until the client half-closes. Raises: as `read`, and what `handle` raises.

        A transport that can does so where it receives them, without a switch to the task that waits here.
        """

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

    async def start(
        self, addresses: Iterable[str], tls_addresses: Iterable[str] = (), material: Material | None = None
    ) -> tuple[str, ...]:
        """Listen; port 0 picks one. Returns the bound addresses in that order.

        `addresses` are plaintext: loopback TCP and unix sockets (mode 0660). `tls_addresses` are TCP on any address,
        with the certificate of `material`; clients must have one of its authorities. Raises: ConfigError if an address
        is not local, or taken, or the material is not accepted.
        """

    async def use_tls(self, material: Material) -> None:
        """Another certificate for connections from now on; open ones live on.

        Raises: ConfigError if it is not accepted; the former one stays in force.
        """

    async def stop(self, grace: float) -> None:
        """Take no new calls, wait at most `grace` seconds for the open ones, end the rest."""
