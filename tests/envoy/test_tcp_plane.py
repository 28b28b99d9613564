"""The listener for TCP in a real Envoy: who reaches which service, and who hears nothing of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.compiling import Mesh, pod, service, slice_of
from tests.envoy.node_mesh import NodeMesh, free_port, free_port_everywhere, loopback
from tests.envoy.real_envoy import until

pytestmark = [pytest.mark.envoy, pytest.mark.node_envoy]

DB, CACHE = "100.1.7.1", "100.1.7.2"
CLIENT, OTHER, THIRD, STRANGER = "100.1.0.20", "100.1.0.21", "100.1.0.22", "100.1.9.9"
V1, V2, STORE = "100.1.0.1", "100.1.0.2", "100.1.0.3"
BACKEND_PORT = 9306

SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db, namespace: default}
spec:
  host: db
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
"""
SPLIT = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db, namespace: default}
spec:
  hosts: [db]
  tcp:
  - route:
    - {destination: {host: db, subset: v1}, weight: 80}
    - {destination: {host: db, subset: v2}, weight: 20}
---
"""


def policy(name: str, labels: str, action: str, account: str) -> str:
    """A policy for the workloads with some labels, about one service account."""
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: default}}
spec:
  selector: {{matchLabels: {labels}}}
  action: {action}
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/{account}]}}}}]
---
"""


def manifests(port: int) -> str:
    """Two TCP services, one of them with two versions, and three clients with accounts of their own."""
    return "".join(
        (
            service("db", f"{port}/tcp-db/{BACKEND_PORT}", address=DB),
            service("cache", f"{port}/tcp-cache/{BACKEND_PORT}", address=CACHE),
            pod("db-v1", V1, app="db"),
            pod("db-v2", V2, app="db", version="v2"),
            pod("cache-v1", STORE, app="cache"),
            *(pod(name, at, app=name) for name, at in (("client", CLIENT), ("other", OTHER), ("third", THIRD))),
            slice_of("db", ("db-v1", V1), ("db-v2", V2), port=BACKEND_PORT, title="tcp-db"),
            slice_of("cache", ("cache-v1", STORE), port=BACKEND_PORT, title="tcp-cache"),
        )
    )


Start = Callable[..., Awaitable[NodeMesh]]


