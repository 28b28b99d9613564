"""A server's sessions and an Envoy with a stream for each type and each cluster's endpoints, in all orders of events.

In: a seed and a variant. Out: an AssertionError when a route of the Envoy names a cluster that is not warm, or when it
does not end with what is served. Between streams nothing is ordered; on each of them messages keep their order. Streams
break off and come back at any time. Time stands still until everything that can happen has happened.
"""

from __future__ import annotations

import itertools
import random
from collections import deque

from envoy.config.cluster.v3.cluster_pb2 import Cluster

from tests.xds import resources as made
from xdsbpf.model.names import CLUSTER, ENDPOINTS, ROUTES
from xdsbpf.model.resource import Resource, make_resource
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.interest import Interest
from xdsbpf.xds.request import DeltaRequest, Request, SotwRequest
from xdsbpf.xds.response import Response
from xdsbpf.xds.session import Session
from xdsbpf.xds.siblings import ClientKey, Clients
from xdsbpf.xds.sotw import SotwSession
from xdsbpf.xds.store import Batch, Key, ResourceStore, View
from xdsbpf.xds.warming import COMES_WITHIN_S

SCOPE = "web"
VIEW = View((SCOPE,), "", "envoy")
KEY = ClientKey("edge", (), False, "envoy", "")
NAMES = ("a", "b", "c", "fixed")
SERVICES = {"a": "a", "b": "bs", "c": "cs", "fixed": ""}
"""What their endpoints are called; one has none."""
ROUTE_NAMES = ("r", "q")
PATIENCE_S = 2.5 * COMES_WITHIN_S
"""As long everything may take in the end: streams are waited for, one after the other, and nothing that never comes."""


class Stream:
    """One stream, seen from both ends; `session` is None before the server has its first request."""

    def __init__(self, type_url: str, *names: str) -> None:
        self.type_url, self.names = type_url, names
        self.session: Session | None = None
        self.to_server: deque[Request | None] = deque()
        self.to_client: deque[Response] = deque()
        self.is_over = False
        """For the client."""
        self.version = ""
        """What the client holds by it, and by those that it takes the place of."""


