"""What the compiler emits, in a real Envoy: accepted without a NACK, and meaning what it should."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.compiling import Mesh, pod, service, slice_of
from tests.envoy.node_mesh import NodeMesh, free_port, loopback
from tests.envoy.real_envoy import until
from xdsbpf.model.names import VIRTUAL_HOST
from xdsbpf.model.resource import make_resource

pytestmark = [pytest.mark.envoy, pytest.mark.node_envoy]

WEB, CLIENT, OTHER, STRANGER = "100.1.0.10", "100.1.0.20", "100.1.1.30", "100.1.9.9"
V1, V2 = "100.1.0.1", "100.1.0.2"
BACKEND_PORT = 9080


async def start_node(binary: str, directory: Path, *manifests: str) -> NodeMesh:
    """A node with bookinfo and more manifests, its stand-in servers running, everything taken by Envoy."""
    port = free_port()
    node = NodeMesh(Mesh(bookinfo(port, *manifests)), binary, directory, port)
    for name, address in (("v1", V1), ("v2", V2), ("ratings", WEB)):
        await node.serve(name, address, BACKEND_PORT)
    await node.start()
    await node.settled()
    assert node.nacks() == []
    return node


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


Start = Callable[..., Awaitable[NodeMesh]]


@pytest_asyncio.fixture
async def start(envoy: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a node with bookinfo and more manifests; stops it at the end."""
    nodes: list[NodeMesh] = []

    async def run(*manifests: str) -> NodeMesh:
        node = await start_node(envoy, tmp_path, *manifests)
        nodes.append(node)
        return node

    yield run
    for node in nodes:
        await node.stop()


async def test_a_weighted_route_splits_requests_by_weight(start: Start) -> None:
    node = await start(SUBSETS, SPLIT)
    seen: Counter[str] = Counter()
    for _ in range(100):
        answer = await node.request(CLIENT, "reviews")
        assert answer.status == 200
        seen[answer.seen["name"]] += 1
    assert set(seen) == {"v1", "v2"}
    assert 75 <= seen["v1"] <= 99
    assert node.nacks() == []


async def test_every_way_to_write_the_host_finds_the_service(start: Start) -> None:
    node = await start()
    host = "reviews.default.svc.cluster.local"
    for spelled in ("reviews", "reviews.default", "reviews.default.svc", host, f"{host}.", "10.96.0.10"):
        for suffix in ("", f":{node.port}"):
            answer = await node.request(CLIENT, spelled + suffix)
            assert (answer.status, answer.seen["headers"]["host"]) == (200, spelled + suffix)
    unknown = await node.request(CLIENT, "nobody.example.com")
    assert unknown.status == 404


async def test_a_connection_from_an_unknown_address_is_closed_without_an_answer(start: Start) -> None:
    node = await start()
    assert (await node.request(CLIENT, "reviews")).status == 200
    assert (await node.request(STRANGER, "reviews")).status == 0
    assert await node.envoy.stat(f"listener.127.0.0.1_{node.port}.no_filter_chain_match") == 1


async def test_a_new_pod_becomes_known_by_a_push_of_the_table(start: Start) -> None:
    node = await start()
    assert (await node.request(STRANGER, "reviews")).status == 0
    node.mesh.apply(pod("newcomer", STRANGER, app="newcomer"))
    node.publish()

    async def is_known() -> bool:
        return (await node.request(STRANGER, "reviews")).status == 200

    await until(is_known, 5.0)
    assert node.nacks() == []


async def test_a_port_number_that_is_new_to_the_mesh_is_served_without_a_restart(start: Start) -> None:
    node = await start()
    added = free_port()
    node.mesh.apply(service("late", f"{added}/http/{BACKEND_PORT}", address="10.96.0.50"))
    node.publish()

    async def is_active() -> bool:
        is_known = f"http|{added}" in await node.envoy.admin("/config_dump?resource=dynamic_listeners")
        return is_known and not json.loads(await node.envoy.admin("/init_dump"))

    await until(is_active, 5.0)
    assert (await node.request(CLIENT, "reviews")).status == 200
    assert node.nacks() == []


