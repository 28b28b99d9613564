"""Any interleaving of requests, answers, changes, reconnects and changes of view ends with exactly the current state.

On the way no response is without a reason, ahead of what it refers to, or out while another one is; see `xds_world`.
Hypothesis finds and shrinks in CI; XDSBPF_LONG=1 runs 100,000 more cases by seed. `run_case(SEED, ...)` repeats one.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.conftest import LONG
from tests.property.xds_checks import PAGE
from tests.property.xds_client import STAR
from tests.property.xds_world import World
from tests.xds.mutation import Edit
from tests.xds.resources import CDS, RDS
from xdsbpf.xds import shared
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.guard import ClusterGuard
from xdsbpf.xds.interest import Interest
from xdsbpf.xds.response import Page
from xdsbpf.xds.session import Session
from xdsbpf.xds.sotw import SotwSession
from xdsbpf.xds.store import Batch
from xdsbpf.xds.subscription import Subscription

STEPS = 60
CASES = int(os.environ.get("XDSBPF_CASES", "100000" if LONG else "300"))
SOON = 3000
"""Cases within which a broken session is seen; most are within the first ten."""


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that paging happens, and that streams share pages."""
    monkeypatch.setattr(shared, "PAGE_RESOURCES", PAGE)
    monkeypatch.setattr(shared, "MIN_NAMES", 1)
    monkeypatch.setattr(shared, "PUSH_NAMES", PAGE)


class DeltaMachine(RuleBasedStateMachine):
    is_delta = True

    def __init__(self) -> None:
        super().__init__()
        self.world = World(is_delta=self.is_delta)

    @rule(rng=st.randoms(use_true_random=False))
    def step(self, rng: random.Random) -> None:
        self.world.step(rng)

    def teardown(self) -> None:
        self.world.settle_and_compare(random.Random(0))


class SotwMachine(DeltaMachine):
    is_delta = False


TestDelta = DeltaMachine.TestCase
TestSotw = SotwMachine.TestCase
TestDelta.settings = TestSotw.settings = settings(
    max_examples=1000 if LONG else 30, stateful_step_count=STEPS, deadline=None, derandomize=True
)


def run_case(seed: int, *, is_delta: bool) -> Counter[str]:
    """One interleaving; what happened in it."""
    rng = random.Random(seed)
    world = World(is_delta=is_delta)
    for _ in range(STEPS):
        world.step(rng)
    world.settle_and_compare(rng)
    return world.events


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("is_delta", [True, False], ids=["delta", "sotw"])
def test_random_interleavings_end_with_the_current_state(
    is_delta: bool, record_property: Callable[[str, object], None]
) -> None:
    events: Counter[str] = Counter()
    for seed in range(CASES):
        try:
            events += run_case(seed, is_delta=is_delta)
        except AssertionError as error:
            raise AssertionError(f"run_case({seed}, is_delta={is_delta}): {error}") from error
    record_property("events", dict(events))
    print(f"{CASES} cases: {dict(events)}")
    assert events["responses"] > 5 * CASES
    assert events["refused"] > CASES / 10


class Broken(msgspec.Struct, frozen=True):
    """A session broken by an edit, and the property that it loses."""

    breaks: str
    edit: Edit
    says: str
    is_delta: bool = True


BROKEN = (
    Broken(
        "deletions are not sent",
        Edit(DeltaSession, "_next_removal", "self._may_leave(subscription, later)", "()"),
        "holds",
    ),
    Broken(
        "claims of what is gone are forgotten",
        Edit(
            DeltaSession,
            "_take_claims",
            "if current is None:",
            "if current is None:\n            continue\n        if False:",
        ),
        "holds",
    ),
    Broken(
        "a wildcard hears of nothing",
        Edit(Interest, "_audiences_of", "if type_url in self._of_all)", "if False)"),
        "holds",
    ),
    Broken(
        "another view hears of what the one before had",
        Edit(Interest, "move", "for scope in after:", "for scope in before:"),
        "holds",
    ),
    Broken(
        "another view changes nothing",
        Edit(Session, "change_view", "subscription.mark(name, self._stamp)", "pass"),
        "holds",
    ),
    Broken(
        "what came with a refused resource is not sent again",
        Edit(DeltaSession, "_later_request", "for name in others if self._quarantine else ():", "for name in ():"),
        "holds",
    ),
    Broken(
        "a refused resource is sent again",
        Edit(DeltaSession, "_later_request", "for name in others if", "for name in sent.versions if"),
        "was refused, and is sent again",
    ),
    Broken(
        "an answer comes on its page as well",
        Edit(Subscription, "force", "self.unfold_backlog()", "pass"),
        "twice for one change",
    ),
    Broken(
        "changes do not wait for the ACK",
        Edit(DeltaSession, "_next_update", "and not subscription.in_flight and ", "and "),
        "sent while a response is out",
    ),
    Broken(
        "types are sent in no order",
        Edit(Session, "_insert", "_RANK.get(item[0], len(_RANK))", "-_RANK.get(item[0], len(_RANK))"),
        "was not sent before",
    ),
    Broken(
        "a removal waits for nothing",
        Edit(Session, "_may_leave", "default=self._stamp + 1)", "default=0) * 0 + self._stamp + 1"),
        "leaves before the routes",
    ),
    Broken(
        "routes do not wait for their clusters",
        Edit(ClusterGuard, "holds_back", "if not missing:", "if True:"),
        "go before their cluster",
    ),
    Broken(
        "a cluster that went while the client was away leaves at once",
        Edit(
            DeltaSession,
            "_take_claims",
            "subscription.remove(name, self._stamp)",
            "subscription.force(name, self._stamp)",
        ),
        "leaves before the routes",
    ),
    Broken(
        "what was claimed in an older version keeps clusters for ever",
        Edit(ClusterGuard, "took", "subscription.unknown_uses.difference_update(uses)", "pass"),
        "holds",
    ),
    Broken("endpoints do not follow", Edit(Session, "_owe", "if not wanted:", "if True:"), "do not follow"),
    Broken("pages have no limit", Edit(Page, "fits", "return self._whole or", "return True or"), "more than a page"),
    Broken(
        "a refused resource stays in the set",
        Edit(SotwSession, "_is_wanted", "return nack.version", "return True or nack.version"),
        "was refused, and is sent again",
        is_delta=False,
    ),
    Broken(
        "a set without a refused resource is not sent",
        Edit(SotwSession, "_refuse", "subscription.mark(name, self._stamp)", "pass"),
        "holds",
        is_delta=False,
    ),
    Broken(
        "a client of another stream loses what it refuses",
        Edit(SotwSession, "_first_request", "subscription.accepted = None", "pass"),
        "was not sent before",
        is_delta=False,
    ),
    Broken(
        "any version spares the whole set",
        Edit(SotwSession, "_first_request", "if content_version(state.values()) == request.version:", "if True:"),
        "holds",
        is_delta=False,
    ),
    Broken(
        "an older stream keeps clusters for ever",
        Edit(ClusterGuard, "took", "subscription.unknown_uses.difference_update(uses)", "pass"),
        "holds",
        is_delta=False,
    ),
    Broken(
        "what was refused may go on as removed",
        Edit(SotwSession, "_next_removal", "if subscription.state.keys().isdisjoint(leaving):", "if not leaving:"),
        "the set twice for one change",
        is_delta=False,
    ),
    Broken(
        "a whole set is sent for any change",
        Edit(SotwSession, "_next_state", "if not is_due or (", "if False and ("),
        "the set twice for one change",
        is_delta=False,
    ),
    Broken(
        "a second response goes without the ACK",
        Edit(SotwSession, "_next_update", "if subscription.in_flight:", "if False:"),
        "a second response without an ACK",
        is_delta=False,
    ),
)


