"""Rules 32 to 39: order on one stream and across those of one client, and what keeps a proxy from warming for ever."""

from __future__ import annotations

import pytest

from tests.xds.client import Client
from tests.xds.lab import Lab
from tests.xds.resources import (
    BUILDERS,
    CDS,
    ECDS,
    EDS,
    LDS,
    LEDS,
    RDS,
    RTDS,
    SDS,
    SRDS,
    VHDS,
    cluster,
    endpoint,
    endpoints,
    listener,
    routes,
)
from tests.xds.wire import ADS, ALL, DELTA_ONLY, PER_TYPE, Variant

ORDER = (CDS, EDS, SDS, LDS, RDS, SRDS, VHDS, ECDS, RTDS)
"""Additions and updates of one change, in the order in which they must arrive."""


async def connected(lab: Lab, *types: str) -> Client:
    """A client that holds edition 1 of `r/a` of each type."""
    await lab.put(*(BUILDERS[type_url]("r/a") for type_url in types))
    client = lab.client()
    for type_url in types:
        await client.subscribe(type_url, *(() if type_url in (CDS, LDS) else ("r/a",)))
        await client.expect(type_url, {"r/a": 1})
    return client


@pytest.mark.rule(32, on=ADS)
async def test_one_change_arrives_in_the_order_of_references(lab: Lab) -> None:
    order = [type_url for type_url in ORDER if lab.variant.is_delta or type_url not in DELTA_ONLY]
    client = await connected(lab, *order)
    await lab.put(*(BUILDERS[type_url]("r/a", 2) for type_url in reversed(order)))
    seen = [await client.receive() for _ in order]
    assert [response.type_url for response in seen] == order
    assert all(response.holds == {"r/a": 2} for response in seen)


@pytest.mark.rule(32, on=(Variant.DELTA_ADS,))
async def test_removals_of_one_change_arrive_in_reverse(lab: Lab) -> None:
    types = (CDS, EDS, LDS, RDS)
    client = await connected(lab, *types)
    await lab.remove(*((type_url, "r/a") for type_url in types))
    for type_url in reversed(types):
        response = await client.receive()
        assert (response.type_url, response.removed) == (type_url, ("r/a",))
        await client.ack(response)


@pytest.mark.rule(32, on=ADS)
async def test_a_cluster_leaves_only_after_the_routes_that_left_it_were_acked(lab: Lab) -> None:
    await lab.put(cluster("old"), routes("r", to="old"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"old": 1})
    await client.subscribe(RDS, "r")
    await client.expect(RDS, {"r": 1})
    await lab.change([cluster("new"), routes("r", 2, to="new")], [(CDS, "old")])
    added = await client.receive()
    assert (added.type_url, added.removed) == (CDS, ())
    assert added.holds == ({"new": 1} if lab.variant.is_delta else {"new": 1, "old": 1})
    await client.ack(added)
    switched = await client.receive()
    assert switched.holds == {"r": 2}
    await client.quiet()
    await client.ack(switched)
    last = await client.receive(CDS)
    assert (last.holds, last.removed) == (({}, ("old",)) if lab.variant.is_delta else ({"new": 1}, ()))


