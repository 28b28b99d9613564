"""Frames about the connection itself: SETTINGS, PING, GOAWAY, PRIORITY (RFC 9113 sections 6.3, 6.5, 6.7, 6.8).

Flags and payload in, answers into `sender.out`. Called by `connection`, which keeps what concerns streams. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from xdsbpf.xds.h2 import frames
from xdsbpf.xds.h2.accounts import Accounts
from xdsbpf.xds.h2.faults import ConnectionFault, ErrorCode, StreamFault
from xdsbpf.xds.h2.limits import Limits
from xdsbpf.xds.h2.sender import Sender
from xdsbpf.xds.h2.stream import Stream

_SETTINGS_COST = 10.0  # a new window size touches every stream


def greeting(limits: Limits) -> tuple[bytes, bytes]:
    """What a server sends first: its SETTINGS, and a connection window larger than the default one."""
    values = {
        frames.MAX_CONCURRENT_STREAMS: limits.max_streams,
        frames.INITIAL_WINDOW_SIZE: limits.stream_window,
        frames.MAX_HEADER_LIST_SIZE: limits.max_header_list,
    }
    return frames.settings(values), frames.window_update(0, limits.connection_window - frames.DEFAULT_WINDOW)


class Control:
    """The peer's settings and signs of life. Every method raises ConnectionFault for a violation."""

    __slots__ = ("_accounts", "_sender", "has_settings")

    def __init__(self, sender: Sender, accounts: Accounts) -> None:
        self._sender = sender
        self._accounts = accounts
        self.has_settings = False
        """The peer's first SETTINGS has come."""

    def settings(self, flags: int, stream_id: int, payload: bytes, streams: Iterable[Stream]) -> None:
        """Apply and acknowledge SETTINGS (section 6.5)."""
        if stream_id != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with content")
            if not self.has_settings:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first SETTINGS is an acknowledgement")
            self._accounts.spend_idle()
            return
        self._accounts.spend_idle(_SETTINGS_COST)
        values = frames.read_settings(payload)
        self.has_settings = True
        self._sender.apply(values, streams)
        self._sender.out.append(frames.SETTINGS_ACK)

    def ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Answer PING; an answer to ours shows by itself that the peer is there (section 6.7)."""
        if stream_id != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        self._accounts.spend_idle()
        if not flags & frames.ACK:
            self._sender.out.append(frames.ping(payload, is_ack=True))

    def goaway(self, stream_id: int, payload: bytes) -> None:
        """GOAWAY says that the peer accepts no streams of ours: we open none (section 6.8)."""
        if stream_id != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is shorter than 8 bytes")
        self._accounts.spend_idle()

    def priority(self, stream_id: int, payload: bytes) -> None:
        """PRIORITY is deprecated and ignored (section 5.3). Raises: StreamFault for a wrong size, too."""
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._accounts.spend_idle()
        if len(payload) != 5:
            raise StreamFault(stream_id, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is not 5 bytes")
