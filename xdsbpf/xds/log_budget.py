"""A limit on log lines that peers can cause: one a second, and how many were left out before it (reliability F11).

Called where a line would be written; time is passed in. Pure.
"""

from __future__ import annotations

from xdsbpf.xds.token_bucket import TokenBucket

_AT_ONCE, _PER_S = 1, 1.0


class LogBudget:
    """The budget of one kind of line."""

    def __init__(self) -> None:
        self._bucket = TokenBucket(_AT_ONCE, _PER_S)
        self._left_out = 0

    def take(self, now: float) -> int | None:
        """Whether a line may be written at monotonic time `now` (seconds): the number left out before it, or None."""
        if not self._bucket.take(now):
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return left_out
