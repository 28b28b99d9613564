"""How much of everything one connection may ask for, and for how long.

Values; read by every part of the transport. Pure.
"""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """Limits of one connection; the defaults leave ten times what an Envoy or a gRPC client needs."""

    max_streams: int = 1_000
    """Calls at once, those whose handler has not ended yet included (CVE-2023-44487, rapid reset)."""
    max_header_block: int = 32_768
    """Bytes of one compressed header block, CONTINUATION included (CVE-2024-27316, CONTINUATION flood)."""
    max_continuations: int = 16
    max_header_list: int = 16_384
    """Announced; a request over it is refused with RESOURCE_EXHAUSTED. Counted as RFC 9113 section 6.5.2 does."""
    hard_header_list: int = 65_536
    """Decoding stops there, and the connection with it: a header bomb."""
    stream_window: int = 1 << 20
    """Bytes of unread requests that one stream holds, apart from the message that it is in the middle of."""
    connection_window: int = 4 << 20
    max_message: int = 64 << 20
    """A reconnecting client lists every name and version that it has."""
    max_buffered: int = 68 << 20
    """Unread bytes of all streams together."""
    idle_frames: int = 2_000
    """Burst of frames that move nothing: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty or tiny DATA, unknown ones."""
    idle_frames_per_s: float = 500.0
    resets: int = 1_000
    """Burst of streams that end by RST_STREAM, the client's or ours in answer to its mistakes."""
    resets_per_s: float = 33.0


class Timing(msgspec.Struct, frozen=True):
    """Seconds after which a connection that does nothing useful is let go."""

    handshake_s: float = 5.0
    """From the accepted socket to the client's first SETTINGS; the TLS handshake has as long again."""
    keepalive_s: float = 30.0
    """Silence after which the peer gets a PING."""
    keepalive_timeout_s: float = 10.0
    stall_s: float = 60.0
    """How long the peer may leave a full socket unread."""
    arrival_s: float = 30.0
    """How long a large request may take to arrive while others wait for their turn to."""
    idle_s: float = 300.0
    """A connection without calls is ended gracefully."""
    close_s: float = 5.0
    """How long the last bytes may take to leave."""
    goaway_s: float = 0.0
    """Age at which a connection is told to take no new streams, and ended once it has none; 0: never."""
    tick_s: float = 1.0
