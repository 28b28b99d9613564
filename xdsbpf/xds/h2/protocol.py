"""The asyncio shell of one connection: bytes between a socket and the state machine, calls as tasks.

In: bytes, and ticks of the server's clock. Out: bytes, handlers started and ended. One for each accepted socket, made
by `server`; every decision of HTTP/2 is `connection`'s.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol, cast

import structlog

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.h2.arrivals import LARGE_BYTES, Arrivals
from xdsbpf.xds.h2.call import H2Call
from xdsbpf.xds.h2.connection import Connection
from xdsbpf.xds.h2.events import Ended, Failed, Opened, Readable
from xdsbpf.xds.h2.headers import TRAILERS_OK, RequestHead, http_refusal, trailers
from xdsbpf.xds.h2.limits import Limits, Timing
from xdsbpf.xds.h2.messages import timeout_s
from xdsbpf.xds.h2.sender import FrameCache
from xdsbpf.xds.h2.stream import Stream
from xdsbpf.xds.h2.tls import peer_of
from xdsbpf.xds.transport import Handler

WRITE_HIGH_WATER = 128 << 10
_PUMP_BYTES = 64 << 10
_MAX_UNREAD = 1 << 20
"""Bytes that wait in a socket which takes no more; beyond it the peer only makes us answer and never reads."""
_PING = b"xdsbpf\0\0"

log = structlog.get_logger(__name__)


class Owner(Protocol):
    """What a connection needs of its server."""

    limits: Limits
    timing: Timing
    frame_cache: FrameCache
    arrivals: Arrivals

    def handler(self, method: str) -> Handler | None:
        """The handler of a method."""

    def accept(self, connection: H2Protocol) -> bool:
        """Take it into the account; False if there are too many."""

    def lost(self, connection: H2Protocol) -> None:
        """It is over."""

    def failed(self, peer: str, reason: str) -> None:
        """Tell the log that a peer broke the protocol, or kept quiet for too long."""

    def call_ended(self) -> None:
        """One call less."""


class H2Protocol(asyncio.Protocol):
    """One connection and its calls."""

    __slots__ = (
        "_aged_at",
        "_arriving_at",
        "_busy_at",
        "_closing_at",
        "_connection",
        "_heard_at",
        "_is_reading",
        "_loop",
        "_opened_at",
        "_owner",
        "_paused_at",
        "_ping_at",
        "_resting",
        "_transport",
        "calls",
        "peer",
    )

    def __init__(self, owner: Owner) -> None:
        self.calls: dict[int, H2Call] = {}
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._connection = Connection(owner.limits, owner.frame_cache, self._loop.time())

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class
        now = self._loop.time()
        self._opened_at = self._heard_at = self._busy_at = now
        self._ping_at = self._paused_at = self._closing_at = self._aged_at = 0.0
        self._arriving_at = 0.0
        self._resting: asyncio.TimerHandle | None = None
        self._is_reading = True
        self.peer, refusal = peer_of(transport)
        if refusal or not self._owner.accept(self):
            self._owner.failed(self.peer.address, refusal or "too many connections")
            transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        for event in self._connection.receive(data, self._heard_at):
            if isinstance(event, Readable):  # as nearly always
                self._on_readable(event.stream)
            else:
                self._on_event(event)
        self._flush()
        if self._arriving_at or self._connection.buffered > LARGE_BYTES:
            self._take_turns()

    def pause_writing(self) -> None:
        self._connection.is_writable = False
        self._paused_at = self._loop.time()

    def resume_writing(self) -> None:
        self._connection.is_writable = True
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._connection.is_failed = True
        self._cancel_calls(ProtocolError("CANCELLED", "the connection is over"))
        if self._resting is not None:
            self._resting.cancel()
        if self._arriving_at:
            self._owner.arrivals.leave(self)
        self._owner.lost(self)

    # Arriving, for large requests

    def stop_reading(self) -> None:
        """See `Arriving.stop_reading`."""
        self._is_reading = False
        self._read_or_wait()

    def go_on_reading(self) -> None:
        """See `Arriving.go_on_reading`."""
        self._is_reading = True
        self._heard_at = self._arriving_at = self._loop.time()
        self._read_or_wait()

    def rest(self, seconds: float) -> None:
        """See `Carrier.rest`; the last one counts. Meanwhile nobody waits for what is half there."""
        if self._resting is not None:
            self._resting.cancel()
        self._resting = self._loop.call_later(seconds, self._rested)
        self._read_or_wait()

    def _rested(self) -> None:
        self._resting = None
        self._heard_at = self._loop.time()
        self._take_turns()
        self._read_or_wait()

    def _read_or_wait(self) -> None:
        reads = self._is_reading and self._resting is None
        if reads != self._transport.is_reading() and not self._transport.is_closing():
            (self._transport.resume_reading if reads else self._transport.pause_reading)()

    def _take_turns(self) -> None:
        """A large request is coming, or has come."""
        is_arriving = self._resting is None and self._connection.is_arriving(LARGE_BYTES)
        if is_arriving and not self._arriving_at:
            self._arriving_at = self._heard_at
            self._owner.arrivals.enter(self)
        elif self._arriving_at and not is_arriving:
            self._owner.arrivals.leave(self)
            if not self._is_reading:
                self.go_on_reading()
            self._arriving_at = 0.0

    # Carrier, for the calls

    def read(self, stream: Stream) -> bytes | None:
        """See `Carrier.read`."""
        message = self._connection.read(stream)
        if self._connection.sender.out:
            self._flush()
        return message

    def send_now(self, stream: Stream, message: bytes) -> bool:
        """See `Carrier.send_now`."""
        if not self._connection.send_now(stream, message):
            return False
        self._flush()
        return True

    def send(self, stream: Stream, message: bytes) -> bool:
        """See `Carrier.send`."""
        is_sent = self._connection.send(stream, message)
        self._flush()
        return is_sent or not stream.outbox

    # for the server

    def tick(self, now: float) -> None:
        """Look at the clock, about once a second: who does not speak, does not read or does nothing is let go."""
        timing = self._owner.timing
        if self._arriving_at:
            self._take_turns()  # the call that it is for may be over
        if self._closing_at:
            if now - self._closing_at > timing.close_s:
                self._transport.abort()
        elif not self._connection.is_established:
            if now - self._opened_at > timing.handshake_s:
                self._abort("no HTTP/2 SETTINGS in time")
        elif not self._connection.is_writable and now - self._paused_at > timing.stall_s:
            self._abort("the peer reads nothing")
        elif not self._is_reading or self._resting is not None:
            pass  # it is we who keep it waiting
        elif self._arriving_at and self._owner.arrivals.waiting and now - self._arriving_at > timing.arrival_s:
            self._abort("a request takes too long to arrive, and others wait for it")
        elif self._ping_at and self._heard_at < self._ping_at:
            if now - self._ping_at > timing.keepalive_timeout_s:
                self._abort("the peer does not answer PING")
        elif now - max(self._heard_at, self._ping_at) > timing.keepalive_s:
            self._ping_at = now
            self._connection.ping(_PING)
            self._flush()
        if timing.goaway_s and now - self._opened_at > timing.goaway_s:
            self._age(now)
        if self.calls:
            self._busy_at = now
        elif now - self._busy_at > timing.idle_s and not self._closing_at:
            self.finish()

    def _age(self, now: float) -> None:
        """It is old: no new streams, please, and the end once the open ones have ended and the peer has heard it."""
        if not self._aged_at:
            self._aged_at = now
            self.announce_goaway()
        elif not self.calls and now > self._aged_at:
            self.finish()

    def announce_goaway(self) -> None:
        """First step of a graceful end."""
        if not self._closing_at:
            self._connection.announce_goaway()
            self._flush()

    def end_calls(self, ending: ProtocolError) -> None:
        """End every call with that status, whatever its handler does."""
        self._cancel_calls(ending)

    def finish(self) -> None:
        """Last step of a graceful end: what is written still leaves, then the socket closes."""
        if not self._closing_at:
            self._connection.final_goaway()
            self._close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # events

    def _on_readable(self, stream: Stream) -> None:
        if call := self.calls.get(stream.id):
            call.readable()

    def _on_event(self, event: Opened | Ended | Failed) -> None:
        match event:
            case Opened(stream, head):
                self._on_opened(stream, head)
            case Ended(stream):
                if call := self.calls.get(stream.id):
                    call.message_sent()
                    call.cancel(ProtocolError("CANCELLED", "the stream was reset"))
            case Failed(code, text):
                self._owner.failed(self.peer.address, f"{code.name}: {text}")
                self._cancel_calls(ProtocolError("CANCELLED", "the connection is over"))
                self._close()

    def _on_opened(self, stream: Stream, head: RequestHead) -> None:
        refusal, timeout = b"", None
        handler = self._owner.handler(head.path)
        if head.is_oversized:
            refusal = trailers("RESOURCE_EXHAUSTED", "the request's metadata are too large", alone=True)
        elif head.method != "POST":
            refusal = http_refusal(405, "gRPC requests are POST")
        elif not head.content_type.startswith("application/grpc"):
            refusal = http_refusal(415, "the content-type is not application/grpc")
        elif handler is None:
            refusal = trailers("UNIMPLEMENTED", f"unknown method {head.path}", alone=True)
        else:
            try:
                timeout = timeout_s(head.timeout)
            except ProtocolError as error:
                refusal = trailers(error.status, str(error), alone=True)
        if refusal or handler is None:
            self._connection.end(stream, refusal)
            self._connection.release()
            return
        call = self.calls[stream.id] = H2Call(self, stream, head.path, self.peer)
        call.start(handler).add_done_callback(lambda task: self._on_done(call, task))
        if timeout is not None:
            late = ProtocolError("DEADLINE_EXCEEDED", "the client's deadline has passed")
            call.deadline = self._loop.call_later(timeout, call.cancel, late)

    def _on_done(self, call: H2Call, task: asyncio.Task[None]) -> None:
        """A handler has ended: its status becomes the trailers."""
        if call.deadline is not None:
            call.deadline.cancel()
        stream = call.stream
        ending: BaseException | None = call.ending
        if not task.cancelled():
            ending = task.exception()
        if ending is None and not task.cancelled() and stream.is_head_sent:
            block = TRAILERS_OK
        else:
            block = trailers(*self._status(call, task, ending), alone=not stream.is_head_sent)
        self._connection.end(stream, block)
        self._connection.release()
        del self.calls[stream.id]
        self._flush()
        call.message_sent()  # a writer that outlives its handler
        self._owner.call_ended()

    def _status(self, call: H2Call, task: asyncio.Task[None], ending: BaseException | None) -> tuple[str, str]:
        if isinstance(ending, ProtocolError):
            return ending.status, str(ending)
        if ending is None:
            return ("CANCELLED", "the handler was cancelled") if task.cancelled() else ("OK", "")
        log.error("xds.call_failed", method=call.method, peer=self.peer.address, exc_info=ending)
        return "INTERNAL", "internal error"

    def _cancel_calls(self, ending: ProtocolError) -> None:
        for call in self.calls.values():
            call.message_sent()
            call.cancel(ending)

    # writing

    def _flush(self) -> None:
        """Hand over what may go; queued messages only as long as the socket takes them."""
        connection, transport = self._connection, self._transport
        sender = connection.sender
        if not (sender.out or sender.waiting or sender.drained):
            return
        while True:
            out = sender.out
            is_over = self._closing_at or transport.is_closing()
            if out and not is_over:
                sender.out = []
                if len(out) == 1:
                    transport.write(out[0])
                else:
                    transport.writelines(out)
            if not sender.has_work or not connection.is_writable or is_over:
                break
            sender.pump(_PUMP_BYTES)
        if sender.drained:
            drained, sender.drained = sender.drained, []
            for stream in drained:
                if call := self.calls.get(stream.id):
                    call.message_sent()
        if not connection.is_writable and transport.get_write_buffer_size() > _MAX_UNREAD:
            self._abort("the peer does not read the answers to its frames")

    def _close(self) -> None:
        self._flush()
        self._closing_at = self._loop.time()
        self._connection.is_failed = True
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        try:
            self._transport.write_eof()  # closing with unread input would reset the socket, and GOAWAY be lost
        except OSError:  # the peer has reset it already, and connection_lost is on its way
            self._transport.abort()

    def _abort(self, reason: str) -> None:
        if not self._closing_at:
            self._closing_at = self._loop.time()
            self._owner.failed(self.peer.address, reason)
            self._transport.abort()
