"""A real Envoy against the delta ADS server: warming, reconnects, on-demand clusters, NACKs. Loopback only."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2  # noqa: F401  (registers Any types)
from envoy.extensions.filters.http.on_demand.v3 import on_demand_pb2  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,  # noqa: F401
)
from google.protobuf import json_format
from google.protobuf.message import Message

from tests.envoy.real_envoy import RealEnvoy
from xdsbpf.model.names import CLUSTER, ENDPOINTS, LISTENER, VIRTUAL_HOST
from xdsbpf.model.resource import Resource, make_resource
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.status import NodeStatus, SyncState, TypeStatus
from xdsbpf.xds.store import NODE_ENVOY, ResourceStore, View

pytestmark = [pytest.mark.envoy, pytest.mark.node_envoy, pytest.mark.usefixtures("each_transport")]

NODE_ID = "node~127.0.0.1~node1~cluster.local"
SCOPE = "node-envoy"
VIEW = View((SCOPE,), "node1", NODE_ENVOY)
WARM_S = 1.0
DEADLINE_S = 20.0
ADS = {"ads": {}, "resource_api_version": "V3"}


def made(message: Message, type_url: str, name: str, body: dict[str, Any], **options: Any) -> Resource:
    json_format.ParseDict(body, message)
    return make_resource(type_url, name, message.SerializeToString(deterministic=True), **options)


def eds_cluster(name: str, connect_timeout: str = "1s", **options: Any) -> Resource:
    body = {
        "name": name,
        "type": "EDS",
        "connect_timeout": connect_timeout,
        "eds_cluster_config": {"eds_config": ADS},
    }
    return made(cluster_pb2.Cluster(), CLUSTER, name, body, **options)


def bad_cluster(name: str) -> Resource:
    address = {"socket_address": {"address": "not-an-ip", "port_value": 1}}
    body = {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    return made(cluster_pb2.Cluster(), CLUSTER, name, body)


def endpoints(name: str, *ports: int) -> Resource:
    hosts = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports
    ]
    body = {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]}
    return made(endpoint_pb2.ClusterLoadAssignment(), ENDPOINTS, name, body)


def host(name: str, cluster: str, *more: str) -> Resource:
    """Virtual host `<name>.test` of route config `web`, which has `<more>.test` as well."""
    full = f"web/{name}"
    body = {
        "name": full,
        "domains": [f"{each}.test" for each in (name, *more)],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}],
    }
    return made(route_components_pb2.VirtualHost(), VIRTUAL_HOST, full, body)


def listener(path: Path) -> Resource:
    """A listener on a unix socket with VHDS and on-demand clusters."""
    prefix = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{prefix}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "web",
        "route_config": {"name": "web", "vhds": {"config_source": ADS}},
        "http_filters": [
            {
                "name": "on_demand",
                "typed_config": {
                    "@type": f"{prefix}.http.on_demand.v3.OnDemand",
                    "odcds": {"source": ADS, "timeout": "3s"},
                },
            },
            {"name": "router", "typed_config": {"@type": f"{prefix}.http.router.v3.Router"}},
        ],
    }
    body = {
        "name": "web",
        "address": {"pipe": {"path": str(path)}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return made(listener_pb2.Listener(), LISTENER, "web", body)


class Upstream:
    """An HTTP server on loopback that answers with its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (await reader.readuntil(b"\r\n\r\n")).strip():
                body = self.name.encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


