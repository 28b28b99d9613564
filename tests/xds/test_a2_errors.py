"""Rule 15: a client that is known to read `resource_errors` is told at once what does not exist (xRFC TP3)."""

from __future__ import annotations

import asyncio

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from tests.xds.client import DEADLINE_S, Client
from tests.xds.lab import Lab
from tests.xds.resources import BUILDERS, CDS, EDS, LDS, RDS, SDS, UNKNOWN, cluster, endpoints
from tests.xds.wire import ADS, ALL, Variant

NOT_FOUND = 5
"""google.rpc.Code"""
FETCH = "/envoy.service.endpoint.v3.EndpointDiscoveryService/FetchEndpoints"
MANY = 40


def reader(lab: Lab) -> Client:
    """A client that the server was told to read errors."""
    return lab.client(node_id="told-1")


@pytest.mark.rule(15, on=ALL, needs="own server")
@pytest.mark.parametrize("type_url", [CDS, EDS, LDS, RDS, SDS], ids=lambda type_url: type_url.rpartition(".")[2])
async def test_what_is_not_there_is_said_at_once_to_a_client_that_reads_it(lab: Lab, type_url: str) -> None:
    """And to no other; beside what every client is sent."""
    build = BUILDERS[type_url]
    await lab.put(build("a"))
    answers = {}
    for name, client in (("told", reader(lab)), ("conformance", lab.client())):
        await client.subscribe(type_url, "a", "missing")
        response = await client.receive(type_url)
        assert response.holds == {"a": 1}
        assert response.removed == (("missing",) if lab.variant.is_delta else ())
        answers[name] = response.errors
        await client.ack(response)
        await client.quiet()
    assert answers["told"] == {"missing": NOT_FOUND}
    assert answers["conformance"] == {}


@pytest.mark.rule(15, on=ALL, needs="own server")
@pytest.mark.parametrize("type_url", [CDS, EDS], ids=lambda type_url: type_url.rpartition(".")[2])
async def test_an_error_is_said_once_for_each_time_that_a_name_is_asked_for(lab: Lab, type_url: str) -> None:
    build = BUILDERS[type_url]
    await lab.put(build("a"))
    client = reader(lab)
    await client.subscribe(type_url, "missing")
    response = await client.receive(type_url)
    assert (response.holds, response.errors) == ({}, {"missing": NOT_FOUND})
    await client.ack(response)
    await client.subscribe(type_url, "a")
    (response,) = await client.expect(type_url, {"a": 1})
    assert response.errors == {}, "it is remembered"
    await lab.put(build("missing", 3))
    wanted = {"a": 1, "missing": 3} if type_url == CDS and not lab.variant.is_delta else {"missing": 3}
    (response,) = await client.expect(type_url, wanted)
    assert response.errors == {}
    await client.unsubscribe(type_url, "missing")
    await client.settle(type_url)
    await lab.remove((type_url, "missing"))
    await client.subscribe(type_url, "missing")
    while not (response := await client.receive(type_url)).errors:
        await client.ack(response)
    assert response.errors == {"missing": NOT_FOUND}


@pytest.mark.rule(15, on=ALL, needs="own server")
async def test_each_of_many_names_that_are_not_there_is_said_once(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = reader(lab)
    names = [f"missing-{number}" for number in range(MANY)]
    await client.subscribe(EDS, "a", *names)
    told: dict[str, int] = {}
    response = await client.receive(EDS)
    told.update(response.errors)
    assert response.holds == {"a": 1}
    assert told == dict.fromkeys(names, NOT_FOUND)
    await client.ack(response)
    await client.quiet()


@pytest.mark.rule(15, on=ADS, needs="own server")
async def test_neither_a_wildcard_nor_an_unknown_type_has_errors(lab: Lab) -> None:
    await lab.put(cluster("a"))
    client = reader(lab)
    await client.subscribe(UNKNOWN, "x")
    await client.quiet()
    await client.subscribe(CDS)
    (response,) = await client.expect(CDS, {"a": 1})
    assert response.errors == {}
    await lab.remove((CDS, "a"))
    response = await client.receive(CDS)
    assert (response.holds, response.errors) == ({}, {})


@pytest.mark.rule(15, on=(Variant.SOTW_TYPE,), needs="own server")
@pytest.mark.parametrize(("node_id", "errors"), [("told-1", ["missing"]), ("untold", [])])
async def test_one_fetch_says_what_is_not_there(lab: Lab, node_id: str, errors: list[str]) -> None:
    await lab.put(endpoints("a"))
    request = DiscoveryRequest(type_url=EDS, resource_names=["a", "missing"])
    request.node.id = node_id
    async with asyncio.timeout(DEADLINE_S):
        fetch = lab.client().channel.unary_unary(FETCH)
        answer = DiscoveryResponse.FromString(await fetch(request.SerializeToString()))
    assert [error.resource_name.name for error in answer.resource_errors] == errors
    assert len(answer.resources) == 1