@pytest_asyncio.fixture
async def start(envoy: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a node with the services and more manifests, everything taken by Envoy; stops it at the end."""
    nodes: list[NodeMesh] = []

    async def run(*more: str) -> NodeMesh:
        port = free_port_everywhere()
        node = NodeMesh(Mesh(manifests(port) + "".join(more)), envoy, tmp_path, free_port(), port)
        nodes.append(node)
        for name, address in (("v1", V1), ("v2", V2), ("cache", STORE)):
            await node.greet(name, address, BACKEND_PORT)
        await node.start()
        await node.settled()
        return node

    yield run
    found = [(node.nacks(), await node.envoy.stat("runtime.deprecated_feature_use")) for node in nodes]
    for node in nodes:
        await node.stop()
    assert found == [([], 0)] * len(nodes)


async def shares(node: NodeMesh, count: int) -> Counter[bytes]:
    """Who greeted, over so many connections."""
    return Counter([(await node.dial(CLIENT, DB)).strip() for _ in range(count)])


async def test_a_server_that_speaks_first_is_heard_and_answers(start: Start) -> None:
    node = await start()
    said = b"x" * 1000
    assert await node.dial(CLIENT, CACHE, said) == b"cache\n" + said
    assert set(await shares(node, 20)) == {b"v1", b"v2"}
    assert await node.envoy.stat("tcp.out_tcp.downstream_cx_total") == 21


async def test_the_weights_of_a_tcp_route_are_kept(start: Start) -> None:
    node = await start(SUBSETS, SPLIT)
    found = await shares(node, 200)
    assert set(found) == {b"v1", b"v2"}
    assert 150 <= found[b"v1"] <= 170


@pytest.mark.parametrize("simple", ["LEAST_REQUEST", "RANDOM"])
async def test_the_weights_are_kept_while_connections_stay_whatever_the_load_balancer(
    start: Start, simple: str
) -> None:
    """A balancer that counts connections would move them to 2:1, a random one to 1:1."""
    rule = SUBSETS.replace("  host: db\n", f"  host: db\n  trafficPolicy: {{loadBalancer: {{simple: {simple}}}}}\n")
    node = await start(rule, SPLIT)
    found: Counter[bytes] = Counter()
    writers = []
    for _ in range(100):
        address = (loopback(CLIENT), 0)
        reader, writer = await asyncio.open_connection(loopback(DB), node.tcp_port, local_addr=address)
        writers.append(writer)
        found[(await reader.readline()).strip()] += 1
    for writer in writers:
        writer.close()
    assert 74 <= found[b"v1"] <= 86


async def test_a_route_to_one_subset_leads_there_alone(start: Start) -> None:
    only = SPLIT.replace("weight: 80", "weight: 0").replace("weight: 20", "weight: 100")
    node = await start(SUBSETS, only)
    assert await shares(node, 20) == {b"v2": 20}


async def test_who_is_not_allowed_hears_no_byte_and_no_server_is_called(start: Start) -> None:
    node = await start(policy("cache", "{app: cache}", "ALLOW", "client"))
    assert await node.dial(CLIENT, CACHE) == b"cache\n"
    assert await node.dial(OTHER, CACHE, b"knock\n") == b""
    assert await node.dial(STRANGER, CACHE) == b""
    assert node.requests == {"cache": 1}
    # Another service is not guarded: it was the policy.
    assert (await node.dial(OTHER, DB)).strip() in (b"v1", b"v2")


async def test_a_denied_client_is_served_once_the_policy_is_gone_and_again_denied_when_it_is_back(
    start: Start,
) -> None:
    node = await start(policy("cache", "{app: cache}", "DENY", "other"))
    assert await node.dial(OTHER, CACHE) == b""
    node.mesh.apply(policy("cache", "{app: cache}", "DENY", "nobody"))
    node.publish()
    await node.settled()
    assert await node.dial(OTHER, CACHE) == b"cache\n"
    node.mesh.apply(policy("cache", "{app: cache}", "DENY", "other"))
    node.publish()
    await node.settled()
    assert await node.dial(OTHER, CACHE) == b""
    assert await node.dial(CLIENT, CACHE) == b"cache\n"


async def test_a_connection_must_satisfy_the_policies_of_all_endpoints(start: Start) -> None:
    node = await start(
        policy("one", "{app: db, version: v1}", "DENY", "client"),
        policy("two", "{app: db, version: v2}", "DENY", "other"),
    )
    assert [await node.dial(source, DB) for source in (CLIENT, OTHER) for _ in range(5)] == [b""] * 10
    assert {(await node.dial(THIRD, DB)).strip() for _ in range(20)} == {b"v1", b"v2"}
    assert await node.dial(CLIENT, CACHE) == await node.dial(OTHER, CACHE) == b"cache\n"


async def test_a_source_that_is_not_known_and_an_address_of_no_service_lead_nowhere(start: Start) -> None:
    node = await start()
    assert await node.dial(STRANGER, CACHE) == b""
    # As who dials the proxy itself: no original destination, so the address is the listener's own.
    assert await node.dial(CLIENT, "127.0.0.1") == b""
    assert await node.dial(CLIENT, "100.1.7.9") == b""
    assert node.requests == {}
    assert await node.dial(CLIENT, CACHE) == b"cache\n"


async def test_a_change_of_policies_closes_no_connection(start: Start) -> None:
    """The drain time is a second: a connection of a listener or chain that was replaced would end by then."""
    node = await start()
    reader, writer = await asyncio.open_connection(loopback(CACHE), node.tcp_port, local_addr=(loopback(CLIENT), 0))
    assert await reader.readline() == b"cache\n"
    before = await node.envoy.stat("listener_manager.listener_in_place_updated")
    for account in ("other", "third"):
        node.mesh.apply(policy("cache", "{app: cache}", "DENY", account))
        node.publish()
        await node.settled()

    async def is_updated() -> bool:
        """The second one is active, and what it replaced is being drained from that moment on."""
        warming = await node.envoy.stat("listener_manager.total_listeners_warming")
        return await node.envoy.stat("listener_manager.listener_in_place_updated") == before + 2 and not warming

    async def is_drained() -> bool:
        return await node.envoy.stat("listener_manager.total_filter_chains_draining") == 0

    await until(is_updated, 5.0)
    await until(is_drained, 5.0)
    writer.write(b"still here\n")
    assert await asyncio.wait_for(reader.readline(), 5.0) == b"still here\n"
    writer.close()


async def test_a_block_of_sources_decides_who_hears_the_server(start: Start) -> None:
    def guard(blocks: str, not_blocks: str) -> str:
        named = policy("cache", "{app: cache}", "ALLOW", "x")
        source = f"source: {{ipBlocks: [{blocks}], notIpBlocks: [{not_blocks}]}}"
        return named.replace("source: {principals: [cluster.local/ns/default/sa/x]}", source)

    node = await start(guard("100.1.0.0/16, '::/0'", "100.1.0.21/32"), policy("db", "{app: db}", "DENY", "third"))
    assert await node.dial(CLIENT, CACHE) == b"cache\n"
    assert await node.dial(OTHER, CACHE) == b""
    assert await node.dial(THIRD, CACHE) == b"cache\n"
    assert await node.dial(THIRD, DB) == b""
    node.mesh.apply(guard("100.1.0.21", "100.2.0.0/16"))
    node.publish()
    await node.settled()
    assert await node.dial(OTHER, CACHE) == b"cache\n"
    assert await node.dial(CLIENT, CACHE) == b""
