"""Rules 8 to 16: the state-of-the-world protocol."""

from __future__ import annotations

import pytest

from tests.xds.lab import Lab
from tests.xds.resources import BUILDERS, CDS, EDS, LDS, RDS, SDS, cluster, endpoints
from tests.xds.wire import SOTW


@pytest.mark.rule(8, on=SOTW)
async def test_a_request_with_a_stale_nonce_is_ignored_with_its_names(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    first = await client.receive(EDS)
    await client.ack(first)
    await lab.put(endpoints("a", 2))
    second = await client.receive(EDS)
    await client.ack(second)
    stale = {"response_nonce": first.nonce, "version_info": first.version}
    await client.send(EDS, resource_names=["a", "b"], **stale)
    await client.quiet()
    await client.send(EDS, resource_names=["a", "b"], response_nonce=second.nonce, version_info=second.version)
    assert (await client.receive(EDS)).holds["b"] == 1


@pytest.mark.rule(8, on=SOTW)
async def test_an_ack_of_an_older_response_does_not_settle_the_newer_one(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    first = await client.receive(EDS)
    await client.ack(first)
    await lab.put(endpoints("a", 2))
    second = await client.receive(EDS)
    await lab.put(endpoints("a", 3))
    await client.send(EDS, resource_names=["a"], response_nonce=first.nonce, version_info=first.version)
    await client.quiet()
    await client.ack(second)
    await client.expect(EDS, {"a": 3})


@pytest.mark.rule(9, on=SOTW)
async def test_names_that_change_at_an_old_version_are_no_nack(lab: Lab) -> None:
    """A client that has NACKed goes on to name resources at the version that it last accepted."""
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    first = await client.receive(EDS)
    await client.ack(first)
    await lab.put(endpoints("a", 2))
    second = await client.receive(EDS)
    await client.nack(second)
    await client.send(EDS, resource_names=["a", "b"], response_nonce=second.nonce, version_info=first.version)
    response = await client.receive(EDS)
    assert response.holds["b"] == 1
    await client.ack(response)
    await client.quiet()


@pytest.mark.rule(9, on=SOTW)
async def test_a_request_without_an_error_is_an_ack_though_its_version_differs(lab: Lab) -> None:
    await lab.put(cluster("a"))
    client = lab.client()
    await client.subscribe(CDS)
    response = await client.receive(CDS)
    await client.send(CDS, response_nonce=response.nonce, version_info="something else")
    await client.quiet()
    await lab.put(cluster("a", 2))
    await client.expect(CDS, {"a": 2})


@pytest.mark.rule(10, on=SOTW)
@pytest.mark.parametrize("type_url", [CDS, EDS])
async def test_what_was_refused_is_not_sent_again_until_it_changes(lab: Lab, type_url: str) -> None:
    build = BUILDERS[type_url]
    await lab.put(build("a"))
    client = lab.client()
    await client.subscribe(type_url, "a")
    await client.nack(await client.receive(type_url))
    await client.quiet()
    await lab.put(build("unrelated"))
    await client.quiet()
    await lab.put(build("a", 2))
    await client.expect(type_url, {"a": 2})
    await client.quiet()


@pytest.mark.rule(11, on=SOTW)
async def test_on_a_new_stream_an_equal_version_spares_a_wildcard_and_never_names(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"), endpoints("a"))
    before = lab.client()
    await before.subscribe(CDS)
    await before.expect(CDS, {"a": 1, "b": 1})
    await before.subscribe(EDS, "a")
    await before.expect(EDS, {"a": 1})
    await before.close()
    client = lab.client()
    await client.resume(CDS, before)
    await client.quiet()
    await client.resume(EDS, before)
    await client.expect(EDS, {"a": 1})
    await lab.put(cluster("a", 2))
    await client.expect(CDS, {"a": 2, "b": 1})


@pytest.mark.rule(11, on=SOTW, needs="own server")
async def test_the_version_is_the_same_on_a_replica_and_after_a_restart(lab: Lab) -> None:
    await lab.put(cluster("a"))
    await lab.put(cluster("b"), endpoints("a"))
    before = lab.client()
    await before.subscribe(CDS)
    await before.expect(CDS, {"a": 1, "b": 1})
    await lab.own.restart()
    fresh = lab.client()
    await fresh.subscribe(CDS)
    await fresh.expect(CDS, {"a": 1, "b": 1})
    assert fresh.version(CDS) == before.version(CDS) != ""
    client = lab.client()
    await client.resume(CDS, before)
    await client.quiet()


@pytest.mark.rule(11, on=SOTW)
async def test_the_version_is_that_of_the_content(lab: Lab) -> None:
    await lab.put(cluster("a"))
    client = lab.client()
    await client.subscribe(CDS)
    versions = []
    for edition in (1, 2, 1):
        await lab.put(cluster("a", edition))
        await client.expect(CDS, {"a": edition})
        versions.append(client.version(CDS))
    assert versions[0] == versions[2] != versions[1]


@pytest.mark.rule(12, on=SOTW)
@pytest.mark.parametrize("type_url", [EDS, SDS, RDS])
async def test_a_name_that_was_dropped_and_comes_back_is_sent_again(lab: Lab, type_url: str) -> None:
    build = BUILDERS[type_url]
    await lab.put(build("a"))
    client = lab.client()
    await client.subscribe(type_url, "a")
    await client.expect(type_url, {"a": 1})
    await client.unsubscribe(type_url, "a")
    await client.quiet()
    await client.subscribe(type_url, "a")
    await client.expect(type_url, {"a": 1})


@pytest.mark.rule(12, on=SOTW)
async def test_a_new_name_is_answered_though_nothing_changed(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
    await client.subscribe(EDS, "b")
    response = await client.receive(EDS)
    assert response.holds["b"] == 1


@pytest.mark.rule(12, on=SOTW)
async def test_a_name_that_was_dropped_gets_no_changes(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a", "b")
    await client.expect(EDS, {"a": 1, "b": 1})
    await client.unsubscribe(EDS, "a")
    await client.quiet()
    await lab.put(endpoints("a", 2))
    await client.quiet()
    await lab.put(endpoints("b", 2))
    await client.expect(EDS, {"b": 2})


@pytest.mark.rule(13, on=SOTW)
@pytest.mark.parametrize("type_url", [CDS, LDS])
async def test_clusters_and_listeners_always_come_as_the_full_set(lab: Lab, type_url: str) -> None:
    build = BUILDERS[type_url]
    await lab.put(*(build(name) for name in "abc"))
    client = lab.client()
    await client.subscribe(type_url)
    assert (await client.expect(type_url, {"a": 1, "b": 1, "c": 1}))[0].holds == {"a": 1, "b": 1, "c": 1}
    await lab.put(build("a", 2))
    response = await client.receive(type_url)
    assert response.holds == {"a": 2, "b": 1, "c": 1}
    await client.ack(response)
    await lab.remove((type_url, "b"))
    response = await client.receive(type_url)
    assert response.holds == {"a": 2, "c": 1}
    await client.ack(response)
    await client.quiet()


@pytest.mark.rule(13, on=SOTW)
async def test_named_clusters_come_as_the_full_set_of_the_names(lab: Lab) -> None:
    await lab.put(*(cluster(name) for name in "abc"))
    client = lab.client()
    await client.subscribe(CDS, "a", "b")
    await client.expect(CDS, {"a": 1, "b": 1})
    await lab.put(cluster("a", 2))
    assert (await client.receive(CDS)).holds == {"a": 2, "b": 1}


@pytest.mark.rule(13, on=SOTW)
async def test_a_change_of_endpoints_sends_only_these(lab: Lab) -> None:
    await lab.put(*(endpoints(name) for name in "abc"))
    client = lab.client()
    await client.subscribe(EDS, *"abc")
    await client.expect(EDS, {"a": 1, "b": 1, "c": 1})
    await lab.put(endpoints("a", 2))
    response = await client.receive(EDS)
    assert response.holds == {"a": 2}
    await client.ack(response)
    await client.quiet()


@pytest.mark.rule(13, on=SOTW)
async def test_endpoints_that_are_deleted_are_not_mentioned(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a", "b")
    await client.expect(EDS, {"a": 1, "b": 1})
    await lab.remove((EDS, "a"))
    await client.quiet()
    await lab.put(endpoints("a", 2))
    await client.expect(EDS, {"a": 2})


@pytest.mark.rule(14, on=SOTW)
@pytest.mark.parametrize("type_url", [EDS, RDS, CDS, LDS])
async def test_what_exists_is_answered_at_once_and_the_missing_when_it_is_created(lab: Lab, type_url: str) -> None:
    build = BUILDERS[type_url]
    await lab.put(build("there"), build("unasked"))
    client = lab.client()
    await client.subscribe(type_url, "there", "missing")
    await client.expect(type_url, {"there": 1})
    await client.quiet()
    await lab.put(build("missing"))
    response = await client.receive(type_url)
    assert response.holds["missing"] == 1
    assert set(response.holds) <= {"there", "missing"}


@pytest.mark.rule(14, on=SOTW)
@pytest.mark.parametrize("type_url", [CDS, LDS])
async def test_a_missing_cluster_or_listener_is_answered_without_it(lab: Lab, type_url: str) -> None:
    client = lab.client()
    await client.subscribe(type_url, "missing")
    await client.expect(type_url, {})


@pytest.mark.rule(16, on=SOTW)
@pytest.mark.parametrize("type_url", [EDS, RDS])
async def test_giving_up_all_names_is_not_answered(lab: Lab, type_url: str) -> None:
    build = BUILDERS[type_url]
    await lab.put(build("a"))
    client = lab.client()
    await client.subscribe(type_url, "a")
    await client.expect(type_url, {"a": 1})
    await client.unsubscribe(type_url, "a")
    await client.quiet()
    await lab.put(build("a", 2))
    await client.quiet()


@pytest.mark.rule(24, on=SOTW)
async def test_a_legacy_wildcard_ends_with_names_and_does_not_come_back(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1, "b": 1})
    await client.subscribe(CDS, "*", "a")
    await client.settle(CDS)
    await lab.put(cluster("b", 2))
    await client.expect_state(CDS, {"a": 1, "b": 2})
    await client.unsubscribe(CDS, "*")
    await client.settle(CDS)
    await lab.put(cluster("b", 3))
    await client.quiet()
    await lab.put(cluster("a", 2))
    await client.expect(CDS, {"a": 2})
    await client.unsubscribe(CDS, "a")
    await client.settle(CDS)
    await lab.put(cluster("a", 3), cluster("b", 4))
    await client.quiet()


@pytest.mark.rule(25, on=SOTW)
async def test_an_empty_first_request_of_a_named_type_asks_for_nothing(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.send(EDS)
    await client.quiet()
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
