"""A real Envoy as the sidecar of a pod: redirected by nftables in a network namespace of its own, both directions.

`pod` is the namespace of the workload and its Envoy, `peer` holds the servers it calls and a client of it; a veth
pair joins them. Nothing leaves the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.compiling import pod, service, slice_of
from tests.envoy.real_envoy import RealEnvoy, bootstrap, until
from tests.unit.serve.serve_rig import Rig, running
from tests.xds.wire import Variant
from xdsbpf.xds.status import SyncState

pytestmark = [pytest.mark.envoy, pytest.mark.root]

POD, PEER = "xb-sidecar-pod", "xb-sidecar-peer"
OWN, V1, V2, DB, OTHER = "100.64.1.20", "100.64.1.1", "100.64.1.2", "100.64.1.3", "100.64.1.9"
ENVOY_GROUP = 1337
NODE_ID = f"sidecar~{OWN}~web.default~default.svc.cluster.local"
REDIRECT = f"""
table ip sidecar {{
  chain out {{
    type nat hook output priority -100;
    meta skgid {ENVOY_GROUP} return
    ip saddr 127.0.0.6 oifname lo return
    ip daddr 127.0.0.0/8 return
    meta l4proto tcp redirect to :15001
  }}
  chain in {{
    type nat hook prerouting priority -100;
    iifname eth0 meta l4proto tcp redirect to :15006
  }}
}}
"""
METADATA = {
    "NAMESPACE": "default",
    "INSTANCE_IPS": OWN,
    "LABELS": {"app": "web"},
    "ISTIO_VERSION": "1.30.0",
    "CLUSTER_ID": "Kubernetes",
    "INTERCEPTION_MODE": "REDIRECT",
    "PROXY_CONFIG": {"concurrency": 2},
}
"""What Istio's agent says of a proxy."""


def split(first: int, second: int) -> str:
    """Weights of the two versions for everybody but jason, who gets v2 half a second later."""
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: default}}
spec:
  hosts: [reviews]
  http:
  - match: [{{headers: {{end-user: {{exact: jason}}}}}}]
    fault: {{delay: {{fixedDelay: 500ms, percentage: {{value: 100}}}}}}
    route: [{{destination: {{host: reviews, subset: v2}}}}]
  - route:
    - {{destination: {{host: reviews, subset: v1}}, weight: {first}}}
    - {{destination: {{host: reviews, subset: v2}}, weight: {second}}}
"""


MESH = {
    "reviews.yaml": service("reviews", "9080/http", address="10.96.0.10")
    + pod("r1", V1, app="reviews")
    + pod("r2", V2, app="reviews", version="v2")
    + slice_of("reviews", ("r1", V1), ("r2", V2)),
    "db.yaml": service("db", "5432/tcp", address="10.96.0.11")
    + pod("db", DB, app="db")
    + slice_of("db", ("db", DB), port=5432, title="tcp"),
    "web.yaml": service("web", "80/http/8080", address="10.96.0.12")
    + pod("web", OWN, app="web")
    + slice_of("web", ("web", OWN), port=8080),
    "subsets.yaml": """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
""",
    "routes.yaml": split(90, 10),
}
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: viewer, namespace: default}
spec: {selector: {matchLabels: {app: web}}, action: ALLOW, rules: [{from: [{source: %s}]}]}
"""
SERVER = """
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one write for head and body: two wait for each other's ACK
    def do_GET(self):
        body = sys.argv[3].encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    request_queue_size = 128
server = Server((sys.argv[1], int(sys.argv[2])), Handler)
print("listening", flush=True)
server.serve_forever()
"""
CLIENT = """
import collections, http.client, json, os, sys, time
wanted = json.loads(sys.argv[1])
count, end = wanted["count"], wanted["end"]
answers, started = collections.Counter(), time.monotonic()
while (count := count - 1) >= 0 or (end and not os.path.exists(end)):
    try:
        source = (wanted["source"], 0) if wanted["source"] else None
        connection = http.client.HTTPConnection(wanted["address"], wanted["port"], timeout=10, source_address=source)
        connection.request("GET", "/", headers=wanted["headers"])
        answer = connection.getresponse()
        answers[f"{answer.status} {answer.read().decode()}"] += 1
        connection.close()
    except (OSError, http.client.HTTPException) as error:
        answers[type(error).__name__] += 1
print(json.dumps({"answers": answers, "seconds": time.monotonic() - started}))
"""