MATCHES = routes("""
  - match: [{uri: {exact: /exact}}]
    directResponse: {status: 201}
  - match: [{uri: {prefix: /prefix}, ignoreUriCase: true}]
    directResponse: {status: 202}
  - match: [{uri: {regex: "/item/[0-9]+"}}]
    directResponse: {status: 203}
  - match: [{headers: {end-user: {exact: jason}}}]
    directResponse: {status: 204}
  - match: [{uri: {exact: /without}, withoutHeaders: {x-internal: {exact: "yes"}}}]
    directResponse: {status: 205}
  - match: [{method: {exact: DELETE}}]
    directResponse: {status: 206}
  - match: [{authority: {prefix: "reviews.default"}}]
    directResponse: {status: 207}
  - match: [{queryParams: {debug: {exact: "1"}}}]
    directResponse: {status: 208}
  - match: [{uri: {exact: /scheme}, scheme: {exact: http}}]
    directResponse: {status: 209}
  - match: [{headers: {x-flag: {}}}]
    directResponse: {status: 210}
  - match: [{uri: {prefix: /any}}, {uri: {prefix: /of}}]
    directResponse: {status: 211}
""")


CASES: tuple[tuple[str, dict[str, str], str, str, int], ...] = (
    ("/exact", {}, "GET", "reviews", 201),
    ("/exact/no", {}, "GET", "reviews", 404),
    ("/PREFIXED", {}, "GET", "reviews", 202),
    ("/item/7", {}, "GET", "reviews", 203),
    ("/item/7x", {}, "GET", "reviews", 404),
    ("/", {"end-user": "jason"}, "GET", "reviews", 204),
    ("/", {"end-user": "jasons"}, "GET", "reviews", 404),
    ("/without", {}, "GET", "reviews", 205),
    ("/without", {"x-internal": "yes"}, "GET", "reviews", 404),
    ("/", {}, "DELETE", "reviews", 206),
    ("/", {}, "GET", "reviews.default.svc", 207),
    ("/?debug=1", {}, "GET", "reviews", 208),
    ("/scheme", {}, "GET", "reviews", 209),
    ("/", {"x-flag": ""}, "GET", "reviews", 210),
    ("/any", {}, "GET", "reviews", 211),
    ("/of", {}, "GET", "reviews", 211),
    ("/nothing", {}, "GET", "reviews", 404),
)


async def test_requests_match_as_written(start: Start) -> None:
    node = await start(SUBSETS, MATCHES)
    for path, headers, method, host, status in CASES:
        answer = await node.request(CLIENT, host, path, method=method, headers=headers)
        assert answer.status == status, (path, headers, method, host)


async def test_routes_are_guarded_by_the_source(start: Start) -> None:
    node = await start(
        SUBSETS,
        pod("spoof", STRANGER, app="x", namespace="elsewhere").replace("labels: {", "labels: {ns: default, "),
        routes("""
  - match: [{sourceLabels: {app: client}}]
    directResponse: {status: 201}
  - match: [{sourceNamespace: default}]
    directResponse: {status: 202}
  - match: [{sourceLabels: {ns: default}}]
    directResponse: {status: 203}
"""),
    )
    assert (await node.request(CLIENT, "reviews")).status == 201
    assert (await node.request(V1, "reviews")).status == 202
    assert (await node.request(STRANGER, "reviews")).status == 203
    assert (await node.request(OTHER, "reviews")).status == 200


