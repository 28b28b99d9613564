"""The admin endpoint over a control plane in this process: shapes, errors, metrics."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from envoy.service.load_stats.v3.lrs_pb2 import LoadStatsRequest
from grpc import aio

from tests.web_client import Client
from xdsbpf.model.names import CLUSTER, ENDPOINTS, SECRET, SHORT_TYPES
from xdsbpf.serve import ControlPlane, ServeConfig
from xdsbpf.web.admin import admin_app
from xdsbpf.xds import protocol

MANIFEST = """apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {clusterIP: 10.9.0.1, selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}], timeout: 1s}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wrong}
spec: {hosts: [reviews], htp: []}
"""
RULE = """---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 3s}}}}
"""
REVIEWS_CLUSTER = "outbound|9080||reviews.default.svc.cluster.local"
STATES = {"APPLIED", "PENDING", "REJECTED", "NOT-ENFORCED", "SHADOWED-BY"}


@pytest.fixture
def idle(tmp_path: Path) -> ControlPlane:
    """A control plane that has not been started."""
    (tmp_path / "a.yaml").write_text(MANIFEST)
    return ControlPlane(ServeConfig(paths=(tmp_path,), listen=(f"unix:{tmp_path}/xds.sock",)))


@asynccontextmanager
async def started(plane: ControlPlane) -> AsyncIterator[Client]:
    task = asyncio.create_task(plane.run())
    try:
        await asyncio.wait_for(plane.ready.wait(), 15)
        yield Client(admin_app(plane))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def get(client: Client, path: str) -> Any:
    response = await client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


async def test_ready_is_503_before_the_first_compile_and_200_after_it(idle: ControlPlane) -> None:
    before = await Client(admin_app(idle)).get("/ready")
    assert (before.status_code, before.json()["ready"]) == (503, False)
    async with started(idle) as client:
        answer = await get(client, "/ready")
        assert answer["ready"] is True
        assert answer["listen"][0].startswith("unix:")


async def test_services_and_objects_have_the_documented_fields(idle: ControlPlane) -> None:
    async with started(idle) as client:
        (service,) = (await get(client, "/services"))["items"]
        assert (service["host"], service["port"]) == ("reviews.default.svc.cluster.local", 9080)
        assert (service["plane"], service["address"]) == ("L7", "10.9.0.1")
        answer = await get(client, "/objects")
        states = {item["object"]: item["state"] for item in answer["items"]}
        assert states["VirtualService/default/reviews"] == "APPLIED"
        assert states["VirtualService/default/wrong"] == "REJECTED"
        assert set(states.values()) <= STATES
        assert [source["state"] for source in answer["sources"]] == ["ok"]
        wrong = next(item for item in answer["items"] if item["state"] == "REJECTED")
        assert wrong["detail"]
        assert re.search(r"a\.yaml:14:\d+$", wrong["diagnostics"][0]["location"])
        assert (await get(client, "/proxies"))["items"] == []


async def test_locate_answers_what_is_known_and_leaves_the_rest_empty(idle: ControlPlane) -> None:
    async with started(idle) as client:
        references = ["VirtualService/default/reviews spec.http[0]", "Service/a/b", "?"]
        query = urllib.parse.urlencode([("ref", reference) for reference in references])
        answer = await client.get(f"/locate?{query}")
        locations = [item["location"] for item in answer.json()["items"]]
        assert locations[0].endswith("a.yaml:9:33")
        assert locations[1:] == ["", ""]
        assert (await client.get("/locate")).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [("GET", "/confirm", 405), ("POST", "/services", 405), ("DELETE", "/objects", 405), ("GET", "/nowhere", 404)],
)
async def test_errors_are_json(idle: ControlPlane, method: str, path: str, code: int) -> None:
    response = await Client(admin_app(idle)).request(method, path)
    assert response.status_code == code
    assert response.json()["error"]


async def test_a_defect_is_a_json_error_too(idle: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("made for a test")

    monkeypatch.setattr(idle.compiler, "services", broken)
    response = await Client(admin_app(idle)).get("/services")
    assert response.status_code == 500
    assert "made for a test" in response.json()["error"]


async def test_confirm_counts_what_was_held_and_refuses_browsers(idle: ControlPlane) -> None:
    async with started(idle) as client:
        assert (await client.request("POST", "/confirm")).json() == {"confirmed": 0}
        assert (await client.request("POST", "/confirm", origin="http://example.com")).status_code == 403


async def test_metrics_have_few_labels_and_count_objects_by_state(idle: ControlPlane) -> None:
    async with started(idle) as client:
        text = (await client.get("/metrics")).text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples["xdsbpf_ready"]) == 1
    assert float(samples["xdsbpf_compile_seconds_count"]) >= 1
    assert float(samples['xdsbpf_objects{state="REJECTED"}']) == 1
    assert float(samples['xdsbpf_objects{state="APPLIED"}']) == 2
    assert "reviews" not in text
    assert "process_resident_memory_bytes" in samples


async def test_two_control_planes_in_one_process_have_metrics_of_their_own(tmp_path: Path, idle: ControlPlane) -> None:
    (tmp_path / "b").mkdir()
    other = ControlPlane(ServeConfig(paths=(tmp_path / "b",), listen=(f"unix:{tmp_path}/b.sock",)))
    async with started(other) as client:
        assert 'xdsbpf_objects{state="APPLIED"} 0.0' in (await client.get("/metrics")).text
    assert "xdsbpf_ready 0.0" in (await Client(admin_app(idle)).get("/metrics")).text


async def test_load_that_clients_reported_is_shown_by_cluster_and_counted_without_names(idle: ControlPlane) -> None:
    async with started(idle) as client:
        assert await get(client, "/loads") == {"items": [], "reports": 0}
        request = LoadStatsRequest()
        stats = request.cluster_stats.add(cluster_name="outbound|9080||reviews", total_dropped_requests=2)
        stats.upstream_locality_stats.add(total_successful_requests=5, total_error_requests=1)
        idle.load_reports.open("client")
        idle.load_reports.add("client", request)
        (row,) = (await get(client, "/loads"))["items"]
        assert (row["cluster"], row["successful"], row["errors"], row["dropped"]) == ("outbound|9080||reviews", 5, 1, 2)
        text = (await client.get("/metrics")).text
        assert 'xdsbpf_load_requests_total{outcome="success"} 5.0' in text
        assert "outbound|9080||reviews" not in text


async def test_whynot_wants_to_be_asked_properly(idle: ControlPlane) -> None:
    async with started(idle) as client:
        for query in ("", "?node=a", "?resource=b", "?node=a&resource=b&type=nonsense"):
            response = await client.get(f"/debug/whynot{query}")
            assert response.status_code == 400, query
            assert "node=ID&resource=NAME" in response.json()["error"]
        assert (await client.get("/debug/whynot?node=a&resource=b")).status_code == 404
        async with aio.insecure_channel(idle.bound[0]) as channel:
            stream = channel.stream_stream(protocol.DELTA_ADS)()
            node_id = "node~127.0.0.1~node1~cluster.local"
            await stream.write(protocol.encode_request(CLUSTER, node_id=node_id, subscribe=["nowhere"]))
            await stream.read()
            (row,) = (await get(client, f"/debug/whynot?node={node_id}&resource=nowhere"))["items"]
            assert (row["type_url"], row["answer"]) == (CLUSTER, "no manifest makes such a resource")
            host = "outbound|9080||reviews.default.svc.cluster.local"
            path = f"/debug/whynot?node={node_id}&type=cds&resource={urllib.parse.quote(host)}"
            (row,) = (await get(client, path))["items"]
            assert row["answer"] == "it is in the client's view, but the client has not asked for it"
            stream.cancel()


def series(text: str) -> set[str]:
    """Every series of the xDS metrics."""
    return {line.rsplit(" ", 1)[0] for line in text.splitlines() if line.startswith("xdsbpf_")}


async def series_with(client: Client, wanted: str) -> set[str]:
    """Every series, once `wanted` is among them: a response is counted after it was handed to the transport."""
    async with asyncio.timeout(10):
        while wanted not in (found := series((await client.get("/metrics")).text)):
            await asyncio.sleep(0.01)
    return found


OF_CONNECTED = tuple(f"xdsbpf_xds_{name}" for name in ("streams", "subscriptions", "refused_", "withheld_"))
"""Of clients that are there at the moment of the scrape, which the first or the last one may or may not be."""


async def hostile(plane: ControlPlane, first: int, count: int) -> None:
    """Streams with a node id and a type of their own each, which ask, are answered, and refuse."""
    async with aio.insecure_channel(plane.bound[0]) as channel:
        for number in range(first, first + count):
            call = channel.stream_stream(protocol.DELTA_ADS)()
            type_url = f"type.googleapis.com/evil.V{number}"
            await call.write(protocol.encode_request(type_url, node_id=f'evil-{number}"{{x}}', subscribe=("a",)))
            await call.write(protocol.encode_request(type_url, nonce="7", error=f"evil {number}"))
            await call.write(protocol.encode_request(CLUSTER))
            while protocol.decode_response(await call.read()).type_url != CLUSTER:
                pass
            call.cancel()


async def test_a_thousand_hostile_clients_and_types_add_no_series(idle: ControlPlane) -> None:
    async with started(idle) as client:
        await hostile(idle, 0, 1)
        before = await series_with(client, 'xdsbpf_xds_sent_bytes_total{type="cds"}')
        await hostile(idle, 1, 1000)
        text = (await client.get("/metrics")).text
        assert "evil" not in text
        of_connected = {name for name in series(text) if name.startswith(OF_CONNECTED)}
        assert series(text) - of_connected <= before
        assert len(of_connected) <= 7 * (len(SHORT_TYPES) + 1) + 1, (
            "five states, refused and withheld of a type; a kind"
        )
        async with aio.insecure_channel(idle.bound[0]) as channel:
            call = channel.stream_stream(protocol.DELTA_ADS)()
            await call.write(protocol.encode_request(ENDPOINTS, node_id="an-envoy", subscribe=("a",)))
            assert await call.read() is not aio.EOF
            await series_with(client, 'xdsbpf_xds_sent_bytes_total{type="eds"}')


async def test_a_change_is_measured_until_it_is_sent_and_acked(tmp_path: Path, idle: ControlPlane) -> None:
    async with started(idle) as client, aio.insecure_channel(idle.bound[0]) as channel:
        call: Any = channel.stream_stream(protocol.DELTA_ADS)()
        await call.write(protocol.encode_request(CLUSTER, node_id="an-envoy", subscribe=(REVIEWS_CLUSTER,)))
        first = protocol.decode_response(await call.read())
        await call.write(protocol.encode_request(CLUSTER, nonce=first.nonce))
        (tmp_path / "a.yaml").write_text(MANIFEST + RULE)
        second = protocol.decode_response(await call.read())
        text = (await client.get("/metrics")).text
        assert 'xdsbpf_xds_change_sent_seconds_count{type="cds"} 1.0' in text
        assert 'xdsbpf_xds_change_acked_seconds_count{type="cds"}' not in text
        await call.write(protocol.encode_request(CLUSTER, nonce=second.nonce))
        async with asyncio.timeout(15):
            while 'xdsbpf_xds_change_acked_seconds_count{type="cds"} 1.0' not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.01)


RAW = """resources:
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: key
  tls_certificate: {private_key: {inline_string: hush}}
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: shown
  connect_timeout: 3s
