"""A store, one stream and a model client, every hop a step of its own: what must hold of any interleaving.

In: a source of random choices, which hypothesis can shrink or a seed can repeat. Out: assertion errors. The world looks
at the messages alone, never into the session.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator

from tests.property.xds_checks import Checks
from tests.property.xds_client import NAMES, STAR, TYPES, WILD, DeltaClient, ModelClient, Sent, SotwClient
from tests.property.xds_stream import Stream
from tests.xds.resources import BUILDERS, CDS, EDS, LDS, RDS
from tests.xds.wire import Response, decode
from xdsbpf.model.resource import Resource, make_resource
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.interest import Interest
from xdsbpf.xds.request import decode_delta, decode_sotw
from xdsbpf.xds.session import Session
from xdsbpf.xds.sotw import SotwSession
from xdsbpf.xds.store import ENVOY, Batch, ResourceStore, View

VIEWS = (View(("all", "blue"), "", ENVOY), View(("all", "green"), "", ENVOY))
SCOPES = ("all", "all", "blue", "green")


class World(Checks):
    """`events` counts what has happened."""

    def __init__(self, *, is_delta: bool) -> None:
        self.is_delta = is_delta
        self.store = ResourceStore()
        self.interest = Interest[Session]()
        self.client: ModelClient = DeltaClient() if is_delta else SotwClient()
        self.nonces: Iterator[int] = itertools.count(1)
        self.edition_of: dict[tuple[str, str], int] = {}
        """(type URL, version)"""
        self.edition = 0
        self.gone_since: dict[str, int] = {}
        """Clusters that are not there -> the last edition before they went."""
        self.target: dict[int, str] = {}
        """Edition -> the cluster that routes use, or the routes of a listener."""
        self.made_at: dict[int, float] = {}
        self.view = VIEWS[0]
        self.now = 0.0
        self.events: Counter[str] = Counter()
        self.stream = self._connect(TYPES)

    def step(self, rng: random.Random) -> None:
        """One event, whichever."""
        actions: tuple[tuple[int, Callable[[random.Random], None]], ...] = (
            (6, self.change),
            (3, self.subscribe),
            (2, self.unsubscribe),
            (8, self.server_reads),
            (8, self.server_sends),
            (8, self.client_reads),
            (1, self.reconnect),
            (1, self.switch),
            (1, self.change_view),
            (1, self.settle_and_compare),
        )
        action = rng.choices([each for _, each in actions], [weight for weight, _ in actions])[0]
        self.events[action.__name__] += 1
        action(rng)

    # What may happen

    def change(self, rng: random.Random) -> None:
        """Resources come, change and go, as one change, in one scope or in several."""
        batches = []
        for scope in dict.fromkeys(rng.choice(SCOPES) for _ in range(rng.choice((1, 1, 2)))):
            keys = {(rng.choice(TYPES), rng.choice(NAMES)) for _ in range(rng.choice((1, 2, 4)))}
            puts = tuple(self.fresh(*key, rng.choice(NAMES)) for key in sorted(keys) if rng.random() < 0.7)
            gone = tuple(sorted(keys - {(item.type_url, item.name) for item in puts}))
            batches.append(Batch(scope, puts, gone))
        self.apply(*batches)

    def switch(self, rng: random.Random) -> None:
        """Routes go over to another cluster, and the one before goes."""
        name, before, after = rng.choice(NAMES), *rng.sample(NAMES, 2)
        self.apply(
            Batch("all", tuple(self.fresh(type_url, each, before) for type_url, each in ((RDS, name), (CDS, before))))
        )
        self.server_sends(rng)
        self.apply(Batch("all", (self.fresh(RDS, name, after),), ((CDS, before),)))

    def subscribe(self, rng: random.Random) -> None:
        type_url = rng.choice(TYPES)
        name = STAR if type_url in WILD and rng.random() < 0.2 else rng.choice(NAMES)
        self.client.subscribe(type_url, name)

    def unsubscribe(self, rng: random.Random) -> None:
        type_url = rng.choice(TYPES)
        state = self.client.types[type_url]
        names = sorted(state.asked.names)
        if state.asked.wild and state.is_open and (self.is_delta or not state.is_legacy) and rng.random() < 0.3:
            names.append(STAR)
        if state.is_open and names:
            self.client.unsubscribe(type_url, rng.choice(names))

    def server_reads(self, rng: random.Random) -> None:
        for _ in range(rng.choice((1, 1, 5))):
            self.read_one()

    def server_sends(self, rng: random.Random) -> None:
        for _ in range(rng.choice((1, 1, 5))):
            self.send_one()

    def client_reads(self, rng: random.Random) -> None:
        refusable = self.client.refusable()
        if not self.client.to_client:
            return
        if refusable and rng.random() < 0.3:
            blamed = tuple(rng.sample(refusable, rng.randrange(1, len(refusable) + 1)))
            self.events["refused"] += 1
            self.client.read(blamed, is_strict=rng.random() < 0.5, says_names=rng.random() < 0.8)
        else:
            self.client.read()

    def reconnect(self, rng: random.Random) -> None:
        """The client claims what it holds; the server remembers nothing."""
        self.view = rng.choice((self.view, *VIEWS))
        self.stream.session.close()
        self.stream = self._connect(tuple(rng.sample(TYPES, len(TYPES))))

    def change_view(self, rng: random.Random) -> None:
        self.view = VIEWS[1 - VIEWS.index(self.view)]
        self.stream.session.change_view(self.view)
        self._note_what_went()

    def settle_and_compare(self, rng: random.Random) -> None:
        """Everything arrives: what was not refused is in force, and after a repair of the refused ones all is."""
        self.settle()
        for type_url in TYPES:
            if type_url not in self.stream.frozen:
                self.compare(type_url, without_refused=True)
        repairs = [
            self.fresh(type_url, name, rng.choice(NAMES))
            for type_url in TYPES
            for name, edition in sorted(self.current(type_url).items())
            if edition in self.client.types[type_url].refused.get(name, ())
        ]
        self.apply(Batch(self.view.scopes[-1], tuple(repairs)))
        self.settle()
        for type_url in TYPES:
            if type_url not in self.stream.frozen:
                self.compare(type_url, without_refused=False)
        owed = self.stream.owed & self.asked(EDS).names
        assert not {name for name in owed if name in self.current(EDS)}, f"endpoints do not follow {owed}"

    # How it happens

    def _connect(self, order: tuple[str, ...]) -> Stream:
        kind = DeltaSession if self.is_delta else SotwSession
        session: Session = kind(
            self.view, self.store, nonces=self.nonces, clock=lambda: self.now, interest=self.interest
        )
        self.client.open(order)
        return Stream(session)

    def fresh(self, type_url: str, name: str, target: str) -> Resource:
        """A resource with content that has never been; `target` is what it refers to, if its type does."""
        edition = self.edition = self.edition + 1
        refers_to = {RDS: {"to": target}, LDS: {"route": target}}.get(type_url, {})
        served = BUILDERS[type_url](name, edition, **refers_to)
        self.target[edition], self.made_at[edition] = target, self.now
        resource = make_resource(type_url, name, served.message.SerializeToString(deterministic=True))
        self.edition_of[type_url, resource.version] = edition
        return resource

    def apply(self, *batches: Batch) -> None:
        changes = self.store.apply_all(batches)
        for session in self.interest.heard_by(changes.by_scope):
            self.events["heard"] += 1
            session.on_changes(changes)
        self._note_what_went()

    def _note_what_went(self) -> None:
        """What is not there any more is new when it comes back, though no response has said that it went."""
        for type_url in TYPES:
            gone = set(NAMES) - self.current(type_url).keys()
            self.stream.gone[type_url] |= gone
            for name in gone & self.stream.refused[type_url].keys():
                del self.stream.refused[type_url][name]
        there = self.current(CDS)
        self.gone_since = {name: self.gone_since.get(name, self.edition) for name in NAMES if name not in there}

    def read_one(self) -> bool:
        """The server takes one request."""
        if not self.client.to_server:
            return False
        request = self.client.to_server.popleft()
        self.stream.session.on_request((decode_delta if self.is_delta else decode_sotw)(request.raw))
        is_current = request.is_first or request.nonce == self.stream.nonce.get(request.type_url, "")
        if self.is_delta or is_current:
            self.note_request(request)
        else:  # it crossed a response: of its names only those count that it gives up
            before, crossed = self.asked(request.type_url), self.stream.crossed[request.type_url]
            crossed |= {name for name in NAMES if before.covers(name) and not request.asked.covers(name)}
        return True

    def note_request(self, request: Sent) -> None:
        """What the server may and must do from now on."""
        stream, type_url, claims = self.stream, request.type_url, request.claims
        before = self.asked(type_url)
        stream.asked[type_url] = request.asked
        lost = stream.crossed.pop(type_url) - self.note_answer(request)
        stream.crossed[type_url] = set()
        if request.is_first and not request.version:
            stream.knows_accepted.add(type_url)
        due, current = stream.due[type_url], self.current(type_url)
        if self.is_delta:
            outdated = {name for name in current.keys() & claims if claims[name] != current[name]}
            stream.unknown[type_url] |= {name: claims[name] for name in outdated}
            due |= set(NAMES) if STAR in request.subscribed else request.subscribed - claims.keys()
            gone = claims.keys() - current.keys()
            due |= gone & request.asked.names if type_url == CDS else gone
            due |= {name for name in before.names - request.asked.names if request.asked.wild}
            given = {name: edition for name, edition in claims.items() if request.asked.covers(name)}
            stream.given[type_url].update(given)
        else:
            is_back, is_whole = request.is_first and bool(request.version), self.client.is_whole(type_url)
            if is_back and is_whole and claims == current and not request.asked.names:
                stream.given[type_url] = dict(claims)  # the version was equal, and spared a response
                stream.taken[type_url] = dict(claims)
                stream.knows_accepted.add(type_url)
            elif is_back:
                unknown = {STAR} if is_whole else request.asked.names & current.keys()
                stream.unknown[type_url] = dict.fromkeys(unknown, 0)
            due |= (request.asked.names - before.names) | lost
            due |= set(NAMES) if request.asked.wild and not before.wild else set()
            stream.is_due[type_url] |= request.is_first or request.asked != before or bool(lost)
        for name in NAMES:
            if name in lost or not request.asked.covers(name):
                for book in (stream.given, stream.taken, stream.refused):
                    book[type_url].pop(name, None)
            if not request.asked.covers(name):
                due.discard(name)
                stream.unknown[type_url].pop(name, None)

    def note_answer(self, request: Sent) -> set[str]:
        """An ACK or a NACK: what came with a refused resource may come again, and it may not.

        Returns what was taken.
        """
        stream, type_url = self.stream, request.type_url
        waiting = stream.unanswered[type_url]
        answered = next((sent for sent in waiting if sent.nonce == request.nonce), None)
        if answered is None:
            return set()
        del waiting[: waiting.index(answered) + 1]
        if request.accused is None:
            stream.knows_accepted.add(type_url)
            stream.frozen.discard(type_url)
            for name in (*answered.holds, STAR):
                stream.unknown[type_url].pop(name, None)
            stream.taken[type_url] = answered.holds
            return set(answered.holds)
        if self.client.is_whole(type_url) and type_url not in stream.knows_accepted:
            stream.frozen.add(type_url)
        else:
            given = stream.given[type_url]
            fresh = {name: edition for name, edition in answered.holds.items() if given.get(name) == edition}
            stream.withheld |= {(type_url, fresh[name]) for name in fresh if name in request.accused}
            if request.is_certain or not self.client.is_whole(type_url):
                stream.refused[type_url].update({name: fresh[name] for name in fresh if name in request.accused})
            stream.due[type_url] |= fresh.keys() - request.accused
            stream.is_due[type_url] = True
            if self.client.is_whole(type_url):
                stream.given[type_url] = dict(stream.taken[type_url])
        return set()

    def send_one(self) -> bool:
        """The server sends one response, if it has one."""
        response = self.stream.session.next_response()
        if response is None:
            return False
        raw = self.stream.session.encode(response)
        sent = decode(raw, self.client.variant)
        self.check_pacing(sent)
        self.check_reasons(sent)
        self.check_order(sent)
        self.note_response(sent)
        self.client.to_client.append(raw)
        self.events["responses"] += 1
        return True

    def settle(self) -> None:
        for _ in range(10_000):
            moved = self.read_one() | self.send_one()
            if self.client.to_client:
                self.client.read()
                moved = True
            if not moved and self.stream.session.wake_at is not None:
                self.now, moved = self.stream.session.wake_at, True
            if not moved:
                return
        raise AssertionError("the stream never comes to rest")

    def note_response(self, sent: Response) -> None:
        stream, type_url = self.stream, sent.type_url
        changed = {name for name, edition in sent.holds.items() if stream.given[type_url].get(name) != edition}
        if self.client.is_whole(type_url):
            stream.given[type_url] = {}
            stream.is_due[type_url] = False
        for name in changed:
            if self.current(type_url).get(name) == sent.holds[name]:  # else it stands in for what was refused
                stream.refused[type_url].pop(name, None)
        stream.given[type_url].update(sent.holds)
        for name in sent.removed:
            stream.given[type_url].pop(name, None)
            stream.unknown[type_url].pop(name, None)
        stream.due[type_url] -= {*sent.holds, *sent.removed}
        stream.gone[type_url] -= sent.holds.keys()
        stream.unanswered[type_url].append(sent)
        stream.nonce[type_url] = sent.nonce
        if type_url == CDS:
            state = self.client.types[CDS]
            held = {} if self.is_delta else state.held  # what stands in for a refused one is not new
            stream.owed |= {name for name in changed if state.asked.covers(name) and held.get(name) != sent.holds[name]}
            stream.due[EDS] |= set(sent.holds)
        elif type_url == EDS:
            stream.owed -= {*sent.holds, *sent.removed}