async def run(*command: str, stdin: str = "") -> str:
    """Run a command to its end; its output. AssertionError if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate(stdin.encode())
    assert process.returncode == 0, f"{command}: {errors.decode()}"
    return output.decode()


async def get(
    namespace: str, address: str, port: int, count: int = 1, *, end: str = "", source: str = "", **headers: str
) -> dict[str, Any]:
    """What requests from a namespace got, by status and body, and how long they took.

    There are `count` of them, or more until the file `end` is there; `source` is the address they come from.
    """
    sent = {key.replace("_", "-"): value for key, value in headers.items()}
    wanted = {"address": address, "port": port, "count": count, "end": end, "source": source, "headers": sent}
    inside = ("ip", "netns", "exec", namespace, sys.executable, "-c", CLIENT)
    found: dict[str, Any] = json.loads(await run(*inside, json.dumps(wanted)))
    return found


@contextlib.asynccontextmanager
async def namespaces() -> AsyncIterator[None]:
    """The two namespaces, joined, with the redirection of the pod in place."""
    try:
        for name in (POD, PEER):
            await run("ip", "netns", "add", name)
            await run("ip", "-n", name, "link", "set", "lo", "up")
        await run("ip", "link", "add", "eth0", "netns", POD, "type", "veth", "peer", "name", "eth0", "netns", PEER)
        for name, addresses in ((POD, (OWN,)), (PEER, (V1, V2, DB, OTHER))):
            for address in addresses:
                await run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            await run("ip", "-n", name, "link", "set", "eth0", "up")
        # Addresses of services are dialled, never reached: Envoy answers for them.
        await run("ip", "-n", POD, "route", "add", "10.96.0.0/16", "dev", "eth0")
        await run("ip", "netns", "exec", POD, "nft", "-f", "-", stdin=REDIRECT)
        yield
    finally:
        for name in (POD, PEER):
            await run("ip", "netns", "del", name)


@contextlib.asynccontextmanager
async def serving(namespace: str, address: str, port: int, text: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", namespace, sys.executable, "-c", SERVER, address, str(port), text),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"listening\n"
        yield
    finally:
        process.kill()
        await process.wait()


class SidecarEnvoy(RealEnvoy):
    """An Envoy inside the pod's namespace, of the group whose connections are left alone."""

    def __init__(self, binary: str, directory: Path, xds_socket: Path, variant: Variant) -> None:
        super().__init__(binary, directory, xds_socket, NODE_ID, variant)
        document = bootstrap(directory, (xds_socket,), NODE_ID, variant)
        document["node"]["metadata"] = METADATA
        (directory / "bootstrap.json").write_text(json.dumps(document))
        wrapper = directory / "envoy-in-pod"
        group = f"setpriv --regid {ENVOY_GROUP} --clear-groups"
        wrapper.write_text(f'#!/bin/sh\nexec ip netns exec {POD} {group} {binary} "$@"\n')
        wrapper.chmod(0o755)
        self.binary = str(wrapper)


@contextlib.asynccontextmanager
async def sidecar(
    envoy: str, tmp_path: Path, variant: Variant = Variant.DELTA_ADS
) -> AsyncIterator[tuple[Rig, SidecarEnvoy]]:
    """The mesh, its servers and the sidecar, everything accepted."""
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(namespaces())
        for address, port, text in ((V1, 9080, "v1"), (V2, 9080, "v2"), (DB, 5432, "db"), (OTHER, 7000, "other")):
            await stack.enter_async_context(serving(PEER, address, port, text))
        await stack.enter_async_context(serving(POD, OWN, 8080, "web"))
        await stack.enter_async_context(serving(POD, OWN, 8081, "unserved"))
        rig = await stack.enter_async_context(running(tmp_path / "m", MESH, tmp_path / "xds.sock"))
        process = SidecarEnvoy(envoy, tmp_path, tmp_path / "xds.sock", variant)
        await process.start()
        stack.push_async_callback(process.stop)
        await until(lambda: settled(rig), 15.0, lambda: f"not settled: {rig.plane.server.status()}")
        yield rig, process


async def settled(rig: Rig) -> bool:
    types = [entry for status in rig.plane.server.status() for entry in status.types]
    assert not [entry for entry in types if entry.nacked or entry.error], types
    return bool(types) and all(entry.state in (SyncState.SYNCED, SyncState.NOT_SENT) for entry in types)


