"""L4 or L7: what moves a port to the proxy, what the annotation forbids, what is not enforced."""

from __future__ import annotations

import pytest

from tests.builders import (
    Mesh,
    bookinfo,
    destination_rule,
    from_source,
    host,
    namespace,
    policy,
    route,
    rule,
    service,
    subset,
    tcp_route,
    tcp_to,
    to,
    to_operation,
    virtual_service,
)
from xdsbpf.mesh.summary import service_summary, summaries
from xdsbpf.mesh.traffic_mode import Plane, traffic_mode
from xdsbpf.model.destination_rule import (
    ClientTLSSettings,
    ConnectionPoolSettings,
    ConsistentHashLB,
    HTTPCookie,
    HTTPSettings,
    LoadBalancerSettings,
    OutlierDetection,
    RetryBudget,
    TCPSettings,
    TrafficPolicy,
    Warmup,
)
from xdsbpf.model.kube import ServicePort
from xdsbpf.model.meta import Manifest

REVIEWS = host("reviews")


def mode(mesh: Mesh, name: str = REVIEWS, port: int = 9080) -> tuple[str, list[str]]:
    found = traffic_mode(mesh.db, name, port)
    return found.plane, [f"{reason.text} <- {reason.origin}" for reason in found.reasons]


def with_policy(policy: TrafficPolicy) -> Manifest:
    return destination_rule("r", "reviews", traffic_policy=policy)


def test_an_http_service_that_nothing_asks_for_stays_in_the_kernel() -> None:
    assert mode(Mesh(*bookinfo())) == ("L4", ["HTTP, and nothing asks for L7 <- None"])


def test_an_http_route_moves_it_to_the_proxy_and_back() -> None:
    mesh = Mesh(*bookinfo())
    routed = virtual_service("r", "reviews", route(to("reviews")))
    mesh.put(routed)
    assert mode(mesh) == ("L7", ["HTTP route <- VirtualService/default/r spec.http[0]"])
    mesh.remove(routed.id)
    assert mode(mesh)[0] == "L4"


@pytest.mark.parametrize(
    ("policy", "text", "path"),
    [
        (
            TrafficPolicy(connection_pool=ConnectionPoolSettings(http=HTTPSettings(max_retries=1))),
            "connectionPool.http",
            "connectionPool.http",
        ),
        (TrafficPolicy(outlier_detection=OutlierDetection()), "outlierDetection", "outlierDetection"),
        (TrafficPolicy(retry_budget=RetryBudget()), "retryBudget", "retryBudget"),
        (
            TrafficPolicy(load_balancer=LoadBalancerSettings(warmup=Warmup(1))),
            "loadBalancer.warmup",
            "loadBalancer.warmup",
        ),
        (
            TrafficPolicy(load_balancer=LoadBalancerSettings(consistent_hash=ConsistentHashLB(http_header_name="x"))),
            "loadBalancer.consistentHash.httpHeaderName",
            "loadBalancer.consistentHash.httpHeaderName",
        ),
        (
            TrafficPolicy(
                load_balancer=LoadBalancerSettings(consistent_hash=ConsistentHashLB(http_cookie=HTTPCookie("c")))
            ),
            "loadBalancer.consistentHash.httpCookie",
            "loadBalancer.consistentHash.httpCookie",
        ),
        (
            TrafficPolicy(
                load_balancer=LoadBalancerSettings(consistent_hash=ConsistentHashLB(http_query_parameter_name="q"))
            ),
            "loadBalancer.consistentHash.httpQueryParameterName",
            "loadBalancer.consistentHash.httpQueryParameterName",
        ),
    ],
)
def test_l7_fields_of_a_destination_rule_move_it_to_the_proxy(policy: TrafficPolicy, text: str, path: str) -> None:
    expected = f"{text} <- DestinationRule/default/r spec.trafficPolicy.{path}"
    assert mode(Mesh(*bookinfo(), with_policy(policy))) == ("L7", [expected])


