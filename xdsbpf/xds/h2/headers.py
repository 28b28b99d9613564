"""Header blocks: a request's fields read and checked, a response's fields written.

Compressed bytes in, `RequestHead` out (RFC 9113 section 8, gRPC over HTTP/2 "Requests"); statuses in, blocks out.
Called by `connection` and `call`. Responses never use the dynamic table, so a block is the same bytes on every
connection.
"""

from __future__ import annotations

import hpack
import msgspec

from xdsbpf.xds.h2.faults import ConnectionFault, ErrorCode, StreamFault
from xdsbpf.xds.h2.limits import Limits
from xdsbpf.xds.h2.messages import STATUS_NUMBERS, percent_encoded

Fields = list[tuple[bytes, bytes]]

_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
_CONNECTION_SPECIFIC = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"),
)
_NAME_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
_ENTRY_OVERHEAD = 32


class RequestHead(msgspec.Struct, frozen=True):
    """What of a request's header fields decides its course."""

    method: str
    """The HTTP method."""
    path: str
    content_type: str = ""
    timeout: str = ""
    """`grpc-timeout`, unparsed; "" is none."""
    content_length: int | None = None
    is_oversized: bool = False
    """The list is longer than we announced that we take."""


class HeaderReader:
    """The decompression state of one connection: every block must pass through it, in order."""

    __slots__ = ("_decoder", "_limits")

    def __init__(self, limits: Limits) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=limits.hard_header_list)
        self._limits = limits

    def read(self, block: bytes) -> Fields:
        """The fields of a block in order. Raises: ConnectionFault; the state is of no use after it (section 4.3)."""
        try:
            return [(field[0], field[1]) for field in self._decoder.decode(block, raw=True)]
        except hpack.OversizedHeaderListError as error:
            text = f"a header list of more than {self._limits.hard_header_list} bytes"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, text) from error
        except hpack.HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "a header block that cannot be decoded") from error


def request_head(stream_id: int, fields: Fields, limits: Limits) -> RequestHead:
    """The request that opens a stream. Raises: StreamFault if it is malformed (RFC 9113 sections 8.1.1, 8.2, 8.3)."""
    pseudo: dict[bytes, bytes] = {}
    regular: dict[bytes, bytes] = {}
    size = 0
    for name, value in fields:
        size += len(name) + len(value) + _ENTRY_OVERHEAD
        if name[:1] == b":":
            if regular or name in pseudo or name not in _PSEUDO:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a misplaced, repeated or unknown pseudo-field")
            pseudo[name] = value
        else:
            regular[name] = value
        _check_field(stream_id, name, value)
    for required in (b":method", b":scheme", b":path"):
        if not pseudo.get(required):
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, f"a request without {required.decode()}")
    return RequestHead(
        method=pseudo[b":method"].decode("latin-1"),
        path=pseudo[b":path"].decode("latin-1"),
        content_type=regular.get(b"content-type", b"").decode("latin-1"),
        timeout=regular.get(b"grpc-timeout", b"").decode("latin-1"),
        content_length=_content_length(stream_id, regular.get(b"content-length")),
        is_oversized=size > limits.max_header_list,
    )


def check_trailers(stream_id: int, fields: Fields) -> None:
    """Trailers carry no pseudo-fields. Raises: StreamFault if malformed (RFC 9113 section 8.1)."""
    for name, value in fields:
        if name[:1] == b":":
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a pseudo-field in trailers")
        _check_field(stream_id, name, value)


def _check_field(stream_id: int, name: bytes, value: bytes) -> None:
    """RFC 9113 sections 8.2.1 and 8.2.2."""
    stripped = name[1:] if name[:1] == b":" else name
    if not stripped or not _NAME_BYTES.issuperset(stripped):
        raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a field name that HTTP/2 forbids")
    if b"\0" in value or b"\r" in value or b"\n" in value or value != value.strip(b" \t"):
        raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a field value that HTTP/2 forbids")
    if name in _CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
        raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a connection-specific field")


def _content_length(stream_id: int, value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a content-length that is no number")
    return int(value)


def _string(value: bytes) -> bytes:
    """A string literal without Huffman coding (RFC 7541 section 5.2)."""
    size = len(value)
    if size < 0x7F:
        return bytes((size,)) + value
    size -= 0x7F
    length = bytearray((0x7F,))
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes(length) + value


def _literal(name: bytes, value: bytes) -> bytes:
    """A field that enters no table (RFC 7541 section 6.2.2)."""
    return b"\0" + _string(name) + _string(value)


_STATUS_200 = b"\x88"  # RFC 7541 appendix A, entry 8
RESPONSE_HEAD = _STATUS_200 + _literal(b"content-type", b"application/grpc")
"""The block before the first message of a response."""


def trailers(status: str, message: str, *, alone: bool) -> bytes:
    """The block that ends a call with a gRPC status name (gRPC over HTTP/2, "Responses").

    `alone`: nothing went before it, so it is the response's head as well ("Trailers-Only").
    """
    block = RESPONSE_HEAD if alone else b""
    block += _literal(b"grpc-status", str(STATUS_NUMBERS[status]).encode())
    if message:
        block += _literal(b"grpc-message", percent_encoded(message))
    return block


TRAILERS_OK = trailers("OK", "", alone=False)


def http_refusal(status: int, message: str) -> bytes:
    """The block that answers what is no gRPC request: an HTTP status, and UNKNOWN for whoever looks for a gRPC one."""
    return (
        _literal(b":status", str(status).encode())
        + _literal(b"grpc-status", str(STATUS_NUMBERS["UNKNOWN"]).encode())
        + _literal(b"grpc-message", percent_encoded(message))
    )
