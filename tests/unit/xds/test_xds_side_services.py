"""Health, reflection and load reporting over a real grpc.aio transport, spoken to with the stock client messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from envoy.service.load_stats.v3.lrs_pb2 import LoadStatsRequest, LoadStatsResponse
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from xdsbpf.errors import ProtocolError
from xdsbpf.xds import load_reports
from xdsbpf.xds.grpcio import GrpcTransport
from xdsbpf.xds.health import Health
from xdsbpf.xds.load_reporting import SERVICE as LRS
from xdsbpf.xds.load_reporting import LoadReporting
from xdsbpf.xds.load_reports import MAX_CLUSTERS, MAX_NAME, OTHER, LoadReports
from xdsbpf.xds.peers import PeerRules
from xdsbpf.xds.protocol import ADS_SERVICE
from xdsbpf.xds.reflection import reflection_handlers
from xdsbpf.xds.transport import Handler, Peer

Status = health_pb2.HealthCheckResponse
FEATURE = "envoy.lrs.supports_send_all_clusters"


@asynccontextmanager
async def served(handlers: dict[str, Handler]) -> AsyncIterator[aio.Channel]:
    transport = GrpcTransport(handlers)
    (address,) = await transport.start(["127.0.0.1:0"])
    try:
        async with aio.insecure_channel(address) as channel:
            yield channel
    finally:
        await transport.stop(0)


def report(node: str = "", **clusters: dict[str, int]) -> LoadStatsRequest:
    request = LoadStatsRequest()
    request.node.id = node
    for name, counts in clusters.items():
        stats = request.cluster_stats.add(cluster_name=name)
        stats.upstream_locality_stats.add(**counts)
    return request


async def _collect(watch: Any, statuses: list[int]) -> None:
    while (answer := await watch.read()) is not aio.EOF:
        statuses.append(answer.status)


async def until_reports(reports: LoadReports, count: int) -> None:
    async with asyncio.timeout(10):
        while reports.reports < count:
            await asyncio.sleep(0.01)


def lrs_call(channel: aio.Channel) -> Any:
    return channel.stream_stream(
        f"/{LRS}/StreamLoadStats",
        request_serializer=LoadStatsRequest.SerializeToString,
        response_deserializer=LoadStatsResponse.FromString,
    )()


async def test_health_follows_readiness_and_knows_its_services_only() -> None:
    health = Health((ADS_SERVICE,))
    async with served(dict(health.handlers())) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def check(service: str) -> Any:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status

        assert await check("") == Status.NOT_SERVING
        health.set_serving(True)
        assert [await check(name) for name in ("", ADS_SERVICE)] == [Status.SERVING] * 2
        with pytest.raises(aio.AioRpcError) as error:
            await check("no.such.Service")
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        assert ADS_SERVICE in (await stub.List(health_pb2.HealthListRequest())).statuses


async def test_a_watcher_sees_each_change_once_and_is_sent_away_by_a_drain() -> None:
    health = Health((ADS_SERVICE,))
    async with served(dict(health.handlers())) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=ADS_SERVICE))
        assert (await watch.read()).status == Status.NOT_SERVING
        health.set_serving(True)
        assert (await watch.read()).status == Status.SERVING
        health.set_serving(True)
        health.set_serving(False)
        assert (await watch.read()).status == Status.NOT_SERVING
        health.set_serving(True)
        assert (await watch.read()).status == Status.SERVING
        health.drain()
        # The last word may be overtaken by the status of the call, which a client takes for the same.
        last_words: list[int] = []
        with pytest.raises(aio.AioRpcError) as error:
            await _collect(watch, last_words)
        assert set(last_words) <= {Status.NOT_SERVING}
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_watch_of_a_service_that_is_not_here_stays_open() -> None:
    health = Health(())
    async with served(dict(health.handlers())) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="later"))
        assert (await watch.read()).status == Status.SERVICE_UNKNOWN
        assert not watch.done()


async def test_so_many_watch_and_no_more_and_one_that_ends_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody with a certificate may, so nothing else limits them; who only checks is answered all the same."""
    monkeypatch.setattr("xdsbpf.xds.health.MAX_WATCHES", 2)
    health = Health(())
    async with served(dict(health.handlers())) as channel:
        stub, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest()
        watches = [stub.Watch(request) for _ in range(2)]
        for watch in watches:
            await watch.read()
        with pytest.raises(aio.AioRpcError) as error:
            await stub.Watch(request).read()
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.Check(request)).status == Status.NOT_SERVING
        watches[0].cancel()
        async with asyncio.timeout(10):
            while health._watches == 2:
                await asyncio.sleep(0.01)
        assert (await stub.Watch(request).read()).status == Status.NOT_SERVING


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_the_services_and_describes_one(version: str) -> None:
    async with served(dict(reflection_handlers((ADS_SERVICE,)))) as channel:
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = await call.read()
        assert ADS_SERVICE in {entry.name for entry in listed.list_services_response.service}
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=ADS_SERVICE))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Thing"))
        assert (await call.read()).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_load_is_added_up_over_reports_and_clients_and_what_is_in_progress_goes_with_its_client() -> None:
    reports = LoadReports()
    async with served(dict(LoadReporting(reports, lambda _, said, __: said).handlers())) as channel:
        first, second = lrs_call(channel), lrs_call(channel)
        hello = report("a")
        hello.node.client_features.append(FEATURE)
        await first.write(hello)
        answer = await first.read()
        assert answer.send_all_clusters
        assert answer.load_reporting_interval.seconds == 10
        await second.write(report("b", reviews={"total_successful_requests": 1}))
        assert list((await second.read()).clusters) == ["reviews"], "a client that cannot report all is asked by name"
        for _ in range(2):
            await first.write(
                report(
                    reviews={"total_successful_requests": 5, "total_error_requests": 2, "total_requests_in_progress": 3}
                )
            )
        await until_reports(reports, 4)
        (row,) = reports.rows()
        assert (row.successful, row.errors, row.in_progress, row.reporters) == (11, 4, 3, 2)
        await first.done_writing()
        assert await first.read() is aio.EOF
        await until_reports(reports, 4)
        async with asyncio.timeout(10):
            while reports.rows()[0].reporters != 1:
                await asyncio.sleep(0.01)
        assert (reports.rows()[0].successful, reports.rows()[0].in_progress) == (11, 0)