class Rig:
    """Server, store, Envoy and two upstreams `one` and `two`."""

    def __init__(self, directory: Path, binary: str) -> None:
        self.store = ResourceStore()
        self.directory = directory
        self.socket = directory / "xds.sock"
        self.web = directory / "web.sock"
        self.server = XdsServer(self.store, lambda node_id, metadata: VIEW, time.monotonic)
        self.envoy = RealEnvoy(binary, directory, self.socket, NODE_ID)
        self.ports: dict[str, int] = {}

    async def serve(self) -> None:
        await self.server.start([f"unix:{self.socket}"])

    async def restart(self, *puts: Resource, removes: tuple[tuple[str, str], ...] = ()) -> None:
        """Stop the server, change the store while nobody serves it, start a new server."""
        await self.server.stop(2.0)
        self.store.apply(SCOPE, puts, removes)
        self.server = XdsServer(self.store, lambda node_id, metadata: VIEW, time.monotonic)
        await self.serve()

    def put(self, *resources: Resource, removes: tuple[tuple[str, str], ...] = ()) -> None:
        self.server.changed(self.store.apply(SCOPE, resources, removes))

    async def get(self, name: str) -> tuple[int, str]:
        """Status and body of `GET / Host: <name>.test` through Envoy."""
        reader, writer = await asyncio.open_unix_connection(str(self.web))
        try:
            writer.write(f"GET / HTTP/1.1\r\nHost: {name}.test\r\nConnection: close\r\n\r\n".encode())
            raw = await asyncio.wait_for(reader.read(), DEADLINE_S)
        finally:
            writer.close()
        head, _, body = raw.decode().partition("\r\n\r\n")
        return int(head.split(" ", 2)[1]), body

    def row(self, type_url: str) -> TypeStatus | None:
        rows: tuple[NodeStatus, ...] = self.server.status()
        return next((item for node in rows for item in node.types if item.type_url == type_url), None)

    def synced(self) -> bool:
        rows = self.server.status()
        types = rows[0].types if rows else ()
        wanted = {CLUSTER, LISTENER}
        return wanted <= {item.type_url for item in types} and all(item.state is SyncState.SYNCED for item in types)

    async def until(self, condition: Callable[[], bool], seconds: float = DEADLINE_S) -> float:
        """Seconds until the condition holds; fails after `seconds`."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < seconds, f"{self.server.status()}\n{self.envoy.tail()}"
            await asyncio.sleep(0.01)
        return time.monotonic() - start

    async def timeout_of(self, cluster: str) -> str:
        """connect_timeout of an active (warm) cluster, from Envoy's config dump."""
        dump = json.loads(await self.envoy.admin("/config_dump?resource=dynamic_active_clusters"))
        found = [item["cluster"] for item in dump.get("configs", ()) if item["cluster"]["name"] == cluster]
        return str(found[0]["connect_timeout"]) if found else ""

    async def until_timeout(self, cluster: str, wanted: str, seconds: float) -> float:
        start = time.monotonic()
        while await self.timeout_of(cluster) != wanted:
            assert time.monotonic() - start < seconds, (
                f"not warm: {await self.envoy.stat('cluster_manager.warming_clusters')}"
            )
            await asyncio.sleep(0.01)
        return time.monotonic() - start


@asynccontextmanager
async def running(directory: Path, binary: str, *start: str) -> AsyncIterator[Rig]:
    """A rig whose Envoy is LIVE; `start` names clusters that exist from the beginning (with host)."""
    rig = Rig(directory, binary)
    servers = []
    try:
        for upstream in (Upstream("one"), Upstream("two")):
            server = await asyncio.start_server(upstream.answer, "127.0.0.1", 0)
            servers.append(server)
            rig.ports[upstream.name] = server.sockets[0].getsockname()[1]
        rig.store.apply(SCOPE, [listener(rig.web)])
        for name in start:
            rig.store.apply(SCOPE, [eds_cluster(name), endpoints(name, rig.ports["one"]), host(name, name)])
        await rig.serve()
        await rig.envoy.start()
        await rig.until(rig.synced)
        yield rig
    finally:
        await rig.envoy.stop()
        await rig.server.stop(1.0)
        for server in servers:
            server.close()


