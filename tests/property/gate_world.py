"""Two planes over streams that delay, refuse, break and come back, and a checker of what left for an agent.

In: steps that hypothesis draws. Out: a failed assertion as soon as a resource leaves before what it requires was ACKed.
The checker reads the messages alone: what was in a response, which response an ACK or a first request speaks of. It
shares nothing with `xds.gate`, and it also knows what the Envoy process really holds.
"""

from __future__ import annotations

import itertools
from collections import deque

from xdsbpf.model.names import FRONTEND, LISTENER, ROUTES, VIRTUAL_HOST
from xdsbpf.model.resource import AS_SERVED, Requirement, Resource, make_resource
from xdsbpf.xds import protocol
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.gate import EnvoyLedger, Gate
from xdsbpf.xds.interest import Interest
from xdsbpf.xds.request import DeltaRequest, Request, SotwRequest, decode_delta
from xdsbpf.xds.response import Response
from xdsbpf.xds.session import Session
from xdsbpf.xds.sotw import SotwSession
from xdsbpf.xds.store import AGENT, NODE_ENVOY, Batch, Key, ResourceStore, View

NODES = ("n1", "n2")
SERVICES = ("a", "b")
LISTENER_NAME, ROUTES_NAME = "out_tcp", "9080"
ENVOY_SCOPE, AGENT_SCOPE = "node-envoy", "datapath"


class Process:
    """What an Envoy or an agent has in force, and the variant it speaks; both end with the process."""

    def __init__(self, *, is_delta: bool = True) -> None:
        self.is_delta = is_delta
        self.held: dict[Key, str] = {}


class Link:
    """One stream: a session of the server, the process that opened it, and what is on its way between them."""

    def __init__(self, session: Session, process: Process, ledger: EnvoyLedger | None) -> None:
        self.session = session
        self.process = process
        self.ledger = ledger
        self.is_alive = True
        """Whether the client is at the other end; the server does not know."""
        self.to_server: deque[Request] = deque()
        self.to_client: deque[Response] = deque()
        self.confirmed: dict[Key, str] = {}
        """What the client has said that it holds, in messages that the server has read."""
        self._contents: dict[str, tuple[dict[Key, str], bool]] = {}
        """Nonce -> what was in that response, and whether it was the whole set of its type."""

    @property
    def is_delta(self) -> bool:
        return isinstance(self.session, DeltaSession)

    def ask(self) -> None:
        """The first requests of the stream: everything, and what is held."""
        for type_url in _types(self.session.view.kind, is_delta=self.is_delta):
            names = (ROUTES_NAME,) if type_url == ROUTES else ()
            held = {name: version for (kind, name), version in self.process.held.items() if kind == type_url}
            if self.is_delta:
                data = protocol.encode_request(type_url, subscribe=names, initial_versions=held)
                self.to_server.append(decode_delta(data))
            else:
                self.to_server.append(SotwRequest(type_url, names))

    def sent(self, response: Response) -> None:
        """The server has sent it; what is removed is not held any more, from now on."""
        whole = not self.is_delta and response.type_url == LISTENER
        contents = {(response.type_url, item.name): item.version for item in response.resources}
        self._contents[response.nonce] = (contents, whole)
        for name in response.removed:
            self.confirmed.pop((response.type_url, name), None)
        if whole:
            self._forget_others(self.confirmed, response.type_url, contents)
        self.to_client.append(response)

    def read_request(self) -> bool:
        """Let the server read one message."""
        if not self.to_server:
            return False
        request = self.to_server.popleft()
        if isinstance(request, DeltaRequest):
            self.confirmed.update({(request.type_url, name): held for name, held in request.claims.items()})
        if request.nonce and request.error is None:
            contents, _ = self._contents.pop(request.nonce)
            self.confirmed.update({key: held for key, held in contents.items() if key in self._still_sent(key)})
        self.session.on_request(request)
        return True

    def _still_sent(self, key: Key) -> tuple[Key, ...]:
        """The key, unless its removal is on its way or was taken: an older ACK then says nothing any more."""
        later = [response for response in self.to_client if response.type_url == key[0]]
        gone = any(key[1] in response.removed for response in later)
        back = any(item.name == key[1] for response in later for item in response.resources)
        return () if gone and not back else (key,)

    def read_response(self, *, refuse: bool) -> bool:
        """Let the client read one message, and answer it."""
        if not self.to_client or not self.is_alive:
            return False
        response = self.to_client.popleft()
        type_url = response.type_url
        names = (ROUTES_NAME,) if type_url == ROUTES else ()
        error = "refused" if refuse and response.resources else None
        if error is None:
            contents = {(type_url, item.name): item.version for item in response.resources}
            self.process.held.update(contents)
            if not self.is_delta and type_url == LISTENER:
                self._forget_others(self.process.held, type_url, contents)
        for name in response.removed:
            self.process.held.pop((type_url, name), None)
        if self.is_delta:
            self.to_server.append(DeltaRequest(type_url, nonce=response.nonce, error=error))
        else:
            self.to_server.append(SotwRequest(type_url, names, response.version, response.nonce, error))
        return True

    @staticmethod
    def _forget_others(held: dict[Key, str], type_url: str, contents: dict[Key, str]) -> None:
        for key in [key for key in held if key[0] == type_url and key not in contents]:
            del held[key]