async def test_a_node_that_is_not_admitted_and_one_without_a_name_may_not_report() -> None:
    def admit(peer: Peer, said: str, metadata: Mapping[str, object]) -> str:
        if said == "other":
            raise ProtocolError("PERMISSION_DENIED", f"not {said}")
        return PeerRules().authorize(peer, said, metadata)

    reports = LoadReports()
    async with served(dict(LoadReporting(reports, admit).handlers())) as channel:
        codes = {}
        for node in ("other", ""):
            call = lrs_call(channel)
            await call.write(report(node, reviews={"total_successful_requests": 7}))
            with pytest.raises(aio.AioRpcError) as error:
                await call.read()
            codes[node] = error.value.code()
        assert codes == {"other": grpc.StatusCode.PERMISSION_DENIED, "": grpc.StatusCode.INVALID_ARGUMENT}
        assert not reports.rows()
        allowed = lrs_call(channel)
        await allowed.write(report("mine", reviews={"total_successful_requests": 7}))
        await allowed.read()
        await until_reports(reports, 1)
        assert reports.rows()[0].successful == 7


def test_invented_cluster_names_are_counted_together_beyond_the_limit() -> None:
    reports = LoadReports()
    reports.open("one")
    request = LoadStatsRequest()
    for number in range(MAX_CLUSTERS + 100):
        request.cluster_stats.add(cluster_name=f"c{number}").upstream_locality_stats.add(total_issued_requests=1)
    reports.add("one", request)
    rows = reports.rows()
    assert len(rows) == MAX_CLUSTERS + 1
    assert {row.cluster: row.issued for row in rows}[OTHER] == 100


def test_long_names_and_invented_categories_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what one report leaves behind has a bound in bytes, too."""
    monkeypatch.setattr(load_reports, "MAX_CATEGORIES", 40)
    reports = LoadReports()
    reports.open("one")
    request = LoadStatsRequest()
    for name in ("x" * MAX_NAME, "x" * (MAX_NAME + 1), "a", "b"):
        stats = request.cluster_stats.add(cluster_name=name)
        for number in range(100 if name in "ab" else 0):
            stats.dropped_requests.add(category=f"{name}{number}", dropped_count=1)
        stats.dropped_requests.add(category="y" * (MAX_NAME + 1), dropped_count=7)
    reports.add("one", request)
    rows = {row.cluster: dict(row.drops) for row in reports.rows()}
    assert rows.keys() == {"x" * MAX_NAME, OTHER, "a", "b"}
    assert (rows[OTHER], rows["a"][OTHER], rows["b"][OTHER]) == ({OTHER: 7}, 100 - 32 + 7, 100 - 8 + 7)
    assert rows["a"].keys() | rows["b"].keys() <= {OTHER, *(f"a{n}" for n in range(32)), *(f"b{n}" for n in range(8))}


def test_what_is_in_progress_is_kept_by_name_for_so_many_clients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_reports, "MAX_IN_PROGRESS", 4)
    reports = LoadReports()
    for reporter in ("one", "two", "three"):
        reports.open(reporter)
        for _ in range(2):
            counts = {"total_requests_in_progress": 1}
            reports.add(reporter, report(a=counts, b=counts))
    found = {row.cluster: (row.in_progress, row.reporters) for row in reports.rows()}
    assert found == {"a": (2, 2), "b": (2, 2), OTHER: (2, 1)}, "of the third, their sum"
    reports.close("one")
    reports.add("three", report(a={"total_requests_in_progress": 5}))
    assert {row.cluster: row.in_progress for row in reports.rows()} == {"a": 6, "b": 1, OTHER: 0}
