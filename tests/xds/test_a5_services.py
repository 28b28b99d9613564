"""Rules 54 and 56: what the server knows of its clients, load reports: the services beside xDS."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from envoy.service.load_stats.v3.lrs_pb2 import LoadStatsRequest, LoadStatsResponse
from envoy.service.status.v3.csds_pb2 import ClientStatusRequest, ClientStatusResponse
from grpc import aio

from tests.xds.client import DEADLINE_S
from tests.xds.lab import Lab
from tests.xds.resources import CDS, EDS, cluster, endpoints
from tests.xds.wire import ALL, Variant

LRS = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
CSDS = "/envoy.service.status.v3.ClientStatusDiscoveryService/"


@pytest.mark.rule(56, on=(Variant.DELTA_ADS,))
async def test_a_load_reporter_is_told_once_what_to_report(lab: Lab) -> None:
    client = lab.client()
    call: Any = client.channel.stream_stream(LRS)()
    first = LoadStatsRequest()
    first.node.id = client.node_id
    first.node.client_features.append("envoy.lrs.supports_send_all_clusters")
    await call.write(first.SerializeToString())
    async with asyncio.timeout(DEADLINE_S):
        answer = LoadStatsResponse.FromString(await call.read())
    assert answer.send_all_clusters
    assert answer.load_reporting_interval.ToTimedelta().total_seconds() > 0
    report = LoadStatsRequest()
    report.cluster_stats.add(cluster_name="a").upstream_locality_stats.add(total_successful_requests=3)
    await call.write(report.SerializeToString())
    await call.done_writing()
    async with asyncio.timeout(DEADLINE_S):
        assert await call.read() is aio.EOF


@pytest.mark.rule(56, on=ALL)
@pytest.mark.parametrize("method", ["FetchClientStatus", "StreamClientStatus"])
async def test_the_status_service_knows_what_a_client_accepted_and_refused(lab: Lab, method: str) -> None:
    await lab.put(cluster("a"), endpoints("a"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1})
    await client.subscribe(EDS, "a")
    await client.nack(await client.receive(EDS), "a: is refused")
    await client.quiet()
    configs = await client_status(lab, client.node_id, method)
    assert {config.node.id for config in configs} == {client.node_id}, "one for each stream of the client"
    entries = [entry for config in configs for entry in config.generic_xds_configs]
    states = {entry.type_url: entry for entry in entries if entry.name == "a"}
    assert set(states) == {CDS, EDS}
    assert "is refused" in states[EDS].error_state.details
    assert not states[CDS].HasField("error_state")


@pytest.mark.rule(54, on=ALL)
async def test_a_refusal_is_put_on_the_resource_that_it_names(lab: Lab) -> None:
    """With its text, in which control characters are escaped."""
    await lab.put(endpoints("good"), endpoints("bad"), endpoints("worse"))
    client = lab.client()
    await client.subscribe(EDS, "good", "bad", "worse")
    await client.nack(await client.receive(EDS), "bad: is\x1b[31m refused")
    await client.settle(EDS)
    (config,) = await client_status(lab, client.node_id)
    errors = {
        entry.name: entry.error_state.details for entry in config.generic_xds_configs if entry.error_state.details
    }
    assert errors == {"bad": r"bad: is\x1b[31m refused"}


async def client_status(lab: Lab, node_id: str, method: str = "FetchClientStatus") -> list[Any]:
    """What the status service says of a node, a `ClientConfig` for each of its streams."""
    request = ClientStatusRequest()
    request.node.id = "conformance-status"
    request.node_matchers.add().node_id.exact = node_id
    raw = request.SerializeToString()
    if method.startswith("Fetch"):
        answer = await lab.client().channel.unary_unary(CSDS + method)(raw, timeout=DEADLINE_S)
    else:
        call: Any = lab.client().channel.stream_stream(CSDS + method)(timeout=DEADLINE_S)
        await call.write(raw)
        answer = await call.read()
    return list(ClientStatusResponse.FromString(answer).config)