async def test_requests_are_rewritten_redirected_and_given_headers(start: Start) -> None:
    node = await start(
        SUBSETS,
        routes("""
  - match: [{uri: {prefix: /old}}]
    rewrite: {uri: /new, authority: other.example}
    headers:
      request: {set: {x-set: one}, add: {x-add: two}, remove: [x-gone]}
      response: {set: {x-answered: "yes"}, remove: [server]}
    route:
    - destination: {host: reviews, subset: v1}
      headers: {request: {set: {x-destination: three}}}
  - match: [{uri: {prefix: /regex}}]
    rewrite: {uriRegexRewrite: {match: "^/regex/([a-z]+)/(.*)$", rewrite: '/\\2/\\1'}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /moved}}]
    redirect: {uri: /there, authority: elsewhere.example, redirectCode: 308, scheme: https}
  - match: [{uri: {prefix: /split}}]
    route:
    - {destination: {host: reviews, subset: v1}, weight: 50, headers: {request: {set: {x-for: v1, Host: for.v1}}}}
    - {destination: {host: reviews, subset: v2}, weight: 50, headers: {request: {set: {x-for: v2}}}}
  - match: [{uri: {exact: /text}}]
    directResponse: {status: 418, body: {string: "short and stout"}}
"""),
    )
    answer = await node.request(CLIENT, "reviews", "/old/x", headers={"x-gone": "1", "x-add": "first"})
    seen = answer.seen["headers"]
    assert (answer.seen["path"], seen["host"]) == ("/new/x", "other.example")
    assert (seen["x-set"], seen["x-destination"]) == ("one", "three")
    assert "x-gone" not in seen
    assert answer.header("x-answered") == "yes"
    assert "server" not in dict(answer.headers)
    assert (await node.request(CLIENT, "reviews", "/regex/a/b/c")).seen["path"] == "/b/c/a"
    redirect = await node.request(CLIENT, "reviews", "/moved")
    assert (redirect.status, redirect.header("location")) == (308, "https://elsewhere.example/there")
    for _ in range(10):
        answer = await node.request(CLIENT, "reviews", "/split")
        name, headers = answer.seen["name"], answer.seen["headers"]
        assert headers["x-for"] == name
        assert headers["host"] == ("for.v1" if name == "v1" else "reviews")
        assert answer.header("server") == name
    text = await node.request(CLIENT, "reviews", "/text")
    assert (text.status, text.body) == (418, b"short and stout")


async def test_timeouts_retries_faults_mirrors_and_cors_work(start: Start) -> None:
    node = await start(
        SUBSETS,
        routes("""
  - match: [{uri: {prefix: /timeout}}]
    timeout: 200ms
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /retry}}]
    retries: {attempts: 3, retryOn: "5xx,418", perTryTimeout: 1s, backoff: 10ms, retryRemoteLocalities: true}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /no-retry}}]
    retries: {attempts: 0}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /abort}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /delay}}]
    fault: {delay: {fixedDelay: 300ms, percentage: {value: 100}}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /grpc}}]
    fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /mirror}}]
    route: [{destination: {host: reviews, subset: v1}}]
    mirrors: [{destination: {host: ratings}, percentage: {value: 100}}]
  - match: [{uri: {prefix: /cors}}]
    corsPolicy: {allowOrigins: [{prefix: "https://ok."}], allowMethods: [GET, PUT], maxAge: 60s}
    route: [{destination: {host: reviews, subset: v1}}]
  - route: [{destination: {host: reviews, subset: v1}}]
"""),
    )
    assert (await node.request(CLIENT, "reviews", "/timeout", headers={"x-sleep": "1"})).status == 504
    assert (await node.request(CLIENT, "reviews", "/plain", headers={"x-sleep": "0.4"})).status == 200
    attempts = node.requests["v1"]
    assert (await node.request(CLIENT, "reviews", "/retry", headers={"x-answer": "418"})).status == 418
    assert node.requests["v1"] == attempts + 4
    assert (await node.request(CLIENT, "reviews", "/no-retry", headers={"x-answer": "503"})).status == 503
    assert node.requests["v1"] == attempts + 5
    assert (await node.request(CLIENT, "reviews", "/abort")).status == 555
    started = time.monotonic()
    assert (await node.request(CLIENT, "reviews", "/delay")).status == 200
    assert time.monotonic() - started > 0.25
    mirrored = node.requests["ratings"]
    assert (await node.request(CLIENT, "reviews", "/mirror")).seen["name"] == "v1"

    async def is_mirrored() -> bool:
        return node.requests["ratings"] == mirrored + 1

    await until(is_mirrored, 2.0)
    preflight = {"origin": "https://ok.example", "access-control-request-method": "PUT"}
    answer = await node.request(CLIENT, "reviews", "/cors", method="OPTIONS", headers=preflight)
    assert answer.header("access-control-allow-methods") == "GET,PUT"
    assert answer.header("access-control-allow-origin") == "https://ok.example"


async def test_no_request_can_steer_the_proxy_with_x_envoy_headers(start: Start) -> None:
    node = await start()
    for forged in ({}, {"x-forwarded-for": "10.0.0.1"}, {"x-envoy-internal": "true"}):
        headers = {"x-envoy-upstream-rq-timeout-ms": "50", "x-sleep": "0.3", **forged}
        assert (await node.request(CLIENT, "reviews", headers=headers)).status == 200


