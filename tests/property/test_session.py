"""Random interleavings of one store, an Envoy and an agent, against model clients with queues in both directions."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.conftest import LONG
from xdsbpf.model.names import BACKENDS, CLUSTER, ENDPOINTS, FRONTEND, VIRTUAL_HOST
from xdsbpf.model.resource import Requirement, Resource, make_resource
from xdsbpf.xds import protocol, shared
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.gate import EnvoyLedger, Gate
from xdsbpf.xds.interest import Interest
from xdsbpf.xds.request import decode_delta
from xdsbpf.xds.response import Response, encode
from xdsbpf.xds.session import Session
from xdsbpf.xds.store import AGENT, NODE_ENVOY, Batch, Key, ResourceStore, View
from xdsbpf.xds.subscription import Subscription

NAMES = ("a", "b", "c")
PAGE = 2
VIEWS = {
    NODE_ENVOY: View(("node-envoy", "node-envoy/n"), "n", NODE_ENVOY),
    AGENT: View(("datapath",), "n", AGENT),
}
WILDCARDS = {NODE_ENVOY: (CLUSTER, VIRTUAL_HOST), AGENT: (BACKENDS, FRONTEND)}
NAMED = {NODE_ENVOY: (CLUSTER, ENDPOINTS), AGENT: ()}

name_of = st.sampled_from(NAMES)
kind_of = st.sampled_from((NODE_ENVOY, AGENT))


class ModelClient:
    """Keeps what it was sent. A response that it refuses changes nothing but the removals in it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.held: dict[str, dict[str, str]] = {type_url: {} for type_url in self.types}
        self.named: dict[str, set[str]] = {type_url: set() for type_url in self.types}
        self.refused: dict[Key, str] = {}
        self.asked: Counter[Key] = Counter()
        self.offered: set[Key] = set()
        self.kept: set[str] = set()
        """Frontends known by name only: they exist, their content is withheld."""
        self.to_server: deque[bytes] = deque()
        self.to_client: deque[bytes] = deque()

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*WILDCARDS[self.kind], *NAMED[self.kind])))

    def open(self) -> None:
        """First requests of a new stream: everything subscribed, everything held claimed."""
        self.to_server.clear()
        self.to_client.clear()
        self.asked.clear()
        self.refused.clear()
        self.offered = {(type_url, name) for type_url, held in self.held.items() for name in held}
        self.offered |= {(FRONTEND, name) for name in self.kept}
        for type_url in self.types:
            names = sorted(self.named[type_url])
            if type_url in WILDCARDS[self.kind] and names:
                names.insert(0, "*")
            self.asked.update((type_url, name) for name in names)
            unknown = dict.fromkeys(self.kept, "") if type_url == FRONTEND else {}
            self.send(type_url, subscribe=names, initial_versions=self.held[type_url] | unknown)

    def send(self, type_url: str, **fields: Any) -> None:
        self.to_server.append(protocol.encode_request(type_url, **fields))

    def subscribe(self, type_url: str, name: str) -> None:
        self.named[type_url].add(name)
        self.asked[type_url, name] += 1
        self.send(type_url, subscribe=[name])

    def unsubscribe(self, type_url: str, name: str) -> None:
        self.named[type_url].discard(name)
        self.send(type_url, unsubscribe=[name])
        if type_url in WILDCARDS[self.kind]:
            self.asked[type_url, name] += 1
        else:
            self.held[type_url].pop(name, None)
            self.refused.pop((type_url, name), None)

    def covers(self, type_url: str, name: str) -> bool:
        return type_url in WILDCARDS[self.kind] or name in self.named[type_url]

    def read(self, refuse: bool) -> None:
        """Take one response, check it, apply it, answer it."""
        got = protocol.decode_response(self.to_client.popleft())
        names = [item.name for item in got.resources] + list(got.removed)
        assert len(names) == len(set(names)), "a name twice, or in both lists"
        assert len(names) <= PAGE, "more than a page"
        held = self.held[got.type_url]
        for item in got.resources:
            if not self.covers(got.type_url, item.name):
                continue
            key = (got.type_url, item.name)
            if item.body is None and got.type_url == FRONTEND:
                assert item.name not in held, "what the client has is not announced"
                assert item.name not in self.kept, "announced twice"
                self.kept.add(item.name)
                self.offered.add(key)
                continue
            if item.body is None:
                assert got.type_url == VIRTUAL_HOST
                continue
            if self.refused.get(key, held.get(item.name)) == item.version:
                self.expect_again(key)
            self.offered.add(key)
            if got.type_url == FRONTEND:
                self.kept.discard(item.name)
            if refuse:
                self.refused[key] = item.version
            else:
                self.refused.pop(key, None)
                held[item.name] = item.version
        for name in got.removed:
            if not self.covers(got.type_url, name):
                continue
            key = (got.type_url, name)
            if key not in self.offered:
                self.expect_again(key)
            self.offered.discard(key)
            self.refused.pop(key, None)
            held.pop(name, None)
            if got.type_url == FRONTEND:
                self.kept.discard(name)
        self.send(got.type_url, nonce=got.nonce, error="refused" if refuse and got.resources else "")

    def expect_again(self, key: Key) -> None:
        """The same content once more: only if it was asked for, or is the endpoints of an updated cluster."""
        if key[0] != ENDPOINTS:
            assert self.asked[key] > 0, f"{key} came again although nothing changed"
            self.asked[key] -= 1


