"""Rules 17 to 31: the delta protocol."""

from __future__ import annotations

import pytest

from tests.xds.lab import Lab
from tests.xds.resources import BUILDERS, CDS, EDS, RTDS, SDS, VHDS, cluster, endpoints, runtime, virtual_host
from tests.xds.wire import ALL, DELTA


@pytest.mark.rule(17, on=DELTA)
async def test_a_request_with_a_stale_nonce_still_subscribes_and_unsubscribes(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
    await client.send(EDS, resource_names_subscribe=["b"], response_nonce="stale")
    await client.expect(EDS, {"b": 1})
    await client.send(EDS, resource_names_unsubscribe=["a"], response_nonce="stale")
    await client.quiet()
    await lab.put(endpoints("a", 2), endpoints("b", 2))
    await client.expect(EDS, {"b": 2})
    await client.quiet()


@pytest.mark.rule(17, on=DELTA)
async def test_a_nack_with_a_stale_nonce_is_no_answer_to_the_response_that_is_out(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    first = await client.receive(EDS)
    await client.send(EDS, response_nonce="stale", error="refused")
    await lab.put(endpoints("a", 2))
    await client.quiet()
    await client.ack(first)
    await client.expect(EDS, {"a": 2})


@pytest.mark.rule(18, on=DELTA)
async def test_a_name_in_both_lists_ends_unsubscribed(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "b")
    await client.expect(EDS, {"b": 1})
    await client.send(EDS, resource_names_subscribe=["a"], resource_names_unsubscribe=["a"])
    await client.quiet()
    await lab.put(endpoints("a", 2), endpoints("b", 2))
    await client.expect(EDS, {"b": 2})
    await client.quiet()


@pytest.mark.rule(19, on=DELTA)
async def test_a_name_that_is_subscribed_again_is_answered_again(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a", "b")
    await client.expect(EDS, {"a": 1, "b": 1})
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
    await client.quiet()


@pytest.mark.rule(19, on=DELTA)
async def test_a_name_that_is_added_under_a_wildcard_is_answered_with_the_resource(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"))
    client = lab.client()
    await client.subscribe(CDS, "*")
    await client.expect(CDS, {"a": 1, "b": 1})
    await client.subscribe(CDS, "a")
    await client.expect(CDS, {"a": 1})
    await client.quiet()


@pytest.mark.rule(19, on=DELTA)
async def test_a_name_that_was_dropped_is_answered_in_full_when_it_comes_back(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
    await client.unsubscribe(EDS, "a")
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})


@pytest.mark.rule(20, on=DELTA)
async def test_names_that_a_reconnecting_client_holds_are_not_sent_again(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    before = lab.client()
    await before.subscribe(EDS, "a", "b")
    await before.expect(EDS, {"a": 1, "b": 1})
    await before.close()
    client = lab.client()
    await client.resume(EDS, before)
    await client.quiet()
    await lab.put(endpoints("b", 2))
    await client.expect(EDS, {"b": 2})


@pytest.mark.rule(20, on=DELTA)
async def test_a_wildcard_that_is_current_on_reconnect_gets_one_empty_response(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"))
    before = lab.client()
    await before.subscribe(CDS)
    await before.expect(CDS, {"a": 1, "b": 1})
    client = lab.client()
    await client.resume(CDS, before)
    await client.expect(CDS, {})
    await client.quiet()


@pytest.mark.rule(20, on=DELTA)
async def test_versions_that_are_claimed_later_than_in_the_first_request_mean_nothing(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a", "b")
    await client.expect(EDS, {"a": 1, "b": 1})
    claims = client.held(EDS)
    await client.send(EDS, resource_names_subscribe=["b"], initial_resource_versions=claims)
    await client.expect(EDS, {"b": 1})


@pytest.mark.rule(21, on=DELTA)
@pytest.mark.parametrize("type_url", [EDS, CDS])
async def test_a_missing_name_is_reported_as_removed_and_sent_when_it_is_created(lab: Lab, type_url: str) -> None:
    build = BUILDERS[type_url]
    await lab.put(build("there"))
    client = lab.client()
    await client.subscribe(type_url, "there", "missing")
    await client.expect(type_url, {"there": 1}, removed=("missing",))
    await lab.put(build("missing"))
    await client.expect(type_url, {"missing": 1})
    await client.quiet()


@pytest.mark.rule(22, on=DELTA)
async def test_a_deletion_reaches_every_stream_that_was_sent_it_and_no_other(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"))
    wildcard, named, other = lab.client(), lab.client(), lab.client()
    await wildcard.subscribe(CDS)
    await wildcard.expect(CDS, {"a": 1, "b": 1})
    await named.subscribe(CDS, "a")
    await named.expect(CDS, {"a": 1})
    await other.subscribe(CDS, "b")
    await other.expect(CDS, {"b": 1})
    await lab.remove((CDS, "a"))
    await wildcard.expect(CDS, {}, removed=("a",))
    await named.expect(CDS, {}, removed=("a",))
    await other.quiet()
    await wildcard.quiet()
    await named.quiet()


@pytest.mark.rule(22, on=DELTA)
async def test_a_name_that_is_deleted_and_created_again_comes_back(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
    await lab.remove((EDS, "a"))
    await client.expect(EDS, {}, removed=("a",))
    await lab.put(endpoints("a"))
    await client.expect(EDS, {"a": 1})


@pytest.mark.rule(23, on=DELTA)
async def test_an_unsubscribe_needs_no_answer_and_an_unknown_name_is_ignored(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a", "b")
    await client.expect(EDS, {"a": 1, "b": 1})
    await client.send(EDS, resource_names_unsubscribe=["a", "never"])
    await client.quiet()
    await lab.put(endpoints("a", 2), endpoints("b", 2))
    await client.expect(EDS, {"b": 2})
    await client.quiet()


@pytest.mark.rule(23, on=DELTA)
async def test_a_name_unsubscribed_under_a_wildcard_is_answered_with_what_the_wildcard_holds(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"))
    client = lab.client()
    await client.subscribe(CDS, "*", "a", "missing")
    await client.expect(CDS, {"a": 1, "b": 1}, removed=("missing",))
    await client.unsubscribe(CDS, "a")
    await client.expect(CDS, {"a": 1})
    await client.unsubscribe(CDS, "missing")
    await client.expect(CDS, {}, removed=("missing",))
    await client.quiet()


@pytest.mark.rule(24, on=DELTA)
async def test_a_legacy_wildcard_outlives_names_and_ends_with_a_star(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1, "b": 1})
    await client.subscribe(CDS, "a")
    await client.expect(CDS, {"a": 1})
    await lab.put(cluster("b", 2))
    await client.expect(CDS, {"b": 2})
    await client.send(CDS, resource_names_unsubscribe=["*"])
    await client.quiet()
    await lab.put(cluster("a", 2), cluster("b", 3))
    await client.expect(CDS, {"a": 2})
    await client.quiet()


@pytest.mark.rule(24, on=DELTA)
async def test_after_names_an_empty_set_means_nothing(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"))
    client = lab.client()
    await client.subscribe(CDS, "a")
    await client.expect(CDS, {"a": 1})
    await client.unsubscribe(CDS, "a")
    await client.send(CDS)
    await client.quiet()
    await lab.put(cluster("a", 2), cluster("b", 2))
    await client.quiet()
    await client.subscribe(CDS, "*")
    await client.expect(CDS, {"a": 2, "b": 2})


@pytest.mark.rule(25, on=DELTA)
@pytest.mark.parametrize("type_url", [EDS, SDS])
async def test_an_empty_first_request_of_a_named_type_subscribes_to_nothing(lab: Lab, type_url: str) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.send(type_url)
    await client.quiet()
    if type_url == EDS:
        await client.subscribe(EDS, "a")
        await client.expect(EDS, {"a": 1})


@pytest.mark.rule(25, on=DELTA)
async def test_an_empty_first_request_of_runtime_and_virtual_hosts_is_a_wildcard(lab: Lab) -> None:
    await lab.put(runtime("layer"), virtual_host("r/a"))
    client = lab.client()
    await client.send(RTDS)
    assert "layer" in (await client.receive(RTDS)).holds
    await client.send(VHDS)
    await client.expect(VHDS, {"r/a": 1})


@pytest.mark.rule(26, on=ALL)
async def test_a_glob_collection_is_a_wildcard_of_its_prefix(lab: Lab) -> None:
    inside, outside = "xdstp://mesh/envoy.config.cluster.v3.Cluster/blue/", "xdstp://mesh/other/"
    await lab.put(cluster(inside + "a"), cluster(outside + "a"))
    client = lab.client()
    await client.subscribe(CDS, inside + "*")
    await client.expect(CDS, {inside + "a": 1})
    await lab.put(cluster(inside + "b"), cluster(outside + "b"))
    whole = {} if lab.variant.is_delta else {inside + "a": 1}
    await client.expect(CDS, {inside + "b": 1, **whole})
    await client.quiet()


@pytest.mark.rule(26, on=ALL)
async def test_a_glob_collection_is_that_of_its_context_parameters(lab: Lab) -> None:
    """All of them count, and their order does not; other globs of the same path are other collections."""
    path = "xdstp://mesh/envoy.config.cluster.v3.Cluster/blue/"
    await lab.put(*(cluster(path + name) for name in ("a", "a?x=1", "a?x=1&y=2", "a?x=2&y=2")))
    client, plain = lab.client(), lab.client()
    await client.subscribe(CDS, path + "*?y=2&x=1")
    await client.expect(CDS, {path + "a?x=1&y=2": 1})
    await plain.subscribe(CDS, path + "*")
    await plain.expect(CDS, {path + "a": 1})
    await lab.put(*(cluster(path + name, 2) for name in ("a", "a?x=1", "a?x=1&y=2")))
    await client.expect(CDS, {path + "a?x=1&y=2": 2})
    await plain.expect(CDS, {path + "a": 2})
    await client.quiet()
    await plain.quiet()


@pytest.mark.rule(26, on=DELTA)
async def test_a_glob_collection_comes_back_to_a_client_as_it_is_now(lab: Lab) -> None:
    path = "xdstp://mesh/envoy.config.cluster.v3.Cluster/blue/"
    await lab.put(cluster(path + "same"), cluster(path + "changed"), cluster(path + "gone"))
    before = lab.client()
    await before.subscribe(CDS, path + "*")
    await before.expect(CDS, {path + "same": 1, path + "changed": 1, path + "gone": 1})
    await before.close()
    await lab.change([cluster(path + "changed", 2)], [(CDS, path + "gone")])
    client = lab.client()
    await client.resume(CDS, before)
    await client.expect(CDS, {path + "changed": 2}, removed=(path + "gone",))
    await client.quiet()


@pytest.mark.rule(26, on=DELTA)
async def test_a_resource_that_leaves_a_glob_collection_is_removed(lab: Lab) -> None:
    prefix = "xdstp://mesh/envoy.config.cluster.v3.Cluster/blue/"
    await lab.put(cluster(prefix + "a"))
    client = lab.client()
    await client.subscribe(CDS, prefix + "*")
    await client.expect(CDS, {prefix + "a": 1})
    await lab.remove((CDS, prefix + "a"))
    await client.expect(CDS, {}, removed=(prefix + "a",))


@pytest.mark.rule(27, on=DELTA)
async def test_a_reconnecting_client_gets_what_changed_and_learns_what_went(lab: Lab) -> None:
    await lab.put(cluster("same"), cluster("changed"), cluster("gone"))
    before = lab.client()
    await before.subscribe(CDS)
    await before.expect(CDS, {"same": 1, "changed": 1, "gone": 1})
    await before.close()
    await lab.change([cluster("changed", 2), cluster("new")], [(CDS, "gone")])
    client = lab.client()
    await client.resume(CDS, before)
    await client.expect(CDS, {"changed": 2, "new": 1}, removed=("gone",))
    await client.quiet()


@pytest.mark.rule(27, on=DELTA)
async def test_claims_outside_of_the_subscription_get_nothing(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    claims = {"foreign": "1", "a": "old"}
    await client.send(EDS, resource_names_subscribe=["a"], initial_resource_versions=claims)
    await client.expect(EDS, {"a": 1})
    await client.quiet()


@pytest.mark.rule(28, on=DELTA, needs="own server")
async def test_a_failover_to_a_replica_sends_nothing_again(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"), endpoints("a"))
    before = lab.client()
    await before.subscribe(CDS)
    await before.expect(CDS, {"a": 1, "b": 1})
    await before.subscribe(EDS, "a")
    await before.expect(EDS, {"a": 1})
    await lab.own.restart()
    client = lab.client()
    await client.resume(CDS, before)
    await client.resume(EDS, before)
    await client.expect(CDS, {})
    await client.quiet()


@pytest.mark.rule(29, on=DELTA)
async def test_a_version_changes_if_and_only_if_the_content_does(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a", "b")
    await client.expect(EDS, {"a": 1, "b": 1})
    first = client.held(EDS)
    assert all(first.values()), "a resource without a version"
    await lab.put(endpoints("a"))
    await client.quiet()
    await lab.put(endpoints("a", 2))
    await client.expect(EDS, {"a": 2})
    assert client.held(EDS)["a"] != first["a"]
    await lab.put(endpoints("a"))
    await client.expect(EDS, {"a": 1})
    assert client.held(EDS) == first, "the same content has the same version again"


@pytest.mark.rule(30, on=DELTA)
async def test_a_name_removed_and_created_while_an_ack_is_out_comes_once(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a", "b")
    first = await client.receive(EDS)
    assert first.holds == {"a": 1, "b": 1}
    await lab.remove((EDS, "a"))
    await lab.put(endpoints("a", 2))
    await lab.remove((EDS, "b"))
    await client.ack(first)
    await client.expect(EDS, {"a": 2}, removed=("b",))
    await client.quiet()


@pytest.mark.rule(30, on=DELTA)
async def test_a_name_listed_twice_is_answered_once(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.subscribe(EDS, "missing", "a")
    for again in (["a", "a", "missing", "missing"], []):
        response = await client.receive(EDS)
        assert (response.holds, response.removed) == ({"a": 1}, ("missing",))
        if again:
            await client.send(EDS, resource_names_subscribe=again)
    await client.quiet()


@pytest.mark.rule(31, on=DELTA)
async def test_an_unknown_virtual_host_is_answered_with_its_name_as_alias_and_no_body(lab: Lab) -> None:
    await lab.put(virtual_host("r/known"))
    client = lab.client()
    await client.subscribe(VHDS, "r/known")
    await client.expect(VHDS, {"r/known": 1})
    await client.subscribe(VHDS, "r/unknown")
    response = await client.receive(VHDS)
    assert [(item.name, item.aliases, item.edition) for item in response.items] == [("r/unknown", ("r/unknown",), None)]
    await client.ack(response)
    await lab.put(virtual_host("r/unknown"))
    await client.expect(VHDS, {"r/unknown": 1})
    await client.subscribe(VHDS, "r/known")
    await client.expect(VHDS, {"r/known": 1})


@pytest.mark.rule(31, on=DELTA)
async def test_a_domain_of_a_virtual_host_of_another_name_is_in_the_wildcard_and_no_name(lab: Lab) -> None:
    """As Envoy asks: with a wildcard, which has brought the virtual host already, or will when the domain is added."""
    known = virtual_host("r/known")
    known.message.domains.append("other")
    await lab.put(known)
    client = lab.client()
    await client.subscribe(VHDS)
    await client.expect(VHDS, {"r/known": 1})
    await client.subscribe(VHDS, "r/other")
    response = await client.receive(VHDS)
    assert [(item.name, item.aliases, item.edition) for item in response.items] == [("r/other", ("r/other",), None)]
    await client.ack(response)
    await lab.put(virtual_host("r/known", 2))
    await client.expect(VHDS, {"r/known": 2})
