"""One stream of a connection: its two flow-control windows, what was received and not read, what waits to be sent.

Owned by `connection`, which moves the windows; `call` reads the inbox through it. Pure.
"""

from __future__ import annotations

from collections import deque

from xdsbpf.xds.h2.faults import ErrorCode, StreamFault
from xdsbpf.xds.h2.messages import Inbox


class Stream:
    """State of RFC 9113 section 5.1 for a request: each side is open until its END_STREAM or a reset."""

    __slots__ = (
        "content_left",
        "held",
        "id",
        "inbox",
        "is_ended",
        "is_head_sent",
        "is_remote_ended",
        "outbox",
        "receive_window",
        "returnable",
        "send_window",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: int, max_message: int) -> None:
        self.id = stream_id
        self.send_window = send_window
        """Bytes of DATA that the peer takes now; negative after it has lowered its initial window (6.9.2)."""
        self.receive_window = receive_window
        """Bytes of DATA that the peer may send now."""
        self.inbox = Inbox(max_message)
        self.held = 0
        """Received bytes whose credit waits for the reader."""
        self.returnable = 0
        """Received bytes whose credit may be returned; it goes out when it is worth a frame."""
        self.outbox: deque[memoryview] = deque()
        """What is left to be sent of one message."""
        self.content_left: int | None = None
        """Bytes of DATA still due by content-length."""
        self.is_head_sent = False
        self.is_remote_ended = False
        """The peer has sent END_STREAM."""
        self.is_ended = False
        """Nothing more is sent on it."""

    def take_data(self, size: int, content_size: int, *, ends: bool) -> None:
        """Account for a DATA frame: `size` with its padding, `content_size` without. Raises: StreamFault."""
        if self.is_remote_ended:
            raise StreamFault(self.id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        if size > self.receive_window:
            raise StreamFault(self.id, ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
        self.receive_window -= size
        self.held += size
        if self.content_left is not None:
            self.content_left -= content_size
            if self.content_left < 0 or (ends and self.content_left):
                raise StreamFault(self.id, ErrorCode.PROTOCOL_ERROR, "content-length is not that of the content")