async def test_paths_are_normalised_before_they_are_matched(start: Start) -> None:
    node = await start(
        SUBSETS,
        routes("""
  - match: [{uri: {prefix: /secret}}]
    directResponse: {status: 403}
  - route: [{destination: {host: reviews, subset: v1}}]
"""),
    )
    assert (await node.request(CLIENT, "reviews", "/public")).status == 200
    for path in ("/secret", "//secret", "/./secret", "/x/../secret", "/%73ecret", "/x/..%2fsecret"):
        assert (await node.request(CLIENT, "reviews", path)).status == 403, path


EVERY_POLICY = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  trafficPolicy:
    connectionPool:
      tcp:
        maxConnections: 100
        connectTimeout: 2s
        idleTimeout: 30s
        maxConnectionDuration: 60s
        tcpKeepalive: {probes: 3, time: 60s, interval: 10s}
      http: {http1MaxPendingRequests: 10, http2MaxRequests: 20, maxRequestsPerConnection: 5, maxRetries: 2}
    outlierDetection:
      consecutive5xxErrors: 3
      consecutiveGatewayErrors: 0
      interval: 5s
      baseEjectionTime: 10s
      maxEjectionPercent: 50
      minHealthPercent: 20
      splitExternalLocalOriginErrors: true
      consecutiveLocalOriginFailures: 4
    retryBudget: {percent: 30, minRetryConcurrency: 5}
  subsets:
  - {name: plain, labels: {version: v1}}
  - {name: robin, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 10s}}}}
  - {name: least, trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST, warmupDurationSecs: 10s}}}
  - {name: random, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
  - {name: ring, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user, ringHash: {}}}}}
  - {name: table, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 101}}}}}
  - {name: cookie, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 60s, path: /}}}}}
  - {name: query, trafficPolicy: {loadBalancer: {consistentHash: {httpQueryParameterName: q}}}}
  - {name: client, trafficPolicy: {connectionPool: {http: {useClientProtocol: true}}}}
  - {name: secure, trafficPolicy: {tls: {mode: SIMPLE}}}
"""
SUBSET_NAMES = ("plain", "robin", "least", "random", "ring", "table", "cookie", "query", "client", "secure")
BY_SUBSET = routes(
    "\n".join(
        f"  - match: [{{uri: {{prefix: /{name}}}}}]\n    route: [{{destination: {{host: reviews, subset: {name}}}}}]"
        for name in SUBSET_NAMES
    )
)


async def test_every_traffic_policy_is_accepted_and_serves(start: Start) -> None:
    node = await start(EVERY_POLICY, BY_SUBSET)
    for name in SUBSET_NAMES:
        answer = await node.request(CLIENT, "reviews", f"/{name}?q=1", headers={"x-user": "ann"})
        assert answer.status == (503 if name == "secure" else 200), name
    users = {(await node.request(CLIENT, "reviews", "/ring", headers={"x-user": "ann"})).seen["name"] for _ in range(8)}
    assert len(users) == 1
    assert "set-cookie" in dict((await node.request(CLIENT, "reviews", "/cookie")).headers)
    await node.settled()
    assert node.nacks() == []


ALLOW_CLIENT = policy(
    "readers",
    """
  selector: {matchLabels: {app: reviews}}
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/client"]}}]
    to: [{operation: {ports: ["9080"]}}]
""",
)


async def test_policies_of_the_destination_decide_at_the_proxy(start: Start) -> None:
    node = await start(SUBSETS, SPLIT, ALLOW_CLIENT)
    assert (await node.request(CLIENT, "reviews")).status == 200
    denied = await node.request(OTHER, "reviews")
    assert (denied.status, denied.body) == (403, b"RBAC: access denied")
    assert (await node.request(OTHER, "ratings")).status == 200
    node.mesh.apply(ALLOW_CLIENT.replace("principals: [", 'namespaces: ["else*"], principals: ["*/sa/other", '))
    node.publish()

    async def is_other_allowed() -> bool:
        return (await node.request(OTHER, "reviews")).status == 200

    await until(is_other_allowed, 5.0)
    assert (await node.request(CLIENT, "reviews")).status == 403


async def test_a_deny_rule_wins_over_an_allow_rule(start: Start) -> None:
    deny = """
  action: DENY
  rules:
  - from: [{source: {notNamespaces: [elsewhere], principals: ["cluster.local/ns/default/*"]}}]
