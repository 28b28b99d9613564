"""What gRPC clients and servers are offered, by manifests: names, routes, clusters, admission, findings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from tests.compiling import MESSAGES, Mesh, pod, service, slice_of
from xdsbpf.compile.generator import Generator
from xdsbpf.compile.proxyless.names import SERVER_PREFIX
from xdsbpf.compile.proxyless.outputs import client_generators, shared_generators
from xdsbpf.incremental import ABSENT
from xdsbpf.mesh.clients import Client
from xdsbpf.model.names import CLUSTER, LISTENER, ROUTES

HOST = "reviews.default.svc.cluster.local"
WHOLE = f"outbound|9080||{HOST}"
BASE = (
    service("reviews", "9080/grpc", address="10.96.0.1")
    + pod("r1", "10.1.0.1", app="reviews")
    + pod("r2", "10.1.0.2", app="reviews", version="v2")
    + slice_of("reviews", ("r1", "10.1.0.1"), ("r2", "10.1.0.2"), title="grpc")
)
ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec: {hosts: [reviews], http: [%s]}
---
"""
RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews, trafficPolicy: %s, subsets: [{name: v2, labels: {version: v2}}]}
---
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %s, namespace: default}
spec: {selector: {matchLabels: {app: reviews}}, %s}
---
"""
TO_REVIEWS = "route: [{destination: {host: reviews}}]"
TO_V2 = "route: [{destination: {host: reviews, subset: v2}}]"
SHOP = Client("shop", (("app", "web"),))
REVIEWS = Client("default", (("app", "reviews"), ("version", "v1")))


class Offer:
    """What one client sees: its own resources over the shared ones, and what was found on the way."""

    def __init__(self, text: str, client: Client = SHOP) -> None:
        self.mesh = Mesh(text)
        self.generators: tuple[Generator, ...] = (*shared_generators(), *client_generators("own", client))

    def __getitem__(self, key: tuple[str, str]) -> Any:
        """The decoded message, or None."""
        found = None
        for generator in self.generators:
            names = generator.names(self.mesh.db, *generator.args)
            if generator.type_url == key[0] and key[1] in names:
                built = generator.build(self.mesh.db, *generator.args, key[1])
                found = None if built is ABSENT else MESSAGES[key[0]].FromString(built.body)
        return found

    @property
    def routes(self) -> list[Any]:
        return list(self[ROUTES, WHOLE].virtual_hosts[0].routes)

    def findings(self) -> list[str]:
        """`<code> <path>` of the findings about gRPC and of unproven peers, sorted."""
        found = {
            (one.code, one.path)
            for generator in self.generators
            for name in generator.names(self.mesh.db, *generator.args)
            for one in self.mesh.db.diagnostics(generator.build, *generator.args, name)
        }
        return [f"{code} {path}" for code, path in sorted(found) if code[:5] in ("XB305", "XB206")]


def clusters(routes: Iterable[Any]) -> list[str]:
    return [route.route.cluster.split("|")[2] if route.HasField("route") else "fails" for route in routes]


@pytest.mark.parametrize("name", [HOST, "reviews.default", "reviews.default.svc"])
def test_every_client_may_dial_a_service_by_its_qualified_names(name: str) -> None:
    message = Offer(BASE)[LISTENER, f"{name}:9080"]
    manager = HttpConnectionManager()
    assert message.api_listener.api_listener.Unpack(manager)
    assert message.name == f"{name}:9080"
    assert manager.rds.route_config_name == WHOLE
    assert manager.rds.config_source.HasField("ads")
    assert [entry.name.rpartition(".")[2] for entry in manager.http_filters] == ["fault", "router"]


def test_the_bare_name_is_one_only_in_the_services_own_namespace() -> None:
    assert Offer(BASE, Client("default"))[LISTENER, "reviews:9080"] is not None
    assert Offer(BASE, SHOP)[LISTENER, "reviews:9080"] is None
    assert Offer(BASE, Client("default"))[LISTENER, "reviews:9999"] is None


def test_a_service_without_rules_has_one_route_with_the_retries_that_grpc_knows() -> None:
    (route,) = Offer(BASE).routes
    assert (route.route.cluster, route.match.prefix) == (WHOLE, "/")
    assert route.route.retry_policy.retry_on == "unavailable,cancelled"
    assert route.route.retry_policy.num_retries.value == 2


def test_a_tcp_port_can_be_dialled_too() -> None:
    offer = Offer(service("db", "5432/tcp", address="10.96.0.2"))
    config = offer[ROUTES, "outbound|5432||db.default.svc.cluster.local"]
    assert clusters(config.virtual_hosts[0].routes) == [""]


def test_weights_header_matches_timeout_and_fault_reach_the_client() -> None:
    text = ROUTE % (
        "{match: [{headers: {end-user: {exact: jason}}}], timeout: 3s, fault: {delay: {fixedDelay: 2s, "
        "percentage: {value: 50}}}, " + TO_V2 + "}, {route: [{destination: {host: reviews}, weight: 90}, "
        "{destination: {host: reviews, subset: v2}, weight: 10}]}"
    )
    offer = Offer(BASE + RULE % "{tls: {mode: DISABLE}}" + text)
    first, second = offer.routes
    assert first.match.headers[0].string_match.exact == "jason"
    assert first.route.max_stream_duration.max_stream_duration.seconds == 3
    assert not first.route.HasField("timeout")
    fault = HTTPFault()
    assert first.typed_per_filter_config["envoy.filters.http.fault"].Unpack(fault)
    assert fault.delay.fixed_delay.seconds == 2
    assert [entry.weight.value for entry in second.route.weighted_clusters.clusters] == [90, 10]
    assert offer.findings() == []


def test_a_value_that_must_be_absent_takes_two_routes_because_grpc_does_not_match_missing_headers() -> None:
    offer = Offer(
        BASE
        + RULE % "{tls: {mode: DISABLE}}"
        + ROUTE % ("{match: [{withoutHeaders: {kind: {exact: x}}}], " + TO_V2 + "}")
    )
    missing, other = offer.routes
    assert missing.match.headers[0].present_match
    assert missing.match.headers[0].invert_match
    assert other.match.headers[0].string_match.exact == "x"
    assert other.match.headers[0].invert_match
    assert not other.match.headers[0].treat_missing_header_as_empty
    empty = Offer(
        BASE
        + RULE % "{tls: {mode: DISABLE}}"
        + ROUTE % ('{match: [{withoutHeaders: {kind: {regex: ".{0,3}"}}}], ' + TO_V2 + "}")
    )
    assert len(empty.routes) == 1


@pytest.mark.parametrize(
    ("match", "field"),
    [
        ("{queryParams: {a: {exact: b}}}", "queryParams"),
        ("{authority: {exact: x}}", "authority"),
        ("{scheme: {exact: https}}", "scheme"),
        ("{headers: {trace-bin: {exact: x}}}", "headers[trace-bin]"),
    ],
)
def test_a_match_that_grpc_cannot_evaluate_drops_the_route_and_says_so(match: str, field: str) -> None:
    text = ROUTE % ("{match: [" + match + "], " + TO_V2 + "}, {" + TO_REVIEWS + "}")
    offer = Offer(BASE + RULE % "{tls: {mode: DISABLE}}" + text)
    assert clusters(offer.routes) == [""]
    assert offer.findings() == [f"XB3052 spec.http[0].match[0].{field}"]


def test_a_call_is_a_post() -> None:
    text = ROUTE % ("{match: [{method: {exact: %s}}], " + TO_V2 + "}, {" + TO_REVIEWS + "}")
    assert clusters(Offer(BASE + RULE % "{tls: {mode: DISABLE}}" + text % "GET").routes) == [""]
    assert clusters(Offer(BASE + RULE % "{tls: {mode: DISABLE}}" + text % "POST").routes) == ["v2", ""]


@pytest.mark.parametrize(
    "action",
    ["redirect: {uri: /x}", "directResponse: {status: 403}", "rewrite: {uri: /x}, " + TO_REVIEWS],
)
def test_what_a_call_must_not_do_without_makes_it_fail(action: str) -> None:
    offer = Offer(BASE + ROUTE % ("{" + action + "}"))
    assert clusters(offer.routes) == ["fails"]
    assert offer.findings() == [f"XB3053 spec.http[0].{action.partition(':')[0]}"]


def test_fields_that_grpc_ignores_are_named() -> None:
    text = "{corsPolicy: {allowMethods: [GET]}, headers: {request: {set: {a: b}}}, mirror: {host: reviews}, "
    text += "retries: {attempts: 3, perTryTimeout: 1s, retryOn: 5xx}, " + TO_REVIEWS + "}"
    offer = Offer(BASE + ROUTE % text)
    assert not offer.routes[0].route.HasField("retry_policy")
    fields = ("corsPolicy", "headers", "mirror", "retries.perTryTimeout", "retries.retryOn")
    assert offer.findings() == [f"XB3051 spec.http[0].{field}" for field in fields]


def test_clients_of_a_namespace_and_with_labels_see_their_own_routes() -> None:
    text = ROUTE % ("{match: [{sourceNamespace: shop, sourceLabels: {app: web}}], " + TO_V2 + "}, {" + TO_REVIEWS + "}")
    manifests = BASE + RULE % "{tls: {mode: DISABLE}}" + text
    assert clusters(Offer(manifests, SHOP).routes) == ["v2"]
    assert clusters(Offer(manifests, Client("shop")).routes) == [""]
    assert clusters(Offer(manifests, Client("default", SHOP.labels)).routes) == [""]


def test_a_cluster_has_what_grpc_knows_and_the_rest_is_named() -> None:
    policy = "{loadBalancer: {consistentHash: {httpHeaderName: user}}, connectionPool: {http: {http2MaxRequests: 7}}}"
    found = Offer(BASE + RULE % policy)
    message = found[CLUSTER, WHOLE]
    assert (message.type, message.lb_policy) == (message.EDS, message.RING_HASH)
    assert message.circuit_breakers.thresholds[0].max_requests.value == 7
    assert found.routes[0].route.hash_policy[0].header.header_name == "user"
    assert found.findings() == []
    policy = "{loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 3}}, "
    policy += "outlierDetection: {interval: 1s}}"
    others = Offer(BASE + RULE % policy)
    assert others[CLUSTER, WHOLE].lb_policy == message.ROUND_ROBIN
    top = "spec.trafficPolicy"
    assert others.findings() == [
        f"XB3051 {top}.connectionPool.tcp",
        f"XB3051 {top}.loadBalancer.simple",
        f"XB3051 {top}.outlierDetection",
    ]


def test_a_cluster_that_asks_for_tls_is_withheld_and_its_control_is_not() -> None:
    assert Offer(BASE + RULE % "{tls: {mode: ISTIO_MUTUAL}}")[CLUSTER, WHOLE] is None
    assert Offer(BASE + RULE % "{tls: {mode: DISABLE}}")[CLUSTER, WHOLE] is not None


def admits(offer: Offer, port: int = 9080) -> bool:
    """Whether a server's listener lets calls pass."""
    message = offer[LISTENER, f"{SERVER_PREFIX}0.0.0.0:{port}"]
    manager = HttpConnectionManager()
    assert message.filter_chains[0].filters[0].typed_config.Unpack(manager)
    assert manager.route_config.virtual_hosts[0].routes[0].HasField("non_forwarding_action")
    assert manager.http_filters[-1].name.endswith("router")
    return len(manager.http_filters) == 1


