"""A real Envoy under load while everything around it changes: no request fails, and no cluster warms for long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import LONG
from tests.envoy.load_rig import Rig, Step, running
from tests.envoy.web_resources import endpoints
from tests.xds.wire import ADS, PER_TYPE, Variant
from xdsbpf.model.names import CLUSTER, ENDPOINTS
from xdsbpf.xds import streams
from xdsbpf.xds.guard import ClusterGuard
from xdsbpf.xds.session import Session
from xdsbpf.xds.transports import TRANSPORTS

pytestmark = pytest.mark.envoy

RECEIVED = "cluster.xds.upstream_cx_rx_bytes_total"
"""What Envoy has read from its control planes, HTTP/2 included."""


async def clusters_change(rig: Rig) -> None:
    """Rule 33: without its endpoints sent again, each change would stall."""
    for edition in (2, 3):
        rig.put(rig.web.cluster("a", edition), rig.web.cluster("z", edition))
        await rig.synced()


async def endpoints_move(rig: Rig) -> None:
    for server in ("two", "one"):
        rig.put(endpoints("a", rig.servers.ports[server]))
        await rig.answered_by("web", server)
        await rig.synced()


async def routes_switch_and_the_old_cluster_goes(rig: Rig) -> None:
    """Rule 32: the new cluster is there before, the old one goes with the switch, in one write."""
    for old, new, server in (("a", "b", "two"), ("b", "a", "one")):
        rig.put(rig.web.cluster(new), endpoints(new, rig.servers.ports[server]))
        await rig.synced()
        routes = rig.web.routes({"web": new, "db": "z"})
        gone = ((CLUSTER, old), (ENDPOINTS, old))
        rig.put(routes, removes=gone)
        await rig.answered_by("web", server)
        await rig.synced()


async def a_new_cluster_comes_with_its_route(rig: Rig) -> None:
    """Rule 38: in one write, while the host is asked for."""
    for old, new, server in (("a", "n", "two"), ("n", "a", "one")):
        routes = rig.web.routes({"web": new, "db": "z"})
        rig.put(rig.web.cluster(new), endpoints(new, rig.servers.ports[server]), routes)
        await rig.answered_by("web", server)
        await rig.synced()
        rig.put(removes=((CLUSTER, old), (ENDPOINTS, old)))
        await rig.synced()


async def the_old_cluster_goes_before_its_route(rig: Rig) -> None:
    """Rule 32: it is kept for the client until it has left it."""
    for old, new, server in (("a", "o", "two"), ("o", "a", "one")):
        rig.put(rig.web.cluster(new), endpoints(new, rig.servers.ports[server]))
        await rig.synced()
        rig.put(removes=((CLUSTER, old),))
        served = rig.load.total
        await rig.until_true(lambda served=served: rig.load.total > served + 20)
        rig.put(rig.web.routes({"web": new, "db": "z"}), removes=((ENDPOINTS, old),))
        await rig.answered_by("web", server)
        await rig.synced()


async def a_service_goes_to_zero_and_comes_back(rig: Rig) -> None:
    """Rule 37: at zero it is answered 503 at once, and nothing else is concerned."""
    rig.put(endpoints("z"))
    await rig.until_true(lambda: rig.load.failures["db"])
    await rig.synced()
    rig.put(endpoints("z", rig.servers.ports["two"]))
    await rig.answered_by("db", "two")
    await rig.synced()
    failures = rig.load.forgive("db")
    assert set(failures) == {"http/1.1 503 service unavailable no healthy upstream"}
    rig.put(endpoints("z", rig.servers.ports["one"]))
    await rig.answered_by("db", "one")


async def the_control_plane_restarts(rig: Rig) -> None:
    (replica,) = rig.replicas
    modified = await rig.envoy.stat("cluster_manager.cluster_modified")
    await replica.stop()
    await rig.start(replica)
    await rig.synced()
    assert await rig.envoy.stat("cluster_manager.cluster_modified") == modified


async def a_cluster_changes_while_the_control_plane_is_away(rig: Rig) -> None:
    """Rule 34: its endpoints have not changed."""
    (replica,) = rig.replicas
    await replica.stop()
    rig.put(rig.web.cluster("a", 7))
    await rig.start(replica)
    await rig.synced()
    assert await rig.envoy.stat("cluster_manager.cluster_modified") > 0


CHANGES: tuple[Step, ...] = (
    clusters_change,
    endpoints_move,
    routes_switch_and_the_old_cluster_goes,
    a_new_cluster_comes_with_its_route,
    the_old_cluster_goes_before_its_route,
    a_service_goes_to_zero_and_comes_back,
    the_control_plane_restarts,
    a_cluster_changes_while_the_control_plane_is_away,
)
PAIRS = [
    pytest.param(variant, transport, marks=() if (transport == "fast") == (number % 2 == 0) else pytest.mark.slow)
    for number, variant in enumerate(Variant)
    for transport in TRANSPORTS
]
"""Every variant over every transport; half of them in CI."""
FLEET = 100
"""Clusters beside those that carry the load, so that a first sync weighs something."""


async def survive(rig: Rig, changes: tuple[Step, ...]) -> None:
    """Run the changes under load; fails with the first one that costs a request, or a second of warming."""
    stalls = await rig.stalls()
    async with rig.load.running("web", "db"):
        await rig.answered_by("web", "one")
        for change in changes:
            await change(rig)
            served = rig.load.total
            await rig.until_true(lambda served=served: rig.load.total > served + 10)
            assert not rig.load.failures, f"{change.__name__}: {rig.explain()}"
            assert await rig.stalls() == stalls, f"{change.__name__}: something warmed for over a second"
    assert not rig.load.failures


@pytest.mark.parametrize(("variant", "each_transport"), PAIRS, indirect=["each_transport"])
async def test_no_request_fails_and_nothing_stalls(
    tmp_path: Path, envoy: str, variant: Variant, each_transport: str
) -> None:
    async with running(tmp_path, envoy, variant) as rig:
        await survive(rig, CHANGES * (10 if LONG else 1))
        assert rig.load.total > 20 * len(CHANGES)
        assert await rig.connections() == rig.starts, "a connection ended, as by a punished keepalive"


@pytest.mark.usefixtures("each_transport")
@pytest.mark.parametrize("variant", [*ADS, *(pytest.param(variant, marks=pytest.mark.slow) for variant in PER_TYPE)])
async def test_a_flip_to_another_replica_costs_no_request(tmp_path: Path, envoy: str, variant: Variant) -> None:
    """Rule 28: the other one has built everything by itself, and over delta sends nothing that Envoy holds."""
    async with running(tmp_path, envoy, variant, replicas=2, fleet=FLEET if variant.is_ads else 0) as rig:
        first_sync = await rig.envoy.stat(RECEIVED)
        modified = await rig.envoy.stat("cluster_manager.cluster_modified")

        async def flip(rig: Rig) -> None:
            used, _ = sorted(rig.replicas, key=lambda replica: -len(replica.types()))
            before = await rig.envoy.stat(RECEIVED)
            await used.stop()
            await rig.synced()
            if variant is Variant.DELTA_ADS:
                assert await rig.envoy.stat(RECEIVED) - before < first_sync / 10
            await rig.start(used)

        await survive(rig, (flip, flip))
        assert await rig.envoy.stat("cluster_manager.cluster_modified") == modified


async def test_a_route_to_a_cluster_that_is_not_there_is_seen_as_failed_requests(tmp_path: Path, envoy: str) -> None:
    """The control of the load: it does see a failure, of the host concerned and of no other."""

    async def break_it(rig: Rig) -> None:
        rig.put(rig.web.routes({"web": "nosuch", "db": "z"}))
        await rig.until_true(lambda: len(rig.load.failures["web"]) > 3)

    async with running(tmp_path, envoy, Variant.DELTA_ADS) as rig:
        with pytest.raises(AssertionError, match="break_it"):
            await survive(rig, (break_it,))
        assert set(rig.load.forgive("web")) == {"http/1.1 503 service unavailable "}
        assert not rig.load.failures


@pytest.mark.parametrize("variant", [Variant.DELTA_ADS, pytest.param(Variant.SOTW_ADS, marks=pytest.mark.slow)])
async def test_a_server_that_owes_no_endpoints_lets_clusters_warm_for_over_a_second(
    tmp_path: Path, envoy: str, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the stalls: rule 33 broken on purpose. On streams of their own clusters ask again."""
    monkeypatch.setattr(Session, "_owe", lambda *_: None)
    async with running(tmp_path, envoy, variant) as rig:
        with pytest.raises(AssertionError, match="warmed for over a second"):
            await survive(rig, (clusters_change,))


