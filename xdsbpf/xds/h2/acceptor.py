"""Accepts connections for TLS a few at a time: a handshake costs a millisecond, and open streams go on in between.

In: a listening socket, a context that may be replaced. Out: for each accepted socket its protocol, once the handshake
is done. A storm waits in the socket's backlog; it is served as fast as the loop can with a share of its time. Used by
`server`; knows no HTTP/2.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

AT_ONCE: Final = 8
PAUSE_S: Final = 0.02
"""Time for everything else after `AT_ONCE` handshakes have begun: at most 400 a second, and fewer on a busy loop."""
FAILED_PAUSE_S: Final = 1.0
"""After an accept that failed for want of descriptors or memory."""


class TlsAcceptor:
    """One listening socket, which it owns. `context` is for the handshakes from now on."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        make_protocol: Callable[[], asyncio.Protocol],
        failed: Callable[[str, str], None],
        handshake_s: float,
    ) -> None:
        """`failed` is told who did not get through a handshake within `handshake_s`, and why."""
        self.sock = sock
        self.context = context
        self._make_protocol = make_protocol
        self._failed = failed
        self._handshake_s = handshake_s
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        sock.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept nothing more, and end the handshakes that are under way."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self.sock)
        for handshake in self._handshakes:
            handshake.cancel()
        self.sock.close()

    def _listen(self) -> None:
        self._loop.add_reader(self.sock, self._accept)

    def _accept(self) -> None:
        self._loop.remove_reader(self.sock)
        pause_s = PAUSE_S
        for _ in range(AT_ONCE):
            try:
                accepted, address = self.sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                break
            except OSError as error:
                self._failed("", f"cannot accept: {error.strerror}")
                pause_s = FAILED_PAUSE_S
                break
            handshake = self._loop.create_task(self._shake_hands(accepted, address))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)
        self._pause = self._loop.call_later(pause_s, self._listen)

    async def _shake_hands(self, accepted: socket.socket, address: tuple[str, int]) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make_protocol, accepted, ssl=self.context, ssl_handshake_timeout=self._handshake_s
            )
        except OSError as error:
            accepted.close()
            self._failed(f"{address[0]}:{address[1]}", f"no TLS: {error}")
        except BaseException:
            accepted.close()
            raise