def test_an_l7_field_of_a_subset_counts() -> None:
    below = TrafficPolicy(outlier_detection=OutlierDetection())
    mesh = Mesh(*bookinfo(), destination_rule("r", "reviews", subset("v1", below)))
    assert mode(mesh) == (
        "L7",
        ["outlierDetection <- DestinationRule/default/r spec.subsets[0].trafficPolicy.outlierDetection"],
    )


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        (
            TrafficPolicy(connection_pool=ConnectionPoolSettings(tcp=TCPSettings(max_connections=5))),
            "tcp.maxConnections",
        ),
        (TrafficPolicy(load_balancer=LoadBalancerSettings(simple="ROUND_ROBIN")), "loadBalancer.simple"),
        (
            TrafficPolicy(load_balancer=LoadBalancerSettings(consistent_hash=ConsistentHashLB(use_source_ip=True))),
            "useSourceIp",
        ),
        (TrafficPolicy(tls=ClientTLSSettings(mode="SIMPLE")), "tls.mode"),
    ],
)
def test_l4_fields_leave_it_in_the_kernel_which_says_what_it_does_not_do(policy: TrafficPolicy, path: str) -> None:
    mesh = Mesh(*bookinfo(), with_policy(policy))
    assert mode(mesh)[0] == "L4"
    (found,) = mesh.findings("XB2024")
    assert found.path.endswith(path)
    assert found.message.startswith("NOT-ENFORCED")


def test_fields_that_are_as_the_kernel_does_it_are_not_reported() -> None:
    policy = TrafficPolicy(load_balancer=LoadBalancerSettings(simple="RANDOM"), tls=ClientTLSSettings(mode="DISABLE"))
    assert Mesh(*bookinfo(), with_policy(policy)).findings("XB2024") == []


def test_the_annotation_l7_moves_a_service_or_a_whole_namespace() -> None:
    annotated = service("reviews", annotations={"xdsbpf.io/dataplane": "l7"})
    mesh = Mesh(*bookinfo(), annotated)
    expected = [
        "annotation xdsbpf.io/dataplane: l7 <- Service/default/reviews metadata.annotations[xdsbpf.io/dataplane]"
    ]
    assert mode(mesh) == ("L7", expected)
    assert mode(mesh, host("ratings"))[0] == "L4"
    mesh.put(namespace("default", {"xdsbpf.io/dataplane": "l7"}))
    assert mode(mesh, host("ratings"))[0] == "L7"


def test_the_annotation_of_the_service_beats_that_of_the_namespace() -> None:
    mesh = Mesh(
        *bookinfo(),
        namespace("default", {"xdsbpf.io/dataplane": "l7"}),
        service("reviews", annotations={"xdsbpf.io/dataplane": "l4"}),
    )
    assert mode(mesh)[0] == "L4"


def test_l4_forbids_l7_and_what_then_is_not_enforced_is_reported() -> None:
    mesh = Mesh(
        *bookinfo(),
        service("reviews", annotations={"xdsbpf.io/dataplane": "l4"}),
        virtual_service("r", "reviews", route(to("reviews"))),
        with_policy(TrafficPolicy(outlier_detection=OutlierDetection())),
    )
    assert mode(mesh)[0] == "L4"
    assert {(str(found.object), found.path) for found in mesh.findings("XB2041")} == {
        ("VirtualService/default/r", "spec.http[0]"),
        ("DestinationRule/default/r", "spec.trafficPolicy.outlierDetection"),
    }


def test_an_unknown_annotation_value_is_reported_and_ignored() -> None:
    mesh = Mesh(*bookinfo(), service("reviews", annotations={"xdsbpf.io/dataplane": "L7"}))
    assert mode(mesh)[0] == "L4"
    assert len(mesh.findings("XB2040")) == 1


def test_a_tcp_port_is_in_the_kernel_unless_an_annotation_asks_for_the_proxy() -> None:
    ports = (ServicePort(80, "http"), ServicePort(5432, "tcp"), ServicePort(8443, "https"))
    mesh = Mesh(service("db", *ports))
    assert [mode(mesh, host("db"), port)[0] for port in (80, 5432, 8443)] == ["L4", "L4", "L4"]
    mesh.put(service("db", *ports, annotations={"xdsbpf.io/dataplane": "l7"}))
    expected = ["annotation xdsbpf.io/dataplane: l7 <- Service/default/db metadata.annotations[xdsbpf.io/dataplane]"]
    assert [mode(mesh, host("db"), port) for port in (5432, 8443)] == [("L7", expected)] * 2
    assert mode(mesh, host("db"), 80)[0] == "L7"
    mesh.put(service("db", *ports), namespace("default", {"xdsbpf.io/dataplane": "l7"}))
    assert mode(mesh, host("db"), 5432)[0] == "L7"
    mesh.put(service("db", *ports, annotations={"xdsbpf.io/dataplane": "l4"}))
    assert mode(mesh, host("db"), 5432)[0] == "L4"


