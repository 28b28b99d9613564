"""A real Envoy that takes everything over one variant of xDS from unix sockets; loopback only.

Deprecated fields are an error for it, so that compiled configuration cannot contain one unseen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.xds.wire import Variant

XDS_CLUSTER = "xds"
READY_SECONDS = 30.0
KEEPALIVE = {"interval": "0.05s", "timeout": "5s"}
"""Envoy sends PINGs often, as some are told to, and so every test sees that nobody is punished for it (rule 47)."""


def api_source(variant: Variant) -> dict[str, Any]:
    """An ApiConfigSource: this control plane over gRPC."""
    return {
        "api_type": "DELTA_GRPC" if variant.is_delta else "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER}}],
    }


def config_source(variant: Variant, fetch_timeout: str) -> dict[str, Any]:
    """Where a resource comes from; `fetch_timeout` is how long Envoy warms without it."""
    source: dict[str, Any] = {"ads": {}} if variant.is_ads else {"api_config_source": api_source(variant)}
    return {**source, "resource_api_version": "V3", "initial_fetch_timeout": fetch_timeout}


def bootstrap(
    directory: Path,
    xds_sockets: tuple[Path, ...],
    node_id: str,
    variant: Variant = Variant.DELTA_ADS,
    layers: tuple[dict[str, Any], ...] = (),
) -> dict[str, Any]:
    """Envoy's bootstrap: admin on a unix socket, LDS and CDS from one of the sockets, deprecated fields refused.

    `layers` are more layers of runtime values.
    """
    source = config_source(variant, "0s")
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {"connection_keepalive": KEEPALIVE}},
    }
    endpoints = [{"endpoint": {"address": {"pipe": {"path": str(path)}}}} for path in xds_sockets]
    return {
        "node": {"id": node_id, "cluster": "test"},
        "admin": {"address": {"pipe": {"path": str(directory / "admin.sock"), "mode": 0o600}}},
        "dynamic_resources": {
            **({"ads_config": api_source(variant)} if variant.is_ads else {}),
            "lds_config": source,
            "cds_config": source,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": XDS_CLUSTER,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
                    },
                    "load_assignment": {"cluster_name": XDS_CLUSTER, "endpoints": [{"lb_endpoints": endpoints}]},
                }
            ]
        },
        "layered_runtime": {
            "layers": [
                {
                    "name": "test",
                    "static_layer": {"envoy.features.fail_on_any_deprecated_feature": True},
                },
                *layers,
            ]
        },
    }


class RealEnvoy:
    """One Envoy process with its directory (bootstrap, log, admin socket).

    With several control planes it connects to one of them, and to the next when that one is gone.
    """

    def __init__(
        self,
        binary: str,
        directory: Path,
        xds_sockets: Path | tuple[Path, ...],
        node_id: str,
        variant: Variant = Variant.DELTA_ADS,
        layers: tuple[dict[str, Any], ...] = (),
    ) -> None:
        self.binary = binary
        self.directory = directory
        self.log = directory / "envoy.log"
        self._bootstrap = directory / "bootstrap.json"
        sockets = xds_sockets if isinstance(xds_sockets, tuple) else (xds_sockets,)
        self._bootstrap.write_text(json.dumps(bootstrap(directory, sockets, node_id, variant, layers)))
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, ready_s: float = READY_SECONDS) -> None:
        """Start and wait until Envoy is LIVE: all of its first configuration has arrived."""
        self._process = await asyncio.create_subprocess_exec(
            self.binary,
            *("-c", str(self._bootstrap), "--concurrency", "1", "--use-dynamic-base-id"),
            *("--log-path", str(self.log), "-l", "info", "--drain-time-s", "1"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await until(self._is_live, ready_s, lambda: f"Envoy is not ready:\n{self.tail()}")

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        assert self._process is not None
        return self._process.pid

    async def stop(self) -> None:
        """End the process; idempotent."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    async def admin(self, path: str) -> str:
        """The body of an admin GET."""
        return await admin_get(self.directory / "admin.sock", path)

    async def stat(self, name: str) -> int:
        """A counter or gauge; 0 if it does not exist."""
        for line in (await self.admin(f"/stats?filter=^{name}$")).splitlines():
            key, _, value = line.rpartition(": ")
            if key == name:
                return int(value)
        return 0

    def tail(self) -> str:
        """The end of the log."""
        lines = self.log.read_text().splitlines()[-20:] if self.log.exists() else ["no log"]
        return "\n".join(line[:500] for line in lines)

    async def _is_live(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, f"Envoy exited:\n{self.tail()}"
        try:
            return "LIVE" in await self.admin("/ready")
        except OSError:
            return False


async def admin_get(admin: Path, path: str) -> str:
    """The body of a GET to Envoy's admin socket."""
    reader, writer = await asyncio.open_unix_connection(str(admin))
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (unchunked(body) if b"chunked" in head.lower() else body).decode()


def unchunked(body: bytes) -> bytes:
    """The content of a chunked HTTP/1.1 body."""
    result = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        count = int(size, 16)
        if not count:
            break
        result += body[:count]
        body = body[count + 2 :]
    return result


async def until(
    condition: Callable[[], Awaitable[bool]], seconds: float, explain: Callable[[], str] = lambda: "timeout"
) -> None:
    """Poll a condition until it holds; AssertionError with `explain()` after `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not await condition():
        assert loop.time() < deadline, explain()
        await asyncio.sleep(0.02)
