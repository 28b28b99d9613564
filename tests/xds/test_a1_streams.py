"""Rules 1 to 7: streams and requests, in every variant."""

from __future__ import annotations

import grpc
import pytest

from tests.xds.lab import Lab
from tests.xds.resources import (
    BUILDERS,
    CDS,
    EDS,
    LDS,
    RDS,
    UNKNOWN,
    VHDS,
    cluster,
    endpoints,
    listener,
)
from tests.xds.wire import ADS, ALL, DELTA, DELTA_ONLY, PER_TYPE, SOTW

INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
TOO_MANY_NAMES = 200_001


@pytest.mark.rule(1, on=ALL)
@pytest.mark.parametrize("type_url", BUILDERS, ids=lambda type_url: type_url.rpartition(".")[2])
async def test_every_type_is_served(lab: Lab, type_url: str) -> None:
    if type_url in DELTA_ONLY and not lab.variant.is_delta:
        type_url = RDS  # virtual hosts exist in delta only
    name = "r/host" if type_url == VHDS else "one"
    await lab.put(BUILDERS[type_url](name))
    client = lab.client()
    await client.subscribe(type_url, name)
    await client.expect(type_url, {name: 1})


@pytest.mark.rule(1, on=PER_TYPE)
async def test_on_a_stream_of_one_type_an_empty_type_url_means_that_type(lab: Lab) -> None:
    await lab.put(cluster("a"))
    client = lab.client()
    await client.send("", stream=CDS)
    assert (await client.receive(CDS)).holds == {"a": 1}


@pytest.mark.rule(1, on=PER_TYPE)
async def test_on_a_stream_of_one_type_another_type_is_an_invalid_argument(lab: Lab) -> None:
    client = lab.client()
    await client.send(LDS, stream=CDS)
    assert (await client.end(CDS))[0] is INVALID


@pytest.mark.rule(1, on=ADS)
async def test_on_an_aggregated_stream_an_empty_type_url_is_an_invalid_argument(lab: Lab) -> None:
    client = lab.client()
    await client.send("")
    assert (await client.end())[0] is INVALID


