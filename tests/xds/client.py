"""A client for the conformance tests: as literal as possible, it does nothing on the wire that a test did not ask for.

In: what a test says (subscribe, ack, nack, raw fields). Out: responses in order of arrival. It keeps the names, nonce
and version per type, so that one test reads the same over whole-state and delta, over one stream and many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest
from grpc import aio

from tests.xds.wire import Response, Variant, decode

DEADLINE_S = 5.0
"""How long a test waits for what must come."""

_CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own, as a proxy has
_TAKES_ALL = ("grpc.max_receive_message_length", -1)


class _TypeState:
    """What the client knows of one type."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.nonce = ""
        self.version = ""
        self.held: dict[str, str] = {}


class _Stream:
    """One gRPC call and the task that reads it into the client's inbox."""

    def __init__(self, client: Client, method: str) -> None:
        self.is_fresh = True
        self.call: Any = client.channel.stream_stream(method)()
        self.reader = asyncio.create_task(self._read(client) if client.reads else self.call.code())

    async def _read(self, client: Client) -> None:
        try:
            while (raw := await self.call.read()) is not aio.EOF:
                client.deliver(decode(raw, client.variant))
        except aio.AioRpcError:
            return  # the status is read from the call
        finally:
            client.arrived.set()


class Client:
    """One proxy: one connection, with one stream (ADS) or one for each type.

    `features` are the client features of its node; with `reads=False` it never takes a byte of a response. A client
    with `credentials` connects over mutual TLS; without a `node_id` it has no node. It refuses messages above 4 MiB,
    as gRPC's clients do, unless it `takes_all`, as Envoy does.
    """

    def __init__(
        self,
        address: str,
        variant: Variant,
        *,
        node_id: str,
        quiet_s: float,
        deadline_s: float = DEADLINE_S,
        features: tuple[str, ...] = (),
        reads: bool = True,
        user_agent: str = "conformance",
        credentials: grpc.ChannelCredentials | None = None,
        takes_all: bool = False,
    ) -> None:
        self.variant = variant
        self.node_id = node_id
        self.features = features
        self.user_agent = user_agent
        self.reads = reads
        self.channel = (
            aio.insecure_channel(address, options=[*_CHANNEL_OPTIONS, *([_TAKES_ALL] if takes_all else [])])
            if credentials is None
            else aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)
        )
        self.arrived = asyncio.Event()
        self.log: list[Response] = []
        """Every response in order of arrival."""
        self._quiet_s = quiet_s
        self._deadline_s = deadline_s
        self._unread: list[Response] = []
        self._types: dict[str, _TypeState] = {}
        self._streams: dict[str, _Stream] = {}
        self._broken: AssertionError | None = None

    def deliver(self, response: Response) -> None:
        """Called by the reader for each response."""
        seen = {earlier.nonce for earlier in self.log if earlier.type_url == response.type_url}
        if response.nonce in seen:
            self._broken = AssertionError(f"nonce {response.nonce} of {response.type_url} was used before")
        self.log.append(response)
        self._unread.append(response)
        state = self._state(response.type_url)
        state.nonce = response.nonce
        state.held.update({item.name: item.version for item in response.items if item.edition is not None})
        for name in response.removed:
            state.held.pop(name, None)
        self.arrived.set()

    def open(self, type_url: str) -> None:
        """Open the stream of that type without a word."""
        self._stream(type_url)

    async def send(self, type_url: str, *, stream: str | None = None, node: str | None = None, **fields: Any) -> None:
        """One request with exactly these fields; the node goes with a stream's first request.

        `type_url` chooses the stream, too, unless `stream` names the type whose stream it is. `error` is the text of
        an error_detail.
        """
        chosen = self._stream(type_url if stream is None else stream)
        error = fields.pop("error", None)
        request: Any = (DeltaDiscoveryRequest if self.variant.is_delta else DiscoveryRequest)(
            type_url=type_url, **fields
        )
        node_id = (self.node_id if chosen.is_fresh else "") if node is None else node
        if node_id:
            request.node.id = node_id
            request.node.user_agent_name = self.user_agent
            request.node.client_features.extend(self.features)
        if error is not None:
            request.error_detail.code = 13
            request.error_detail.message = error
        chosen.is_fresh = False
        await self.send_bytes(type_url if stream is None else stream, request.SerializeToString())

    async def send_bytes(self, type_url: str, data: bytes) -> None:
        """Anything, on the stream of that type."""
        try:
            await self._stream(type_url).call.write(data)
        except (asyncio.InvalidStateError, aio.AioRpcError):
            return  # the server has ended the stream; the test sees it when it reads

    async def subscribe(self, type_url: str, *names: str) -> None:
        """Ask for these names besides those before; without names in a first request: the legacy wildcard."""
        state = self._state(type_url)
        state.names.update(dict.fromkeys(names))
        if self.variant.is_delta:
            await self.send(type_url, resource_names_subscribe=names)
        else:
            await self._send_names(type_url, state)

    async def unsubscribe(self, type_url: str, *names: str) -> None:
        """Give up these names."""
        state = self._state(type_url)
        for name in names:
            state.names.pop(name, None)
        if self.variant.is_delta:
            for name in names:
                state.held.pop(name, None)
            await self.send(type_url, resource_names_unsubscribe=names)
        else:
            await self._send_names(type_url, state)

    async def resume(self, type_url: str, before: Client, *, held: Mapping[str, str] | None = None) -> None:
        """The first request of a reconnected client: the names of `before`, and what it held."""
        state, old = self._state(type_url), before._state(type_url)
        state.names = dict(old.names)
        state.held = dict(old.held if held is None else held)
        if self.variant.is_delta:
            names = tuple(state.names)
            await self.send(type_url, resource_names_subscribe=names, initial_resource_versions=state.held)
        else:
            state.version = old.version
            await self._send_names(type_url, state)

    async def ack(self, response: Response) -> None:
        """Accept it."""
        state = self._state(response.type_url)
        if self.variant.is_delta:
            await self.send(response.type_url, response_nonce=response.nonce)
        else:
            state.version = response.version
            await self._send_names(response.type_url, state, nonce=response.nonce)

    async def nack(self, response: Response, text: str = "refused by the test") -> None:
        """Refuse it: the version stays what it was."""
        if self.variant.is_delta:
            await self.send(response.type_url, response_nonce=response.nonce, error=text)
        else:
            await self._send_names(response.type_url, self._state(response.type_url), nonce=response.nonce, error=text)

    async def receive(self, type_url: str | None = None) -> Response:
        """The next response, of that type or of any; not ACKed. Fails after the deadline, or if a stream ended."""
        async with _deadline(f"no response of {type_url or 'any type'}", self._deadline_s):
            while True:
                for response in self._unread:
                    if type_url in (None, response.type_url):
                        self._unread.remove(response)
                        return response
                await self._next_event()

    async def expect(self, type_url: str, holds: Mapping[str, int], *, removed: tuple[str, ...] = ()) -> list[Response]:
        """Receive and ACK until exactly this has come, in one response or more; anything else fails at once."""
        got: dict[str, int] = {}
        gone: set[str] = set()
        responses = []
        while not responses or got != dict(holds) or gone != set(removed):
            try:
                response = await self.receive(type_url)
            except AssertionError as error:
                raise AssertionError(f"{error}; so far {got}, removed {gone}; expected {holds}, {removed}") from error
            responses.append(response)
            got.update(response.holds)
            gone.update(response.removed)
            wrong = {name: edition for name, edition in response.holds.items() if holds.get(name) != edition}
            assert not wrong, f"got {wrong}, expected {dict(holds)}"
            assert gone <= set(removed), f"removed {gone}, expected {removed}"
            await self.ack(response)
        return responses

    async def expect_state(self, type_url: str, holds: Mapping[str, int]) -> Response:
        """Receive and ACK until a response holds exactly this: the whole state, of clusters and listeners."""
        while True:
            response = await self.receive(type_url)
            await self.ack(response)
            if response.holds == holds:
                return response

    async def quiet(self, *types: str) -> None:
        """Nothing (of these types) is unread, and nothing comes within the quiet window; the streams stay open.

        The window is the protocol's own test of silence, not a wait for a condition.
        """
        await asyncio.sleep(self._quiet_s)
        unread = [response for response in self._unread if not types or response.type_url in types]
        assert not unread, f"expected silence, got {unread}"
        for stream in self._streams.values():
            if stream.reader.done():
                await self._fail(stream)

    async def settle(self, type_url: str) -> None:
        """Let a request take effect whose answer is free: what comes within the quiet window is ACKed."""
        await asyncio.sleep(self._quiet_s)
        while unread := [response for response in self._unread if response.type_url == type_url]:
            for response in unread:
                self._unread.remove(response)
                await self.ack(response)
            await asyncio.sleep(self._quiet_s)

    async def end(self, type_url: str = "") -> tuple[grpc.StatusCode, str]:
        """Wait for the end of the stream (that of the type, if each has its own): its status and text."""
        stream = self._stream(type_url)
        async with _deadline("the stream is still open", self._deadline_s):
            await asyncio.wait((stream.reader,))
            return await stream.call.code(), str(await stream.call.details())

    async def half_close(self, type_url: str = "") -> None:
        """Send no more on that stream."""
        await self._stream(type_url).call.done_writing()

    async def close(self) -> None:
        """Drop the connection without a word."""
        for stream in self._streams.values():
            stream.reader.cancel()
        await asyncio.gather(*(stream.reader for stream in self._streams.values()), return_exceptions=True)
        await self.channel.close()

    def held(self, type_url: str) -> dict[str, str]:
        """Name -> version of what the client has of that type."""
        return dict(self._state(type_url).held)

    def version(self, type_url: str) -> str:
        """The version that it last accepted (whole state only)."""
        return self._state(type_url).version

    def order(self) -> list[str]:
        """Types of all responses, in order of arrival."""
        return [response.type_url for response in self.log]

    async def _send_names(self, type_url: str, state: _TypeState, nonce: str = "", **fields: Any) -> None:
        await self.send(
            type_url,
            resource_names=tuple(state.names),
            version_info=state.version,
            response_nonce=nonce or state.nonce,
            **fields,
        )

    def _state(self, type_url: str) -> _TypeState:
        return self._types.setdefault(type_url, _TypeState())

    def _stream(self, type_url: str) -> _Stream:
        key = "" if self.variant.is_ads else type_url
        if key not in self._streams:
            self._streams[key] = _Stream(self, self.variant.method(type_url))
        return self._streams[key]

    async def _next_event(self) -> None:
        """Wait until something arrives; fail if a stream has ended."""
        if self._broken is not None:
            raise self._broken
        for stream in self._streams.values():
            if stream.reader.done():
                await self._fail(stream)
        self.arrived.clear()
        await self.arrived.wait()

    async def _fail(self, stream: _Stream) -> None:
        if not stream.reader.cancelled() and (error := stream.reader.exception()) is not None:
            raise AssertionError(str(error)) from error
        raise AssertionError(f"the stream ended: {await stream.call.code()}, {await stream.call.details()!r}")


class _deadline:
    """`asyncio.timeout` that fails as an assertion, with what was waited for."""

    def __init__(self, waited_for: str, seconds: float) -> None:
        self._waited_for = waited_for
        self._seconds = seconds
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._timeout.__aexit__(*exc)
        except TimeoutError as error:
            raise AssertionError(f"{self._waited_for} within {self._seconds} s") from error
