"""What CSDS and whynot say of each resource, over scripted sessions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from envoy.admin.v3 import config_dump_shared_pb2 as dump
from envoy.service.status.v3 import csds_pb2 as csds
from xds_stream_client import AGENT_VIEW, CDS, EDS, NODE_ID, RDS, StreamClient, need, resource, store_with

from xdsbpf.errors import ProtocolError
from xdsbpf.model import names
from xdsbpf.xds import client_status, pacing
from xdsbpf.xds.client_status import SERVICE, ClientStatus
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.resource_status import ResourceState, explain, resource_statuses
from xdsbpf.xds.store import ResourceStore
from xdsbpf.xds.transport import Peer, Take


def answered(store: ResourceStore, client: StreamClient, type_url: str, *subscribe: str, error: str = "") -> None:
    """Subscribe, and answer everything that comes: with an ACK, or with a NACK that says `error`."""
    for response in client.on(type_url, *subscribe):
        client.on(type_url, nonce=response.nonce, error=error)


def states(client: StreamClient, store: ResourceStore) -> dict[str, ResourceState]:
    return {row.name: row.state for row in resource_statuses(client.session, store)}


def test_every_resource_of_a_client_is_in_one_state() -> None:
    store = ResourceStore()
    store.apply("node-envoy", (resource(EDS, "a"), resource(EDS, "b"), resource(EDS, "c")))
    client = StreamClient(store)
    answered(store, client, EDS, "a")
    client.on(EDS, "b", "gone")
    assert states(client, store) == {
        "a": ResourceState.ACKED,
        "b": ResourceState.SENT,
        "gone": ResourceState.MISSING,
    }
    refused = StreamClient(store)
    answered(store, refused, EDS, "c", error="c: bad endpoint")
    (row,) = resource_statuses(refused.session, store)
    assert (row.state, row.error) == (ResourceState.NACKED, "c: bad endpoint")


def test_whynot_names_the_first_thing_in_the_way() -> None:
    store, gate = ResourceStore(), Gate()
    mine, other = resource(EDS, "mine"), resource(EDS, "other")
    store.apply("node-envoy", (mine, resource(CDS, "lazy", on_demand=True), resource(EDS, "unasked")))
    store.apply("node-envoy/node2", (other,))
    client = StreamClient(store)

    def why(type_url: str, name: str) -> str:
        return explain(client.session, gate, store, type_url, name)

    assert why(EDS, "mine") == "the client has not asked for this type"
    answered(store, client, EDS, "mine")
    answered(store, client, CDS)
    assert why(EDS, "mine") == f"it has version {mine.version}"
    assert "it exists for node-envoy/node2" in why(EDS, "other")
    assert why(EDS, "nowhere") == "no manifest makes such a resource"
    assert "has not asked for it" in why(EDS, "unasked")
    assert "on demand" in why(CDS, "lazy")
    newer = resource(EDS, "mine", "2")
    client.session.on_changes(store.apply("node-envoy", (newer,)))
    assert "is about to be sent" in why(EDS, "mine")
    (response,) = client.session.poll()
    assert why(EDS, "mine") == f"version {newer.version} is sent, not acknowledged"
    client.on(EDS, nonce=response.nonce, error="mine: no")
    assert why(EDS, "mine") == f"the client refused version {newer.version}: mine: no"


def test_whynot_says_what_a_withheld_resource_waits_for() -> None:
    store, gate = ResourceStore(), Gate()
    host = resource(RDS, "9080/reviews")
    store.apply("datapath", (resource(names.FRONTEND, "10.0.0.1:80/tcp", requires=(need(host),)),))
    agent = StreamClient(store, AGENT_VIEW, gate=gate)
    answered(store, agent, names.FRONTEND)
    text = explain(agent.session, gate, store, names.FRONTEND, "10.0.0.1:80/tcp")
    assert text == "it is withheld until the node's Envoy is ready for it: the Envoy of node node1 is not connected"


class OneCall:
    """A unary call in memory, in place of a transport; the transports have tests of their own."""

    method = f"/{SERVICE}/FetchClientStatus"
    peer = Peer("unix:")

    def __init__(self, request: csds.ClientStatusRequest) -> None:
        self._request: bytes | None = request.SerializeToString()
        self.written = b""

    async def read(self) -> bytes | None:
        request, self._request = self._request, None
        return request

    async def read_all(self, handle: Take) -> None:
        raise AssertionError("unary methods read one message")

    def write_now(self, message: bytes) -> bool:
        self.written = message
        return True

    async def write(self, message: bytes) -> None:
        self.written = message


async def fetch(store: ResourceStore, *clients: StreamClient, **fields: Any) -> csds.ClientStatusResponse:
    call = OneCall(csds.ClientStatusRequest(**fields))
    service = ClientStatus(store, lambda: [client.session for client in clients])
    await service.handlers()[call.method](call)
    return csds.ClientStatusResponse.FromString(call.written)


async def test_csds_lists_what_each_client_has_with_the_bodies_but_never_a_key() -> None:
    store = ResourceStore()
    store.apply("node-envoy", (resource(EDS, "a"), resource(names.SECRET, "key", "private")))
    client = StreamClient(store)
    answered(store, client, EDS, "a", "gone")
    answered(store, client, names.SECRET, "key")
    response = await fetch(store, client)
    (config,) = response.config
    assert config.node.id == NODE_ID
    rows = {row.name: row for row in config.generic_xds_configs}
    assert (rows["a"].client_status, rows["a"].config_status) == (dump.ACKED, csds.SYNCED)
    assert rows["a"].xds_config.value == b"a=1"
    assert rows["gone"].client_status == dump.DOES_NOT_EXIST
    assert rows["key"].client_status == dump.ACKED
    assert not rows["key"].HasField("xds_config")
    assert b"private" not in response.SerializeToString()
    bare = await fetch(store, client, exclude_resource_contents=True)
    assert not any(row.HasField("xds_config") for row in bare.config[0].generic_xds_configs)


@pytest.mark.parametrize(
    ("matcher", "is_listed"),
    [
        ({"exact": NODE_ID}, True),
        ({"prefix": "node~"}, True),
        ({"suffix": "cluster.local"}, True),
        ({"contains": "NODE1", "ignore_case": True}, True),
        ({"exact": "node"}, False),
        ({"prefix": "agent~"}, False),
    ],
)
async def test_csds_lists_the_clients_that_a_matcher_names(matcher: dict[str, Any], is_listed: bool) -> None:
    store = ResourceStore()
    response = await fetch(store, StreamClient(store), node_matchers=[{"node_id": matcher}])
    assert [config.node.id for config in response.config] == [NODE_ID] * is_listed


async def test_csds_refuses_a_matcher_that_it_cannot_apply() -> None:
    store = ResourceStore()
    for matcher in ({"node_metadatas": [{}]}, {"node_id": {"safe_regex": {"regex": ".*"}}}):
        with pytest.raises(ProtocolError) as error:
            await fetch(store, StreamClient(store), node_matchers=[matcher])
        assert error.value.status == "UNIMPLEMENTED"


@pytest.mark.parametrize(("slice_s", "is_served"), [(0.0, True), (60.0, False)])
async def test_others_are_served_while_csds_looks_at_all_clients(
    monkeypatch: pytest.MonkeyPatch, slice_s: float, is_served: bool
) -> None:
    monkeypatch.setattr(pacing, "SLICE_S", slice_s)
    store = store_with(*(resource(EDS, f"e{number}") for number in range(50)))
    client = StreamClient(store)
    client.on(EDS, *(f"e{number}" for number in range(50)))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    response = await fetch(store, client)
    task.cancel()
    assert len(response.config[0].generic_xds_configs) == 50
    assert (turns > 40) is is_served


async def test_csds_refuses_an_answer_that_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_status, "MAX_ANSWER", 5_000)
    store = store_with(resource(EDS, "a", "x" * 3_000))
    clients = [StreamClient(store) for _ in range(2)]
    for client in clients:
        client.on(EDS, "a")
    assert len((await fetch(store, clients[0])).config) == 1
    with pytest.raises(ProtocolError, match="exclude_resource_contents") as error:
        await fetch(store, *clients)
    assert error.value.status == "RESOURCE_EXHAUSTED"
    assert len((await fetch(store, *clients, exclude_resource_contents=True)).config) == 2
