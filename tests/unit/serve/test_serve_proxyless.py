"""Real grpcio clients and a real grpcio xDS server over the control plane; traffic on loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from tests.authority import Authority, write_files
from tests.compiling import pod, service, slice_of
from tests.envoy.node_mesh import free_port
from tests.unit.serve.grpc_rig import Peer, backend, peer, share
from tests.unit.serve.serve_rig import Rig, running
from xdsbpf.control_plane_cluster import ClientTls
from xdsbpf.xds.tls import TlsFiles

V1, V2 = "127.1.0.1", "127.1.0.2"
SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: viewer, namespace: default}
spec: {selector: {matchLabels: {app: reviews}}, action: ALLOW, rules: [{from: [{source: %s}]}]}
"""


@pytest.fixture(autouse=True)
def loopback_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mesh refuses loopback addresses; here they are the only ones that may be dialled."""
    monkeypatch.setattr("xdsbpf.mesh.endpoints.usable", socket.inet_aton)
    monkeypatch.setattr("xdsbpf.model.validate_kube.unusable", lambda address: "")


@pytest.fixture
def port() -> int:
    return free_port()


def split(first: int, second: int) -> str:
    """90/10 and the like for everybody but jason, who gets v2."""
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: default}}
spec:
  hosts: [reviews]
  http:
  - match: [{{headers: {{end-user: {{exact: jason}}}}}}]
    route: [{{destination: {{host: reviews, subset: v2}}}}]
  - route:
    - {{destination: {{host: reviews, subset: v1}}, weight: {first}}}
    - {{destination: {{host: reviews, subset: v2}}, weight: {second}}}
"""


def endpoints(port: int, *pods: tuple[str, str]) -> str:
    return slice_of("reviews", *pods, port=port, title="grpc")


@contextlib.asynccontextmanager
async def mesh(tmp_path: Path, port: int, transport: str = "grpcio", tls: TlsFiles | None = None) -> AsyncIterator[Rig]:
    """A control plane with `reviews` in two versions, and their servers."""
    files = {
        "services.yaml": service("reviews", f"{port}/grpc", address="10.96.0.10"),
        "pods.yaml": pod("r1", V1, app="reviews") + pod("r2", V2, app="reviews", version="v2"),
        "slices.yaml": endpoints(port, ("r1", V1), ("r2", V2)),
        "subsets.yaml": SUBSETS,
        "routes.yaml": split(90, 10),
    }
    async with contextlib.AsyncExitStack() as stack:
        for address, name in ((V1, "v1"), (V2, "v2")):
            await stack.enter_async_context(backend(f"{address}:{port}", name))
        yield await stack.enter_async_context(
            running(tmp_path / "manifests", files, tmp_path / "xds.sock", transport=transport, tls=tls)
        )


@pytest.mark.parametrize("transport", ["grpcio", "fast"])
async def test_a_grpc_client_follows_splits_headers_and_their_changes_without_a_failed_call(
    tmp_path: Path, port: int, transport: str
) -> None:
    async with (
        mesh(tmp_path, port, transport) as rig,
        peer(rig, "web.shop", "client", f"reviews.default.svc.cluster.local:{port}") as client,
    ):
        first = await client.calls(2000)
        assert first["errors"] == []
        # 5 standard deviations of 2,000 draws at 10 % are 3.4 %.
        assert share(first, "v2") == pytest.approx(0.1, abs=0.034)
        assert (await client.calls(50, end_user="jason"))["answers"] == {"v2": 50}
        rig.write("routes.yaml", split(0, 100))
        changes = await followed(client, "v2", 1.0)
        rig.write("routes.yaml", split(100, 0))
        changes += await followed(client, "v1", 1.0)
        assert changes == []
        (status,) = rig.plane.server.status()
        assert (status.kind, [entry.nacked for entry in status.types if entry.nacked]) == ("grpc", [])
        # The mechanism: with no endpoint left, calls do fail.
        rig.write("slices.yaml", endpoints(port))
        async with asyncio.timeout(30):
            while not (broken := await client.calls(5))["errors"]:
                pass
        assert broken["errors"][0].startswith("UNAVAILABLE")


