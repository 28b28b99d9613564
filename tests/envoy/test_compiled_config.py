"""What the compiler emits, in a real Envoy: accepted without a NACK, and meaning what it should."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.compiling import Mesh, pod, service, slice_of
from tests.envoy.node_mesh import NodeMesh, free_port
from tests.envoy.real_envoy import until

pytestmark = pytest.mark.envoy

WEB, CLIENT, OTHER, STRANGER = "100.1.0.10", "100.1.0.20", "100.1.1.30", "100.1.9.9"
V1, V2 = "100.1.0.1", "100.1.0.2"
BACKEND_PORT = 9080


def bookinfo(port: int, *manifests: str) -> str:
    """Service `reviews` with two versions, a client in its namespace and one in another."""
    return "".join(
        (
            service("reviews", f"{port}/http/{BACKEND_PORT}", address="10.96.0.10"),
            service("ratings", f"{port}/http/{BACKEND_PORT}", address="10.96.0.11"),
            pod("reviews-v1", V1, app="reviews"),
            pod("reviews-v2", V2, app="reviews", version="v2"),
            pod("ratings-v1", WEB, app="ratings"),
            pod("client", CLIENT, app="client"),
            pod("other", OTHER, app="other", namespace="elsewhere"),
            slice_of("reviews", ("reviews-v1", V1), ("reviews-v2", V2), port=BACKEND_PORT),
            slice_of("ratings", ("ratings-v1", WEB), port=BACKEND_PORT),
            "\n---\n".join(manifests),
        )
    )


SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
"""


def routes(http: str, name: str = "reviews") -> str:
    """A VirtualService for `name` with the http routes given (indented by two)."""
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}]
  http:
{http}
"""


SPLIT = routes("""
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}
""")


def policy(name: str, spec: str) -> str:
    """An AuthorizationPolicy with a spec (indented by two)."""
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: default}}
spec:
{spec}
"""


Start = Callable[..., "AsyncIterator[NodeMesh]"]


@pytest_asyncio.fixture
async def start(envoy: str, tmp_path: Path) -> AsyncIterator[Callable[..., object]]:
    """Starts a node with bookinfo and more manifests; stops it at the end."""
    nodes: list[NodeMesh] = []

    async def run(*manifests: str) -> NodeMesh:
        port = free_port()
        node = NodeMesh(Mesh(bookinfo(port, *manifests)), envoy, tmp_path, port)
        nodes.append(node)
        for name, address in (("v1", V1), ("v2", V2), ("ratings", WEB)):
            await node.serve(name, address, BACKEND_PORT)
        await node.start()
        await node.settled()
        assert node.nacks() == []
        return node

    yield run
    for node in nodes:
        await node.stop()


async def test_a_weighted_route_splits_requests_by_weight(start):
    node = await start(SUBSETS, SPLIT)
    seen = Counter()
    for _ in range(100):
        answer = await node.request(CLIENT, "reviews")
        assert answer.status == 200
        seen[answer.seen["name"]] += 1
    assert set(seen) == {"v1", "v2"}
    assert 75 <= seen["v1"] <= 99
    assert node.nacks() == []


async def test_every_way_to_write_the_host_finds_the_service(start):
    node = await start()
    host = "reviews.default.svc.cluster.local"
    for spelled in ("reviews", "reviews.default", "reviews.default.svc", host, f"{host}.", "10.96.0.10"):
        for suffix in ("", f":{node.port}"):
            answer = await node.request(CLIENT, spelled + suffix)
            assert (answer.status, answer.seen["headers"]["host"]) == (200, spelled + suffix)
    unknown = await node.request(CLIENT, "nobody.example.com")
    assert unknown.status == 404


async def test_a_connection_from_an_unknown_address_is_closed_without_an_answer(start):
    node = await start()
    assert (await node.request(CLIENT, "reviews")).status == 200
    assert (await node.request(STRANGER, "reviews")).status == 0
    assert await node.envoy.stat(f"listener.127.0.0.1_{node.port}.no_filter_chain_match") == 1


async def test_a_new_pod_becomes_known_by_a_push_of_the_table(start):
    node = await start()
    assert (await node.request(STRANGER, "reviews")).status == 0
    node.mesh.apply(pod("newcomer", STRANGER, app="newcomer"))
    node.publish()

    async def is_known() -> bool:
        return (await node.request(STRANGER, "reviews")).status == 200

    await until(is_known, 5.0)
    assert node.nacks() == []
