"""Slots: how weights become repetitions, and where a new range of slots may lie.

Used by the plan only. Pure; knows no names and no maps.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence

MAX_WEIGHTED_SLOTS = 1024


def slot_counts(weights: Sequence[int]) -> tuple[int, ...]:
    """Slots of each endpoint, in order; every endpoint gets at least one.

    Equal weights get one slot each. Weights that reduce to at most 1024 slots are met exactly,
    others by the largest remainder over 1024 slots.
    Raises: ValueError for a weight below 1 or more than 1024 endpoints of unequal weight.
    """
    if any(weight < 1 for weight in weights):
        raise ValueError("a weight is at least 1")
    if not weights:
        return ()
    divisor = math.gcd(*weights)
    reduced = [weight // divisor for weight in weights]
    if set(reduced) == {1} or sum(reduced) <= MAX_WEIGHTED_SLOTS:
        return tuple(reduced)
    if len(reduced) > MAX_WEIGHTED_SLOTS:
        raise ValueError(f"{len(reduced)} endpoints of unequal weight do not fit {MAX_WEIGHTED_SLOTS} slots")
    total = sum(reduced)
    counts = [max(1, weight * MAX_WEIGHTED_SLOTS // total) for weight in reduced]
    remainders = sorted(range(len(reduced)), key=lambda i: (-(reduced[i] * MAX_WEIGHTED_SLOTS % total), i))
    for index in remainders[: max(0, MAX_WEIGHTED_SLOTS - sum(counts))]:
        counts[index] += 1
    # The minimum of one slot may have lifted the sum above the limit: the largest shares pay for it.
    while sum(counts) > MAX_WEIGHTED_SLOTS:
        counts[counts.index(max(counts))] -= 1
    return tuple(counts)


class SlotRanges:
    """Free space of the arena, kept as sorted gaps. Cost: O(gaps) for `take`, else O(log gaps) and a list move.

    Ranges in use that overlap are possible (somebody else wrote into the maps): `overlapping` is then
    true for good, and the owner makes a new value instead of giving ranges back.
    """

    def __init__(self, used: Iterable[tuple[int, int]], capacity: int) -> None:
        """`used`: (offset, count) pairs in any order, in slots."""
        self._starts: list[int] = [0] if capacity else []
        self._ends: list[int] = [capacity] if capacity else []
        self.overlapping = False
        for offset, count in sorted(used):
            self.occupy(offset, count)

    def take(self, count: int) -> int | None:
        """Offset of `count` adjacent free slots, now in use, first fit; None if no gap is large enough."""
        for start, end in zip(self._starts, self._ends, strict=True):
            if end - start >= count:
                self.occupy(start, count)
                return start
        return None

    def occupy(self, offset: int, count: int) -> None:
        """Take a range out of the free space, as far as it is free."""
        end = offset + count
        index = bisect.bisect_right(self._ends, offset)
        if index == len(self._starts) or not self._starts[index] <= offset <= end <= self._ends[index]:
            self.overlapping = True
        while index < len(self._starts) and self._starts[index] < end:
            left, right = (self._starts[index], offset), (end, self._ends[index])
            parts = [gap for gap in (left, right) if gap[0] < gap[1]]
            self._starts[index : index + 1] = [start for start, _ in parts]
            self._ends[index : index + 1] = [stop for _, stop in parts]
            index += len(parts)

    def give_back(self, offset: int, count: int) -> None:
        """Free a range that is in use as a whole, by nothing else."""
        index = bisect.bisect_left(self._starts, offset)
        self._starts.insert(index, offset)
        self._ends.insert(index, offset + count)
        for left in (index, index - 1):
            if 0 <= left < len(self._starts) - 1 and self._ends[left] == self._starts[left + 1]:
                del self._ends[left], self._starts[left + 1]