def _types(kind: str, *, is_delta: bool) -> tuple[str, ...]:
    if kind == AGENT:
        return (FRONTEND,)
    return (LISTENER, ROUTES, VIRTUAL_HOST) if is_delta else (LISTENER, ROUTES)


def view_of(node: str, kind: str) -> View:
    scope = AGENT_SCOPE if kind == AGENT else ENVOY_SCOPE
    return View((scope, f"{scope}/{node}"), node, kind)


class Planes:
    """A store, a gate, and the links of all nodes; `send` checks what leaves."""

    def __init__(self) -> None:
        self.store = ResourceStore()
        self.interest = Interest[Session]()
        self.gate = Gate()
        self.nonces = itertools.count(1)
        self._serial = itertools.count(1)
        self.processes = {(node, kind): Process() for node in NODES for kind in (NODE_ENVOY, AGENT)}
        self.links: dict[tuple[str, str], list[Link]] = {at: [] for at in self.processes}
        """Streams that the server has open, oldest first."""
        self.withheld = 0
        self.released = 0

    def content(self) -> bytes:
        return str(next(self._serial)).encode()

    def connect(self, node: str, kind: str) -> None:
        """A new stream of the process there; the client gives up those it had."""
        at = (node, kind)
        for link in self.links[at]:
            link.is_alive = False
        ledger = self.gate.open(view_of(node, kind), self.store) if kind == NODE_ENVOY else None
        variant = DeltaSession if self.processes[at].is_delta else SotwSession
        session = variant(
            view_of(node, kind),
            self.store,
            gate=self.gate,
            ledger=ledger,
            nonces=self.nonces,
            interest=self.interest,
        )
        link = Link(session, self.processes[at], ledger)
        self.links[at].append(link)
        link.ask()

    def close(self, node: str, kind: str, index: int) -> None:
        """The server sees the end of a stream."""
        links = self.links[node, kind]
        if links:
            link = links.pop(index % len(links))
            link.is_alive = False
            link.session.close()
            if link.ledger is not None:
                self.gate.close(link.ledger)

    def restart(self, node: str, kind: str, *, is_delta: bool) -> None:
        """The process ends and a new one starts, with nothing; it connects when told to."""
        self.processes[node, kind] = Process(is_delta=is_delta)
        for link in self.links[node, kind]:
            link.is_alive = False

    def apply(self, *batches: Batch) -> None:
        """One revision of the store."""
        changes = self.store.apply_all(batches)
        for session in self.interest.heard_by(changes.by_scope):
            session.on_changes(changes)

    def send(self, node: str, kind: str, index: int) -> bool:
        """Let a session send one response, and check it."""
        links = self.links[node, kind]
        if not links:
            return False
        link = links[index % len(links)]
        response = link.session.next_response()
        if response is None:
            return False
        for item in response.resources:
            key = (item.type_url, item.name)
            if item.requires and link.confirmed.get(key) != item.version:
                self._check(node, item)
        self.withheld += len(response.withheld)
        link.sent(response)
        return True

    def _check(self, node: str, item: Resource) -> None:
        """What leaves now is new to its client: the node's Envoy must have all that it requires."""
        envoys = self.links[node, NODE_ENVOY]
        assert envoys, f"{item.name} left for {node}, which has no Envoy"
        newest = envoys[-1]
        for need in item.requires:
            key = (need.type_url, need.name)
            version = self._needed(newest, need)
            said = newest.confirmed.get(key, "nothing")
            assert said == version, f"{item.name} left for {node}: needs {need}, its Envoy said {said}"
            if newest.is_alive:
                really = newest.process
                assert really.held.get(key) == version, f"{item.name} left for {node}: its Envoy is not at {need}"
        self.released += 1

    def _needed(self, link: Link, need: Requirement) -> str:
        if need.version != AS_SERVED:
            return need.version
        served = self.store.get(link.session.view, need.type_url, need.name)
        return served.version if served is not None else ""

    def settle(self) -> None:
        """Deliver everything, accepting all of it, until nothing moves."""
        for _ in range(2_000):
            moved = False
            for (node, kind), links in self.links.items():
                for index, link in enumerate(links):
                    moved |= link.read_request()
                    moved |= self.send(node, kind, index)
                    moved |= link.read_response(refuse=False)
            if not moved:
                return
        raise AssertionError("the streams never come to rest")


def host_of(service: str, content: bytes, routes: Resource | None) -> Resource:
    """A virtual host, which needs its route configuration."""
    requires = () if routes is None else (Requirement(ROUTES, routes.name, routes.version),)
    return make_resource(VIRTUAL_HOST, f"{ROUTES_NAME}/{service}", content, requires=requires)


def frontend_of(service: str, content: bytes, *requires: Requirement) -> Resource:
    """A frontend; with requirements it redirects to Envoy."""
    return make_resource(FRONTEND, service, content, requires=requires)