"""
    node = await start(ALLOW_CLIENT, policy("no-one-here", deny), policy("everyone", "  rules: [{}]"))
    assert (await node.request(CLIENT, "reviews")).status == 403
    assert (await node.request(OTHER, "reviews")).status == 200


async def test_a_cluster_of_differently_guarded_endpoints_admits_who_all_of_them_admit(start: Start) -> None:
    def allow(version: str, *accounts: str) -> str:
        listed = ", ".join(f'"*/sa/{account}"' for account in accounts)
        selector = f"  selector: {{matchLabels: {{app: reviews, version: {version}}}}}"
        return policy(f"only-{version}", f"{selector}\n  rules: [{{from: [{{source: {{principals: [{listed}]}}}}]}}]")

    node = await start(allow("v1", "client", "ratings"), allow("v2", "client", "other"))
    for _ in range(6):
        assert (await node.request(CLIENT, "reviews")).status == 200
        assert (await node.request(WEB, "reviews")).status == 403
        assert (await node.request(OTHER, "reviews")).status == 403


FROM_BLOCK = policy("from-block", """
  selector: {matchLabels: {app: reviews}}
  rules:
  - from: [{source: {ipBlocks: ["127.1.0.0/24", "2001:db8::/32"], notIpBlocks: ["127.1.0.10"]}}]
""")  # fmt: skip
"""Virtual hosts are not moved to loopback: the addresses are those that Envoy sees."""


async def test_a_block_of_sources_is_judged_by_the_address_of_the_connection(start: Start) -> None:
    node = await start(SUBSETS, SPLIT, FROM_BLOCK)
    forged = {"x-forwarded-for": loopback(CLIENT)}
    assert (await node.request(CLIENT, "reviews")).status == 200
    assert (await node.request(OTHER, "reviews")).status == 403
    assert (await node.request(OTHER, "reviews", headers=forged)).status == 403
    assert (await node.request(WEB, "reviews")).status == 403
    assert (await node.request(OTHER, "ratings")).status == 200
    node.mesh.apply(FROM_BLOCK.replace("ipBlocks: [", "remoteIpBlocks: [").replace("/24", "/16"))
    node.publish()

    async def is_other_allowed() -> bool:
        return (await node.request(OTHER, "reviews")).status == 200

    await until(is_other_allowed, 5.0)
    assert (await node.request(WEB, "reviews", headers=forged)).status == 403


async def test_the_address_of_the_destination_decides_by_endpoint(start: Start) -> None:
    """One of two endpoints denies: through the proxy a request must satisfy both."""
    deny = policy("there", f"""
  selector: {{matchLabels: {{app: reviews}}}}
  action: DENY
  rules:
  - from: [{{source: {{principals: ["*/sa/other"]}}}}]
    when: [{{key: destination.ip, values: ["{V2}"]}}]
""")  # fmt: skip
    node = await start(deny)
    assert (await node.request(CLIENT, "reviews")).status == 200
    assert (await node.request(OTHER, "reviews")).status == 403
    node.mesh.apply(deny.replace(f'["{V2}"]', '["100.9.9.9"]'))
    node.publish()

    async def is_other_allowed() -> bool:
        return (await node.request(OTHER, "reviews")).status == 200

    await until(is_other_allowed, 5.0)


async def test_nothing_is_mirrored_to_where_a_policy_holds(start: Start) -> None:
    mirrored = routes("""
  - route: [{destination: {host: reviews}}]
    mirror: {host: ratings}
""")
    guard = policy("ratings-guard", "  selector: {matchLabels: {app: ratings}}\n  rules: []")
    node = await start(mirrored, guard)
    for _ in range(5):
        assert (await node.request(CLIENT, "reviews")).status == 200
    assert node.requests["ratings"] == 0
    assert "XB3033" in node.mesh.codes()


async def test_a_bad_resource_and_a_deprecated_field_would_be_noticed(start: Start) -> None:
    """The control for every `nacks() == []` in this file."""
    node = await start()
    name = f"{node.port}/reviews.default.svc.cluster.local"
    message = node.mesh.message(VIRTUAL_HOST, name)
    message.routes[0].per_request_buffer_limit_bytes.value = 1
    bad = make_resource(VIRTUAL_HOST, name, message.SerializeToString())
    node.server.changed(node.store.apply("node-envoy", (bad,), ()))

    async def is_refused() -> bool:
        return any("deprecated" in found for found in node.nacks())

    await until(is_refused, 5.0)
    assert (await node.request(CLIENT, "reviews")).status == 200
