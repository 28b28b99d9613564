"""HTTP/1.1 messages for the lab's stand-ins and client: a small sans-I/O reader and two writers.

Input: bytes as they arrive. Output: complete messages (`MessageReader.next`) or `BadMessage`. Knows
Content-Length, chunked bodies, keep-alive and bodies that end with the connection (RFC 9112). Reads both
requests and responses. Not a general server: bodies are held in memory and trailers are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

MAX_HEAD = 65536
MAX_BODY = 16 * 1024 * 1024

REASONS = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    404: "Not Found",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

Headers = tuple[tuple[str, str], ...]


class BadMessage(Exception):
    """The peer sent something that is not HTTP/1.1, or too much; `status` is what to answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Message(msgspec.Struct, frozen=True):
    """One message. `start`: (method, target, version) or (version, status, reason); names are lower case."""

    start: tuple[str, str, str]
    headers: Headers
    body: bytes
    keep_alive: bool

    @property
    def status(self) -> int:
        """Status of a response."""
        return int(self.start[1])

    def header(self, name: str) -> str | None:
        """First value of a header, by lower-case name."""
        return next((value for key, value in self.headers if key == name), None)


class MessageReader:
    """Cuts a byte stream into messages. After `BadMessage` the stream cannot be used any more."""

    def __init__(self, *, responses: bool = False) -> None:
        self._responses = responses
        self._buffer = bytearray()
        self._ended = False

    @property
    def pending(self) -> bool:
        """Whether a message has begun and is not complete."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes from the peer; b"" says that the peer will send no more."""
        self._buffer += data
        self._ended = self._ended or not data

    def next(self, *, bodiless: bool = False) -> Message | None:
        """The next complete message, or None. `bodiless`: the response answers a HEAD request.

        Raises: BadMessage.
        """
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise BadMessage("the header is too long", 431)
            return None
        start, headers = _parse_head(bytes(self._buffer[:end]))
        version, fields = (start[0] if self._responses else start[2]), dict(headers)
        keep = _keeps_alive(version, fields.get("connection", ""))
        if self._responses and (bodiless or start[1] in ("204", "304")):
            body: tuple[bytes, int] | None = (b"", end + 4)
        elif "transfer-encoding" in fields:
            if fields["transfer-encoding"].lower() != "chunked" or "content-length" in fields:
                # Security: two framings of one message is how requests are smuggled (RFC 9112 6.1).
                raise BadMessage("unclear message framing")
            body = _chunked(self._buffer, end + 4)
        elif "content-length" in fields:
            body = _counted(self._buffer, end + 4, fields["content-length"])
        elif self._responses:
            body = (bytes(self._buffer[end + 4 :]), len(self._buffer)) if self._ended else None
            keep = False
        else:
            body = (b"", end + 4)
        if body is None:
            return None
        del self._buffer[: body[1]]
        return Message(start, headers, body[0], keep)


def write_response(
    status: int,
    body: bytes,
    *,
    keep_alive: bool = True,
    content_type: str = "application/json",
    head: bool = False,
) -> bytes:
    """A complete response; `head` leaves the body out and keeps its length."""
    close = "" if keep_alive else "connection: close\r\n"
    text = (
        f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\n"
        f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n{close}\r\n"
    )
    return text.encode() if head else text.encode() + body


def write_request(method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> bytes:
    """A complete request; the caller gives Host, and Content-Length is added when there is a body."""
    fields = [*headers, ("content-length", str(len(body)))] if body else list(headers)
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body


def _parse_head(head: bytes) -> tuple[tuple[str, str, str], Headers]:
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) == 2 and parts[0].startswith("HTTP/"):
        parts.append("")
    version = next((part for part in parts if part.startswith("HTTP/1.")), None)
    if len(parts) != 3 or version is None:
        raise BadMessage(f"not an HTTP/1 start line: {first[:80]!r}")
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadMessage(f"not a header field: {line[:80]!r}")
        headers.append((name.lower(), value.strip()))
    lengths = {value for name, value in headers if name == "content-length"}
    if len(lengths) > 1:
        raise BadMessage("content-length is given twice")
    return (parts[0], parts[1], parts[2]), tuple(headers)


def _keeps_alive(version: str, connection: str) -> bool:
    tokens = {token.strip().lower() for token in connection.split(",")}
    return "keep-alive" in tokens if version == "HTTP/1.0" else "close" not in tokens


def _counted(buffer: bytearray, at: int, length: str) -> tuple[bytes, int] | None:
    if not (length.isascii() and length.isdigit()):
        raise BadMessage(f"content-length {length[:20]!r}")
    size = int(length)
    if size > MAX_BODY:
        raise BadMessage("the body is too long", 400)
    return (bytes(buffer[at : at + size]), at + size) if len(buffer) >= at + size else None


def _chunked(buffer: bytearray, at: int) -> tuple[bytes, int] | None:
    """Decode from `at`; None until the last chunk is here. Rescans on every call: bodies here are small."""
    body = bytearray()
    while True:
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            return None
        digits = bytes(buffer[at:line_end]).split(b";", 1)[0].strip()
        if not digits or any(digit not in b"0123456789abcdefABCDEF" for digit in digits):
            raise BadMessage(f"not a chunk size: {digits[:20]!r}")
        size = int(digits, 16)
        if len(body) + size > MAX_BODY:
            raise BadMessage("the body is too long", 400)
        if size == 0:
            last = buffer.find(b"\r\n\r\n", line_end)
            return (bytes(body), last + 4) if last >= 0 else None
        at = line_end + 2
        if len(buffer) < at + size + 2:
            return None
        body += buffer[at : at + size]
        at += size + 2
