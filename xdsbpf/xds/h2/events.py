"""What a connection tells its owner: the results of `Connection.receive`, in the order of the bytes."""

from __future__ import annotations

import msgspec

from xdsbpf.xds.h2.faults import ErrorCode
from xdsbpf.xds.h2.headers import RequestHead
from xdsbpf.xds.h2.stream import Stream


class Opened(msgspec.Struct, frozen=True):
    """A request has begun."""

    stream: Stream
    head: RequestHead


class Readable(msgspec.Struct, frozen=True):
    """A reader of the stream need not wait: a message, its failure, or the end of the request."""

    stream: Stream


class Ended(msgspec.Struct, frozen=True):
    """The stream is over by a reset, the peer's or ours in answer to a violation."""

    stream: Stream
    code: int


class Failed(msgspec.Struct, frozen=True):
    """The connection is over: write what is in `out` (the last of it GOAWAY) and close."""

    code: ErrorCode
    text: str


Event = Opened | Readable | Ended | Failed
