"""Real gRPC servers in this process, and real gRPC clients and servers over xDS in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from grpc import aio

from tests.unit.serve.serve_rig import Rig
from xdsbpf.compile.raw.bootstrap import ClientBootstrap, grpc_bootstrap
from xdsbpf.control_plane_cluster import ClientTls


@contextlib.asynccontextmanager
async def backend(address: str, name: str) -> AsyncIterator[None]:
    server = aio.server()

    async def who(request: bytes, context: object) -> bytes:
        return name.encode()

    handlers = {"Who": grpc.unary_unary_rpc_method_handler(who)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


class Peer:
    """A process of `tests.proxyless_peer` with a bootstrap for the control plane."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 60)).decode()

    async def calls(self, count: int, target: str = "", timeout: float = 20, **metadata: str) -> dict[str, Any]:
        """What `count` calls got: of `target`, or of the one that the process was started with."""
        assert self.process.stdin is not None
        sent = [[key.replace("_", "-"), value] for key, value in metadata.items()]
        wanted = {"count": count, "metadata": sent, "timeout": timeout} | ({"target": target} if target else {})
        self.process.stdin.write((json.dumps(wanted) + "\n").encode())
        found: dict[str, Any] = json.loads(await self.line())
        return found


@contextlib.asynccontextmanager
async def peer(
    rig: Rig, name: str, *arguments: str, tls: ClientTls | None = None, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Peer]:
    """A process with the bootstrap that `xdsbpf bootstrap --grpc` prints; `name` is a node id, or <pod>.<namespace>.

    With `tls` it connects to the mutual TLS listener; `environment` is added to its own.
    """
    _, dot, namespace = name.partition(".")
    node_id = f"sidecar~127.0.0.1~{name}~{namespace}.svc.cluster.local" if dot else name
    bootstrap = grpc_bootstrap(ClientBootstrap(node_id, xds=rig.plane.bound[1] if tls else rig.address, tls=tls))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.proxyless_peer", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap)} | dict(environment or {}),
    )
    try:
        yield Peer(process)
    finally:
        process.kill()
        await process.wait()


def share(found: dict[str, Any], name: str) -> float:
    total = sum(found["answers"].values())
    return float(found["answers"].get(name, 0) / total) if total else 0.0