async def test_clusters_listeners_and_virtual_hosts_carry_traffic(tmp_path: Path, envoy: str) -> None:
    async with running(tmp_path, envoy, "a") as rig:
        assert await rig.get("a") == (200, "one")
        rig.put(endpoints("a", rig.ports["two"]))
        deadline = time.monotonic() + DEADLINE_S
        while (answer := await rig.get("a")) != (200, "two"):
            assert answer == (200, "one"), "no request fails while the endpoint changes"
            assert time.monotonic() < deadline
        await rig.until(rig.synced)


async def test_a_cluster_change_alone_is_warm_within_a_second(tmp_path: Path, envoy: str) -> None:
    """Rule 33: without its endpoints sent again Envoy waits 15 s."""
    async with running(tmp_path, envoy, "a") as rig:
        rig.put(eds_cluster("a", "2s"))
        await rig.until_timeout("a", "2s", WARM_S)
        await rig.until(rig.synced, WARM_S)
        assert await rig.get("a") == (200, "one")


async def test_a_cluster_changed_during_an_outage_is_warm_within_a_second(tmp_path: Path, envoy: str) -> None:
    """Rule 34: the endpoints are claimed and equal, and sent all the same."""
    async with running(tmp_path, envoy, "a", "b") as rig:
        await rig.restart(eds_cluster("a", "3s"))
        await rig.until(lambda: bool(rig.server.status()))
        await rig.until_timeout("a", "3s", WARM_S)
        await rig.until(rig.synced, WARM_S)
        assert await rig.get("a") == (200, "one")
        assert await rig.get("b") == (200, "one")


async def test_a_reconnect_without_changes_sends_no_resource(tmp_path: Path, envoy: str) -> None:
    """Rules 20, 28, and 48: traffic goes on while the server is away."""
    async with running(tmp_path, envoy, "a") as rig:
        before = await rig.envoy.stat("cluster_manager.cds.update_success")
        await rig.restart()
        assert await rig.get("a") == (200, "one")
        await rig.until(rig.synced)
        row = rig.row(CLUSTER)
        assert row is not None
        assert row.held == 1
        assert await rig.envoy.stat("cluster_manager.cluster_updated") == 0
        assert await rig.envoy.stat("cluster_manager.cluster_modified") == 0
        assert await rig.envoy.stat("cluster_manager.cds.update_rejected") == 0
        assert before >= 1


async def test_a_host_that_no_virtual_host_has_is_unknown_until_one_has_it_under_whatever_name(
    tmp_path: Path, envoy: str
) -> None:
    """Rule 31: Envoy asks for `web/other.test`, which is no name; its wildcard brings all domains of all names."""
    async with running(tmp_path, envoy, "a") as rig:
        start = time.monotonic()
        assert (await rig.get("other"))[0] == 404
        assert time.monotonic() - start < WARM_S
        rig.put(host("a", "a", "other"))
        await rig.until(rig.synced)
        assert await rig.get("other") == (200, "one")
        row = rig.row(VIRTUAL_HOST)
        assert row is not None
        assert row.subscribed == 1, "the host of the first request, beside the wildcard"
        await rig.restart(host("a", "a", "other", "third"))
        await rig.until(lambda: bool(rig.server.status()))
        await rig.until(rig.synced)
        for name in ("a", "other", "third"):
            assert await rig.get(name) == (200, "one")
        assert (await rig.get("nosuch"))[0] == 404


async def test_an_unknown_on_demand_cluster_is_answered_at_once(tmp_path: Path, envoy: str) -> None:
    """ODCDS: removed_resources ends the wait; silence would take the filter's 3 s."""
    async with running(tmp_path, envoy, "a") as rig:
        rig.put(host("lost", "nosuch"))
        await rig.until(rig.synced)
        start = time.monotonic()
        status, _ = await rig.get("lost")
        assert status == 503
        assert time.monotonic() - start < WARM_S


