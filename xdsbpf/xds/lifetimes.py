"""How long streams live: those that could go on, and those whose client does not answer, or takes nothing.

In: how many, how long, and a source of randomness. Out: seconds from now, spread over a while, so that clients do not
come back in one instant. Used by the server when it drains, for the age of a connection (xds-server rule 48), and for
clients that have stopped (rule 43). Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

DRAIN_PER_S: Final = 50.0
"""Streams that may end a second when there is time: few streams are not kept waiting for the sake of a spread."""
GOAWAY_AGE: Final = 0.5
"""Part of the age at which a connection is told to take no new streams; its streams end after that."""
_YOUNGEST, _OLDEST = 0.6, 1.4

Draw = Callable[[], float]
"""A random number from 0 to 1, 1 not included."""


class Patience(msgspec.Struct, frozen=True):
    """How long a client may keep quiet, in seconds."""

    stale_s: float = 60.0
    """A response without ACK or NACK for that long makes its type STALE; its stream is kept."""
    write_s: float = 60.0
    """A stream that takes no byte for that long is reset."""


PATIENCE: Final = Patience()


def drain_delays(count: int, seconds: float, draw: Draw) -> tuple[float, ...]:
    """When each of `count` streams ends: evenly over at most `seconds`, each somewhere in its own share."""
    share = min(seconds, count / DRAIN_PER_S) / max(count, 1)
    return tuple((number + draw()) * share for number in range(count))


def lifetime(age: float, draw: Draw) -> float:
    """How long a stream lives where connections are to be about `age` old: 40 % more or less.

    It is longer than the connection took streams at all (`GOAWAY_AGE`, and a tenth): its client comes back on another
    one, which may be another server's.
    """
    return age * (_YOUNGEST + (_OLDEST - _YOUNGEST) * draw())
