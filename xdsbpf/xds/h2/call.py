"""One call on an HTTP/2 stream: the `Call` of `xds.transport`.

Events of its stream in, messages out. Made by `protocol`, used by one handler; its reader and its writer may be two
tasks.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.h2.stream import Stream
from xdsbpf.xds.transport import Handler, Peer, Take


class Carrier(Protocol):
    """What a call needs of its connection."""

    def read(self, stream: Stream) -> bytes | None:
        """The next message, None if there is none yet. Raises: ProtocolError if there never will be."""

    def send_now(self, stream: Stream, message: bytes) -> bool:
        """Send if it can leave at once, else do nothing and return False."""

    def send(self, stream: Stream, message: bytes) -> bool:
        """Send; False if `message_sent` will tell when the message has left."""

    def rest(self, seconds: float) -> None:
        """Leave what the peer sends in the socket for so long, whichever call it is for."""


class H2Call:
    """One call. `ending` is the status it gets if its handler is cancelled by us."""

    __slots__ = ("_carrier", "_handle", "_reader", "_writer", "deadline", "ending", "method", "peer", "stream", "task")

    def __init__(self, carrier: Carrier, stream: Stream, method: str, peer: Peer) -> None:
        self.method = method
        self.peer = peer
        self.stream = stream
        self.task: asyncio.Task[None] | None = None
        self.deadline: asyncio.TimerHandle | None = None
        self.ending: ProtocolError | None = None
        self._carrier = carrier
        self._handle: Take | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def read(self) -> bytes | None:
        """See `Call.read`; one reader at a time. Raises: ProtocolError for a message that can never be complete."""
        while (message := self._carrier.read(self.stream)) is None:
            if self._is_read():
                return None
            await self._until_readable()
        return message

    async def read_all(self, handle: Take) -> None:
        """See `Call.read_all`."""
        if self._hand_over(handle):
            return
        self._handle = handle
        try:
            await self._until_readable()
        finally:
            self._handle = None

    def write_now(self, message: bytes) -> bool:
        """See `Call.write_now`."""
        return self._carrier.send_now(self.stream, message)

    async def write(self, message: bytes) -> None:
        """See `Call.write`; one writer at a time. A stream that is over swallows what is written.

        Returns at once while the peer keeps up; `message` is not copied and must not change.
        """
        if self._carrier.send(self.stream, message):
            return
        self._writer = asyncio.get_running_loop().create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    def start(self, handler: Handler) -> asyncio.Task[None]:
        """Run the handler in a task of its own."""

        async def serve() -> None:
            await handler(self)

        self.task = asyncio.get_running_loop().create_task(serve())
        return self.task

    def readable(self) -> None:
        """There is a message, a failure or the end: wake the reader, or hand over what it wants handled here."""
        reader = self._reader
        if reader is None or reader.done():
            return
        try:
            if self._handle is None or self._hand_over(self._handle):
                reader.set_result(None)
        except Exception as error:  # noqa: BLE001  the reader's task raises it, whatever it is
            reader.set_exception(error)

    def _hand_over(self, handle: Take) -> bool:
        """Handle what has come; True if there will be no more."""
        inbox = self.stream.inbox
        while inbox.is_ready and (message := self._carrier.read(self.stream)) is not None:
            if pause_s := handle(message):
                self._carrier.rest(pause_s)
        return self._is_read()

    def _is_read(self) -> bool:
        """Nothing is left of the request, and there will be no more. Raises: ProtocolError for half a message."""
        if not self.stream.is_remote_ended:
            return False
        if self.stream.inbox.size:
            raise ProtocolError("INTERNAL", "the request ends inside a message")
        return True

    async def _until_readable(self) -> None:
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def message_sent(self) -> None:
        """Wake the writer."""
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def cancel(self, ending: ProtocolError) -> None:
        """Stop the handler; the call ends with that status."""
        if self.task is not None and not self.task.done():
            self.ending = ending
            self.task.cancel()
