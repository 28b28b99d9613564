"""xDS by polling: what is answered, when nothing is, and what is refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.message import Message

from tests.web_client import Answer, Client
from xdsbpf.errors import ProtocolError
from xdsbpf.model.names import CLUSTER, FRONTEND, LISTENER, TYPE_PREFIX
from xdsbpf.model.resource import Resource, make_resource
from xdsbpf.web import rest
from xdsbpf.web.rest import NOUNS, rest_app
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.services import METHODS, Variant
from xdsbpf.xds.store import AGENT, ENVOY, ResourceStore, View

SCOPE = "web"
NODE = {"id": "edge-1", "userAgentName": "envoy", "noSuchFieldYet": {"a": 1}}


def packed(message: Message, name: str) -> Resource:
    return make_resource(TYPE_PREFIX + message.DESCRIPTOR.full_name, name, message.SerializeToString())


def cluster(name: str, seconds: int = 1) -> Resource:
    message = Cluster(name=name)
    message.connect_timeout.seconds = seconds
    return packed(message, name)


def endpoints(name: str) -> Resource:
    return packed(ClusterLoadAssignment(cluster_name=name), name)


def resolve(node_id: str, metadata: Mapping[str, object]) -> View:
    if node_id == "nobody":
        raise ProtocolError("INVALID_ARGUMENT", "no such node", hint="be somebody")
    return View((SCOPE,), "", AGENT if node_id.startswith("agent~") else ENVOY)


class Poller:
    """A store behind the application, and a client that polls it."""

    def __init__(self) -> None:
        self.store = ResourceStore()
        self.is_ready = True
        server = XdsServer(self.store, resolve, time.monotonic)
        self.http = Client(rest_app(server.handlers, lambda: self.is_ready))

    async def poll(self, noun: str, *names: str, version: str = "", node: Any = NODE, **fields: Any) -> Answer:
        body = {"node": node, "resourceNames": names, "versionInfo": version, **fields}
        return await self.http.post(f"/v3/discovery:{noun}", json.dumps(body))


@pytest.fixture
def poller() -> Poller:
    return Poller()


async def test_a_poll_gets_everything_once_and_then_only_what_changed(poller: Poller) -> None:
    poller.store.apply(SCOPE, [cluster("a"), cluster("b")])
    first = await poller.poll("clusters")
    assert first.status_code == 200
    answer = first.json()
    assert answer["typeUrl"] == CLUSTER
    assert answer["resources"] == [{"@type": CLUSTER, "name": name, "connectTimeout": "1s"} for name in ("a", "b")]
    same = await poller.poll("clusters", version=answer["versionInfo"])
    assert (same.status_code, same.text) == (304, "")
    poller.store.apply(SCOPE, [cluster("a", 2)])
    changed = await poller.poll("clusters", version=answer["versionInfo"])
    assert changed.status_code == 200
    assert [item["connectTimeout"] for item in changed.json()["resources"]] == ["2s", "1s"]
    poller.store.apply(SCOPE, [cluster("a", 1)])
    assert (await poller.poll("clusters", version=answer["versionInfo"])).status_code == 304


async def test_named_resources_are_answered_as_far_as_they_exist(poller: Poller) -> None:
    poller.store.apply(SCOPE, [endpoints("a"), endpoints("b")])
    answer = (await poller.poll("endpoints", "a", "missing")).json()
    assert [item["clusterName"] for item in answer["resources"]] == ["a"]
    poller.store.apply(SCOPE, [endpoints("missing")])
    later = await poller.poll("endpoints", "a", "missing", version=answer["versionInfo"])
    assert [item["clusterName"] for item in later.json()["resources"]] == ["a", "missing"]


async def test_nothing_is_an_answer_of_its_own_and_not_repeated(poller: Poller) -> None:
    answer = (await poller.poll("listeners")).json()
    assert answer["typeUrl"] == LISTENER
    assert "resources" not in answer
    assert (await poller.poll("listeners", version=answer["versionInfo"])).status_code == 304


async def test_a_version_that_a_file_gives_does_not_hide_what_is_new(poller: Poller) -> None:
    """Two clusters of the same explicit version are not one."""
    one, two = (msgspec.structs.replace(cluster(name), version="v1") for name in "ab")
    poller.store.apply(SCOPE, [one])
    version = (await poller.poll("clusters")).json()["versionInfo"]
    poller.store.apply(SCOPE, [two])
    assert (await poller.poll("clusters", version=version)).status_code == 200


async def test_what_is_inside_an_any_is_json_too(poller: Poller) -> None:
    message = Listener(name="web")
    config = message.filter_chains.add().filters.add(name="router").typed_config
    config.Pack(Router(respect_expected_rq_timeout=True))
    poller.store.apply(SCOPE, [packed(message, "web")])
    (found,) = (await poller.poll("listeners")).json()["resources"]
    assert found["filterChains"][0]["filters"][0]["typedConfig"]["respectExpectedRqTimeout"] is True


async def test_a_resource_without_a_schema_is_an_error_and_not_left_out(poller: Poller) -> None:
    message = Listener(name="web")
    message.filter_chains.add().filters.add(name="x").typed_config.CopyFrom(ProtoAny(type_url=f"{TYPE_PREFIX}no.Such"))
    poller.store.apply(SCOPE, [packed(message, "web")])
    answer = await poller.poll("listeners")
    assert answer.status_code == 500
    assert "no.Such" in answer.json()["error"]


async def test_every_fetch_method_has_its_path(poller: Poller) -> None:
    fetching = {path for path, method in METHODS.items() if method.variant is Variant.FETCH}
    assert {path.rpartition("/")[2] for path in fetching} == set(NOUNS)
    for path in fetching:
        answer = await poller.poll(NOUNS[path.rpartition("/")[2]], "x")
        assert answer.json()["typeUrl"] == METHODS[path].type_url


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "is no DiscoveryRequest in proto3 JSON"),
        (b"\xff\xfe", "is no DiscoveryRequest in proto3 JSON"),
        ("[" * 100_000, "is no DiscoveryRequest in proto3 JSON"),
        ('{"resourceNames": "a"}', "is no DiscoveryRequest in proto3 JSON"),
        ("{}", "no node.id"),
        ('{"node": {"id": "edge-1"}, "typeUrl": "type.googleapis.com/x.Y"}', "this service serves"),
    ],
)
async def test_a_request_that_means_nothing_is_a_bad_request(poller: Poller, body: str | bytes, says: str) -> None:
    answer = await poller.http.post("/v3/discovery:clusters", body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]


async def test_a_node_without_a_view_is_told_why(poller: Poller) -> None:
    answer = await poller.poll("clusters", node={"id": "nobody"})
    assert (answer.status_code, answer.json()) == (400, {"error": "no such node", "hint": "be somebody"})


async def test_what_belongs_to_an_agent_is_not_served_by_polling(poller: Poller) -> None:
    poller.store.apply(SCOPE, [make_resource(FRONTEND, "f", b"")])
    assert (await poller.poll("clusters", node={"id": "agent~10.0.0.1~n~d"})).status_code == 501
    assert (await poller.poll("clusters", node=NODE)).status_code == 200


async def test_a_request_over_the_limit_is_refused(poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "MAX_BODY_BYTES", 200)
    assert (await poller.poll("endpoints", "a")).status_code == 200
    assert (await poller.poll("endpoints", "a" * 200)).status_code == 413


@pytest.mark.parametrize("limit", [2, 20])
async def test_so_many_answers_are_made_at_a_time(poller: Poller, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """A fleet may poll in the same second; the others wait, and all are answered."""
    monkeypatch.setattr(rest, "AT_A_TIME", limit)
    poller.http = Client(rest_app(XdsServer(poller.store, resolve, time.monotonic).handlers, lambda: True))
    poller.store.apply(SCOPE, [cluster("a")])
    at_once, highest = 0, 0

    async def rendered(make: Callable[..., str], answer: object) -> str:
        nonlocal at_once, highest
        at_once += 1
        highest = max(highest, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return make(answer)

    monkeypatch.setattr(asyncio, "to_thread", rendered)
    answers = await asyncio.gather(*(poller.poll("clusters") for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    assert highest == min(limit, 10)


async def test_a_browser_is_refused(poller: Poller) -> None:
    body = json.dumps({"node": NODE})
    assert (await poller.http.post("/v3/discovery:secrets", body)).status_code == 200
    assert (await poller.http.post("/v3/discovery:secrets", body, origin="http://localhost:1")).status_code == 403


async def test_nothing_is_served_before_all_input_was_read(poller: Poller) -> None:
    poller.is_ready = False
    answer = await poller.poll("clusters")
    assert answer.status_code == 503
    assert "not ready" in answer.json()["error"]


async def test_other_methods_and_paths_are_no_xds(poller: Poller) -> None:
    assert (await poller.http.get("/v3/discovery:clusters")).status_code == 405
    assert (await poller.poll("virtual-hosts")).status_code == 404
