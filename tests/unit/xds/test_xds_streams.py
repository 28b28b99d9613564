"""Streams over a scripted transport: what gRPC on loopback cannot bring about at will."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
import structlog
from test_xds_guard import cluster, route
from xds_stream_client import CDS, EDS, ENVOY_VIEW, NODE_ID, RDS, resource, store_with

from xdsbpf.errors import ProtocolError
from xdsbpf.model.resource import Resource
from xdsbpf.xds import limits, protocol, shared
from xdsbpf.xds.lifetimes import PATIENCE, Patience
from xdsbpf.xds.shared import MIN_NAMES, PAGE_RESOURCES
from xdsbpf.xds.store import ResourceStore
from xdsbpf.xds.streams import Streams
from xdsbpf.xds.subscription import NAME_COST
from xdsbpf.xds.transport import Peer, Take
from xdsbpf.xds.turns import STREAMS_PER_TURN


class ScriptedCall:
    """A call that is fed by hand; writes block while `is_stalled`. `takes_at_once`: as the built-in HTTP/2 does."""

    def __init__(self, method: str = protocol.DELTA_ADS, *, takes_at_once: bool = False) -> None:
        self.takes_at_once = takes_at_once
        self.method = method
        self.peer = Peer("test")
        self.to_server: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.to_client: asyncio.Queue[bytes] = asyncio.Queue()
        self.is_stalled = False

    async def read(self) -> bytes | None:
        return await self.to_server.get()

    async def read_all(self, handle: Take) -> None:
        while (message := await self.read()) is not None:
            handle(message)

    def write_now(self, message: bytes) -> bool:
        if self.takes_at_once and not self.is_stalled:
            self.to_client.put_nowait(message)
            return True
        return False

    async def write(self, message: bytes) -> None:
        if self.is_stalled:
            await asyncio.Event().wait()
        self.to_client.put_nowait(message)


def serving(store: ResourceStore, patience: Patience = PATIENCE) -> Streams:
    return Streams(store, lambda node_id, metadata: ENVOY_VIEW, time.monotonic, patience=patience)


@pytest.mark.parametrize("is_stalled", [True, False])
async def test_a_stream_that_takes_no_data_is_reset(is_stalled: bool) -> None:
    """Rule 43; one that takes it stays."""
    served, call = serving(store_with(resource(CDS, "a")), Patience(write_s=0.05)), ScriptedCall()
    call.is_stalled = is_stalled
    task = asyncio.create_task(served.serve(call))
    call.to_server.put_nowait(protocol.encode_request(CDS, node_id=NODE_ID))
    if is_stalled:
        with pytest.raises(ProtocolError, match="took no data") as error:
            await asyncio.wait_for(task, 5)
        assert error.value.status == "DEADLINE_EXCEEDED"
        assert served.status() == ()
    else:
        await asyncio.wait_for(call.to_client.get(), 5)
        done, _ = await asyncio.wait((task,), timeout=0.2)
        assert not done
        call.to_server.put_nowait(None)
        await asyncio.wait_for(task, 5)


async def test_a_stream_whose_call_is_cancelled_is_forgotten() -> None:
    served, call = serving(ResourceStore()), ScriptedCall()
    task = asyncio.create_task(served.serve(call))
    call.to_server.put_nowait(protocol.encode_request(CDS, node_id=NODE_ID))
    await asyncio.wait_for(call.to_client.get(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert served.status() == ()


@pytest.mark.parametrize("comes_late", [True, False])
async def test_a_server_that_stops_ends_streams_that_come_late_as_well(comes_late: bool) -> None:
    served, call = serving(store_with(resource(CDS, "a"))), ScriptedCall()
    task = asyncio.create_task(served.serve(call))
    if not comes_late:
        call.to_server.put_nowait(protocol.encode_request(CDS, node_id=NODE_ID))
        await asyncio.wait_for(call.to_client.get(), 5)
    served.stop()
    if comes_late:
        call.to_server.put_nowait(protocol.encode_request(CDS, node_id=NODE_ID))
    with pytest.raises(ProtocolError, match="the server is stopping") as error:
        await asyncio.wait_for(task, 5)
    assert error.value.status == "UNAVAILABLE"
    assert served.status() == ()


@pytest.mark.parametrize("takes_at_once", [True, False])
async def test_a_request_that_comes_with_the_half_close_is_answered_before_the_end(takes_at_once: bool) -> None:
    """Rule 6."""
    served, call = serving(store_with(resource(EDS, "a"))), ScriptedCall(takes_at_once=takes_at_once)
    for data in (protocol.encode_request(EDS, node_id=NODE_ID, subscribe=["a"]), None):
        call.to_server.put_nowait(data)
    await asyncio.wait_for(served.serve(call), 5)
    assert [item.name for item in protocol.decode_response(call.to_client.get_nowait()).resources] == ["a"]
    assert served.status() == ()


@pytest.mark.parametrize("takes_at_once", [True, False])
async def test_one_change_reaches_more_streams_than_one_turn_serves(takes_at_once: bool) -> None:
    """In turns, and all of them."""
    store = store_with(resource(EDS, "a"))
    served = serving(store)
    calls = [ScriptedCall(takes_at_once=takes_at_once) for _ in range(STREAMS_PER_TURN + 10)]
    tasks = [asyncio.create_task(served.serve(call)) for call in calls]
    for call in calls:
        call.to_server.put_nowait(protocol.encode_request(EDS, node_id=NODE_ID, subscribe=["a"]))
    for call in calls:
        got = protocol.decode_response(await asyncio.wait_for(call.to_client.get(), 5))
        call.to_server.put_nowait(protocol.encode_request(EDS, nonce=got.nonce))
    while any(not call.to_server.empty() for call in calls):
        await asyncio.sleep(0)
    served.changed(store.apply("node-envoy", [resource(EDS, "a", "2")]))
    for call in calls:
        got = protocol.decode_response(await asyncio.wait_for(call.to_client.get(), 5))
        assert [item.body for item in got.resources] == [b"a=2"]
        call.to_server.put_nowait(None)
    await asyncio.gather(*tasks)


async def test_a_defect_in_one_stream_ends_it_and_no_other() -> None:
    store = store_with(resource(EDS, "a"))
    served = serving(store)
    calls = [ScriptedCall() for _ in range(3)]
    tasks = [asyncio.create_task(served.serve(call)) for call in calls]
    for call in calls:
        call.to_server.put_nowait(protocol.encode_request(EDS, node_id=NODE_ID, subscribe=["a"]))
        got = protocol.decode_response(await asyncio.wait_for(call.to_client.get(), 5))
        call.to_server.put_nowait(protocol.encode_request(EDS, nonce=got.nonce))
    while any(not call.to_server.empty() for call in calls):
        await asyncio.sleep(0)
    seen: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(repr(context["exception"])))
    broken = served.sessions()[0]
    broken.next_response = lambda: {}[1]  # type: ignore[method-assign]
    served.changed(store.apply("node-envoy", [resource(EDS, "a", "2")]))
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=5)
    (ended,) = done
    error = ended.exception()
    assert isinstance(error, ProtocolError)
    assert error.status == "INTERNAL"
    assert seen == ["KeyError(1)"]
    for call, task in zip(calls, tasks, strict=True):
        if task is not ended:
            got = protocol.decode_response(await asyncio.wait_for(call.to_client.get(), 5))
            assert [item.body for item in got.resources] == [b"a=2"]
            call.to_server.put_nowait(None)
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_streams_that_ask_the_same_are_sent_the_same_page() -> None:
    """First sync: one rendering for all; what changes before a page is sent is in it."""
    asked = [f"e{number}" for number in range(PAGE_RESOURCES + MIN_NAMES)]
    store = store_with(*(resource(EDS, name) for name in asked))
    served = serving(store)
    calls = [ScriptedCall() for _ in range(3)]
    tasks = [asyncio.create_task(served.serve(call)) for call in calls]
    for number, call in enumerate(calls):
        call.to_server.put_nowait(protocol.encode_request(EDS, node_id=NODE_ID, subscribe=[*asked, "nosuch"]))
        pages = [protocol.decode_response(await asyncio.wait_for(call.to_client.get(), 5)) for _ in range(2)]
        assert [item.name for page in pages for item in page.resources] == asked
        assert {item.body for page in pages for item in page.resources if item.name == "e7"} == {
            b"e7=%d" % (number + 1)
        }
        assert pages[1].removed == ("nosuch",)
        served.changed(store.apply("node-envoy", [resource(EDS, "e7", str(number + 2))]))
    assert len(store.shared._pages) == 2
    for call in calls:
        call.to_server.put_nowait(None)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("count", [2, 60])
async def test_what_is_rendered_does_not_grow_with_the_streams(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Rule 51: a first sync and a change are put together once, whoever gets them."""
    join, rendered = shared.join, []

    def counted(source: shared.Source, resources: Sequence[Resource]) -> bytes:
        rendered.append(len(resources))
        return join(source, resources)

    monkeypatch.setattr(shared, "join", counted)
    asked = [f"e{number}" for number in range(2 * MIN_NAMES)]
    store = store_with(*(resource(EDS, name) for name in asked))
    served = serving(store)
    calls = [ScriptedCall(takes_at_once=True) for _ in range(count)]
    tasks = [asyncio.create_task(served.serve(call)) for call in calls]
    for call in calls:
        call.to_server.put_nowait(protocol.encode_request(EDS, node_id=NODE_ID, subscribe=asked))
        got = protocol.decode_response(await asyncio.wait_for(call.to_client.get(), 5))
        call.to_server.put_nowait(protocol.encode_request(EDS, nonce=got.nonce))
    while any(not call.to_server.empty() for call in calls):
        await asyncio.sleep(0)
    served.changed(store.apply("node-envoy", [resource(EDS, "e7", "2")]))
    for call in calls:
        got = protocol.decode_response(await asyncio.wait_for(call.to_client.get(), 5))
        assert [item.body for item in got.resources] == [b"e7=2"]
        call.to_server.put_nowait(None)
    await asyncio.gather(*tasks)
    assert rendered == [len(asked), 1]


