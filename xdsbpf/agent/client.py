"""Delta ADS client of the node agent.

One stream to the control plane, wildcard subscriptions to the five datapath types; responses go into
`Received` and are ACKed or NACKed only when the main loop says that they are in force. Reconnects
for ever. Writes no maps.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Container
from typing import Any, cast

import grpc
import msgspec
import structlog

from xdsbpf import __version__
from xdsbpf.agent.credentials import Credentials
from xdsbpf.agent.ops import Cause
from xdsbpf.agent.received import Received
from xdsbpf.agent.reconcile import Outcome, failures_of
from xdsbpf.control_plane_cluster import host_and_port
from xdsbpf.errors import ConfigError, ProtocolError
from xdsbpf.model.names import DATAPATH_TYPES
from xdsbpf.xds import protocol

_LOG = structlog.get_logger()
_FIRST_BACKOFF, _LAST_BACKOFF = 0.1, 5.0
_MAX_MESSAGE = 64 << 20


class Pending(msgspec.Struct, frozen=True):
    """A response that was taken over and not answered yet."""

    type_url: str
    nonce: str
    names: tuple[str, ...]
    rejected: dict[str, str]


def check_address(address: str, *, is_secure: bool = False) -> str:
    """The gRPC target of `unix:/path` or a loopback `host:port`; of any host:port with mutual TLS, and nothing else.

    Raises: ConfigError. Plaintext stays on the machine: whoever answers it decides what this node's policies are.
    """
    if is_secure:
        return _secure_target(address)
    if address.startswith("unix:/"):
        return address
    host, separator, port = address.rpartition(":")
    if separator and port.isdigit() and host in ("127.0.0.1", "[::1]", "localhost"):
        return address
    raise ConfigError(
        f"xDS address {address!r} is neither unix:/path nor a loopback host:port",
        hint="plaintext xDS stays on the machine; others are dialled with --tls-cert, --tls-key and --tls-ca",
    )


def _secure_target(address: str) -> str:
    if address.startswith("unix:"):
        raise ConfigError(f"{address!r} takes no mutual TLS", hint="leave out --tls-cert, --tls-key and --tls-ca")
    host, port = host_and_port(address)
    return f"[{host}]:{port}" if ":" in host else f"dns:///{host}:{port}"


class DatapathClient:
    """Keeps one stream open; `changed` is set whenever there is something new to apply."""

    def __init__(
        self,
        address: str,
        node_id: str,
        received: Received,
        changed: asyncio.Event,
        credentials: Credentials | None = None,
    ) -> None:
        """`address`: see `check_address` (ConfigError); plaintext without `credentials`."""
        self._target = check_address(address, is_secure=credentials is not None)
        self._credentials = credentials
        self._node_id = node_id
        self._received = received
        self._changed = changed
        self._pending: list[Pending] = []
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._answered: set[str] = set()
        self._failed: Container[Cause] = ()
        self._news_at = 0.0
        self.state = "connecting"

    @property
    def answered_at(self) -> float | None:
        """When the last response came that may be a page of the first state, if all types are answered on this stream.

        Monotonic seconds. A page names what was not known; changes of what is known may come for ever.
        """
        return self._news_at if self._answered == set(DATAPATH_TYPES) else None

    async def run(self) -> None:
        """Connect, and again when the stream ends; returns only when cancelled."""
        backoff = _FIRST_BACKOFF
        while True:
            started = time.monotonic()
            self._answered.clear()
            self._pending.clear()
            try:
                await self._session()
                reason = "the server ended the stream"
            except grpc.aio.AioRpcError as err:
                reason = f"{err.code().name}: {err.details()}"
            except ProtocolError as err:
                reason = str(err)
            self.state = f"disconnected: {reason}"
            _LOG.warning("agent.stream_closed", error=reason, target=self._target)
            if time.monotonic() - started > _LAST_BACKOFF:
                backoff = _FIRST_BACKOFF
            # Jitter: agents of a whole cluster must not come back in one instant.
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(backoff * 2, _LAST_BACKOFF)

    async def _session(self) -> None:
        self._outbox = asyncio.Queue()
        # The others follow the first response. A refusal comes before it, and gRPC would put the failure of a write
        # that is under way in the place of the server's words.
        later: tuple[str, ...] = DATAPATH_TYPES[1:]
        self._subscribe(DATAPATH_TYPES[:1], self._node_id)
        async with self._channel() as channel:
            # Bytes in, bytes out; the stubs want serialisers and a request iterator, grpc.aio does not.
            call = cast(Any, channel).stream_stream(protocol.DELTA_ADS)()
            writer = asyncio.create_task(self._write(call))
            try:
                while isinstance(message := await call.read(), bytes):
                    self._subscribe(later)
                    later = ()
                    self._take(protocol.decode_response(message))
                status = await call.code()
                if status is not grpc.StatusCode.OK:
                    raise ProtocolError(status.name, str(await call.details()))
            finally:
                call.cancel()
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)

    def _subscribe(self, type_urls: tuple[str, ...], node_id: str = "") -> None:
        for type_url in type_urls:
            self._outbox.put_nowait(
                protocol.encode_request(
                    type_url,
                    node_id=node_id,
                    user_agent=f"xdsbpf-agent/{__version__}",
                    subscribe=(protocol.WILDCARD,),
                    initial_versions=self._received.claims(type_url, self._failed),
                )
            )

    def _channel(self) -> grpc.aio.Channel:
        """A channel for one stream, so that every dial has the certificate that is in force by then."""
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._target, options=options)
        # What Envoy checks as well, whatever the address resolves to.
        options.append(("grpc.ssl_target_name_override", self._credentials.server_name))
        return grpc.aio.secure_channel(self._target, self._credentials.channel(), options=options)

    async def _write(self, call: Any) -> None:
        while True:
            try:
                await call.write(await self._outbox.get())
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                # The reader sees the same end of the stream and says why.
                return

    def _take(self, response: protocol.ReceivedResponse) -> None:
        if response.type_url not in self._answered or self._received.is_news(response):
            self._news_at = time.monotonic()
        rejected = self._received.accept(response)
        names = tuple(resource.name for resource in response.resources)
        self._pending.append(Pending(response.type_url, response.nonce, names, rejected))
        self._answered.add(response.type_url)
        self.state = "connected"
        self._changed.set()

    def answer(self, outcome: Outcome) -> None:
        """ACK or NACK everything that was pending when `outcome` was made.

        Call it right after `apply`, without awaiting in between: a response that came later is not in it.
        """
        self._failed = outcome.failed.keys()
        for pending in self._pending:
            errors = pending.rejected | failures_of(outcome, pending.type_url, pending.names)
            text = "; ".join(f"{name}: {reason}" for name, reason in sorted(errors.items()))
            if errors:
                _LOG.warning("agent.response_nacked", type_url=pending.type_url, nonce=pending.nonce, error=text)
            self._outbox.put_nowait(protocol.encode_request(pending.type_url, nonce=pending.nonce, error=text))
        self._pending.clear()