@pytest.mark.parametrize("broken", BROKEN, ids=[broken.breaks for broken in BROKEN])
def test_a_broken_session_is_seen(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken.edit.owner, broken.edit.name, broken.edit.apply())
    seen: Counter[str] = Counter()
    for seed in range(SOON):
        try:
            run_case(seed, is_delta=broken.is_delta)
        except AssertionError as error:
            if broken.says in str(error):
                return
            seen[str(error)] += 1
    raise AssertionError(f"not seen in {SOON} cases, but {seen.most_common(3)}")


def a_wildcard_given_up_and_taken_back(*, is_read: bool) -> World:
    """Routes use a cluster, the client gives up all clusters and takes them back, and the routes change."""
    world = World(is_delta=True)
    world.client.subscribe(RDS, "b")
    world.apply(Batch("all", (world.fresh(CDS, "a", ""), world.fresh(RDS, "b", "a"))))
    world.settle()
    world.client.unsubscribe(CDS, STAR)
    world.client.subscribe(CDS, STAR)
    while is_read and world.read_one():
        pass
    world.apply(Batch("all", (world.fresh(RDS, "b", "a"),)))
    return world


def test_routes_may_go_before_their_cluster_only_while_the_server_has_not_read_that_it_was_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unread = a_wildcard_given_up_and_taken_back(is_read=False)
    assert unread.send_one(), "the routes: what is on its way no server can know"
    read = a_wildcard_given_up_and_taken_back(is_read=True)
    assert read.send_one(), "the cluster"
    assert not read.send_one()
    edit = Edit(Subscription, "unsubscribe", "self.forget(name)", "self.forced.pop(name, None)")
    monkeypatch.setattr(edit.owner, edit.name, edit.apply())
    broken = a_wildcard_given_up_and_taken_back(is_read=True)
    assert broken.send_one()
    with pytest.raises(AssertionError, match="go before their cluster a"):
        broken.send_one()


def a_route_leaves_a_cluster_that_is_asked_for_by_name(target: str) -> World:
    """The cluster `a` goes with the change that moves the routes to `target`; `c` is there."""
    world = World(is_delta=True)
    world.client.subscribe(CDS, "a")
    world.client.subscribe(RDS, "b")
    world.settle()
    world.apply(Batch("all", (world.fresh(CDS, "a", ""), world.fresh(CDS, "c", ""), world.fresh(RDS, "b", "a"))))
    world.settle()
    world.apply(Batch("all", (world.fresh(RDS, "b", target),), ((CDS, "a"),)))
    return world


def test_a_cluster_asked_for_by_name_may_leave_only_before_routes_that_wait_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = a_route_leaves_a_cluster_that_is_asked_for_by_name("c")
    assert world.send_one(), "the routes"
    assert not world.send_one()
    edit = Edit(Session, "_may_leave", "default=self._stamp + 1)", "default=0) * 0 + self._stamp + 1")
    monkeypatch.setattr(edit.owner, edit.name, edit.apply())
    waiting = a_route_leaves_a_cluster_that_is_asked_for_by_name("b")
    assert waiting.send_one(), "the removal: `b` is not there, and so the routes wait"
    broken = a_route_leaves_a_cluster_that_is_asked_for_by_name("c")
    assert broken.send_one()
    with pytest.raises(AssertionError, match="cluster a leaves before the routes b"):
        broken.send_one()
