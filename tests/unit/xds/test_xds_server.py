"""The gRPC shell on loopback: streams, addresses, ends of streams. Protocol rules are tested without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse
from grpc import aio
from xds_stream_client import AGENT_VIEW, CDS, EDS, ENVOY_VIEW, VHDS, need, resource, store_with

from tests.waiting import until
from xdsbpf.errors import ConfigError, ProtocolError
from xdsbpf.model import names
from xdsbpf.model.names import parse_node_id
from xdsbpf.model.resource import make_resource
from xdsbpf.xds import protocol
from xdsbpf.xds.addresses import listen_target
from xdsbpf.xds.lifetimes import PATIENCE, Patience
from xdsbpf.xds.server import ViewResolver, XdsServer
from xdsbpf.xds.services import METHODS, Method, Variant
from xdsbpf.xds.status import SyncState, TypeStatus
from xdsbpf.xds.store import Batch, ResourceStore, View

pytestmark = pytest.mark.usefixtures("each_transport")

ENVOY_ID = "node~10.0.0.1~node1~cluster.local"
AGENT_ID = "agent~10.0.0.1~node1~cluster.local"
DEADLINE_S = 10.0
CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
"""A connection for each stream, as proxies have."""


def resolve(node_id: str, metadata: Mapping[str, object]) -> View:
    return AGENT_VIEW if parse_node_id(node_id).type == "agent" else ENVOY_VIEW


class Stream:
    """A raw delta ADS stream."""

    def __init__(self, channel: aio.Channel, method: str = protocol.DELTA_ADS) -> None:
        self.call: Any = channel.stream_stream(method)()

    async def send(self, type_url: str, **fields: Any) -> None:
        await self.call.write(protocol.encode_request(type_url, **fields))

    async def receive(self) -> protocol.ReceivedResponse:
        raw = await asyncio.wait_for(self.call.read(), DEADLINE_S)
        assert raw is not aio.EOF, (await self.call.code(), await self.call.details())
        return protocol.decode_response(raw)

    async def receive_and_ack(self) -> protocol.ReceivedResponse:
        response = await self.receive()
        await self.send(response.type_url, nonce=response.nonce)
        return response

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """Status of the ended stream."""
        try:
            while await asyncio.wait_for(self.call.read(), DEADLINE_S) is not aio.EOF:
                pass
        except aio.AioRpcError as error:
            return error.code(), str(error.details())
        return await self.call.code(), await self.call.details()


class Rig:
    def __init__(self, store: ResourceStore, resolver: ViewResolver, patience: Patience) -> None:
        self.store = store
        self.server = XdsServer(store, resolver, time.monotonic, patience=patience)
        self.channels: list[aio.Channel] = []
        self.bound: tuple[str, ...] = ()

    def stream(self, address: int = 0, method: str = protocol.DELTA_ADS) -> Stream:
        channel = aio.insecure_channel(self.bound[address], CHANNEL_OPTIONS)
        self.channels.append(channel)
        return Stream(channel, method)


@asynccontextmanager
async def running(
    store: ResourceStore, *addresses: str, resolver: ViewResolver = resolve, patience: Patience = PATIENCE
) -> AsyncIterator[Rig]:
    rig = Rig(store, resolver, patience)
    rig.bound = await rig.server.start(addresses or ("127.0.0.1:0",))
    try:
        yield rig
    finally:
        for channel in rig.channels:
            await channel.close()
        await rig.server.stop(1.0)


async def test_a_stream_gets_answers_and_changes() -> None:
    async with running(store_with(resource(EDS, "a"))) as rig:
        stream = rig.stream()
        await stream.send(EDS, node_id=ENVOY_ID, subscribe=["a"])
        assert [item.name for item in (await stream.receive_and_ack()).resources] == ["a"]
        rig.server.changed(rig.store.apply("node-envoy", [resource(EDS, "a", "2")]))
        assert (await stream.receive()).resources[0].body == b"a=2"


DELTA_SERVICES = [method for method in METHODS.values() if method.variant is Variant.DELTA and method.type_url]


@pytest.mark.parametrize("method", DELTA_SERVICES, ids=lambda method: method.path.rpartition("/")[2])
async def test_every_delta_service_serves_its_own_type(method: Method) -> None:
    """Rule 1: an empty type_url means the service's own, another one is refused."""
    async with running(store_with(resource(method.type_url, "a"))) as rig:
        stream = rig.stream(method=method.path)
        await stream.send("", node_id=ENVOY_ID, subscribe=["a"])
        got = await stream.receive()
        assert (got.type_url, [item.name for item in got.resources]) == (method.type_url, ["a"])
        await stream.send(EDS if method.type_url != EDS else CDS)
        assert (await stream.end())[0] is grpc.StatusCode.INVALID_ARGUMENT


