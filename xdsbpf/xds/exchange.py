"""What passes on open streams: requests read, responses written, one write at a time, and clients that take nothing.

In: an open stream, which `run` keeps until its end; streams that have work, by `turns`. Out: raw responses, built only
when the one before is through, so a stalled client costs names, not bytes. Owned by `xds.streams`, which opens and
ends the streams; holds no protocol logic.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import structlog

from xdsbpf.errors import ProtocolError
from xdsbpf.xds import protocol
from xdsbpf.xds.allocator import FreedMemory
from xdsbpf.xds.gate import NEVER_REQUIRED, Gate
from xdsbpf.xds.log_budget import LogBudget
from xdsbpf.xds.open_stream import OpenStream
from xdsbpf.xds.refusals import RefusalPace
from xdsbpf.xds.request import Request
from xdsbpf.xds.telemetry import Telemetry
from xdsbpf.xds.turns import Turns

log = structlog.get_logger(__name__)


class Exchange:
    """Reads and writes of all open streams. `gate_moved` is told the node whose Envoy has just answered something."""

    def __init__(
        self,
        clock: Callable[[], float],
        gate: Gate,
        telemetry: Telemetry,
        gate_moved: Callable[[str], None],
        write_s: float,
    ) -> None:
        """`write_s`: see `Patience`."""
        self.turns = Turns(self.send)
        self.freed_memory = FreedMemory()
        self._clock = clock
        self._gate = gate
        self._telemetry = telemetry
        self._gate_moved = gate_moved
        self._write_s = write_s
        self._refusals = LogBudget()
        self._refusal_pace = RefusalPace()
        self._running: set[OpenStream] = set()
        self._watchdog: asyncio.TimerHandle | None = None

    async def run(self, stream: OpenStream) -> None:
        """Read here and write in a task; whichever ends first ends the stream.

        A half-close ends it with OK, once the client has what its requests are owed: they may have come in one
        segment with it. A message in flight is never cancelled while the call lives: the status could not follow it.
        """
        reader = stream.reader = asyncio.current_task()
        assert reader is not None
        self._running.add(stream)
        if self._watchdog is None:
            self._watch_writes()

        def interrupt(done: asyncio.Task[None]) -> None:
            if not done.cancelled():
                done.exception()  # looked at, also when nobody waits for the writer any more
            if stream.reader is not None:
                stream.reader.cancel()

        writer = asyncio.create_task(self._write(stream))
        writer.add_done_callback(interrupt)
        try:
            await stream.call.read_all(functools.partial(self._take, stream))
            self.send(stream)
            stream.is_half_closed = True
            stream.wake.set()
            await asyncio.Event().wait()  # for the writer's interrupt
        except ProtocolError as error:
            stream.end = stream.end or error
            raise
        except asyncio.CancelledError:
            if reader.uncancel():
                writer.cancel()
                raise
            if stream.end is not None:
                raise stream.end from None
            if not writer.done():
                writer.cancel()
                raise
            writer.result()
        finally:
            self._running.discard(stream)
            stream.reader = None
            stream.wake.set()

    def stop_watching(self) -> None:
        """No stream is reset any more for taking no data."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _take(self, stream: OpenStream, data: bytes) -> float:
        """A request behind the first one; what its session does not keep is gone afterwards. Raises: ProtocolError.

        Returns how long the stream's next one is to wait.
        """
        session = stream.session
        request = stream.decode(data)
        session.on_request(request)
        if session.has_work:
            self.turns.add(stream)
        type_url = request.type_url or stream.type_url
        answer = "" if not request.nonce else "acked" if request.error is None else "nacked"
        self._telemetry.received(type_url, len(data), answer)
        self.freed_memory.received(len(data))
        if stream.ledger is not None and type_url not in NEVER_REQUIRED:
            revision = self._gate.revision(session.view.node)
            if revision != stream.gate_revision:
                stream.gate_revision = revision
                self._gate_moved(session.view.node)
        if request.error is None:
            return 0.0
        self._log_refusal(session.node_id, request, request.error)
        return self._refusal_pace.taken(len(data), self._clock())

    def _log_refusal(self, node_id: str, request: Request, error: str) -> None:
        """A NACK; the status has them all, the log as many as it bears."""
        unlogged = self._refusals.take(self._clock())
        if unlogged is not None:
            log.warning(
                "xds.response_refused",
                node=node_id,
                type_url=request.type_url,
                nonce=request.nonce,
                error=protocol.readable_error(error),
                unlogged=unlogged,
            )

    def send(self, stream: OpenStream) -> None:
        """Send what may go now; what the transport does not take at once is the writer's, and the rest waits for it."""
        session = stream.session
        while stream.unsent is None and stream.end is None:
            response = session.next_response()
            if response is None:
                if session.oversized:
                    stream.note_oversized(self._telemetry)
                if (at := session.wake_at) != stream.alarm_at:
                    stream.call_at(at, self._clock(), self.turns.add)
                return
            message = response.message or session.encode(response)
            if stream.call.write_now(message):
                self._telemetry.written(response.type_url, len(message))
            else:
                stream.unsent = response, message
                stream.wake.set()

    async def _write(self, stream: OpenStream) -> None:
        while True:
            await stream.wake.wait()
            stream.wake.clear()
            while stream.unsent is not None and stream.end is None:
                response, message = stream.unsent
                stream.writing_since = self._clock()
                await stream.call.write(message)
                stream.unsent = stream.writing_since = None
                self._telemetry.written(response.type_url, len(message))
                del response, message  # a stream that waits keeps no bytes
                self.send(stream)
            if stream.end is not None or stream.is_half_closed:
                return

    def _look_for_stalled(self) -> None:
        """End streams whose client takes no data. One look at all of them costs less than a timer per write."""
        limit = self._clock() - self._write_s
        for stream in self._running:
            if stream.writing_since is not None and stream.writing_since <= limit and stream.reader is not None:
                text = f"the client took no data for {self._write_s:g} s"
                stream.end = ProtocolError("DEADLINE_EXCEEDED", text)
                stream.reader.cancel()
        self._watch_writes()

    def _watch_writes(self) -> None:
        loop = asyncio.get_running_loop()
        self._watchdog = loop.call_later(self._write_s / 8, self._look_for_stalled) if self._running else None