async def test_a_flood_of_refusals_is_a_line_a_second_in_the_log_and_all_of_them_in_the_status() -> None:
    """F11: peers decide how many NACKs there are."""
    store = store_with(*(resource(EDS, f"e{number}") for number in range(200)))
    served, call = serving(store), ScriptedCall()
    task = asyncio.create_task(served.serve(call))
    started_at = time.monotonic()
    with structlog.testing.capture_logs() as logged:
        call.to_server.put_nowait(protocol.encode_request(EDS, node_id=NODE_ID))
        for number in range(200):
            call.to_server.put_nowait(protocol.encode_request(EDS, subscribe=[f"e{number}"]))
            got = protocol.decode_response(await asyncio.wait_for(call.to_client.get(), 5))
            call.to_server.put_nowait(protocol.encode_request(EDS, nonce=got.nonce, error="no"))
        while len(served.status()[0].types[0].nacked) < 200:
            await asyncio.sleep(0)
    refusals = [line for line in logged if line["event"] == "xds.response_refused"]
    assert 1 <= len(refusals) <= 2 + time.monotonic() - started_at
    assert refusals[0]["unlogged"] == 0
    call.to_server.put_nowait(None)
    await asyncio.wait_for(task, 5)


async def test_a_flood_of_broken_streams_is_a_line_a_second_in_the_log() -> None:
    """Peers decide how many there are, too."""
    served = serving(store_with())
    started_at = time.monotonic()
    with structlog.testing.capture_logs() as logged:
        for _ in range(200):
            call = ScriptedCall()
            call.to_server.put_nowait(b"\xff\xff\xff")
            with pytest.raises(ProtocolError):
                await served.serve(call)
    lines = [line for line in logged if line["event"] == "xds.stream_refused"]
    assert 1 <= len(lines) <= 2 + time.monotonic() - started_at
    assert lines[0]["status"] == "INVALID_ARGUMENT"


