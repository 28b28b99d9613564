"""HTTP/2 frames as bytes (RFC 9113 sections 4 and 6): headers of frames, and the payloads that have a fixed form.

Bytes in, numbers out, and back. Checks what a frame alone can tell (lengths, padding, value ranges); what depends on
the state of a stream is checked in `connection`. Pure.
"""

from __future__ import annotations

import struct

from xdsbpf.xds.h2.faults import ConnectionFault, ErrorCode

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (RFC 9113 section 3.4)."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

ENABLE_PUSH = 0x2
MAX_CONCURRENT_STREAMS = 0x3
INITIAL_WINDOW_SIZE = 0x4
MAX_FRAME_SIZE = 0x5
MAX_HEADER_LIST_SIZE = 0x6

HEADER_BYTES = 9
DEFAULT_FRAME_SIZE = 16_384
MAX_STREAM_ID = MAX_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535

FRAME_HEADER = struct.Struct(">BHBBL")
"""length's high byte, length's low 16 bits, type, flags, reserved bit and stream id."""

_DATA_AND_PREFIX = struct.Struct(">BHBBLBL")
_SETTING = struct.Struct(">HL")
_U32 = struct.Struct(">L")
_GOAWAY = struct.Struct(">LL")


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return frame_header(len(payload), kind, flags, stream_id) + payload


def frame_header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes before a payload (RFC 9113 section 4.1)."""
    return FRAME_HEADER.pack(length >> 16, length & 0xFFFF, kind, flags, stream_id)


def data_frame(stream_id: int, message: bytes) -> bytes:
    """One DATA frame with one gRPC message; the caller knows that it fits into a frame."""
    size = len(message)
    whole = size + 5
    return _DATA_AND_PREFIX.pack(whole >> 16, whole & 0xFFFF, DATA, 0, stream_id, 0, size) + message


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


SETTINGS_ACK = frame(SETTINGS, ACK, 0)


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, _U32.pack(increment))


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, _U32.pack(code))


def ping(payload: bytes, *, is_ack: bool) -> bytes:
    """A PING frame; `payload` is eight bytes."""
    return frame(PING, ACK if is_ack else 0, 0, payload)


def goaway(last_stream_id: int, code: ErrorCode, text: str = "") -> bytes:
    """A GOAWAY frame; `text` is for the reader of the peer's log."""
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(last_stream_id, code) + text.encode()[:256])


def unpadded(payload: bytes, flags: int) -> bytes:
    """The content of DATA or HEADERS. Raises: ConnectionFault if the padding does not fit (sections 6.1, 6.2)."""
    if not flags & PADDED:
        return payload
    if not payload:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
    if payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def without_priority(payload: bytes, flags: int) -> bytes:
    """The header block fragment of HEADERS without the deprecated priority fields (section 6.2)."""
    if not flags & PRIORITY_FLAG:
        return payload
    if len(payload) < 5:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS is too short for its priority fields")
    return payload[5:]


def u32(payload: bytes) -> int:
    """The one number of RST_STREAM."""
    number: int = _U32.unpack(payload)[0]
    return number


def u31(payload: bytes) -> int:
    """The one number of WINDOW_UPDATE, without its reserved bit."""
    return u32(payload) & MAX_WINDOW


def read_settings(payload: bytes) -> dict[int, int]:
    """The values of a SETTINGS frame, the last one of each.

    Only last values are applied, so that a frame full of window sizes costs as much as one.
    Raises: ConnectionFault for a value that section 6.5.2 forbids.
    """
    if len(payload) % _SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS is not a list of six-byte values")
    values: dict[int, int] = {}
    for key, value in _SETTING.iter_unpack(payload):
        if key == ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH is {value}")
        if key == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE is {value}")
        if key == MAX_FRAME_SIZE and not DEFAULT_FRAME_SIZE <= value < 1 << 24:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE is {value}")
        values[key] = value
    return values