class SiblingsWorld:
    """One server and one Envoy; `step` lets one thing happen."""

    def __init__(self, *, is_delta: bool) -> None:
        self.is_delta = is_delta
        self.now = 100.0
        self.store = ResourceStore()
        self.interest = Interest[Session]()
        self.clients = Clients(lambda: self.now)
        self.nonces, self.stamps = itertools.count(1), itertools.count(1)
        self.editions = itertools.count(2)
        self.streams: list[Stream] = []
        self.woken: list[Stream] = []
        self.meaning: dict[str, str] = {}
        """Version of a route -> the cluster that it names."""
        self.served = {"a": 1, "fixed": 1}
        self.targets = dict.fromkeys(ROUTE_NAMES, "a")
        # What the Envoy has.
        self.known: dict[str, str] = {}
        """Cluster -> the version that it was sent last."""
        self.warm: dict[str, Stream | None] = {}
        """Cluster that takes requests -> the stream for its endpoints."""
        self.warming: dict[str, Stream] = {}
        self.routes: dict[str, str] = {}
        self._write(
            *(self._cluster(name) for name in self.served), *self._endpoints("a"), *map(self._route, ROUTE_NAMES)
        )
        self._open(CLUSTER)
        self._run(random.Random(0))
        for name in ROUTE_NAMES:
            self._open(ROUTES, name)
        self._run(random.Random(0))
        assert self.routes == self.targets
        self.now += 10

    def step(self, rng: random.Random) -> None:
        """One write, break or delivery."""
        chance = rng.random()
        if chance < 0.1:
            self._change(rng)
        elif chance < 0.13:
            self._break(rng.choice(self.streams))
        else:
            self._move(rng)

    def settle_and_compare(self, rng: random.Random) -> None:
        """Let everything happen, and time pass; the Envoy has what is served then."""
        self._run(rng)
        until = self.now + PATIENCE_S
        while (at := min(self._alarms(), default=until)) < until:
            self.now = max(self.now, at)
            self.woken.extend(stream for stream in self.streams if stream.session and stream.session.has_work)
            self._run(rng)
        assert self.routes == self.targets, "routes did not arrive"
        assert set(self.warm) == set(self.served), "clusters did not arrive, or did not go"

    # What is served.

    def _change(self, rng: random.Random) -> None:
        """Routes move, with new clusters if they like; clusters that nobody names go, all in one write."""
        puts: list[Resource] = []
        removes: list[Key] = []
        for route in rng.sample(ROUTE_NAMES, rng.randrange(3)):
            self.targets[route] = rng.choice(NAMES)
            puts.append(self._route(route))
        for name in NAMES:
            is_new = name in self.targets.values() and name not in self.served
            if is_new or (name in self.served and rng.random() < 0.15):
                self.served[name] = next(self.editions)
                puts.append(self._cluster(name))
                puts.extend(self._endpoints(name) if is_new or rng.random() < 0.5 else ())
            elif name in self.served and name not in self.targets.values() and rng.random() < 0.6:
                del self.served[name]
                removes.append((CLUSTER, name))
        self._write(*puts, removes=removes)

    def _write(self, *puts: Resource, removes: list[Key] | None = None) -> None:
        changes = self.store.apply_all([Batch(SCOPE, puts, tuple(removes or ()))])
        stamp = next(self.stamps)
        heard = self.interest.heard_by(changes.by_scope)
        for stream in self.streams:
            if stream.session in heard and stream.session.on_changes(changes, stamp):
                self.woken.append(stream)

    def _cluster(self, name: str) -> Resource:
        message = made.cluster(name, self.served[name], service_name=SERVICES[name]).message
        if not SERVICES[name]:
            message = Cluster(name=name, type=Cluster.STATIC)
            message.connect_timeout.seconds = self.served[name]
        return make_resource(CLUSTER, name, message.SerializeToString(deterministic=True))

    def _endpoints(self, name: str) -> list[Resource]:
        served = made.endpoints(SERVICES[name], next(self.editions))
        body = served.message.SerializeToString(deterministic=True)
        return [make_resource(ENDPOINTS, served.name, body)] if SERVICES[name] else []

    def _route(self, name: str) -> Resource:
        to = self.targets[name]
        body = made.routes(name, next(self.editions), to=to).message.SerializeToString(deterministic=True)
        resource = make_resource(ROUTES, name, body)
        self.meaning[resource.version] = to
        return resource

    # What passes.

    def _move(self, rng: random.Random) -> bool:
        """A session's turn, or a message that arrives; False if there is none."""
        moves = [(self._turn, stream) for stream in self.woken]
        moves += [(self._serve, stream) for stream in self.streams if stream.to_server]
        moves += [(self._receive, stream) for stream in self.streams if stream.to_client and not stream.is_over]
        if not moves:
            return False
        move, stream = rng.choice(moves)
        move(stream)
        broken = {name: to for name, to in self.routes.items() if to not in self.warm}
        assert not broken, f"these routes name clusters that are not warm: {broken}"
        return True

    def _run(self, rng: random.Random) -> None:
        for _ in range(10_000):
            if not self._move(rng):
                return
        raise AssertionError("it goes on for ever")

    def _alarms(self) -> list[float]:
        found = [stream.session.wake_at for stream in self.streams if stream.session is not None]
        return [at for at in found if at is not None]

    def _turn(self, stream: Stream) -> None:
        self.woken.remove(stream)
        if stream.session is not None:
            stream.to_client.extend(stream.session.poll())

    def _serve(self, stream: Stream) -> None:
        request = stream.to_server.popleft()
        if request is None:
            self._leave(stream)
            return
        if stream.session is None:
            siblings = self.clients.siblings(KEY)
            variant: type[Session] = DeltaSession if self.is_delta else SotwSession
            stream.session = variant(
                VIEW,
                self.store,
                nonces=self.nonces,
                stamps=self.stamps,
                clock=lambda: self.now,
                service_type=stream.type_url,
                siblings=siblings,
                interest=self.interest,
            )
            siblings.join(stream.type_url, stream.session, lambda: self.woken.append(stream))
        stream.session.on_request(request)
        self.woken.append(stream)

    def _leave(self, stream: Stream) -> None:
        self.streams.remove(stream)
        self.woken = [other for other in self.woken if other is not stream]
        if stream.session is not None:
            self.clients.leave(KEY, stream.type_url, stream.session)
            stream.session.close()

    def _break(self, stream: Stream) -> None:
        """What was under way on it is lost; the Envoy opens it again, unless it had given it up."""
        self._leave(stream)
        if stream.is_over:
            return
        again = self._open(stream.type_url, *stream.names, version=stream.version)
        for streams in (self.warm, self.warming):
            for name, used in streams.items():
                if used is stream:
                    streams[name] = again  # type: ignore[index]

    # What the Envoy does.

    def _open(self, type_url: str, *names: str, version: str = "") -> Stream:
        stream = Stream(type_url, *names)
        stream.version = version
        self.streams.append(stream)
        if not self.is_delta:
            stream.to_server.append(SotwRequest(type_url, names, version))
        else:
            held = {names[0]: version} if names and version else {}
            stream.to_server.append(DeltaRequest(type_url, names, claims=held if names else dict(self.known)))
        return stream

    def _close(self, stream: Stream | None) -> None:
        if stream is not None:
            stream.is_over = True
            stream.to_server.append(None)

    def _receive(self, stream: Stream) -> None:
        response = stream.to_client.popleft()
        if stream.type_url == CLUSTER:
            self._take_clusters(response)
        else:
            for resource in response.resources:
                stream.version = resource.version
                if stream.type_url == ROUTES:
                    self.routes[resource.name] = self.meaning[resource.version]
        if stream.type_url == ENDPOINTS:
            for name in [name for name, used in self.warming.items() if used is stream]:
                self._warmed(name, self.warming.pop(name))
        if self.is_delta:
            stream.to_server.append(DeltaRequest(stream.type_url, nonce=response.nonce))
        else:
            stream.version = response.version
            stream.to_server.append(SotwRequest(stream.type_url, stream.names, response.version, response.nonce))

    def _take_clusters(self, response: Response) -> None:
        gone = response.removed
        if not self.is_delta:
            gone = tuple(self.known.keys() - {resource.name for resource in response.resources})
        for name in gone:
            self.known.pop(name, None)
            self._close(self.warm.pop(name, None))
            self._close(self.warming.pop(name, None))
        for resource in response.resources:
            name = resource.name
            if self.known.get(name) == resource.version:
                continue
            self.known[name] = resource.version
            self._close(self.warming.pop(name, None))
            if SERVICES[name]:
                self.warming[name] = self._open(ENDPOINTS, SERVICES[name])
            else:
                self._warmed(name, None)

    def _warmed(self, name: str, stream: Stream | None) -> None:
        self._close(self.warm.pop(name, None))
        self.warm[name] = stream