"""


async def test_the_configuration_of_a_client_never_holds_a_secret(tmp_path: Path) -> None:
    """Its name and state are shown; a cluster beside it shows that contents are."""
    (tmp_path / "raw.yaml").write_text(RAW)
    plane = ControlPlane(ServeConfig((), (tmp_path / "raw.yaml",), listen=(f"unix:{tmp_path}/xds.sock",)))
    async with started(plane) as client, aio.insecure_channel(plane.bound[0]) as channel:
        call: Any = channel.stream_stream(protocol.DELTA_ADS)()
        await call.write(protocol.encode_request(SECRET, node_id="an-envoy", subscribe=("key",)))
        assert b"hush" in await call.read()
        await call.write(protocol.encode_request(CLUSTER))
        await call.read()
        text = (await client.get("/config?node=an-envoy&body=1")).text
        bodies = {item["name"]: item.get("body") for item in json.loads(text)["items"]}
        assert bodies == {"key": None, "shown": {"name": "shown", "connectTimeout": "3s"}}
        assert "hush" not in text
        assert (await client.get("/config?node=nobody")).status_code == 404
        assert (await client.get("/config?node=an-envoy&type=nonsense")).status_code == 400
        assert (await client.get("/config")).status_code == 400


async def test_a_difference_is_not_for_browsers_nor_for_what_is_no_question(idle: ControlPlane) -> None:
    change = {"manifests": [["a.yaml", RULE]], "proxy": "node~10.0.0.1~node1~cluster.local"}
    async with started(idle) as client:
        found = await client.post("/diff", json.dumps(change))
        assert [item["name"] for item in found.json()["resources"]] == [REVIEWS_CLUSTER]
        assert found.json()["resources"][0]["before"] is None, "contents are for who asks for them"
        assert (await client.post("/diff", json.dumps(change), origin="http://example.com")).status_code == 403
        texts = ("kind: [", RULE.replace("host", "hots"))
        questions = ({**change, "proxy": "router~1~2~3"}, *({"manifests": [["a.yaml", text]]} for text in texts))
        for wrong in ("[", '{"manifests": [1]}', *map(json.dumps, questions)):
            refused = await client.post("/diff", wrong)
            assert refused.status_code == 400
            assert refused.json()["error"]
        assert (await client.post("/diff", b" " * (32 << 20) + b"{}")).status_code == 413
