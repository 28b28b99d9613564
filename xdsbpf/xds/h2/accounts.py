"""What a connection has spent: frames that move nothing, resets, and the connection's own receive window.

Called by the frame handlers with what a peer has just sent; raises when it is too much. Time is set by the owner. Pure.
"""

from __future__ import annotations

from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.faults import ConnectionFault, ErrorCode
from xdsbpf.xds.h2.limits import Limits
from xdsbpf.xds.token_bucket import TokenBucket


class Accounts:
    """The accounts of one connection; `now` is the monotonic time of the bytes that are being looked at."""

    __slots__ = ("_idle", "_resets", "_returnable", "_window_size", "now", "refund_idle")

    def __init__(self, limits: Limits, now: float) -> None:
        self.now = now
        self._idle = TokenBucket(limits.idle_frames, limits.idle_frames_per_s)
        self._resets = TokenBucket(limits.resets, limits.resets_per_s)
        self.refund_idle = self._idle.refund
        """Something was moved that may cause a frame that moves nothing."""
        self._window_size = limits.connection_window
        self._returnable = 0

    def spend_idle(self, cost: float = 1.0) -> None:
        """A frame that moves nothing. Raises: ConnectionFault for a flood of them (CVE-2019-9512, -9515, -9518)."""
        if not self._idle.take(self.now, cost):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that move nothing")

    def spend_reset(self) -> None:
        """A stream was reset. Raises: ConnectionFault for a flood of them (CVE-2023-44487, CVE-2025-8671)."""
        if not self._resets.take(self.now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams were reset")

    def take_data(self, size: int) -> bytes:
        """DATA of `size` bytes, padding included; the WINDOW_UPDATE that is due, b"" for none.

        The connection's credit is returned whether the data is read or not, so that one unread stream never stops
        another. So a peer never lacks it, and what streams hold is bounded by their windows and `max_buffered`.
        """
        self._returnable += size
        if self._returnable < self._window_size // 4:
            return b""
        returned = self._returnable
        self._returnable = 0
        return frames.window_update(0, returned)