@pytest.mark.rule(33, on=ADS)
async def test_the_endpoints_of_a_changed_cluster_follow_it_though_unchanged(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"), endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1, "b": 1})
    await client.subscribe(EDS, "a", "b")
    await client.expect(EDS, {"a": 1, "b": 1})
    await lab.put(cluster("a", 2))
    changed, follows = await client.receive(), await client.receive()
    assert (changed.type_url, changed.holds["a"]) == (CDS, 2)
    assert (follows.type_url, follows.holds) == (EDS, {"a": 1})
    await client.ack(follows)
    await client.ack(changed)
    await client.quiet()


MEMBERS = "xdstp://mesh/envoy.config.endpoint.v3.LbEndpoint/a/"


@pytest.mark.rule(33, on=(Variant.DELTA_ADS,))
async def test_single_endpoints_follow_the_cluster_whose_endpoints_name_their_collection(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"), endpoints("a", collection=MEMBERS + "*"), endpoints("b"))
    await lab.put(endpoint(MEMBERS + "one"), endpoint(MEMBERS + "two"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1, "b": 1})
    await client.subscribe(EDS, "a", "b")
    await client.expect(EDS, {"a": 1, "b": 1})
    await client.subscribe(LEDS, MEMBERS + "*")
    await client.expect(LEDS, {MEMBERS + "one": 1, MEMBERS + "two": 1})
    await lab.put(cluster("a", 2))
    for type_url, holds in ((CDS, {"a": 2}), (EDS, {"a": 1}), (LEDS, {MEMBERS + "one": 1, MEMBERS + "two": 1})):
        response = await client.receive()
        assert (response.type_url, response.holds) == (type_url, holds)
        await client.ack(response)
    await lab.put(cluster("b", 2))
    await client.expect(CDS, {"b": 2})
    await client.expect(EDS, {"b": 1})
    await client.quiet()


@pytest.mark.rule(34, on=(Variant.DELTA_ADS,))
@pytest.mark.parametrize("first", [CDS, LEDS], ids=["clusters-first", "members-first"])
async def test_after_a_reconnect_single_endpoints_of_a_changed_cluster_come_though_held(lab: Lab, first: str) -> None:
    await lab.put(cluster("a"), endpoints("a", collection=MEMBERS + "*"), endpoint(MEMBERS + "one"))
    before = lab.client()
    await before.subscribe(CDS)
    await before.expect(CDS, {"a": 1})
    await before.subscribe(EDS, "a")
    await before.expect(EDS, {"a": 1})
    await before.subscribe(LEDS, MEMBERS + "*")
    await before.expect(LEDS, {MEMBERS + "one": 1})
    await before.close()
    await lab.put(cluster("a", 2))
    client = lab.client()
    for type_url in (first, EDS, LEDS if first == CDS else CDS):
        await client.resume(type_url, before)
    assert (await client.receive(CDS)).holds == {"a": 2}
    assert (await client.receive(EDS)).holds == {"a": 1}
    assert (await client.receive(LEDS)).holds == {MEMBERS + "one": 1}
    await client.quiet()


@pytest.mark.rule(34, on=(Variant.DELTA_ADS,))
@pytest.mark.parametrize("first", [CDS, EDS], ids=["clusters-first", "endpoints-first"])
async def test_after_a_reconnect_the_endpoints_of_a_changed_cluster_come_though_held(lab: Lab, first: str) -> None:
    await lab.put(cluster("a"), cluster("b"), endpoints("a"), endpoints("b"))
    before = lab.client()
    await before.subscribe(CDS)
    await before.expect(CDS, {"a": 1, "b": 1})
    await before.subscribe(EDS, "a", "b")
    await before.expect(EDS, {"a": 1, "b": 1})
    await before.close()
    await lab.put(cluster("a", 2))
    client = lab.client()
    for type_url in (first, EDS if first == CDS else CDS):
        await client.resume(type_url, before)
    assert (await client.receive(CDS)).holds == {"a": 2}
    assert (await client.receive(EDS)).holds == {"a": 1}
    await client.quiet()


@pytest.mark.rule(35, on=ADS)
async def test_nothing_waits_for_the_ack_of_clusters(lab: Lab) -> None:
    client = await connected(lab, CDS, EDS, LDS, RDS)
    await lab.put(*(BUILDERS[type_url]("r/a", 2) for type_url in (CDS, EDS, LDS, RDS)))
    for type_url in (CDS, EDS, LDS, RDS):
        assert (await client.receive(type_url)).holds == {"r/a": 2}


@pytest.mark.rule(36, on=ADS)
async def test_routes_that_a_new_listener_names_come_while_the_listener_warms(lab: Lab) -> None:
    await lab.put(listener("l", route="one"), routes("one"), routes("two"))
    client = lab.client()
    await client.subscribe(LDS)
    await client.expect(LDS, {"l": 1})
    await client.subscribe(RDS, "one")
    await client.expect(RDS, {"one": 1})
    await lab.put(listener("l", 2, route="two"))
    assert (await client.receive(LDS)).holds == {"l": 2}
    await client.subscribe(RDS, "two")
    assert (await client.receive(RDS)).holds["two"] == 1


@pytest.mark.rule(36, on=ADS)
async def test_a_secret_that_is_asked_for_while_a_cluster_warms_comes_at_once(lab: Lab) -> None:
    await lab.put(cluster("a"), BUILDERS[SDS]("s"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.receive(CDS)
    await client.subscribe(SDS, "s")
    assert (await client.receive(SDS)).holds == {"s": 1}


@pytest.mark.rule(36, on=ADS)
async def test_the_secret_of_a_changed_cluster_follows_it_though_unchanged(lab: Lab) -> None:
    await lab.put(cluster("a", secret="s"), BUILDERS[SDS]("s"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1})
    await client.subscribe(SDS, "s")
    await client.expect(SDS, {"s": 1})
    await lab.put(cluster("a", 2, secret="s"))
    await client.expect(CDS, {"a": 2})
    await client.expect(SDS, {"s": 1})
    await client.quiet()


@pytest.mark.rule(36, on=(Variant.DELTA_ADS,))
async def test_a_secret_that_a_new_cluster_names_and_that_is_missing_is_answered_as_removed(lab: Lab) -> None:
    await lab.put(cluster("a", secret="s"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1})
    await client.subscribe(SDS, "s")
    await client.expect(SDS, {}, removed=("s",))
    await lab.put(cluster("b", secret="s"))
    await client.expect(CDS, {"b": 1})
    await client.expect(SDS, {}, removed=("s",))
    await client.quiet()


@pytest.mark.rule(37, on=ALL)
async def test_no_endpoints_are_sent_as_an_empty_assignment_and_not_as_a_removal(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
    await lab.put(endpoints("a", 0))
    await client.expect(EDS, {"a": 0})
    await lab.put(endpoints("a", 2))
    await client.expect(EDS, {"a": 2})


@pytest.mark.rule(39, on=ADS)
async def test_endpoints_follow_every_cluster_that_has_their_service_name(lab: Lab) -> None:
    """A client asks once for a name that two clusters have, and waits with the second for an answer."""
    await lab.put(cluster("a", service_name="s"), endpoints("s"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1})
    await client.subscribe(EDS, "s")
    await client.expect(EDS, {"s": 1})
    await lab.put(cluster("b", service_name="s"))
    assert (await client.receive()).holds["b"] == 1
    follows = await client.receive()
    assert (follows.type_url, follows.holds) == (EDS, {"s": 1})


@pytest.mark.rule(38, on=ADS)
async def test_a_route_waits_until_its_new_cluster_is_acknowledged(lab: Lab) -> None:
    await lab.put(cluster("a"), routes("r", to="a"), routes("q", to="a"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1})
    await client.subscribe(RDS, "r", "q")
    await client.expect(RDS, {"r": 1, "q": 1})
    await lab.put(cluster("b"), routes("r", 2, to="b"), routes("q", 2, to="a"))
    added = await client.receive(CDS)
    assert added.holds["b"] == 1
    other = await client.receive(RDS)
    assert other.holds == {"q": 2}
    await client.ack(other)
    await client.quiet()
    await client.ack(added)
    await client.expect(RDS, {"r": 2})


@pytest.mark.rule(38, on=ADS)
async def test_a_route_to_a_cluster_that_is_created_after_it_comes_after_it(lab: Lab) -> None:
    await lab.put(cluster("a"), routes("r", to="a"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1})
    await client.subscribe(RDS, "r")
    await client.expect(RDS, {"r": 1})
    await lab.put(routes("r", 2, to="b"))
    await client.quiet()
    await lab.put(cluster("b"))
    added = await client.receive()
    assert (added.type_url, added.holds["b"]) == (CDS, 1)
    await client.ack(added)
    await client.expect(RDS, {"r": 2})


@pytest.mark.rule(38, on=ADS)
async def test_a_route_to_a_cluster_that_nobody_serves_comes_after_a_moment(lab: Lab) -> None:
    """It may be in the client's bootstrap."""
    await lab.put(routes("r"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.receive(CDS)
    await client.subscribe(RDS, "r")
    await client.expect(RDS, {"r": 1})
    await lab.put(routes("r", 2, to="static"))
    await client.expect(RDS, {"r": 2})


@pytest.mark.rule(32, on=ADS)
async def test_a_cluster_stays_while_an_accepted_route_names_it(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"), routes("r", to="a"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1, "b": 1})
    await client.subscribe(RDS, "r")
    await client.expect(RDS, {"r": 1})
    await lab.remove((CDS, "a"))
    await client.quiet()
    await lab.put(routes("r", 2, to="b"))
    await client.expect(RDS, {"r": 2})
    last = await client.receive(CDS)
    assert (last.holds, last.removed) == (({}, ("a",)) if lab.variant.is_delta else ({"b": 1}, ()))


@pytest.mark.rule(38, on=ADS)
async def test_a_client_that_learns_clusters_from_routes_gets_the_routes_first(lab: Lab) -> None:
    """As gRPC does: it asks for a cluster by name, and only after it has the routes."""
    await lab.put(cluster("a"), routes("r", to="a"))
    client = lab.client()
    await client.subscribe(RDS, "r")
    await client.expect(RDS, {"r": 1})
    await client.subscribe(CDS, "a")
    await client.expect(CDS, {"a": 1})
    await lab.put(cluster("b"), routes("r", 2, to="b"))
    await client.expect(RDS, {"r": 2})


async def per_type(lab: Lab, *clusters: str) -> Client:
    """A client that holds these clusters, their endpoints and a route to the first, by a stream for each type."""
    await lab.put(*map(cluster, clusters), *map(endpoints, clusters), routes("r", to=clusters[0]))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, dict.fromkeys(clusters, 1))
    await client.subscribe(EDS, *clusters)
    await client.expect(EDS, dict.fromkeys(clusters, 1))
    await client.subscribe(RDS, "r")
    await client.expect(RDS, {"r": 1})
    return client


@pytest.mark.rule(38, on=PER_TYPE)
async def test_over_streams_of_their_own_a_route_waits_until_its_new_cluster_is_warm(lab: Lab) -> None:
    """Clusters are ACKed there before they are warm: it is the ACK of what they warm with that tells."""
    client = await per_type(lab, "a")
    await lab.put(cluster("b"), endpoints("b"), routes("r", 2, to="b"))
    added = await client.receive(CDS)
    assert added.holds["b"] == 1
    await client.quiet()
    await client.ack(added)
    await client.quiet()
    await client.subscribe(EDS, "b")
    warm = await client.receive(EDS)
    assert warm.holds == {"b": 1}
    await client.quiet()
    await client.ack(warm)
    await client.expect(RDS, {"r": 2})


@pytest.mark.rule(32, on=PER_TYPE)
async def test_over_streams_of_their_own_a_cluster_leaves_after_the_routes_that_left_it_were_acked(lab: Lab) -> None:
    client = await per_type(lab, "a", "b")
    await lab.change([routes("r", 2, to="b")], [(CDS, "a")])
    switched = await client.receive(RDS)
    assert switched.holds == {"r": 2}
    await client.quiet()
    await client.ack(switched)
    last = await client.receive(CDS)
    assert (last.holds, last.removed) == (({}, ("a",)) if lab.variant.is_delta else ({"b": 1}, ()))