async def test_what_is_compiled_because_a_client_came_is_no_change_that_is_measured() -> None:
    served = serving(store_with())
    changes = served.store.apply("node-envoy", [resource(CDS, "a")])
    served.changed(changes)
    assert served.telemetry._taken == {}
    served.changed(changes, 5.0)
    assert list(served.telemetry._taken.values()) == [5.0]


@pytest.mark.parametrize(
    ("identity", "is_held_back"), [("spiffe://t/one", True), ("spiffe://t/two", False), ("", False)]
)
async def test_clusters_of_one_identity_hold_back_nobody_elses_routes(identity: str, is_held_back: bool) -> None:
    """Security: another peer claims the same node id, and never answers on its stream for clusters."""
    store = store_with(cluster("a"), route("r", "a"))
    times = [0.0]
    served = Streams(store, lambda *_: ENVOY_VIEW, lambda: times[0], authorize=lambda _peer, said, _metadata: said)
    clusters = ScriptedCall("/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters")
    clusters.peer = Peer("ipv4:10.0.0.1:1", ("spiffe://t/one",), is_encrypted=True)
    routes = ScriptedCall("/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes")
    routes.peer = Peer("ipv4:10.0.0.2:1", (identity,), is_encrypted=True) if identity else Peer("unix:")
    tasks = [asyncio.create_task(served.serve(call)) for call in (clusters, routes)]
    clusters.to_server.put_nowait(protocol.encode_request(CDS, node_id=NODE_ID))
    first = protocol.decode_response(await asyncio.wait_for(clusters.to_client.get(), 5))
    clusters.to_server.put_nowait(protocol.encode_request(CDS, nonce=first.nonce))
    claims = {"r": route("r", "a").version}
    routes.to_server.put_nowait(protocol.encode_request(RDS, node_id=NODE_ID, subscribe=["r"], initial_versions=claims))
    while len(served.sessions()) < 2 or not all(session.subscriptions() for session in served.sessions()):
        await asyncio.sleep(0)
    times[0] = 10.0  # a stream for clusters that has not come by now is not waited for
    served.changed(store.apply("node-envoy", [cluster("b"), route("r", "b", 2)]))
    await asyncio.wait_for(clusters.to_client.get(), 5)
    (waiting,) = (found.waiting for session in served.sessions() for found in session.subscriptions() if found.names)
    assert waiting.keys() == ({"r"} if is_held_back else set())
    for call in (clusters, routes):
        call.to_server.put_nowait(None)
    await asyncio.gather(*tasks)