async def test_a_sidecar_carries_a_workloads_traffic_both_ways(envoy: str, tmp_path: Path) -> None:
    assert os.geteuid() == 0
    async with sidecar(envoy, tmp_path) as (_, process):
        split = await get(POD, "10.96.0.10", 9080, 400, host="reviews")
        assert sum(split["answers"].values()) == 400
        # 5 standard deviations of 400 draws at 10 % are 30.
        assert split["answers"]["200 v2"] == pytest.approx(40, abs=30)
        assert set(split["answers"]) == {"200 v1", "200 v2"}
        jason = await get(POD, "10.96.0.10", 9080, 2, host="reviews", end_user="jason")
        assert jason["answers"] == {"200 v2": 2}
        assert jason["seconds"] >= 1.0
        assert (await get(POD, "10.96.0.11", 5432))["answers"] == {"200 db": 1}
        assert (await get(POD, OTHER, 7000))["answers"] == {"200 other": 1}  # no service: passed through
        assert (await get(PEER, OWN, 8080, 3))["answers"] == {"200 web": 3}
        assert (await get(PEER, OWN, 8081))["answers"] == {"200 unserved": 1}
        inbound = await process.stat("http.inbound_0.0.0.0_8080;.downstream_rq_2xx")
        assert inbound == 3, await process.admin("/stats?filter=downstream_rq_2xx")
        clusters = await process.admin("/clusters")
        for name in ("outbound|9080|v1|reviews.default.svc.cluster.local", "inbound|8080||", "PassthroughCluster"):
            assert f"{name}::" in clusters
        found = {line.partition("::")[0] for line in (await process.admin("/listeners")).splitlines()}
        assert found >= {"virtualOutbound", "virtualInbound", "0.0.0.0_9080", "10.96.0.11_5432"}
        routes = json.loads(await process.admin("/config_dump?resource=dynamic_route_configs"))["configs"]
        assert {entry["route_config"]["name"] for entry in routes} == {"80", "9080"}


async def test_a_sidecar_follows_a_changed_split_under_load_without_a_failed_request(
    envoy: str, tmp_path: Path
) -> None:
    async with sidecar(envoy, tmp_path, Variant.SOTW_ADS) as (rig, _):
        load = asyncio.create_task(get(POD, "10.96.0.10", 9080, 100, end=str(tmp_path / "end"), host="reviews"))
        for weights, version in (((0, 100), "v2"), ((100, 0), "v1")):
            rig.write("routes.yaml", split(*weights))

            async def is_followed(version: str = version) -> bool:
                return list((await get(POD, "10.96.0.10", 9080, 30, host="reviews"))["answers"]) == [f"200 {version}"]

            await until(is_followed, 15.0)
        (tmp_path / "end").touch()
        assert set((await load)["answers"]) == {"200 v1", "200 v2"}
        rig.write("reviews.yaml", service("reviews", "9080/http", address="10.96.0.10"))

        async def is_seen() -> bool:
            """The mechanism: requests that fail are counted."""
            answers = (await get(POD, "10.96.0.10", 9080, host="reviews"))["answers"]
            return any(answer.startswith("503") for answer in answers)

        await until(is_seen, 15.0)


async def test_a_policy_closes_the_inbound_side_of_a_sidecar(envoy: str, tmp_path: Path) -> None:
    async with sidecar(envoy, tmp_path) as (rig, _):

        async def served(port: int, source: str) -> bool:
            (answer,) = (await get(PEER, OWN, port, source=source))["answers"]
            return answer.startswith("200")

        async def admitted() -> set[tuple[int, str]]:
            ports, sources = (8080, 8081), (V1, OTHER)
            return {(port, source) for port in ports for source in sources if await served(port, source)}

        everything = {(8080, V1), (8080, OTHER), (8081, V1), (8081, OTHER)}
        assert await admitted() == everything
        for source, expected in (
            ('{namespaces: ["*"]}', set()),  # nobody can prove to be of any
            (f"{{ipBlocks: [100.64.0.0/10], notIpBlocks: [{V1}]}}", {(8080, OTHER), (8081, OTHER)}),
            ("{ipBlocks: [100.64.0.0/10]}", everything),
        ):
            rig.write("policy.yaml", POLICY % source)

            async def is_in_force(expected: set[tuple[int, str]] = expected) -> bool:
                return await admitted() == expected

            await until(is_in_force, 15.0)
            assert await settled(rig)
        assert (await get(PEER, OWN, 8080))["answers"] == {"200 web": 1}
