"""A real Envoy that reports its load: what it sent is what the server counts. Loopback only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.conftest import envoy_binary
from tests.envoy.real_envoy import RealEnvoy, until
from xdsbpf.xds.grpcio import GrpcTransport
from xdsbpf.xds.load_reporting import LoadReporting
from xdsbpf.xds.load_reports import ClusterLoad, LoadReports

pytestmark = pytest.mark.envoy

REQUESTS = 20
EXTENSIONS = "type.googleapis.com/envoy.extensions.filters"
ROUTER = {
    "name": "router",
    "typed_config": {"@type": f"{EXTENSIONS}.http.router.v3.Router"},
}


@asynccontextmanager
async def backend(status: bytes) -> AsyncIterator[int]:
    """An HTTP/1 server on loopback that answers everything with one status; gives its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + status + b" x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def with_load_reports(path: Path, ports: dict[str, int]) -> None:
    """Make the bootstrap static, with one cluster and one listener on a unix socket per backend, and LRS to `xds`."""
    config = json.loads(path.read_text())
    del config["dynamic_resources"]
    config["cluster_manager"] = {
        "load_stats_config": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
        }
    }
    static = config["static_resources"]
    for name, port in ports.items():
        address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
        static["clusters"].append(
            {"name": name, "type": "STATIC", "load_assignment": {"cluster_name": name, "endpoints": endpoints}}
        )
    hosts = [
        {"name": name, "domains": [name], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}]}
        for name in ports
    ]
    manager = {
        "@type": f"{EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"name": "all", "virtual_hosts": hosts},
        "http_filters": [ROUTER],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    pipe = {"pipe": {"path": str(path.parent / "in.sock"), "mode": 0o600}}
    static["listeners"] = [{"name": "in", "address": pipe, "filter_chains": [chain]}]
    path.write_text(json.dumps(config))


async def ask(directory: Path, host: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(directory / "in.sock"))
    writer.write(f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.split(b" ")[1]


async def test_what_envoy_sent_is_what_the_server_counts(tmp_path: Path) -> None:
    reports = LoadReports()
    socket = tmp_path / "xds.sock"
    transport = GrpcTransport(LoadReporting(reports, lambda _, said, __: said, interval_s=1).handlers())
    await transport.start([f"unix:{socket}"])
    binary = envoy_binary()
    assert binary
    envoy = RealEnvoy(binary, tmp_path, socket, "edge-1")
    try:
        async with backend(b"200") as good, backend(b"503") as bad:
            with_load_reports(tmp_path / "bootstrap.json", {"good": good, "bad": bad})
            await envoy.start()
            # Load counts from the moment that the server has asked for it.
            await until(lambda: _holds(reports.reports > 0), 10)
            assert [await ask(tmp_path, "good") for _ in range(REQUESTS)] == [b"200"] * REQUESTS
            assert [await ask(tmp_path, "bad") for _ in range(REQUESTS)] == [b"503"] * REQUESTS
            await until(lambda: _holds(_row(reports, "bad").errors == REQUESTS), 15, lambda: str(reports.rows()))
        assert (_row(reports, "good").successful, _row(reports, "good").errors) == (REQUESTS, 0)
        assert _row(reports, "good").reporters == 1
    finally:
        await envoy.stop()
        await transport.stop(0)


async def _holds(condition: bool) -> bool:
    return condition


def _row(reports: LoadReports, name: str) -> ClusterLoad:
    found = [row for row in reports.rows() if row.cluster == name]
    return found[0] if found else ClusterLoad(name, 0, 0, 0, 0, 0, (), 0)
