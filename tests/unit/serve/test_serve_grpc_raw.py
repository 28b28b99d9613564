"""Raw Envoy resources for gRPC clients: by name only, put right where a client would refuse them, never too large."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener

from tests.compiling import service
from tests.envoy.node_mesh import free_port
from tests.unit.serve.grpc_rig import backend, peer
from tests.unit.serve.serve_rig import Rig, running
from tests.waiting import until
from xdsbpf.model.names import ENDPOINTS, LISTENER, ROUTES
from xdsbpf.xds.resource_status import explain
from xdsbpf.xds.roster import Roster
from xdsbpf.xds.session import Session
from xdsbpf.xds.status import SyncState
from xdsbpf.xds.store import View

V1, V2 = "127.1.0.1", "127.1.0.2"
T = "type.googleapis.com/envoy"
ADS = "{ads: {}, resource_api_version: V3}"


def application(name: str, *, header: str = "") -> str:
    """A listener for gRPC clients, its routes and its cluster; `header` makes the routes as large as it is."""
    condition = f'[{{name: x, string_match: {{exact: "{header}"}}}}]'
    ignored = f'{{match: {{prefix: "", headers: {condition}}}, route: {{cluster: app}}}}'
    return f"""\
- "@type": {T}.config.listener.v3.Listener
  name: {name}
  api_listener:
    api_listener:
      "@type": {T}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      rds: {{route_config_name: {name}, config_source: {ADS}}}
      http_filters: [{{name: router, typed_config: {{"@type": {T}.extensions.filters.http.router.v3.Router}}}}]
- "@type": {T}.config.route.v3.RouteConfiguration
  name: {name}
  virtual_hosts:
  - name: all
    domains: ["*"]
    routes: [{ignored + "," if header else ""} {{match: {{prefix: ""}}, route: {{cluster: app}}}}]
"""


def cluster(port: int, *, is_right: bool) -> str:
    """The cluster of both backends, with endpoints that break every rule of gRPC clients unless `is_right`."""
    one, two = (f"{{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}" for host in (V1, V2))
    wrong = f"""\
  - {{priority: 1, lb_endpoints: [{{endpoint: {one}}}, {{endpoint: {one}}}]}}
  - {{priority: 1, lb_endpoints: [{{endpoint: {two}}}, {{endpoint: {{address: {{pipe: {{path: /run/x}}}}}}}}]}}
  - {{priority: 3, locality: {{zone: a}}, lb_endpoints: [{{endpoint: {two}, load_balancing_weight: 0}}]}}
"""
    right = (
        f"  - {{locality: {{}}, load_balancing_weight: 2, lb_endpoints: [{{endpoint: {one}}}, {{endpoint: {two}}}]}}\n"
    )
    return f"""\
