"""Large requests arrive a few at a time: the sockets of the others wait, so that what is half there stays bounded.

In: connections in the middle of a large request. Out: which of them read on. Owned by `server`, one for all its
connections; asked by `protocol` for large requests only. Pure.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

LARGE_BYTES: Final = 64 << 10
"""Unread bytes of a request that is not complete, from which on it has to take its turn."""
AT_A_TIME: Final = 8


class Arriving(Protocol):
    """A connection that can stop to read, and go on."""

    def stop_reading(self) -> None:
        """Leave what comes in the socket."""

    def go_on_reading(self) -> None:
        """It is its turn."""


class Arrivals:
    """Who reads, and who waits, in the order in which they came."""

    def __init__(self) -> None:
        self._reading: set[Arriving] = set()
        self._waiting: deque[Arriving] = deque()

    @property
    def reading(self) -> int:
        """How many are coming."""
        return len(self._reading)

    @property
    def waiting(self) -> int:
        """How many wait for them."""
        return len(self._waiting)

    def enter(self, connection: Arriving) -> None:
        """A large request has begun to come."""
        if len(self._reading) < AT_A_TIME:
            self._reading.add(connection)
        else:
            self._waiting.append(connection)
            connection.stop_reading()

    def leave(self, connection: Arriving) -> None:
        """It is there, or will never be; a connection that was waiting for its turn goes on by itself."""
        if connection not in self._reading:
            self._waiting.remove(connection)
            return
        self._reading.remove(connection)
        if self._waiting:
            following = self._waiting.popleft()
            self._reading.add(following)
            following.go_on_reading()
