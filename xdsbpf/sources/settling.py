"""Which files are to be read or forgotten now, from repeated looks at their stamps.

In: the time and the stamps of all files present. Out: files whose size, mtime and inode have stayed
the same for the settling time since they changed, and files that stayed away as long. Pure; `files`
feeds it and does the reading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from xdsbpf.sources.loading import Found

SETTLE_S: Final = 0.1
"""A file is read only after its stamp has been the same for this long."""

PATIENCE_S: Final = 2.0
"""A deletion waits no longer than this for files that are appearing (a rename shows as both)."""


class Due(msgspec.Struct, frozen=True):
    """What to do now: reads first, then deletions, so that a renamed file loses nothing in between."""

    reads: tuple[tuple[str, Found], ...]
    deletes: tuple[str, ...]


class _Pending(msgspec.Struct, frozen=True):
    found: Found | None
    since: float


class Settler:
    """Stamps last read, and the changes that have not settled yet."""

    def __init__(self, settle_s: float = SETTLE_S) -> None:
        self._settle_s = settle_s
        self._read: dict[str, Found] = {}
        self._pending: dict[str, _Pending] = {}

    def observe(
        self, now: float, present: dict[str, Found], is_deletable: Callable[[str], bool] = lambda _: True
    ) -> Due:
        """Compare with what was read; `is_deletable` is False for files whose directory is lost."""
        for file, found in present.items():
            self._note(file, found, now)
        for file in [*self._read, *self._pending]:
            if file not in present:
                if file not in self._read or not is_deletable(file):
                    self._pending.pop(file, None)
                else:
                    self._note(file, None, now)
        settled = [file for file, entry in self._pending.items() if now - entry.since >= self._settle_s]
        appearing = len(settled) < len(self._pending)
        reads, deletes = [], []
        for file in sorted(settled, key=self._order):
            entry = self._pending[file]
            if entry.found is not None:
                reads.append((file, entry.found))
            elif not appearing or now - entry.since >= PATIENCE_S:
                deletes.append(file)
        return Due(tuple(reads), tuple(deletes))

    def mark_read(self, file: str, found: Found) -> None:
        """The content with this stamp was read (or is known to be unreadable)."""
        self._read[file] = found
        self._pending.pop(file, None)

    def mark_deleted(self, file: str) -> None:
        """The file was forgotten."""
        self._read.pop(file, None)
        self._pending.pop(file, None)

    def next_deadline(self) -> float | None:
        """When the next pending change will have settled, or None."""
        return min((entry.since + self._settle_s for entry in self._pending.values()), default=None)

    def is_settled(self) -> bool:
        """Whether nothing is pending."""
        return not self._pending

    def _note(self, file: str, found: Found | None, now: float) -> None:
        if found is not None and self._read.get(file) == found:
            self._pending.pop(file, None)
            return
        pending = self._pending.get(file)
        if pending is None or pending.found != found:
            self._pending[file] = _Pending(found, now)

    def _order(self, file: str) -> tuple[int, str]:
        found = self._pending[file].found or self._read.get(file)
        return found.order if found is not None else (0, file)