def _answers(subscription: Subscription) -> set[str]:
    """Names that are to be answered at once."""
    pages = subscription.backlog or () if subscription.backlog_named else ()
    return {*subscription.forced, *(name for page in pages for name in page.names)}


class World(RuleBasedStateMachine):
    """A store, a gate, and one stream of each client; every hop is a step of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.store = ResourceStore()
        self.interest = Interest[Session]()
        self.gate = Gate()
        self.nonces: Iterator[int] = itertools.count(1)
        self.serial = itertools.count(1)
        self.clients = {kind: ModelClient(kind) for kind in VIEWS}
        self.sessions: dict[str, DeltaSession] = {}
        self.ledger: EnvoyLedger | None = None
        self.needs: dict[str, str] = {}
        """frontend -> virtual host that it requires"""
        self.recorded: list[tuple[str, str]] = []

    @initialize()
    def connect(self) -> None:
        for kind in VIEWS:
            self.reconnect(kind)

    @rule(kind=kind_of)
    def reconnect(self, kind: str) -> None:
        if kind == NODE_ENVOY:
            if self.ledger is not None:
                self.gate.close(self.ledger)
            self.ledger = self.gate.open(VIEWS[kind], self.store)
        if kind in self.sessions:
            self.sessions[kind].close()
        self.sessions[kind] = DeltaSession(
            VIEWS[kind],
            self.store,
            gate=self.gate if kind == AGENT else None,
            ledger=self.ledger if kind == NODE_ENVOY else None,
            nonces=self.nonces,
            interest=self.interest,
        )
        self.clients[kind].open()

    @rule(
        type_url=st.sampled_from((CLUSTER, ENDPOINTS, VIRTUAL_HOST, BACKENDS)),
        changed=st.lists(name_of, max_size=3),
        removed=st.lists(name_of, max_size=2),
        on_demand=st.booleans(),
        own=st.sampled_from((False, False, True)),
    )
    def change(self, type_url: str, changed: list[str], removed: list[str], on_demand: bool, own: bool) -> None:
        scope = "datapath" if type_url == BACKENDS else "node-envoy/n" if own else "node-envoy"
        puts = tuple(self.fresh(type_url, name, on_demand and type_url == CLUSTER) for name in changed)
        self.apply(Batch(scope, puts, tuple((type_url, name) for name in removed)))

    @rule(name=name_of, host=st.none() | name_of)
    def point_frontend(self, name: str, host: str | None) -> None:
        """A frontend with new content that requires a virtual host, or nothing."""
        if host is None:
            self.needs.pop(name, None)
        else:
            self.needs[name] = host
        self.apply(Batch("datapath", (self.frontend(name, str(next(self.serial))),)))

    @rule(name=name_of)
    def delete_frontend(self, name: str) -> None:
        self.needs.pop(name, None)
        self.apply(Batch("datapath", (), ((FRONTEND, name),)))

    def fresh(self, type_url: str, name: str, on_demand: bool = False) -> Resource:
        return make_resource(type_url, name, str(next(self.serial)).encode(), on_demand=on_demand)

    def frontend(self, name: str, content: str) -> Resource:
        host = self.needs.get(name)
        found = self.store.get(VIEWS[NODE_ENVOY], VIRTUAL_HOST, host) if host is not None else None
        requires = () if found is None else (Requirement(VIRTUAL_HOST, found.name, found.version),)
        return make_resource(FRONTEND, name, content.encode(), requires=requires)

    def apply(self, *batches: Batch) -> None:
        """Change the store; frontends follow the newest version of what they require, as compiled ones do."""
        changes = [self.store.apply_all(batches)]
        follow = []
        for name in self.needs:
            present = self.store.get(VIEWS[AGENT], FRONTEND, name)
            if present is not None:
                follow.append(self.frontend(name, present.body.decode()))
        changes.append(self.store.apply("datapath", follow))
        for change in changes:
            for session in self.interest.heard_by(change.by_scope):
                session.on_changes(change)

    @rule(kind=kind_of, name=name_of, data=st.data())
    def subscribe(self, kind: str, name: str, data: st.DataObject) -> None:
        if NAMED[kind]:
            self.clients[kind].subscribe(data.draw(st.sampled_from(NAMED[kind])), name)

    @rule(kind=kind_of, data=st.data())
    def unsubscribe(self, kind: str, data: st.DataObject) -> None:
        client = self.clients[kind]
        candidates = [(type_url, name) for type_url in NAMED[kind] for name in sorted(client.named[type_url])]
        if candidates:
            client.unsubscribe(*data.draw(st.sampled_from(candidates)))

    @rule(kind=kind_of, count=st.integers(1, 5))
    def server_sends(self, kind: str, count: int) -> None:
        for _ in range(count):
            if not self.send_one(kind):
                return

    @rule(kind=kind_of, count=st.integers(1, 5))
    def server_reads(self, kind: str, count: int) -> None:
        for _ in range(count):
            if not self.read_one(kind):
                return

    @rule(kind=kind_of, refuse=st.booleans())
    def client_reads(self, kind: str, refuse: bool) -> None:
        if self.clients[kind].to_client:
            self.clients[kind].read(refuse)

    def send_one(self, kind: str) -> bool:
        busy = {item.type_url: _answers(item) for item in self.sessions[kind].subscriptions() if item.in_flight}
        sent: Response | None = self.sessions[kind].next_response()
        if sent is None:
            return False
        if sent.type_url in busy:
            names = {*(item.name for item in sent.resources), *sent.removed, *sent.missing}
            assert names <= busy[sent.type_url], "a push while a response of that type is unanswered"
        self.clients[kind].to_client.append(encode(sent, self.store))
        if kind == AGENT:
            hosts = self.clients[NODE_ENVOY].held[VIRTUAL_HOST]
            for item in sent.resources:
                already = self.clients[AGENT].held[FRONTEND].get(item.name) == item.version
                for need in item.requires if not already else ():
                    assert hosts.get(need.name) == need.version, "a frontend left before its Envoy was ready"
        return True

    def read_one(self, kind: str) -> bool:
        queue = self.clients[kind].to_server
        if not queue:
            return False
        self.sessions[kind].on_request(decode_delta(queue.popleft()))
        return True

    @invariant()
    def a_name_is_in_one_queue(self) -> None:
        for session in self.sessions.values():
            for subscription in session.subscriptions():
                assert not set(subscription.forced) & set(subscription.dirty)
                assert not set(subscription.removals) & (set(subscription.forced) | set(subscription.dirty))

    @rule()
    def settle_and_compare(self) -> None:
        """Deliver everything, repair what was refused, deliver again: clients hold exactly what is current."""
        self.settle()
        repairs = []
        for client in self.clients.values():
            for type_url, name in sorted(client.refused):
                found = self.store.get(VIEWS[client.kind], type_url, name)
                if found is not None:
                    repairs.append((client.kind, found))
        for kind, found in repairs:
            scope = "datapath" if kind == AGENT else "node-envoy/n"
            again = self.fresh(found.type_url, found.name, found.on_demand)
            if found.type_url == FRONTEND:
                again = self.frontend(found.name, again.body.decode())
            self.apply(Batch(scope, (again,)))
        self.settle()
        for client in self.clients.values():
            assert not client.refused
            assert not client.kept, "content or a removal has followed every bare name"
            for type_url in client.types:
                assert client.held[type_url] == self.expected(client, type_url)
            for subscription in self.sessions[client.kind].subscriptions():
                assert not subscription.in_flight
                assert not subscription.withheld
                assert not subscription.removals

    def expected(self, client: ModelClient, type_url: str) -> dict[str, str]:
        view = VIEWS[client.kind]
        found = {}
        if type_url in WILDCARDS[client.kind]:
            found = {item.name: item.version for item in self.store.wildcard(view, type_url)}
        for name in client.named[type_url]:
            item = self.store.get(view, type_url, name)
            if item is not None:
                found[name] = item.version
        return found

    def settle(self) -> None:
        for _ in range(10_000):
            moved = False
            for kind, client in self.clients.items():
                moved |= self.read_one(kind)
                moved |= self.send_one(kind)
                if client.to_client:
                    client.read(refuse=False)
                    moved = True
            if not moved:
                return
        raise AssertionError("the streams never come to rest")

    def teardown(self) -> None:
        if self.sessions:
            self.settle_and_compare()


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of three resources, so that paging happens."""
    monkeypatch.setattr(shared, "PAGE_RESOURCES", PAGE)
    monkeypatch.setattr(shared, "MIN_NAMES", 1)
    monkeypatch.setattr(shared, "PUSH_NAMES", PAGE)


TestSession = World.TestCase
TestSession.settings = settings(max_examples=4000 if LONG else 250, stateful_step_count=60, deadline=None)