SOTW_SERVICES = [method for method in METHODS.values() if method.variant is Variant.SOTW and method.type_url]
FETCHES = [method for method in METHODS.values() if method.variant is Variant.FETCH]


def sotw_request(type_url: str = "", *asked: str, nonce: str = "", node_id: str = ENVOY_ID) -> bytes:
    request = DiscoveryRequest(type_url=type_url, resource_names=asked, response_nonce=nonce)
    request.node.id = node_id
    return request.SerializeToString()


@pytest.mark.parametrize("method", SOTW_SERVICES, ids=lambda method: method.path.rpartition("/")[2])
async def test_every_state_of_the_world_service_serves_its_own_type(method: Method) -> None:
    """Rule 1."""
    async with running(store_with(resource(method.type_url, "a"))) as rig:
        stream = rig.stream(method=method.path)
        await stream.call.write(sotw_request("", "a"))
        got = DiscoveryResponse.FromString(await asyncio.wait_for(stream.call.read(), DEADLINE_S))
        assert (got.type_url, [item.value for item in got.resources]) == (method.type_url, [b"a=1"])
        await stream.call.write(sotw_request(EDS if method.type_url != EDS else CDS))
        assert (await stream.end())[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", FETCHES, ids=lambda method: method.path.rpartition("/")[2])
async def test_every_fetch_answers_once_with_all_that_is_asked_for(method: Method) -> None:
    """Rule 1."""
    items = [resource(method.type_url, name) for name in ("a", "b")]
    async with running(store_with(*items)) as rig:
        channel = aio.insecure_channel(rig.bound[0])
        rig.channels.append(channel)
        call = channel.unary_unary(method.path)
        got = DiscoveryResponse.FromString(await call(sotw_request("", "a", "b", "nosuch")))
        assert [item.value for item in got.resources] == [b"a=1", b"b=1"]
        assert got.version_info


async def test_datapath_resources_have_no_state_of_the_world() -> None:
    """The gate between the planes is kept in the delta variant; nothing may go around it."""
    async with running(store_with(resource(names.FRONTEND, "f"), scope="datapath")) as rig:
        stream = rig.stream(method=protocol.SOTW_ADS)
        await stream.call.write(sotw_request(names.FRONTEND, node_id=AGENT_ID))
        assert (await stream.end())[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_a_change_of_views_reaches_open_streams() -> None:
    """Scopes are asked for again; a client that loses its view is disconnected, others are not."""
    views = {ENVOY_ID: ENVOY_VIEW, "node~10.0.0.2~node2~x": ENVOY_VIEW}

    def look_up(node_id: str, metadata: Mapping[str, object]) -> View:
        if node_id not in views:
            raise ProtocolError("PERMISSION_DENIED", "no view any more")
        return views[node_id]

    store = store_with(resource(EDS, "a"))
    store.apply("extra", [resource(EDS, "a", "2"), resource(EDS, "b")])
    async with running(store, resolver=look_up) as rig:
        stream, loser = rig.stream(), rig.stream()
        for one, node_id in ((stream, ENVOY_ID), (loser, "node~10.0.0.2~node2~x")):
            await one.send(EDS, node_id=node_id, subscribe=["a", "b"])
            await one.receive_and_ack()
        views[ENVOY_ID] = View((*ENVOY_VIEW.scopes, "extra"), ENVOY_VIEW.node, ENVOY_VIEW.kind)
        del views["node~10.0.0.2~node2~x"]
        rig.server.views_changed()
        assert sorted(item.body or b"" for item in (await stream.receive_and_ack()).resources) == [b"a=2", b"b=1"]
        assert await loser.end() == (grpc.StatusCode.PERMISSION_DENIED, "no view any more")
        views[ENVOY_ID] = ENVOY_VIEW
        rig.server.views_changed()
        assert [item.body for item in (await stream.receive_and_ack()).resources] == [b"a=1"]
        assert (await stream.receive()).removed == ("b",)


async def test_unix_and_tcp_serve_the_same_store(tmp_path: Path) -> None:
    socket = tmp_path / "xds.sock"
    async with running(store_with(resource(EDS, "a")), "127.0.0.1:0", f"unix:{socket}") as rig:
        assert socket.stat().st_mode & 0o777 == 0o660
        for address in range(2):
            stream = rig.stream(address)
            await stream.send(EDS, node_id=ENVOY_ID, subscribe=["a"])
            assert (await stream.receive()).resources[0].body == b"a=1"
    assert not socket.exists()


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:15010",
        "10.0.0.1:15010",
        "[::]:15010",
        ":15010",
        "127.0.0.1",
        "127.0.0.1:x",
        "127.0.0.1:70000",
        "::1:15010",
        "example.com:15010",
        "unix:relative.sock",
        "unix:/" + "x" * 200,
    ],
)
async def test_plaintext_listens_on_nothing_but_loopback(address: str) -> None:
    server = XdsServer(ResourceStore(), resolve, time.monotonic)
    with pytest.raises(ConfigError):
        await server.start([address])


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("127.0.0.1:15010", "127.0.0.1:15010"),
        ("127.1.2.3:0", "127.1.2.3:0"),
        ("localhost:15010", "127.0.0.1:15010"),
        ("[::1]:15010", "[::1]:15010"),
        ("unix:/run/xds.sock", "unix:/run/xds.sock"),
        ("unix:///run/xds.sock", "unix:/run/xds.sock"),
    ],
)
def test_loopback_addresses_are_accepted(address: str, target: str) -> None:
    assert listen_target(address) == target


