"""One open stream: its call, its session, and what passes between its reader, its writer and the loop over all streams.

Made and driven by `xds.streams`, which owns the tasks; holds no logic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.gate import EnvoyLedger
from xdsbpf.xds.request import decode_delta, decode_sotw
from xdsbpf.xds.response import Response
from xdsbpf.xds.services import Method, Variant
from xdsbpf.xds.session import Session
from xdsbpf.xds.transport import Call


class OpenStream:
    """A session, the event that wakes its writer, why it must end, and what must be given back then."""

    def __init__(
        self,
        call: Call,
        method: Method,
        session: Session,
        ledger: EnvoyLedger | None,
        metadata: Mapping[str, object],
    ) -> None:
        self.type_url = method.type_url
        self.call = call
        self.decode = decode_delta if method.variant is Variant.DELTA else decode_sotw
        self.session = session
        self.ledger = ledger
        self.metadata = metadata
        self.wake = asyncio.Event()
        """For the writer: there is something that the transport does not take at once, or the stream is to end."""
        self.reader: asyncio.Task[None] | None = None
        """The task of the call, while it may be interrupted."""
        self.unsent: tuple[Response, bytes] | None = None
        """The writer's, from the moment that the transport did not take it at once until it is through."""
        self.writing_since: float | None = None
        self.is_woken = False
        self.end: ProtocolError | None = None
        self.is_half_closed = False

    def finish(self, end: ProtocolError) -> None:
        """Let the writer end the stream with that status."""
        self.end = self.end or end
        self.wake.set()