async def test_names_of_all_streams_of_an_identity_are_limited_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits: what a stream gives up, or had when it ended, makes room; nobody else's streams count."""
    monkeypatch.setattr(limits, "MAX_IDENTITY_BYTES", 2 * (1000 + NAME_COST))
    served = Streams(
        ResourceStore(), lambda *_: ENVOY_VIEW, time.monotonic, authorize=lambda _peer, said, _metadata: said
    )
    one, two = ("spiffe://t/one",), ("spiffe://t/two",)

    async def opened(identities: tuple[str, ...], name: str) -> tuple[ScriptedCall, asyncio.Task[None]]:
        """A stream that has been answered that the name does not exist, or refused."""
        call = ScriptedCall()
        call.peer = Peer("ipv4:10.0.0.1:1", identities, is_encrypted=bool(identities))
        task = asyncio.create_task(served.serve(call))
        await asked(call, task, subscribe=[name])
        return call, task

    async def asked(call: ScriptedCall, task: asyncio.Task[None], *, subscribe: list[str], gone: str = "") -> None:
        unsubscribe = [gone] if gone else []
        call.to_server.put_nowait(
            protocol.encode_request(EDS, node_id=NODE_ID, subscribe=subscribe, unsubscribe=unsubscribe)
        )
        answer = asyncio.ensure_future(call.to_client.get())
        await asyncio.wait((answer, task), timeout=5, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            answer.cancel()
            await task
        assert answer.done()

    a, task_a = await opened(one, "a" * 1000)
    b, task_b = await opened(one, "b" * 1000)
    others = [await opened(two, "c" * 1000), await opened((), "d" * 3000)]
    with pytest.raises(ProtocolError, match="one identity") as error:
        await opened(one, "e")
    assert error.value.status == "RESOURCE_EXHAUSTED"
    await asked(b, task_b, subscribe=["f"], gone="b" * 1000)
    with pytest.raises(ProtocolError, match="one identity"):
        await opened(one, "g" * 1000)
    a.to_server.put_nowait(None)
    await task_a
    others.append(await opened(one, "g" * 1000))
    for call, task in ((b, task_b), *others):
        call.to_server.put_nowait(None)
        await task
