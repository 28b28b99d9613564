"""What is remembered of streams that are over, so that late frames and forbidden ones can be told apart.

Stream ids in, an `Ending` out. Called by `connection`. Pure. Bounded: about the oldest ones it answers FORGOTTEN, which
is treated as innocent.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

REMEMBERED = 128


class Ending(Enum):
    """How a stream ended (RFC 9113 section 5.1, "closed")."""

    BY_PEER = "the peer sent END_STREAM or RST_STREAM: it may send nothing more"
    BY_US = "we ended or reset it: the peer's frames may still be under way"
    FORGOTTEN = "long ago"
    NEVER_OPENED = "a lower id than one that was opened: closed from the start (section 5.1.1)"


class ClosedStreams:
    """The endings of the last streams of one connection."""

    __slots__ = ("_endings", "_forgotten")

    def __init__(self) -> None:
        self._endings: OrderedDict[int, Ending] | None = None  # most connections never end a stream
        self._forgotten = 0

    def add(self, stream_id: int, ending: Ending) -> None:
        """A stream has ended."""
        if self._endings is None:
            self._endings = OrderedDict()
        self._endings[stream_id] = ending
        if len(self._endings) > REMEMBERED:
            oldest, _ = self._endings.popitem(last=False)
            self._forgotten = max(self._forgotten, oldest)

    def ending(self, stream_id: int) -> Ending:
        """How a stream that is not open, and whose id is not above all opened ones, came to its end."""
        found = self._endings.get(stream_id) if self._endings else None
        if found is not None:
            return found
        return Ending.FORGOTTEN if stream_id <= self._forgotten else Ending.NEVER_OPENED
