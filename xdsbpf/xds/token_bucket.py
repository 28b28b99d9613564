"""A token bucket: so much at once, then so much a second.

In: the time (seconds of one clock that begins at 0 or later) and what something costs. Out: whether it may be. Used for
new streams, for frames that move nothing and for log lines; who is refused what is the caller's. Pure.
"""

from __future__ import annotations


class TokenBucket:
    """Full at first. Every take costs a few float operations, and no memory."""

    __slots__ = ("_at", "_level", "_per_s", "_size")

    def __init__(self, size: float, per_s: float) -> None:
        self._size, self._per_s = size, per_s
        self._level, self._at = float(size), 0.0

    def ready_at(self, now: float, cost: float = 1.0) -> float:
        """When there are `cost` tokens; `now` if there are."""
        self._level = min(self._size, self._level + (now - self._at) * self._per_s)
        self._at = now
        return now if self._level >= cost else now + (cost - self._level) / self._per_s

    def take(self, now: float, cost: float = 1.0) -> bool:
        """Spend `cost` tokens; False, and none spent, if there are fewer."""
        if self.ready_at(now, cost) > now:
            return False
        self._level -= cost
        return True

    def refund(self) -> None:
        """One token more, up to the size."""
        if self._level < self._size:
            self._level = min(self._size, self._level + 1.0)

    def is_full(self, now: float) -> bool:
        """Whether a new one would be the same."""
        return self.ready_at(now, self._size) <= now