- {{"@type": {T}.config.cluster.v3.Cluster, name: app, type: EDS, eds_cluster_config: {{eds_config: {ADS}}}}}
- "@type": {T}.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: app
  endpoints:
{right if is_right else wrong}"""


def names(session: Session, type_url: str) -> set[str]:
    """What a client has asked for of a type."""
    return {name for entry in session.subscriptions() if entry.type_url == type_url for name in entry.names}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[View]:
    """The view of every stream that was opened."""
    views: list[View] = []
    entered = Roster.entered

    def enter(roster: Roster, view: View) -> None:
        views.append(view)
        entered(roster, view)

    monkeypatch.setattr(Roster, "entered", enter)
    return views


@contextlib.asynccontextmanager
async def serving(
    tmp_path: Path, *resources: str, port: int, resource_errors: tuple[str, ...] = ()
) -> AsyncIterator[Rig]:
    """A control plane with raw resources, and the two backends of `app`."""
    async with contextlib.AsyncExitStack() as stack:
        for address, name in ((V1, "v1"), (V2, "v2")):
            await stack.enter_async_context(backend(f"{address}:{port}", name))
        raw = {"app.yaml": "resources:\n" + "".join(resources)}
        files = {"web.yaml": service("web", "80/http", address="10.96.0.9")}
        plane = running(tmp_path / "m", files, tmp_path / "xds.sock", raw=raw, resource_errors=resource_errors)
        yield await stack.enter_async_context(plane)


async def test_a_grpc_client_gets_endpoints_that_it_would_refuse_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    resources = (application("app"), cluster(port, is_right=False))
    async with serving(tmp_path, *resources, port=port) as rig, peer(rig, "client", "client", "app") as client:
        found = await client.calls(30)
        assert found["errors"] == []
        assert set(found["answers"]) == {"v1", "v2"}
        assert not [entry for status in rig.plane.server.status() for entry in status.types if entry.nacked]
        messages = [finding.message for finding in rig.plane.compiler.diagnostics()]
        for part in ("address comes twice", "locality comes twice", "a gap (1, 3)", "at least 1", "no IP address"):
            assert [part in message for message in messages].count(True) >= 1, (part, messages)
    # The mechanism: as written, the client refuses the assignment and every call fails.
    monkeypatch.setattr("xdsbpf.compile.raw.resources.for_grpc", lambda message: (message, ()))
    async with serving(tmp_path, *resources, port=port) as rig, peer(rig, "client", "client", "app") as client:
        found = await client.calls(1)
        assert found["answers"] == {}
        assert "EDS resource app" in found["errors"][0]


@pytest.mark.parametrize("beats", [False, True])
async def test_a_grpc_client_is_not_sent_heartbeats_that_it_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    """Rule 52: it takes a wrapped resource, and refuses one without content; a time to live is nothing to it."""
    if beats:
        monkeypatch.setattr("xdsbpf.xds.streams.takes_ttl", lambda *_: True)
    port = free_port()
    head, _, assignment = cluster(port, is_right=True).partition("\n")
    content = textwrap.indent(assignment.replace("- ", "  ", 1), "  ")
    mortal = f'{head}\n- "@type": {T}.service.discovery.v3.Resource\n  ttl: 1s\n  resource:\n{content}'
    resources = (application("app"), mortal)
    async with serving(tmp_path, *resources, port=port) as rig, peer(rig, "client", "client", "app") as client:
        assert (await client.calls(10))["errors"] == []
        answered = rig.plane.server.telemetry.events
        assert rig.plane.compiler.store.has_ttl
        if beats:  # the mechanism: it refuses each of them
            await until(lambda: answered["nacked", ENDPOINTS] > 1)
            return
        await asyncio.sleep(0.7)  # in which two would have come
        assert answered["nacked", ENDPOINTS] == 0
        assert [entry.state for entry in rig.plane.server.status()[0].types] == [SyncState.SYNCED] * 4
        assert (await client.calls(10))["errors"] == []


@pytest.mark.parametrize("node_id", ["told", "client"])
async def test_a_grpc_client_that_reads_errors_need_not_wait_for_what_does_not_exist(
    tmp_path: Path, node_id: str
) -> None:
    """Rule 15: gRPC 1.85 reads them if that variable says so, and waits for its timer of 15 s where there are none."""
    port = free_port()
    resources = (application("app"), cluster(port, is_right=True))
    async with (
        serving(tmp_path, *resources, port=port, resource_errors=("told",)) as rig,
        peer(
            rig, node_id, "client", "app", environment={"GRPC_EXPERIMENTAL_XDS_DATA_ERROR_HANDLING": "true"}
        ) as client,
    ):
        assert (await client.calls(10))["errors"] == []
        (error,) = (await client.calls(1, "nosuch", timeout=3))["errors"]
        if node_id == "told":
            assert error.startswith("UNAVAILABLE")
            assert "nosuch" in error
        else:
            assert error.startswith("DEADLINE_EXCEEDED")
        assert (await client.calls(10))["errors"] == []


async def test_no_envoy_that_asks_for_all_listeners_gets_one_for_grpc_clients(tmp_path: Path) -> None:
    port = free_port()
    plain = f"""\
- "@type": {T}.config.listener.v3.Listener
  name: plain
  address: {{socket_address: {{address: 127.0.0.1, port_value: 9}}}}
"""
    resources = (application("app"), cluster(port, is_right=True), plain)
    async with serving(tmp_path, *resources, port=port) as rig:
        by_name = rig.client("edge-2")
        await by_name.subscribe([LISTENER], ["app"])
        await until(lambda: by_name.held)
        for node_id in ("edge-1", "node~10.0.0.1~n1~cluster.local", "sidecar~10.0.0.1~a.default~x"):
            envoy = rig.client(node_id)
            await envoy.subscribe([LISTENER])
            await until(lambda envoy=envoy: envoy.held)
            listeners = [Listener.FromString(held.body) for held in envoy.held.values() if held.body is not None]
            assert [found.name for found in listeners if found.HasField("api_listener")] == []
        assert set(by_name.held) == {(LISTENER, "app")}


async def test_a_grpc_client_is_never_sent_a_message_that_would_cost_it_its_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[View]
) -> None:
    port = free_port()
    resources = (
        *(application("large", header="x" * 3_900_000), application("too-large", header="x" * 5_000_000)),
        cluster(port, is_right=True),
    )
    async with serving(tmp_path, *resources, port=port) as rig, peer(rig, "client", "client", "large") as client:
        assert (await client.calls(2))["errors"] == []
        assert len((await client.calls(1, target="too-large", timeout=3))["errors"]) == 1
        assert len(opened) == 2, "a stream for each target, and no other since"
        assert (await client.calls(2))["errors"] == []
        (session,) = [entry for entry in rig.plane.server.streams.sessions() if names(entry, ROUTES) == {"too-large"}]
        reason = explain(session, rig.plane.server.gate, rig.plane.compiler.store, ROUTES, "too-large")
        assert "the client takes 4" in reason
        messages = [finding.message for finding in rig.plane.compiler.diagnostics() if finding.code == "XB3034"]
        assert [message.split("'")[1] for message in messages] == ["too-large"]
    # The mechanism: what is sent although it is too large ends the stream, again and again.
    monkeypatch.setattr("xdsbpf.xds.filling.GRPC_MAX_MESSAGE", 1 << 30)
    opened.clear()
    async with serving(tmp_path, *resources, port=port) as rig, peer(rig, "client", "client", "too-large") as client:
        async with asyncio.timeout(30):
            while len(opened) <= 2:
                assert len((await client.calls(1, timeout=3))["errors"]) == 1