def test_http_routes_do_not_move_a_tcp_port_and_are_reported() -> None:
    mesh = Mesh(
        service("db", ServicePort(5432, "tcp")),
        virtual_service("db", "db", route(to("db")), tcp=(tcp_route(tcp_to("db")),)),
    )
    assert mode(mesh, host("db"), 5432)[0] == "L4"
    assert [found.path for found in mesh.findings("XB2038")] == ["spec.http"]


def test_what_the_proxy_does_for_tcp_is_not_reported_and_what_no_plane_does_is() -> None:
    tcp = TCPSettings(max_connections=7, connect_timeout=10**9, idle_timeout=10**9)
    asked = TrafficPolicy(
        outlier_detection=OutlierDetection(),
        connection_pool=ConnectionPoolSettings(tcp=tcp, http=HTTPSettings(http2_max_requests=1)),
    )
    rule = destination_rule("db", "db", traffic_policy=asked)
    mesh = Mesh(service("db", ServicePort(5432, "tcp")), rule)
    paths = {(found.code, found.path.removeprefix("spec.trafficPolicy.")) for found in mesh.findings()}
    pool = "connectionPool"
    in_kernel = {"maxConnections", "connectTimeout", "idleTimeout"}
    assert paths == {("XB2041", "outlierDetection"), ("XB2041", f"{pool}.http")} | {
        ("XB2024", f"{pool}.tcp.{field}") for field in in_kernel
    }
    mesh.put(service("db", ServicePort(5432, "tcp"), annotations={"xdsbpf.io/dataplane": "l7"}))
    paths = {(found.code, found.path.removeprefix("spec.trafficPolicy.")) for found in mesh.findings()}
    assert paths == {("XB2041", f"{pool}.http"), ("XB2041", f"{pool}.tcp.idleTimeout")}


def test_http_routes_are_not_missed_on_the_tcp_port_beside_an_http_port() -> None:
    both = service("both", ServicePort(80, "http"), ServicePort(5432, "tcp"))
    mesh = Mesh(both, virtual_service("v", "both", route(to("both", port=80))))
    assert mode(mesh, host("both"), 80)[0] == "L7"
    assert mode(mesh, host("both"), 5432)[0] == "L4"
    assert mesh.findings("XB2038") == []


def test_l7_fields_on_a_tcp_port_are_reported() -> None:
    outliers = TrafficPolicy(outlier_detection=OutlierDetection())
    mesh = Mesh(service("db", ServicePort(5432, "tcp")), destination_rule("db", "db", traffic_policy=outliers))
    assert [found.path for found in mesh.findings("XB2041")] == ["spec.trafficPolicy.outlierDetection"]


def test_l7_policy_fields_do_not_move_it_since_no_plane_enforces_them_yet() -> None:
    guarded = policy("p", rule(from_source(namespaces=("default",)), to_operation(methods=("GET",))))
    mesh = Mesh(*bookinfo(), guarded)
    assert mode(mesh)[0] == "L4"
    assert [found.path for found in mesh.findings("XB2050")] == ["spec.rules[0].to[0].operation.methods"]


def test_a_port_that_does_not_exist_has_no_plane_of_its_own() -> None:
    assert traffic_mode(Mesh(*bookinfo()).db, REVIEWS, 1).plane is Plane.L4


def test_the_summary_shows_plane_reasons_and_endpoints() -> None:
    mesh = Mesh(*bookinfo(), virtual_service("r", "reviews", route(to("reviews"))))
    assert [entry.host for entry in summaries(mesh.db)] == [
        host("details"),
        host("productpage"),
        host("ratings"),
        REVIEWS,
    ]
    found = service_summary(mesh.db, REVIEWS, 9080)
    assert found.reasons == ("HTTP route (VirtualService/default/r spec.http[0])",)
    assert (found.plane, found.endpoints) == (Plane.L7, 3)


def test_the_mode_cites_what_decides() -> None:
    mesh = Mesh(*bookinfo(), virtual_service("r", "reviews", route(to("reviews"))))
    assert "VirtualService/default/r spec.http[0]" in mesh.origins(traffic_mode, REVIEWS, 9080)
