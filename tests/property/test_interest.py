"""Whoever a change concerns is among those that the index finds, whatever was asked, given up, or closed before.

Many streams of both variants over one index: wildcards, names, globs, collections, virtual hosts by alias, claims,
shared questions and names of their own, views that change. With each change all sessions are asked, which is what the
index spares, and in the end about every name in every scope.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter

import pytest

from tests.conftest import LONG
from tests.xds.mutation import Edit
from xdsbpf.model.names import CLUSTER, ENDPOINTS, ROUTES, VIRTUAL_HOST
from xdsbpf.model.resource import make_resource
from xdsbpf.xds import interest, shared
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.interest import Interest, Listening
from xdsbpf.xds.protocol import RUNTIME
from xdsbpf.xds.request import DeltaRequest, SotwRequest
from xdsbpf.xds.session import Session
from xdsbpf.xds.sotw import SotwSession
from xdsbpf.xds.store import ENVOY, Batch, Key, ResourceStore, View
from xdsbpf.xds.subscription import Subscription

CASES = int(os.environ.get("XDSBPF_CASES", "5000" if LONG else "200"))
STEPS = 100
SOON = 200
"""Cases within which a broken index is seen."""

TYPES = (CLUSTER, ENDPOINTS, ENDPOINTS, ROUTES, VIRTUAL_HOST, RUNTIME, "type.googleapis.com/unheard.of")
PATH = "xdstp://authority/type/path"
NAMES = ("a", "b", "c", "d", "web/a", "web/b", f"{PATH}/a", f"{PATH}/b?x=1&y=2")
QUESTIONS = ("*", "web/*", f"{PATH}/*", f"{PATH}/*?y=2&x=1", *NAMES, *NAMES)
SCOPES = ("mesh", "blue", "green", "node/1")
VIEWS = (("mesh",), ("mesh", "blue"), ("blue", "mesh", "node/1"), ("green",))


@pytest.fixture(autouse=True)
def small_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that streams share questions of two names, and not many of them."""
    monkeypatch.setattr(shared, "MIN_NAMES", 2)
    monkeypatch.setattr(interest, "_SETS_AT_MOST", 2)


class Crowd:
    """Sessions over one index, and what they would have been told without it."""

    def __init__(self) -> None:
        self.store = ResourceStore()
        self.interest = Interest[Session]()
        self.sessions: list[Session] = []
        self.serial = 0
        self.events: Counter[str] = Counter()

    def step(self, rng: random.Random) -> None:
        actions = (self.open, self.ask, self.ask, self.ask, self.ask, self.change, self.change, self.move, self.close)
        rng.choice(actions)(rng)

    def open(self, rng: random.Random) -> None:
        kind = rng.choice((DeltaSession, SotwSession))
        view = View(rng.choice(VIEWS), "", ENVOY)
        self.sessions.append(kind(view, self.store, interest=self.interest))

    def close(self, rng: random.Random) -> None:
        if len(self.sessions) > 3:
            self.sessions.pop(rng.randrange(len(self.sessions))).close()

    def move(self, rng: random.Random) -> None:
        if self.sessions:
            rng.choice(self.sessions).change_view(View(rng.choice(VIEWS), "", ENVOY))

    def ask(self, rng: random.Random) -> None:
        if not self.sessions:
            return
        session, type_url = rng.choice(self.sessions), rng.choice(TYPES)
        asked = tuple(rng.sample(NAMES[:4], rng.choice((2, 3, 4))) if rng.random() < 0.4 else self.question(rng))
        found = next((each for each in session.subscriptions() if each.type_url == type_url), None)
        nonce = "" if found is None else found.last_nonce
        if isinstance(session, SotwSession):
            nonce = nonce if rng.random() < 0.9 else "stale"
            session.on_request(SotwRequest(type_url, asked, rng.choice(("", "1")), nonce))
        else:
            gone = self.question(rng) if rng.random() < 0.6 else ()
            if found is not None and rng.random() < 0.3:
                gone = tuple(found.names)
            claims = dict.fromkeys(asked, "1") if found is None and rng.random() < 0.3 else {}
            session.on_request(DeltaRequest(type_url, asked, gone, claims, nonce))
        session.poll()

    def question(self, rng: random.Random) -> tuple[str, ...]:
        return tuple(dict.fromkeys(rng.choices(QUESTIONS, k=rng.choice((0, 1, 2, 3)))))

    def change(self, rng: random.Random) -> None:
        """One change of some names in some scopes: who is concerned is found."""
        self.serial += 1
        batches = []
        for scope in rng.sample(SCOPES, rng.choice((1, 1, 2))):
            keys: set[Key] = {(rng.choice(TYPES), rng.choice(NAMES)) for _ in range(rng.choice((1, 1, 3, 5)))}
            puts = tuple(make_resource(*key, str(self.serial).encode()) for key in sorted(keys) if rng.random() < 0.7)
            gone = tuple(sorted(keys - {(item.type_url, item.name) for item in puts}))
            batches.append(Batch(scope, puts, gone))
        changes = self.store.apply_all(batches)
        heard = self.interest.heard_by(changes.by_scope)
        for session in self.sessions:
            is_concerned = session.on_changes(changes)
            assert session in heard or not is_concerned, f"{session.view} is not told of {changes.by_scope}"
            self.events["told", is_concerned, session in heard] += 1
            session.poll()

    def compare(self) -> None:
        """Every name in every scope, without a change."""
        for scope in SCOPES:
            for type_url in TYPES:
                for name in NAMES:
                    heard = self.interest.heard_by({scope: ((type_url, name),)})
                    for session in self.sessions:
                        found = next((each for each in session.subscriptions() if each.type_url == type_url), None)
                        is_concerned = scope in session.view.scopes and found is not None and found.covers(name)
                        assert session in heard or not is_concerned, f"{session.view} is not told of {name}"
                        assert scope in session.view.scopes or session not in heard, "woken by another's scope"

    def is_empty(self) -> bool:
        index = self.interest
        tables = (index._named, index._shared, index._of_all, index._in_scope, index._members, index._sharers)
        return not any(tables)