async def test_a_taken_port_is_a_configuration_error() -> None:
    async with running(ResourceStore()) as rig:
        with pytest.raises(ConfigError, match="cannot listen"):
            await XdsServer(ResourceStore(), resolve, time.monotonic).start(rig.bound)


async def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="not a socket"):
        await XdsServer(ResourceStore(), resolve, time.monotonic).start([f"unix:{path}"])
    assert path.read_text() == "data"


@pytest.mark.parametrize("node_id", ["", "nonsense"])
async def test_a_node_without_a_view_is_refused(node_id: str) -> None:
    """Rule 2."""
    async with running(ResourceStore()) as rig:
        stream = rig.stream()
        await stream.send(CDS, node_id=node_id)
        code, details = await stream.end()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "node" in details


async def test_garbage_closes_only_its_own_stream() -> None:
    """Rule 6."""
    async with running(store_with(resource(EDS, "a"))) as rig:
        good, bad = rig.stream(), rig.stream()
        await good.send(EDS, node_id=ENVOY_ID, subscribe=["a"])
        await good.receive()
        await bad.send(EDS, node_id=ENVOY_ID, subscribe=["a"])
        await bad.receive()
        await bad.call.write(b"\xff\xff\xff")
        assert (await bad.end())[0] is grpc.StatusCode.INVALID_ARGUMENT
        await good.send(EDS, subscribe=["a"])
        assert (await good.receive()).resources
        await until(lambda: len(rig.server.status()) == 1)


async def test_a_half_close_ends_the_stream_with_ok() -> None:
    """Rule 6."""
    async with running(ResourceStore()) as rig:
        stream = rig.stream()
        await stream.send(CDS, node_id=ENVOY_ID)
        await stream.receive()
        await stream.call.done_writing()
        assert (await stream.end())[0] is grpc.StatusCode.OK
        assert rig.server.status() == ()


BIG = make_resource(EDS, "big", b"x" * (24 << 20))
"""More than a transport takes for a client that does not read."""


