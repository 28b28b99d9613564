"""Slots: how weights become repetitions, and where a new range of slots may lie.

Used by the plan only. Pure; knows no names and no maps.
"""

from __future__ import annotations

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
    """Free space of the arena; made anew for each plan from the ranges that are in use.

    `take` is first fit: O(gaps). Ranges in use may overlap (two frontends of one service share one).
    """

    def __init__(self, used: Iterable[tuple[int, int]], capacity: int) -> None:
        """`used`: (offset, count) pairs in any order, in slots."""
        self._gaps: list[tuple[int, int]] = []
        end = 0
        for offset, count in sorted(used):
            if offset > end:
                self._gaps.append((end, min(offset, capacity) - end))
            end = max(end, offset + count)
        if end < capacity:
            self._gaps.append((end, capacity - end))

    def take(self, count: int) -> int | None:
        """Offset of `count` adjacent free slots, now in use; None if no gap is large enough."""
        for index, (offset, size) in enumerate(self._gaps):
            if size > count:
                self._gaps[index] = (offset + count, size - count)
                return offset
            if size == count:
                del self._gaps[index]
                return offset
        return None
