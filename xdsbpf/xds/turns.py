"""Turns of the event loop in which streams send: some of them in each, so that ACKs and new streams get their share.

In: streams that have something to send. Out: a call of `send` for each of them. Owned by `xds.exchange`; one task's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.open_stream import OpenStream

STREAMS_PER_TURN = 256


class Turns:
    """Streams in the order of their turns; one that waits already keeps its place."""

    def __init__(self, send: Callable[[OpenStream], None]) -> None:
        self._send = send
        self._waiting: deque[OpenStream] = deque()

    def add(self, stream: OpenStream) -> None:
        """Let a stream send, in the next turn that has room."""
        if stream.is_woken:
            return
        stream.is_woken = True
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._serve)
        self._waiting.append(stream)

    def _serve(self) -> None:
        """One turn. A defect in a stream ends it, and keeps no other one waiting."""
        stream: OpenStream | None = None
        try:
            for _ in range(min(STREAMS_PER_TURN, len(self._waiting))):
                stream = self._waiting.popleft()
                stream.is_woken = False
                self._send(stream)
        except BaseException:
            if stream is not None:
                stream.finish(ProtocolError("INTERNAL", "internal error"))
            raise
        finally:
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._serve)
