"""Over a stream per type no route of an Envoy ever names a cluster that is not warm, whatever the order of events."""

from __future__ import annotations

import os
import random

import pytest

from tests.conftest import LONG
from tests.property.siblings_world import SiblingsWorld
from tests.xds.mutation import Edit
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.guard import ClusterGuard
from xdsbpf.xds.siblings import Siblings
from xdsbpf.xds.warming import Warming

STEPS = 120
CASES = int(os.environ.get("XDSBPF_CASES", "3000" if LONG else "200"))
SOON = 400
"""Cases within which a broken link is seen."""


def run_cases(count: int, *, is_delta: bool) -> None:
    """The cases from 0 on; fails with the first that does."""
    for seed in range(count):
        rng = random.Random(seed)
        world = SiblingsWorld(is_delta=is_delta)
        try:
            for _ in range(STEPS):
                world.step(rng)
            world.settle_and_compare(rng)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("is_delta", [True, False], ids=["delta", "sotw"])
def test_no_route_names_a_cluster_that_is_not_warm_and_all_arrives(is_delta: bool) -> None:
    run_cases(CASES, is_delta=is_delta)


NOT_WARM, NOT_THERE = "name clusters that are not warm", "did not arrive"
_MET = "has_warmed |= need.streams.setdefault(subscription, True) and self._is_met(subscription.type_url, name, need)"
BROKEN = [
    ("what is accepted is warm", Edit(Warming, "reason", "if found is None:", "if True:"), NOT_WARM),
    ("what is asked for is there", Edit(Warming, "heard", "need.streams[subscription] = False", _MET), NOT_WARM),
    ("what others use may go", Edit(ClusterGuard, "users_elsewhere", "self._siblings.users()", "()"), NOT_WARM),
    ("who is away uses nothing", Edit(Siblings, "_remember", "uses = dict(subscription.uses)", "return"), NOT_WARM),
    (
        "no clusters, no wait",
        Edit(ClusterGuard, "_unsettled_elsewhere", "if not siblings.clusters():", "if 0:"),
        NOT_WARM,
    ),
    ("routes are not woken", Edit(Siblings, "clusters_moved", "wake()", "pass"), NOT_THERE),
    ("clusters are not woken", Edit(Siblings, "uses_changed", "wake()", "pass"), NOT_THERE),
]


@pytest.mark.parametrize("is_delta", [True, False], ids=["delta", "sotw"])
@pytest.mark.parametrize(("edit", "says"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_link_is_seen(edit: Edit, says: str, is_delta: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit.owner, edit.name, edit.apply())
    with pytest.raises(AssertionError, match=says):
        run_cases(SOON, is_delta=is_delta)


_AT_ONCE = "subscription.force(name, self._stamp)"


@pytest.mark.parametrize(
    ("edit", "is_delta"),
    [
        (Edit(DeltaSession, "_take_claims", "subscription.remove(name, self._stamp)", _AT_ONCE), True),
        (Edit(Siblings, "clusters_left", "return next(", "return None and next("), False),
    ],
    ids=["delta", "sotw"],
)
def test_clusters_that_go_at_once_when_their_stream_is_back_are_seen(
    edit: Edit, is_delta: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit.owner, edit.name, edit.apply())
    with pytest.raises(AssertionError, match=NOT_WARM):
        run_cases(SOON, is_delta=is_delta)
