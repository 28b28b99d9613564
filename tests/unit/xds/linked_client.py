"""A client with a stream for each type, or more than one: a session each, linked as the server links them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from xds_stream_client import CDS, EDS, ENVOY_VIEW, NODE_ID

from xdsbpf.model.resource import Resource
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.request import DeltaRequest, Request, SotwRequest
from xdsbpf.xds.response import Response
from xdsbpf.xds.session import Session
from xdsbpf.xds.siblings import Siblings
from xdsbpf.xds.sotw import SotwSession
from xdsbpf.xds.store import Batch, Key, ResourceStore
from xdsbpf.xds.subscription import Subscription

SCOPE = "node-envoy"


class LinkedStream:
    """One stream of a single type; every action returns what is sent on all streams of its client."""

    def __init__(self, client: LinkedClient, type_url: str, names: tuple[str, ...]) -> None:
        variant: type[Session] = DeltaSession if client.is_delta else SotwSession
        self.client, self.type_url, self.names = client, type_url, names
        self.session = variant(
            ENVOY_VIEW,
            client.store,
            node_id=NODE_ID,
            nonces=client.nonces,
            stamps=client.stamps,
            clock=lambda: client.now,
            service_type=type_url,
            siblings=client.siblings,
        )
        self.last: Response | None = None

    @property
    def subscription(self) -> Subscription:
        return self.session.subscriptions()[0]

    def ack(self, response: Response | None = None) -> list[Response]:
        """Accept the last response, or an older one."""
        return self._answer(response)

    def ask(self, *names: str) -> list[Response]:
        """Ask for these as well."""
        self.names = (*self.names, *names)
        if self.client.is_delta:
            return self.take(DeltaRequest(self.type_url, names))
        assert self.last is not None
        return self.take(SotwRequest(self.type_url, self.names, self.last.version, self.last.nonce))

    def nack(self, text: str) -> list[Response]:
        return self._answer(None, text)

    def end(self) -> list[Response]:
        """It breaks off; what comes on the others then."""
        self.client.streams.remove(self)
        self.client.siblings.leave(self.type_url, self.session)
        return self.client.drain()

    def take(self, request: Request) -> list[Response]:
        self.session.on_request(request)
        return self.client.drain(self)

    def _answer(self, response: Response | None, error: str | None = None) -> list[Response]:
        answered = response or self.last
        assert answered is not None
        if self.client.is_delta:
            return self.take(DeltaRequest(self.type_url, nonce=answered.nonce, error=error))
        return self.take(SotwRequest(self.type_url, self.names, answered.version, answered.nonce, error))


class LinkedClient:
    """All streams of one client; `now` is its clock. A stream is looked at when something wakes it, and only then."""

    def __init__(self, *resources: Resource, is_delta: bool) -> None:
        self.is_delta = is_delta
        self.store = ResourceStore()
        self.store.apply(SCOPE, resources)
        self.now = 0.0
        self.nonces, self.stamps = itertools.count(1), itertools.count(1)
        self.siblings = Siblings(lambda: self.now)
        self.streams: list[LinkedStream] = []
        self._woken: list[LinkedStream] = []

    def open(
        self, type_url: str, *names: str, claims: Mapping[str, str] | None = None, version: str = ""
    ) -> tuple[LinkedStream, list[Response]]:
        """Another stream, and what comes after its first request: it holds `claims` (delta), or `version`."""
        stream = LinkedStream(self, type_url, names)
        self.streams.append(stream)
        self.siblings.join(type_url, stream.session, lambda: self._woken.append(stream))
        if self.is_delta:
            return stream, stream.take(DeltaRequest(type_url, names, claims=dict(claims or {})))
        return stream, stream.take(SotwRequest(type_url, names, version))

    def connect(self, type_url: str, *names: str) -> LinkedStream:
        """Another stream that has accepted all that it asked for."""
        stream, responses = self.open(type_url, *names)
        while responses:
            assert [response.type_url for response in responses] == [type_url], responses
            responses = stream.ack()
        return stream

    def fed(self, *clusters: str) -> list[LinkedStream]:
        """As Envoy does: a stream for the endpoints of each cluster, which are accepted."""
        return [self.connect(EDS, name) for name in clusters]

    def change(self, *puts: Resource, removes: Iterable[Key] = ()) -> list[Response]:
        """One change of what is served, and what comes of it."""
        changes = self.store.apply_all([Batch(SCOPE, puts, tuple(removes))])
        stamp = next(self.stamps)
        for stream in self.streams:
            stream.session.on_changes(changes, stamp)
        return self.drain(*(stream for stream in self.streams if stream.session.has_work))

    def later(self, seconds: float) -> list[Response]:
        """What comes when nobody has done anything for that long: of the streams that asked to be woken by then."""
        self.now += seconds
        due = [stream.session.wake_at for stream in self.streams]
        return self.drain(*(s for s, at in zip(self.streams, due, strict=True) if at is not None and at <= self.now))

    def drain(self, *streams: LinkedStream) -> list[Response]:
        """Let these send, and whoever is woken by it."""
        self._woken.extend(streams)
        responses: list[Response] = []
        while self._woken:
            stream = self._woken.pop(0)
            for response in stream.session.poll() if stream in self.streams else ():
                stream.last = response
                responses.append(response)
        return responses

    def held(self, type_url: str = CDS) -> set[str]:
        """Names that the client has of a type, by all of its streams."""
        return {
            name
            for stream in self.streams
            for entry in stream.session.subscriptions()
            if entry.type_url == type_url
            for name in (entry.held if self.is_delta or type_url != CDS else entry.state)
        }
