"""A real Envoy takes scopes, extensions, runtime and endpoints one by one from raw files; loopback only."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.envoy.load import Servers
from tests.envoy.node_mesh import free_port
from tests.envoy.real_envoy import RealEnvoy, until
from tests.raw_texts import ADS, T, raw_file, web_listener
from tests.xds.wire import Variant
from xdsbpf.serve import ControlPlane, ServeConfig

pytestmark = pytest.mark.envoy

DEADLINE_S = 20.0
COLLECTION = "xdstp://mesh/envoy.config.endpoint.v3.LbEndpoint/web"
RUNTIME_LAYER = {
    "name": "live",
    "rtds_layer": {"name": "live", "rtds_config": {"ads": {}, "resource_api_version": "V3"}},
}


def listener(port: int) -> str:
    """A scope is chosen by the header x-scope; `stamp` is a filter that comes by ECDS."""
    key = '{fragments: [{header_value_extractor: {name: x-scope, element_separator: ",", index: 0}}]}'
    scopes = f"rds_config_source: {ADS}, scoped_rds: {{scoped_rds_config_source: {ADS}}}"
    stamp = f'config_source: {ADS}, type_urls: ["{T}.extensions.filters.http.header_mutation.v3.HeaderMutation"]'
    return web_listener(
        port,
        routing=f"scoped_routes: {{name: scopes, scope_key_builder: {key}, {scopes}}}",
        filters=f"{{name: stamp, config_discovery: {{{stamp}}}}}, ",
    )


def scope(name: str, routes: str) -> str:
    return f"""\
- "@type": {T}.config.route.v3.ScopedRouteConfiguration
  name: {name}
  route_configuration_name: {routes}
  key: {{fragments: [{{string_key: {name}}}]}}
"""


def routes(name: str) -> str:
    """Answers with its name where the runtime key `live.answer` is at a hundred percent, else asks the cluster."""
    return f"""\
- "@type": {T}.config.route.v3.RouteConfiguration
  name: {name}
  virtual_hosts:
  - name: all
    domains: ["*"]
    routes:
    - match: {{prefix: /, runtime_fraction: {{default_value: {{numerator: 0}}, runtime_key: live.answer}}}}
      direct_response: {{status: 200, body: {{inline_string: {name}}}}}
    - match: {{prefix: /}}
      route: {{cluster: web}}
"""


def stamp(value: str) -> str:
    return f"""\
- "@type": {T}.config.core.v3.TypedExtensionConfig
  name: stamp
  typed_config:
    "@type": {T}.extensions.filters.http.header_mutation.v3.HeaderMutation
    mutations:
      response_mutations: [{{append: {{header: {{key: x-stamp, value: "{value}"}}}}}}]
"""


def runtime(percent: int) -> str:
    return f"""\
- "@type": {T}.service.runtime.v3.Runtime
  name: live
  layer: {{live.answer: {percent}}}
"""


def cluster(timeout: str = "5s") -> str:
    return f"""\
- "@type": {T}.config.cluster.v3.Cluster
  name: web
  connect_timeout: {timeout}
  type: EDS
  eds_cluster_config: {{eds_config: {ADS}}}
"""


def endpoints(name: str, port: int, *, by_leds: bool) -> str:
    """One endpoint on loopback: in the assignment, or as a member of the collection that this names."""
    place = f"{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}"
    members = f"leds_cluster_locality_config: {{leds_config: {ADS}, leds_collection_name: {COLLECTION}/*}}"
    alone = f"""\
- "@type": {T}.service.discovery.v3.Resource
  name: {COLLECTION}/{name}
  resource: {{"@type": {T}.config.endpoint.v3.LbEndpoint, {place[1:]}
"""
    return f"""\
- "@type": {T}.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: web
  endpoints:
  - locality: {{zone: z}}
    {members if by_leds else f"lb_endpoints: [{place}]"}
{alone if by_leds else ""}"""


async def answer(port: int, scope: str) -> tuple[str, str]:
    """Status or body, and the stamp, of one request in that scope."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return "nobody listens", ""
    try:
        writer.write(f"GET / HTTP/1.1\r\nhost: web\r\nx-scope: {scope}\r\nconnection: close\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE_S):
            text = (await reader.read()).decode()
    finally:
        writer.close()
    head, _, body = text.partition("\r\n\r\n")
    lines = head.split("\r\n")
    found = next((line.partition(": ")[2] for line in lines if line.startswith("x-stamp: ")), "")
    return (body if lines[0].startswith("HTTP/1.1 200") else lines[0]), found


@pytest.mark.parametrize("variant", [Variant.DELTA_ADS, pytest.param(Variant.SOTW_ADS, marks=pytest.mark.slow)])
async def test_each_of_them_changes_what_envoy_does(envoy: str, tmp_path: Path, variant: Variant) -> None:
    """Endpoints one by one exist in delta only."""
    files = tmp_path / "raw"
    files.mkdir()
    port, servers = free_port(), Servers()
    await servers.start("one", "two")

    def write(**texts: str) -> None:
        for name, text in texts.items():
            (files / f"{name}.yaml").write_text(raw_file(text))

    write(
        listener=listener(port),
        blue=scope("blue", "blue-routes") + routes("blue-routes"),
        green=routes("green-routes"),
        stamp=stamp("1"),
        runtime=runtime(0),
        cluster=cluster(),
        endpoints=endpoints("a", servers.ports["one"], by_leds=variant.is_delta),
    )
    socket = tmp_path / "xds.sock"
    plane = ControlPlane(ServeConfig(paths=(), envoy_paths=(files,), listen=(f"unix:{socket}",)))
    running = asyncio.create_task(plane.run())
    proxy = RealEnvoy(envoy, tmp_path, socket, "edge-1", variant, (RUNTIME_LAYER,))

    async def comes(scope: str, *wanted: str) -> None:
        seen: dict[tuple[str, ...], None] = {}

        async def holds() -> bool:
            got = await answer(port, scope)
            seen[got] = None
            return got == wanted

        await until(holds, DEADLINE_S, lambda: f"{wanted} never came, but {list(seen)}\n{proxy.tail()}")

    async def has_changed() -> bool:
        changed, warming = [
            await proxy.stat(f"cluster_manager.{name}") for name in ("cluster_modified", "warming_clusters")
        ]
        return changed == 1 and warming == 0

    try:
        await asyncio.wait_for(plane.ready.wait(), DEADLINE_S)
        await proxy.start()
        await comes("blue", "one", "1")
        await comes("green", "HTTP/1.1 404 Not Found", "1")
        write(cluster=cluster("6s"), scope=scope("green", "green-routes"))
        await comes("green", "one", "1")
        await until(has_changed, DEADLINE_S)
        assert "init_fetch_timeout: 1" not in await proxy.admin("/stats?filter=init_fetch_timeout"), (
            "it warmed for 15 s"
        )
        write(stamp=stamp("2"))
        await comes("green", "one", "2")
        write(runtime=runtime(100))
        await comes("green", "green-routes", "2")
        await comes("blue", "blue-routes", "2")
        write(runtime=runtime(0), endpoints=endpoints("b", servers.ports["two"], by_leds=variant.is_delta))
        await comes("blue", "two", "2")
        (files / "scope.yaml").unlink()
        await comes("green", "HTTP/1.1 404 Not Found", "2")
    finally:
        await proxy.stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        servers.stop()