async def test_an_on_demand_cluster_comes_with_the_first_request_and_again_when_created_again(
    tmp_path: Path, envoy: str
) -> None:
    """ODCDS: not through the wildcard, by name, and pushed to a client that stays subscribed."""
    async with running(tmp_path, envoy, "a") as rig:
        cluster = eds_cluster("x", on_demand=True)
        rig.put(cluster, endpoints("x", rig.ports["one"]), host("x", "x"))
        await rig.until(rig.synced)
        row = rig.row(CLUSTER)
        assert row is not None
        assert row.held == 1, "the wildcard does not cover it"
        assert await rig.get("x") == (200, "one")
        rig.put(removes=((CLUSTER, "x"),))
        await rig.until(rig.synced)
        assert (await rig.get("x"))[0] == 503
        rig.put(cluster)
        await rig.until(rig.synced)
        assert await rig.get("x") == (200, "one")


async def test_on_demand_clusters_survive_a_reconnect(tmp_path: Path, envoy: str) -> None:
    """ODCDS: the first request after a reconnect has `*`, known and unknown names."""
    async with running(tmp_path, envoy, "a") as rig:
        rig.put(
            eds_cluster("x", on_demand=True),
            endpoints("x", rig.ports["one"]),
            host("x", "x"),
            host("lost", "nosuch"),
        )
        await rig.until(rig.synced)
        assert await rig.get("x") == (200, "one")
        assert (await rig.get("lost"))[0] == 503
        await rig.restart(eds_cluster("x", "4s", on_demand=True))
        await rig.until(lambda: (row := rig.row(CLUSTER)) is not None and row.subscribed >= 2)
        await rig.until_timeout("x", "4s", WARM_S)
        await rig.until(rig.synced, WARM_S)
        assert await rig.get("x") == (200, "one")
        rig.put(eds_cluster("nosuch", on_demand=True), endpoints("nosuch", rig.ports["two"]))
        await rig.until(rig.synced)
        assert await rig.get("lost") == (200, "two")


async def test_a_virtual_host_removed_during_an_outage_is_gone_after_it(tmp_path: Path, envoy: str) -> None:
    """Rule 27 for VHDS."""
    async with running(tmp_path, envoy, "a", "b") as rig:
        assert await rig.get("b") == (200, "one")
        await rig.restart(removes=((VIRTUAL_HOST, "web/b"),))
        await rig.until(rig.synced)
        assert (await rig.get("b"))[0] == 404
        assert await rig.get("a") == (200, "one")


async def test_an_unknown_host_is_answered_at_once_every_time(tmp_path: Path, envoy: str) -> None:
    """Rule 31: the on-demand filter asks for `web/<host>`; a removal would leave the request hanging."""
    async with running(tmp_path, envoy, "a") as rig:
        for _ in range(2):
            start = time.monotonic()
            assert (await rig.get("b"))[0] == 404
            assert time.monotonic() - start < WARM_S
        rig.put(host("b", "a"))
        await rig.until(rig.synced)
        assert await rig.get("b") == (200, "one")


async def test_a_nack_is_recorded_with_the_text_of_envoy(tmp_path: Path, envoy: str) -> None:
    """Rules 10, 54: on the bad resource only, the good one of the same response is in use."""
    async with running(tmp_path, envoy, "a") as rig:
        rig.put(
            bad_cluster("broken"),
            eds_cluster("fine"),
            endpoints("fine", rig.ports["two"]),
            host("fine", "fine"),
        )
        await rig.until(lambda: (row := rig.row(CLUSTER)) is not None and row.state is SyncState.NACKED)
        row = rig.row(CLUSTER)
        assert row is not None
        assert [item.name for item in row.nacked] == ["broken"]
        assert "malformed IP address: not-an-ip" in row.error
        assert await rig.get("fine") == (200, "two")
        rejected = await rig.envoy.stat("cluster_manager.cds.update_rejected")
        rig.put(eds_cluster("broken"))
        await rig.until(rig.synced)
        assert await rig.envoy.stat("cluster_manager.cds.update_rejected") == rejected == 1