def test_a_server_is_offered_a_listener_for_each_port_that_services_send_to() -> None:
    offer = Offer(BASE + service("admin", "80/grpc/9081", address="10.96.0.3"), REVIEWS)
    message = offer[LISTENER, f"{SERVER_PREFIX}[::]:9080"]
    assert message.address.socket_address.address == "::"
    assert message.address.socket_address.port_value == 9080
    assert admits(offer)
    assert offer[LISTENER, f"{SERVER_PREFIX}0.0.0.0:9081"] is None  # of another workload
    assert Offer(BASE, SHOP)[LISTENER, f"{SERVER_PREFIX}0.0.0.0:9080"] is None


@pytest.mark.parametrize(
    ("spec", "passes", "found"),
    [
        ("action: ALLOW, rules: [{}]", True, []),
        ('action: ALLOW, rules: [{to: [{operation: {ports: ["9080"]}}]}]', True, []),
        ('action: ALLOW, rules: [{to: [{operation: {ports: ["1"]}}]}]', False, []),
        ('action: DENY, rules: [{to: [{operation: {ports: ["1"]}}]}]', True, []),
        ('action: ALLOW, rules: [{from: [{source: {namespaces: ["*"]}}]}]', False, ["XB2060 spec.rules[0]"]),
        ('action: ALLOW, rules: [{from: [{source: {notNamespaces: ["x"]}}]}]', False, ["XB2060 spec.rules[0]"]),
        ('action: DENY, rules: [{from: [{source: {namespaces: ["x"]}}]}]', False, ["XB2061 spec.rules[0]"]),
        ('action: DENY, rules: [{from: [{source: {notNamespaces: ["x"]}}]}]', False, ["XB2061 spec.rules[0]"]),
        (
            'action: DENY, rules: [{from: [{source: {namespaces: ["x"]}}], to: [{operation: {ports: ["1"]}}]}]',
            True,
            ["XB2061 spec.rules[0]"],
        ),
    ],
)
def test_a_peer_without_a_certificate_is_allowed_by_nobodys_name_and_denied_by_everybodys(
    spec: str, passes: bool, found: list[str]
) -> None:
    offer = Offer(BASE + POLICY % ("p", spec), REVIEWS)
    assert admits(offer) is passes
    assert offer.findings() == found
    assert admits(Offer(BASE, REVIEWS))
