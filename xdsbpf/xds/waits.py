"""Why a listener or route is kept back: the clusters that it waits for, and until when.

Made by `xds.guard`, kept in `xds.subscription`, shown by the status. Values only.
"""

from __future__ import annotations

import enum

import msgspec


class Reason(enum.Enum):
    """Why a client cannot use a cluster yet; the value completes "cluster x …"."""

    UNKNOWN = "does not exist for this client"
    UNASKED = "exists, and the client has not asked for clusters"
    UNSENT = "has not been sent to the client"
    WARMING = "is not acknowledged yet"
    REFUSED = "was refused by the client"
    AWAY = "exists, and the client's stream for clusters is not there"
    LAGGING = "is not acknowledged yet on every stream that the client has for clusters"
    UNFED = "is acknowledged a moment ago: the client may still warm it"
    INCOMPLETE = "is acknowledged, and its endpoints or secrets are not yet: the client warms it"


class Missing(msgspec.Struct, frozen=True):
    """A cluster that a resource names and that the client cannot use yet."""

    cluster: str
    reason: Reason

    def __str__(self) -> str:
        return f"cluster {self.cluster} {self.reason.value}"


class Waiting(msgspec.Struct, frozen=True):
    """A resource kept back: the stamp of its change, since when, until when at most (clock), and what for."""

    stamp: int
    since: float
    until: float
    missing: tuple[Missing, ...]
