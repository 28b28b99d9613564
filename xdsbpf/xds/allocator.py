"""What the C library does with freed memory: what large requests leave goes back to the kernel a little later.

Left alone, glibc keeps it in heaps: a hundred requests of a megabyte would leave a hundred megabytes for good. Driven
by `xds.exchange`, which says how large requests are; no part of the server's logic, and nothing depends on it.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from typing import Final

LARGE_BYTES: Final = 64 << 10
"""A request of that size leaves what is worth a look at all heaps."""
PAUSE_S: Final = 2.0
ROUNDS: Final = 2
"""After the last large request: gRPC's threads free what they read a little later than we do."""


def _give_back() -> None:
    """Give free pages of all heaps to the kernel; nothing where the C library cannot (it is not glibc). Some ms."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class FreedMemory:
    """Gives memory back while and after large requests come, every two seconds at most, in a thread."""

    def __init__(self) -> None:
        self._rounds_left = 0

    def received(self, size: int) -> None:
        """A request of that many bytes has come. To be called where a loop runs."""
        if size >= LARGE_BYTES:
            if not self._rounds_left:
                asyncio.get_running_loop().call_later(PAUSE_S, self._round)
            self._rounds_left = ROUNDS

    def _round(self) -> None:
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, _give_back)
        self._rounds_left -= 1
        if self._rounds_left:
            loop.call_later(PAUSE_S, self._round)
