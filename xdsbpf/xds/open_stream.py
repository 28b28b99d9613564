"""One open stream: its call, its session, and what passes between its reader, its writer and the loop over all streams.

Made by `xds.streams`, driven by `xds.exchange`, which owns the tasks; holds no logic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec
import structlog

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.gate import EnvoyLedger
from xdsbpf.xds.request import decode_delta, decode_sotw
from xdsbpf.xds.response import Response
from xdsbpf.xds.services import Method, Variant
from xdsbpf.xds.session import Session
from xdsbpf.xds.siblings import ClientKey
from xdsbpf.xds.telemetry import Telemetry
from xdsbpf.xds.transport import Call

log = structlog.get_logger(__name__)


class OpenStream:
    """A session, the event that wakes its writer, why it must end, and what must be given back then."""

    __slots__ = (
        "_alarm",
        "_ends",
        "alarm_at",
        "call",
        "client",
        "decode",
        "end",
        "gate_revision",
        "is_half_closed",
        "is_woken",
        "ledger",
        "metadata",
        "reader",
        "session",
        "type_url",
        "unsent",
        "wake",
        "writing_since",
    )

    def __init__(
        self,
        call: Call,
        method: Method,
        session: Session,
        ledger: EnvoyLedger | None,
        metadata: Mapping[str, object],
        client: ClientKey | None = None,
    ) -> None:
        self.type_url = method.type_url
        self.call = call
        self.decode = decode_delta if method.variant is Variant.DELTA else decode_sotw
        self.session = session
        self.ledger = ledger
        self.metadata = metadata
        self.client = client
        """Whose siblings it is among; None for one that has none."""
        self.wake = asyncio.Event()
        """For the writer: there is something that the transport does not take at once, or the stream is to end."""
        self.reader: asyncio.Task[None] | None = None
        """The task of the call, while it may be interrupted."""
        self.unsent: tuple[Response, bytes] | None = None
        """The writer's, from the moment that the transport did not take it at once until it is through."""
        self.writing_since: float | None = None
        self._ends: asyncio.TimerHandle | None = None
        self.is_woken = False
        self._alarm: asyncio.TimerHandle | None = None
        self.alarm_at: float | None = None
        """When the session is to be asked again though nothing has happened."""
        self.gate_revision = 0
        """Of the gate of its node, when its agents were last told."""
        self.end: ProtocolError | None = None
        self.is_half_closed = False

    def finish(self, end: ProtocolError) -> None:
        """Let the writer end the stream with that status."""
        self.end = self.end or end
        self.wake.set()
        self.call_at(None)

    def note_oversized(self, telemetry: Telemetry) -> None:
        """What no message to this client can hold: in the metrics, and in the log."""
        found, self.session.oversized = self.session.oversized, []
        for each in found:
            telemetry.count("oversized", each.type_url)
            log.error("xds.response_withheld", node=self.session.node_id, **msgspec.structs.asdict(each))

    def call_at(self, at: float | None, now: float = 0.0, wake: Callable[[OpenStream], None] = lambda _: None) -> None:
        """Call `wake` at that time, and no more at the one asked for before; None: not at all. By one clock."""
        if at == self.alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self.alarm_at = at
        loop = asyncio.get_running_loop()
        self._alarm = None if at is None else loop.call_later(max(0.0, at - now), self._ring, wake)

    def _ring(self, wake: Callable[[OpenStream], None]) -> None:
        self._alarm = self.alarm_at = None  # the clocks may differ by a hair: the session may ask for the same time
        wake(self)

    def end_after(self, seconds: float) -> None:
        """Let it end then with UNAVAILABLE, so that its client connects again; a later call replaces an earlier one."""
        self.forget_age()
        end = ProtocolError("UNAVAILABLE", "the stream has reached its end: connect again")
        self._ends = asyncio.get_running_loop().call_later(seconds, self.finish, end)

    def forget_age(self) -> None:
        """It is over."""
        if self._ends is not None:
            self._ends.cancel()