def run_case(seed: int) -> Counter[str]:
    rng = random.Random(seed)
    crowd = Crowd()
    for _ in range(4):
        crowd.open(rng)
    for _ in range(STEPS):
        crowd.step(rng)
    crowd.compare()
    for session in crowd.sessions:
        session.close()
    assert crowd.is_empty(), "something is kept of streams that are gone"
    return crowd.events


def run_cases(count: int) -> Counter[str]:
    events: Counter[str] = Counter()
    for seed in range(count):
        try:
            events += run_case(seed)
        except AssertionError as error:
            raise AssertionError(f"run_case({seed}): {error}") from error
    return events


def test_whoever_a_change_concerns_is_told() -> None:
    events = run_cases(CASES)
    concerned, spared, in_vain = (events["told", *each] for each in ((True, True), (False, False), (False, True)))
    print(f"{CASES} cases: {concerned} told, {spared} spared, {in_vain} told in vain")
    assert concerned > 5 * CASES
    assert spared > concerned
    assert in_vain < concerned / 4, "some have given up a name that others still share with them"


NOT_TOLD, KEPT, OTHERS = "is not told of", "something is kept", "woken by another's scope"
BROKEN = [
    ("no wildcard", Edit(Listening, "hear_all", "if hears != self._hears_all:", "if False:"), NOT_TOLD),
    ("no glob", Edit(Session, "on_request", " or bool(subscription.globs)", ""), NOT_TOLD),
    ("no name of one's own", Edit(Interest, "put", "names = self._named", "names = {}\n    _ = self._named"), NOT_TOLD),
    ("no second one for a name", Edit(Interest, "put", "insort(entry, number)", "pass"), NOT_TOLD),
    ("no shared name", Edit(Interest, "share", "self.put(type_url, name, shared)", "pass"), NOT_TOLD),
    ("no second sharer", Edit(Interest, "share", "self._sharers[shared].add(number)", "pass"), NOT_TOLD),
    ("no name behind a shared set", Edit(Subscription, "_add_name", "self.listening.add(name, own)", "pass"), NOT_TOLD),
    ("no name of a set that was given up", Edit(Listening, "_part", "& names:", "& set():"), NOT_TOLD),
    ("no other view", Edit(Interest, "move", "for scope in after:", "for scope in before:"), NOT_TOLD),
    ("any scope", Edit(Interest, "heard_by", "present & audience", "audience"), OTHERS),
    ("one scope of several", Edit(Interest, "move", "in after:", "in tuple(after)[:1]:"), NOT_TOLD),
    ("all but one", Edit(Interest, "heard_by", "sorted(found)", "sorted(found)[1:]"), NOT_TOLD),
    ("what is gone", Edit(Interest, "leave", "self.move(number, scopes, ())", "pass"), KEPT),
]


@pytest.mark.parametrize(("edit", "says"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_an_index_that_forgets_is_seen(edit: Edit, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By who is not told, not because it stumbles over what it forgot."""
    monkeypatch.setattr(edit.owner, edit.name, edit.apply())
    remove = Interest.remove

    def remove_if_there(index: Interest[Session], type_url: str, name: str, number: int) -> None:
        with contextlib.suppress(KeyError, IndexError, AssertionError):
            remove(index, type_url, name, number)

    monkeypatch.setattr(Interest, "remove", remove_if_there)
    with pytest.raises(AssertionError, match=says):
        run_cases(SOON)
