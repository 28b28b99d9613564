"""What one file says about one object, and how long that stays after it vanished from the file."""

from __future__ import annotations

import enum

import msgspec

from xdsbpf.model.meta import Manifest
from xdsbpf.sources.yaml_objects import Disposition, ReadObject
from xdsbpf.sources.yaml_reader import Chunk


class Hold(enum.Enum):
    """Whether an object is in its file, and if not, what ends its stay."""

    NONE = "in its file"
    BRIEF = "vanished, removed when its time is over"
    CONFIRM = "vanished together with most others, removed when confirmed"


class Occurrence(msgspec.Struct, frozen=True):
    """One place where an object is written: the chunk that starts at `first_line` (from 1) of `file`."""

    file: str
    first_line: int
    chunk: Chunk
    read: ReadObject


class Claim:
    """All occurrences of one object in one file, the last one strongest, and its last good version.

    While vanished (`hold`), the occurrences are those of the last content that had it.
    """

    __slots__ = ("good", "held_until", "hold", "occurrences", "order")

    def __init__(self, order: tuple[int, str]) -> None:
        self.order = order
        self.occurrences: tuple[Occurrence, ...] = ()
        self.good: Manifest | None = None
        self.hold = Hold.NONE
        self.held_until = 0.0

    def vanish(self, hold: Hold, until: float) -> None:
        """The file no longer has the object. A brief hold that runs keeps its own end."""
        if hold is Hold.BRIEF and self.hold is not Hold.BRIEF:
            self.held_until = until
        self.hold = hold

    def is_due(self, now: float) -> bool:
        """Whether a brief hold is over."""
        return self.hold is Hold.BRIEF and self.held_until <= now


def good_version(occurrences: tuple[Occurrence, ...], last: Manifest | None) -> Manifest | None:
    """The version that a file stands for: its last occurrence if good, else the last good one before.

    As with kubectl apply, an invalid later document leaves what the earlier ones or an earlier
    content of the file had applied. A kind that became unsupported stands for nothing.
    """
    newest = occurrences[-1].read
    if newest.disposition is Disposition.ACCEPTED:
        return newest.manifest
    if newest.disposition is not Disposition.REJECTED:
        return None
    if last is not None:
        return last
    accepted = [place.read.manifest for place in occurrences if place.read.manifest is not None]
    return accepted[-1] if accepted else None