async def followed(client: Peer, name: str, wanted: float) -> list[str]:
    """Call until all calls of a batch go to one version; returns the errors on the way."""
    errors: list[str] = []
    async with asyncio.timeout(30):
        while True:
            found = await client.calls(100)
            errors += found["errors"]
            if share(found, name) == wanted:
                return errors


async def test_a_bare_name_needs_the_namespace(tmp_path: Path, port: int) -> None:
    async with mesh(tmp_path, port) as rig:
        async with peer(rig, "web.default", "client", f"reviews:{port}") as client:
            assert (await client.calls(5))["errors"] == []
        async with peer(rig, "web.shop", "client", f"reviews:{port}") as client:
            # The client itself says so after 15 s: "LDS resource reviews:…: does not exist".
            assert len((await client.calls(1, timeout=2))["errors"]) == 1
            ((listeners,),) = [status.types for status in rig.plane.server.status() if "shop" in status.node_id]
            assert (listeners.subscribed, listeners.held) == (1, 0)


async def test_a_grpc_server_serves_what_comes_over_xds_and_a_policy_closes_it(tmp_path: Path, port: int) -> None:
    async with mesh(tmp_path, port) as rig:
        own = free_port()
        rig.write("services.yaml", service("reviews", f"{port}/grpc/{own}", address="10.96.0.10"))
        async with peer(rig, "r1.default", "server", f"0.0.0.0:{own}", "xds") as server:
            assert await server.line() == "serving\n"
            call = aio.insecure_channel(f"127.0.0.1:{own}").unary_unary("/test.Service/Who")
            assert await call(b"", timeout=20, wait_for_ready=True) == b"xds"
            for source, wanted in (
                ('{namespaces: ["*"]}', "PERMISSION_DENIED"),  # nobody can prove to be of any
                ("{ipBlocks: [127.0.0.0/24]}", "OK"),
                ('{ipBlocks: [127.0.0.0/8], notIpBlocks: ["127.0.0.1"]}', "PERMISSION_DENIED"),
            ):
                rig.write("policy.yaml", POLICY % source)
                await becomes(call, wanted)


async def becomes(call: Any, wanted: str) -> None:
    async with asyncio.timeout(30):
        while (code := await outcome(call)) != wanted:
            assert code in ("OK", "UNAVAILABLE", "PERMISSION_DENIED")


async def outcome(call: Any) -> str:
    try:
        await call(b"", timeout=10)
    except aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def test_a_pod_whose_labels_change_gets_the_view_of_its_new_labels(tmp_path: Path, port: int) -> None:
    async with (
        mesh(tmp_path, port) as rig,
        peer(rig, "r1.default", "client", f"reviews:{port}") as client,
    ):
        assert (await client.calls(5))["errors"] == []
        assert "version=v1" in rig.plane.server.status()[0].scopes[-1]
        rig.write("pods.yaml", pod("r1", V1, app="reviews", version="v3") + pod("r2", V2, app="reviews", version="v2"))
        async with asyncio.timeout(30):
            while not any("version=v3" in status.scopes[-1] for status in rig.plane.server.status()):
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("transport", ["grpcio", "fast"])
async def test_a_client_with_a_certificate_is_served_as_a_workload_of_its_own_namespace_only(
    tmp_path: Path, port: int, transport: str
) -> None:
    authority = Authority()
    own, server = tmp_path / "own", tmp_path / "server"
    for directory in (own, server):
        directory.mkdir()
    written = write_files(own, authority, "spiffe://cluster.local/ns/shop/sa/web")
    files = ClientTls(str(written.certificate), str(written.key), str(written.authorities))
    async with mesh(tmp_path, port, transport, write_files(server, authority)) as rig:
        target = f"reviews.default.svc.cluster.local:{port}"
        async with peer(rig, "web.shop", "client", target, tls=files) as client:
            assert (await client.calls(20))["errors"] == []
        async with peer(rig, "web.default", "client", target, tls=files) as client:
            (error,) = (await client.calls(1))["errors"]
            assert "claims 'sidecar~127.0.0.1~web.default~" in error