@pytest.mark.rule(2, on=ALL)
async def test_the_node_is_needed_in_the_first_request_only(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
    await client.subscribe(EDS, "b")
    await client.expect(EDS, {"b": 1})


@pytest.mark.rule(2, on=ALL)
async def test_a_first_request_without_a_node_is_refused(lab: Lab) -> None:
    client = lab.client()
    await client.send(EDS, node="")
    assert (await client.end(EDS))[0] is INVALID


@pytest.mark.rule(2, on=ALL)
async def test_a_node_that_changes_ends_the_stream_and_one_that_is_repeated_does_not(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    response = await client.receive(EDS)
    names = {} if lab.variant.is_delta else {"resource_names": ["a"], "version_info": response.version}
    await client.send(EDS, node=client.node_id, response_nonce=response.nonce, **names)
    await client.quiet()
    await client.send(EDS, node="somebody-else", response_nonce=response.nonce, **names)
    assert (await client.end(EDS))[0] is INVALID


@pytest.mark.rule(3, on=ALL)
async def test_each_type_has_a_state_of_its_own(lab: Lab) -> None:
    """Neither an ACK nor a NACK of one type touches another; each goes on where it was."""
    await lab.put(cluster("a"), listener("a"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.subscribe(LDS)
    clusters, listeners = await client.receive(CDS), await client.receive(LDS)
    await client.nack(listeners)
    await client.ack(clusters)
    await lab.put(cluster("a", 2))
    await client.expect(CDS, {"a": 2})
    await lab.put(listener("a", 2))
    await client.expect(LDS, {"a": 2})
    await client.quiet()


@pytest.mark.rule(3, on=ALL)
async def test_a_nonce_of_a_closed_stream_is_none_on_a_new_one(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    before = lab.client()
    await before.subscribe(EDS, "a")
    response = await before.receive(EDS)
    await before.close()
    client = lab.client()
    names = {"resource_names_subscribe" if lab.variant.is_delta else "resource_names": ["a"]}
    await client.send(EDS, response_nonce=response.nonce, **names)
    await client.expect(EDS, {"a": 1})


@pytest.mark.rule(4, on=ALL)
@pytest.mark.parametrize("leaked", [{}, {"error": "an error of an older stream"}], ids=["ack", "nack"])
async def test_a_first_request_is_answered_whatever_nonce_it_carries(lab: Lab, leaked: dict[str, str]) -> None:
    await lab.put(endpoints("a"), cluster("a"))
    client = lab.client()
    if lab.variant.is_delta:
        await client.send(EDS, resource_names_subscribe=["a"], response_nonce="99", **leaked)
        await client.send(CDS, response_nonce="99", **leaked)
    else:
        await client.send(EDS, resource_names=["a"], response_nonce="99", version_info="leaked", **leaked)
        await client.send(CDS, response_nonce="99", version_info="leaked", **leaked)
    assert (await client.receive(EDS)).holds == {"a": 1}
    assert (await client.receive(CDS)).holds == {"a": 1}


@pytest.mark.rule(5, on=ADS)
async def test_an_unknown_type_leaves_the_others_alone(lab: Lab) -> None:
    await lab.put(cluster("a"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1})
    await client.send(UNKNOWN)
    if lab.variant.is_delta:
        response = await client.receive(UNKNOWN)
        assert (response.items, response.removed) == ((), ())
        await client.send(UNKNOWN, response_nonce=response.nonce)
    await client.quiet(UNKNOWN)
    await lab.put(cluster("a", 2))
    await client.expect(CDS, {"a": 2})


@pytest.mark.rule(5, on=ADS)
async def test_names_of_an_unknown_type_are_kept_without_an_answer(lab: Lab) -> None:
    await lab.put(cluster("a"))
    client = lab.client()
    await client.subscribe(UNKNOWN, "x")
    await client.quiet()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1})


@pytest.mark.rule(5, on=ADS)
async def test_names_of_a_type_that_is_not_served_keep_nothing_from_going(lab: Lab) -> None:
    await lab.put(cluster("a"), cluster("b"))
    client = lab.client()
    for type_url in (UNKNOWN, *(() if lab.variant.is_delta else DELTA_ONLY)):
        await client.subscribe(type_url, "x")
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1, "b": 1})
    await lab.remove((CDS, "b"))
    if lab.variant.is_delta:
        await client.expect(CDS, {}, removed=("b",))
    else:
        await client.expect_state(CDS, {"a": 1})


@pytest.mark.rule(6, on=ALL)
async def test_a_half_close_ends_the_stream_with_ok(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
    await client.half_close(EDS)
    assert (await client.end(EDS))[0] is grpc.StatusCode.OK


@pytest.mark.rule(6, on=ALL)
async def test_what_was_asked_for_before_a_half_close_is_answered(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    await client.half_close(EDS)
    assert (await client.receive(EDS)).holds == {"a": 1}
    assert (await client.end(EDS))[0] is grpc.StatusCode.OK


@pytest.mark.rule(6, on=ALL)
async def test_bytes_that_are_no_request_end_their_own_stream_only(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    good, bad = lab.client(), lab.client()
    for client in (good, bad):
        await client.subscribe(EDS, "a")
        await client.expect(EDS, {"a": 1})
    await bad.send_bytes(EDS, b"\xff\xff\xff")
    assert (await bad.end(EDS))[0] is INVALID
    await lab.put(endpoints("a", 2))
    await good.expect(EDS, {"a": 2})


@pytest.mark.rule(6, on=ALL)
async def test_more_names_than_the_limit_exhaust_a_resource(lab: Lab) -> None:
    client = lab.client()
    await client.subscribe(EDS, *(f"n{number}" for number in range(TOO_MANY_NAMES)))
    assert (await client.end(EDS))[0] is EXHAUSTED


@pytest.mark.rule(7, on=SOTW)
async def test_of_pipelined_requests_the_last_one_is_answered_in_full(lab: Lab) -> None:
    """They are sent before any response: the first of them, the last, or all may be answered before the first ACK."""
    await lab.put(*(endpoints(name) for name in "abc"))
    client = lab.client()
    for name in "abc":
        await client.subscribe(EDS, name)
    got: dict[str, int] = {}
    while set(got) != set("abc"):
        response = await client.receive(EDS)
        got.update(response.holds)
        await client.ack(response)
    await client.quiet()
    assert len(client.log) <= 3


@pytest.mark.rule(7, on=DELTA)
async def test_pipelined_delta_requests_add_up(lab: Lab) -> None:
    await lab.put(*(endpoints(name) for name in "abc"))
    client = lab.client()
    for name in "abc":
        await client.send(EDS, resource_names_subscribe=[name])
    await client.expect(EDS, {"a": 1, "b": 1, "c": 1})
    await client.quiet()