@pytest.mark.parametrize("half_closes", [False, True])
async def test_a_refused_request_ends_the_stream_behind_a_response_on_its_way(half_closes: bool) -> None:
    async with running(store_with(BIG)) as rig:
        stream = rig.stream()
        await stream.send(EDS, node_id=ENVOY_ID, subscribe=["big"])
        await until(lambda: len(rig.server.status()) == 1)
        await stream.call.write(b"\xff\xff\xff")
        if half_closes:
            await stream.call.done_writing()
        await until(lambda: rig.server.status() == ())
        assert (await stream.end())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_client_that_takes_no_data_is_let_go_and_learns_it_when_it_reads() -> None:
    """Rule 43: not silently, or it would believe that nothing changes; beside one that reads, which stays."""
    async with running(store_with(BIG), patience=Patience(write_s=1.0)) as rig:
        slow, good = rig.stream(), rig.stream()
        for stream in (slow, good):
            await stream.send(EDS, node_id=ENVOY_ID, subscribe=["big"])
        await good.receive_and_ack()
        await until(lambda: len(rig.server.status()) == 1)
        assert (await slow.end())[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        rig.server.changed(rig.store.apply("node-envoy", [resource(EDS, "big", "2")]))
        assert (await good.receive()).resources[0].body == b"big=2"


async def test_stop_ends_streams_with_trailers_so_that_clients_reconnect() -> None:
    """Rule 48."""
    async with running(ResourceStore()) as rig:
        stream, idle = rig.stream(), rig.stream()
        await stream.send(CDS, node_id=ENVOY_ID)
        await stream.receive()
        await idle.send(EDS, node_id=ENVOY_ID)
        await until(lambda: len(rig.server.status()) == 2)
        before = time.monotonic()
        await rig.server.stop(5.0)
        assert time.monotonic() - before < 4.0, "streams end at once, not when the grace is over"
        assert (await stream.end()) == (grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        assert (await idle.end())[0] is grpc.StatusCode.UNAVAILABLE


async def test_a_client_that_vanishes_is_forgotten() -> None:
    async with running(store_with(resource(EDS, "a"))) as rig:
        stream = rig.stream()
        await stream.send(EDS, node_id=ENVOY_ID, subscribe=["a"])
        await stream.receive()
        assert len(rig.server.status()) == 1
        await rig.channels[0].close()
        await until(lambda: rig.server.status() == ())
        rig.server.changed(rig.store.apply("node-envoy", [resource(EDS, "a", "2")]))


async def test_an_envoy_ack_opens_the_gate_of_the_agent_on_another_stream() -> None:
    host = resource(VHDS, "r/h")
    frontend = resource(names.FRONTEND, "f", requires=(need(host),))
    async with running(ResourceStore()) as rig:
        envoy, agent = rig.stream(), rig.stream()
        await agent.send(names.FRONTEND, node_id=AGENT_ID)
        assert (await agent.receive_and_ack()).resources == ()
        changes = rig.store.apply_all([Batch("node-envoy", (host,)), Batch("datapath", (frontend,))])
        rig.server.changed(changes)
        await envoy.send(VHDS, node_id=ENVOY_ID)
        to_envoy = await envoy.receive()

        def of_agent() -> TypeStatus:
            return next(row for row in rig.server.status() if row.node_id == AGENT_ID).types[0]

        await until(lambda: of_agent().withheld)  # the agent's own ACK may be later than the Envoy's request
        assert of_agent().state is SyncState.PENDING
        assert of_agent().withheld[0].name == "f"
        await envoy.send(VHDS, nonce=to_envoy.nonce)
        assert [item.name for item in (await agent.receive()).resources] == ["f"]


async def test_a_slow_reader_gets_the_latest_content_and_few_responses() -> None:
    """Rules 41, 42 through the transport."""
    async with running(store_with(resource(EDS, "a", "0"))) as rig:
        stream = rig.stream()
        await stream.send(EDS, node_id=ENVOY_ID, subscribe=["a"])
        first = await stream.receive()
        for number in range(1, 1001):
            rig.server.changed(rig.store.apply("node-envoy", [resource(EDS, "a", str(number))]))
        await stream.send(EDS, nonce=first.nonce)
        assert (await stream.receive_and_ack()).resources[0].body == b"a=1000"
        await stream.send(CDS)
        assert (await stream.receive()).type_url == CDS, "nothing of EDS was queued before it"


async def test_a_resolver_may_refuse_a_node() -> None:
    def refuse(node_id: str, metadata: Mapping[str, object]) -> View:
        raise ProtocolError("PERMISSION_DENIED", f"{node_id} has no view")

    async with running(ResourceStore(), resolver=refuse) as rig:
        stream = rig.stream()
        await stream.send(CDS, node_id=ENVOY_ID)
        assert (await stream.end())[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_metadata_reaches_the_resolver() -> None:
    """Views will depend on it."""
    seen: list[Mapping[str, object]] = []

    def note(node_id: str, metadata: Mapping[str, object]) -> View:
        seen.append(metadata)
        return ENVOY_VIEW

    request = DeltaDiscoveryRequest.FromString(protocol.encode_request(CDS, node_id=ENVOY_ID, user_agent="envoy"))
    request.node.metadata.update({"NAMESPACE": "default", "LABELS": {"app": "x"}})
    async with running(ResourceStore(), resolver=note) as rig:
        stream = rig.stream()
        await stream.call.write(request.SerializeToString())
        await stream.receive()
    assert seen == [{"NAMESPACE": "default", "LABELS": {"app": "x"}, "node.user_agent_name": "envoy"}]
