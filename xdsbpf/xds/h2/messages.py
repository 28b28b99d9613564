"""gRPC inside a stream: length-prefixed messages, statuses, timeouts (gRPC over HTTP/2, PROTOCOL-HTTP2).

DATA payloads in, whole messages out. Called by `stream` and `headers`. Pure; no HTTP/2 frame is seen here.
"""

from __future__ import annotations

from xdsbpf.errors import ProtocolError
from xdsbpf.model.grpc_status import GRPC_STATUSES

PREFIX_BYTES = 5
MAX_MESSAGE_TEXT = 2_048
"""Bytes of a grpc-message before encoding: it must fit into one HEADERS frame."""

STATUS_NUMBERS = {name: number for number, name in enumerate(GRPC_STATUSES)}

_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def timeout_s(value: str) -> float | None:
    """Seconds of a grpc-timeout, None for "". Raises: ProtocolError if it is not 1 to 8 digits and a unit."""
    if not value:
        return None
    digits, unit = value[:-1], _UNITS_S.get(value[-1])
    if unit is None or not digits.isascii() or not digits.isdigit() or len(digits) > 8:
        raise ProtocolError("INTERNAL", "grpc-timeout is malformed")
    return int(digits) * unit


def percent_encoded(text: str) -> bytes:
    """A grpc-message: UTF-8 with everything but printable ASCII percent-encoded, and "%" as well."""
    raw = text.encode("utf-8", "replace")[:MAX_MESSAGE_TEXT].decode("utf-8", "ignore").encode()
    return b"".join(_ENCODED[byte] for byte in raw)


_ENCODED = [bytes((byte,)) if 0x20 <= byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in range(256)]


class Inbox:
    """Bytes of a stream that nobody has read yet, cut into messages when they are read.

    Holds the bytes as they came, so that a million empty messages cost no more than their five million bytes.
    """

    __slots__ = ("_data", "_fault", "_limit", "_whole", "is_ready", "size")

    def __init__(self, limit: int) -> None:
        self._data: bytes | bytearray = b""
        self._whole = 0  # size of the first message with its prefix, 0 while that is unknown
        self._limit = limit
        self._fault: ProtocolError | None = None
        self.is_ready = False
        """`pop` would give a message, or raise."""
        self.size = 0
        """Bytes in it."""

    def feed(self, payload: bytes) -> None:
        """Take the content of a DATA frame."""
        if self._fault is not None or not payload:
            return
        if not self._data:
            self._data = payload
        else:
            if isinstance(self._data, bytes):
                self._data = bytearray(self._data)
            self._data += payload
        self.size = len(self._data)
        if self._whole:
            self.is_ready = self._whole <= self.size
        else:
            self._measure()

    def fail(self, status: str, text: str) -> None:
        """Drop everything; the reader gets that error."""
        self._data, self._whole, self.size = b"", 0, 0
        self._fault, self.is_ready = ProtocolError(status, text), True

    def pop(self) -> bytes | None:
        """The first message, None if it is not complete. Raises: ProtocolError if it can never be."""
        if self._fault is not None:
            raise self._fault
        if not self.is_ready:
            return None
        whole, data = self._whole, self._data
        if isinstance(data, bytes):
            if whole == len(data):  # as nearly always
                self._data, self._whole, self.size, self.is_ready = b"", 0, 0, False
                return data[PREFIX_BYTES:]
            data = self._data = bytearray(data)
        with memoryview(data) as view:
            message = bytes(view[PREFIX_BYTES:whole])
        del data[:whole]  # cheap: bytearray moves its start
        self.size = len(data)
        if not data:
            self._data = b""
        self._measure()
        return message

    def _measure(self) -> None:
        """Look at the next prefix, if it is there."""
        self._whole, self.is_ready = 0, False
        data = self._data
        if len(data) < PREFIX_BYTES:
            return
        size = int.from_bytes(data[1:PREFIX_BYTES], "big")
        if data[0]:
            self.fail("UNIMPLEMENTED", "compressed messages are not supported; send grpc-encoding: identity")
        elif size > self._limit:
            self.fail("RESOURCE_EXHAUSTED", f"a message of {size} bytes is larger than {self._limit}")
        else:
            self._whole = size + PREFIX_BYTES
            self.is_ready = self._whole <= len(data)