async def test_a_server_that_holds_no_route_back_fails_requests(
    tmp_path: Path, envoy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 38 broken on purpose: a route arrives while its cluster warms. Not every time, so it is tried often."""
    monkeypatch.setattr(ClusterGuard, "holds_back", lambda *_: False)
    async with running(tmp_path, envoy, Variant.DELTA_ADS) as rig:
        with pytest.raises(AssertionError, match="a_new_cluster_comes_with_its_route"):
            await survive(rig, (a_new_cluster_comes_with_its_route,) * 50)


@pytest.mark.parametrize(
    ("change", "variant"),
    [
        (a_new_cluster_comes_with_its_route, Variant.DELTA_TYPE),
        pytest.param(a_new_cluster_comes_with_its_route, Variant.SOTW_TYPE, marks=pytest.mark.slow),
        (the_old_cluster_goes_before_its_route, Variant.SOTW_TYPE),
        pytest.param(the_old_cluster_goes_before_its_route, Variant.DELTA_TYPE, marks=pytest.mark.slow),
    ],
)
async def test_streams_that_know_nothing_of_each_other_fail_requests(
    tmp_path: Path, envoy: str, change: Step, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control for streams of their own: nothing links those of one client. Tried often, as above."""
    monkeypatch.setattr(streams, "_client", lambda *_: None)
    async with running(tmp_path, envoy, variant) as rig:
        with pytest.raises(AssertionError, match=change.__name__):
            await survive(rig, (change,) * 50)


@pytest.mark.slow
@pytest.mark.parametrize("variant", PER_TYPE)
async def test_streams_that_end_one_by_one_cost_no_request(tmp_path: Path, envoy: str, variant: Variant) -> None:
    """What its client has by a stream counts while that is away. (For an idle one Envoy waits longer each time.)"""
    changes = (
        routes_switch_and_the_old_cluster_goes,
        a_new_cluster_comes_with_its_route,
        the_old_cluster_goes_before_its_route,
    )
    async with running(tmp_path, envoy, variant, max_age_s=3.0) as rig:
        await survive(rig, changes * 10)
