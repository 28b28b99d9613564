"""Resources compiled from manifests: clusters, endpoints, listener, identity table, virtual hosts."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.load_balancing_policies.maglev.v3.maglev_pb2 import Maglev
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

from tests.compiling import NODE, Mesh, pod, service, slice_of
from tests.compiling import names as route_names
from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.clusters import cluster, cluster_names
from xdsbpf.compile.envoy.endpoints import endpoints_resource
from xdsbpf.compile.envoy.identity_table import Source, expression, identity_table
from xdsbpf.compile.envoy.listeners import listener
from xdsbpf.compile.envoy.load_balancing import load_balancing_policy
from xdsbpf.compile.envoy.outputs import envoy_generators
from xdsbpf.compile.envoy.virtual_hosts import virtual_host
from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import ABSENT
from xdsbpf.mesh.inputs import put_object
from xdsbpf.model.destination_rule import ConsistentHashLB, LoadBalancerSettings, MagLev
from xdsbpf.model.kube import Pod, PodSpec, PodStatus
from xdsbpf.model.meta import ObjectMeta
from xdsbpf.model.names import CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES, VIRTUAL_HOST

WHERE = Origin(ObjectId("DestinationRule", "default", "reviews"), "spec")
HOST = "reviews.default.svc.cluster.local"
BASE = (
    service("reviews", "9080/http", address="10.96.0.1")
    + pod("r1", "10.1.0.1", app="reviews")
    + pod("r2", "10.1.0.2", app="reviews", version="v2")
    + slice_of("reviews", ("r1", "10.1.0.1"), ("r2", "10.1.0.2"))
)
RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews, trafficPolicy: %s, subsets: [{name: v2, labels: {version: v2}}]}
---
"""
PLAIN = "{tls: {mode: DISABLE}}"
ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec: {hosts: [reviews], http: [%s]}
---
"""
TO_REVIEWS = "route: [{destination: {host: reviews}}]"
WHOLE = f"outbound|9080||{HOST}"
V2 = f"outbound|9080|v2|{HOST}"
VHOST = f"9080/{HOST}"


def manager_of(mesh: Mesh, position: int = 0) -> Any:
    (found,) = mesh.message(LISTENER, names.OUT_HTTP).filter_chains[position].filters
    manager = HttpConnectionManager()
    assert found.typed_config.Unpack(manager)
    return manager


@pytest.mark.parametrize("host", ["reviews", "REVIEWS", HOST, "*.default.svc.cluster.local", "*"])
def test_a_subset_has_a_cluster_whichever_way_the_rule_names_the_host(host: str) -> None:
    mesh = Mesh(BASE)
    assert cluster_names(mesh.db) == (WHOLE,)
    mesh.apply((RULE % PLAIN).replace("host: reviews", f"host: '{host}'"))
    assert cluster_names(mesh.db) == (WHOLE, V2)
    other = (RULE % PLAIN).replace("host: reviews", "host: ratings")
    mesh.apply(other)
    assert cluster_names(mesh.db) == (WHOLE,)


def test_a_cluster_has_istios_defaults():
    found = Mesh(BASE).message(CLUSTER, WHOLE)
    limits = found.circuit_breakers.thresholds[0]
    assert {limits.max_connections.value, limits.max_pending_requests.value} == {4294967295}
    assert {limits.max_requests.value, limits.max_retries.value} == {4294967295}
    assert found.connect_timeout.seconds == 10
    assert found.alt_stat_name == f"{WHOLE};"
    (policy,) = found.load_balancing_policy.policies
    assert policy.typed_extension_config.name == "envoy.load_balancing_policies.least_request"
    assert not found.typed_extension_protocol_options
    assert not found.HasField("outlier_detection")


def test_a_grpc_port_speaks_http2_to_its_servers():
    found = Mesh(service("reviews", "9080/grpc")).message(CLUSTER, WHOLE)
    (encoded,) = found.typed_extension_protocol_options.values()
    options = HttpProtocolOptions()
    assert encoded.Unpack(options)
    assert options.explicit_http_config.WhichOneof("protocol_config") == "http2_protocol_options"


def test_panic_is_off_with_outlier_detection_unless_a_minimum_health_is_asked_for():
    off = Mesh(BASE + RULE % "{outlierDetection: {consecutive5xxErrors: 0}}").message(CLUSTER, WHOLE)
    assert off.common_lb_config.HasField("healthy_panic_threshold")
    assert off.common_lb_config.healthy_panic_threshold.value == 0
    assert off.outlier_detection.enforcing_consecutive_5xx.value == 0
    assert not off.outlier_detection.HasField("consecutive_5xx")
    on = Mesh(BASE + RULE % "{outlierDetection: {minHealthPercent: 30}}").message(CLUSTER, WHOLE)
    assert on.common_lb_config.healthy_panic_threshold.value == 30


@pytest.mark.parametrize("mode", ["SIMPLE", "MUTUAL, credentialName: secret", "ISTIO_MUTUAL"])
def test_traffic_that_should_be_encrypted_is_withheld_and_never_sent_as_plaintext(mode):
    mesh = Mesh(BASE + RULE % f"{{tls: {{mode: {mode}}}}}")
    assert mesh.message(CLUSTER, WHOLE) is None
    assert mesh.message(CLUSTER, V2) is None
    assert "XB3010" in mesh.codes()
    allowed = Mesh(BASE + RULE % "{tls: {mode: DISABLE}}")
    assert allowed.message(CLUSTER, WHOLE) is not None
    assert allowed.codes() == set()


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ("{loadBalancer: {simple: PASSTHROUGH}}", "XB3001"),
        ("{loadBalancer: {localityLbSetting: {enabled: true}}}", "XB3011"),
        ("{proxyProtocol: {version: V2}}", "XB3001"),
        ("{outlierDetection: {consecutiveErrors: 5}}", "XB3001"),
    ],
)
def test_what_is_not_compiled_is_reported(policy, code):
    assert Mesh(BASE + RULE % PLAIN).codes() == set()
    assert Mesh(BASE + RULE % policy).codes() == {code}


def test_clusters_wait_to_be_asked_for_unless_requests_are_mirrored_to_them():
    plain = Mesh(BASE + RULE % PLAIN)
    assert {resource.on_demand for key, resource in plain.resources().items() if key[1] == CLUSTER} == {True}
    mirrored = Mesh(BASE + service("log") + ROUTE % "{route: [{destination: {host: reviews}}], mirror: {host: log}}")
    sent = {key[2]: resource.on_demand for key, resource in mirrored.resources().items() if key[1] == CLUSTER}
    assert sent == {WHOLE: True, "outbound|9080||log.default.svc.cluster.local": False}


def test_a_name_that_nothing_stands_behind_is_absent():
    db = Mesh(BASE).db
    for name in (V2, "outbound|80||" + HOST, "outbound|9080||nobody", "nonsense"):
        assert cluster(db, name) is ABSENT
        assert endpoints_resource(db, name) is ABSENT
    assert listener(db, "other") is ABSENT
    assert virtual_host(db, f"80/{HOST}") is ABSENT


def test_a_subset_has_its_endpoints_and_an_empty_one_is_still_sent():
    mesh = Mesh(BASE + RULE % PLAIN)
    (locality,) = mesh.message(ENDPOINTS, V2).endpoints
    assert [one.endpoint.address.socket_address.address for one in locality.lb_endpoints] == ["10.1.0.2"]
    empty = Mesh(service("reviews")).message(ENDPOINTS, WHOLE)
    assert (empty.cluster_name, len(empty.endpoints)) == (WHOLE, 0)


def test_an_endpoint_change_recompiles_nothing_but_endpoints():
    mesh = Mesh(BASE + RULE % PLAIN + ROUTE % "{route: [{destination: {host: reviews, subset: v2}}]}")
    for generator in envoy_generators((NODE,)):
        for name in generator.names(mesh.db, *generator.args):
            mesh.db.watch(generator.build, *generator.args, name)
    mesh.db.drain()
    mesh.apply(slice_of("reviews", ("r1", "10.1.0.1")))
    changed = {output.value.name for output in mesh.db.drain().outputs}
    assert changed == {WHOLE, V2}


def test_every_filter_setting_of_every_route_names_a_filter_of_the_chain():
    policy = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a, namespace: default}
spec: {rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: d, namespace: default}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [x]}}]}]}
---"""
    http = """
      fault: {abort: {httpStatus: 500, percentage: {value: 1}}}
      corsPolicy: {allowOrigins: [{exact: a}]}
      route: [{destination: {host: reviews}, weight: 1}, {destination: {host: reviews, subset: v2}, weight: 1}]"""
    route = ROUTE.replace("{hosts: [reviews], http: [%s]}", f"\n  hosts: [reviews]\n  http:\n    - {http.strip()}")
    mesh = Mesh(BASE + RULE % PLAIN + route + policy)
    present = [entry.name for entry in manager_of(mesh).http_filters]
    assert tuple(present) == names.HTTP_FILTERS
    used: set[str] = set()
    for one in mesh.routes(VHOST):
        used |= set(one.typed_per_filter_config)
        for weighted in one.route.weighted_clusters.clusters:
            used |= set(weighted.typed_per_filter_config)
    assert used == {names.FAULT, names.CORS, names.AUTHZ_DENY, names.AUTHZ_ALLOW}
    assert used <= set(present)


def test_every_http_port_has_a_chain_a_route_configuration_and_its_virtual_hosts():
    mesh = Mesh(BASE + service("web", "80/http", "443/https", "5432/tcp"))
    chains = [chain.name for chain in mesh.message(LISTENER, names.OUT_HTTP).filter_chains]
    assert chains == ["http|80", "http|9080"]
    found = {kind: [key[2] for key in mesh.resources() if key[1] == kind] for kind in (ROUTES, VIRTUAL_HOST)}
    assert found == {ROUTES: ["80", "9080"], VIRTUAL_HOST: [VHOST, "80/web.default.svc.cluster.local"]}
    assert not mesh.message(LISTENER, names.OUT_HTTP).HasField("default_filter_chain")


def test_a_mesh_without_http_has_no_listener_for_it():
    assert Mesh(service("db", "5432/tcp")).message(LISTENER, names.OUT_HTTP) is None


def test_a_virtual_host_waits_for_its_route_configuration():
    resources = Mesh(BASE).resources()
    (needed,) = resources[names.SCOPE, VIRTUAL_HOST, VHOST].requires
    assert (needed.type_url, needed.name) == (ROUTES, "9080")
    assert needed.version == resources[names.SCOPE, ROUTES, "9080"].version


def test_a_virtual_host_is_named_as_its_resource_and_answers_to_every_name_of_the_service():
    found = Mesh(BASE).message(VIRTUAL_HOST, VHOST)
    assert found.name == VHOST
    assert list(found.domains) == [HOST, f"{HOST}.", "reviews", "reviews.default", "reviews.default.svc", "10.96.0.1"]


def test_a_bare_name_that_two_namespaces_use_belongs_to_neither_and_is_reported():
    mesh = Mesh(BASE + service("reviews", namespace="other") + ROUTE % "{route: [{destination: {host: reviews}}]}")
    assert "reviews" not in mesh.message(VIRTUAL_HOST, VHOST).domains
    assert "reviews" not in mesh.message(VIRTUAL_HOST, "9080/reviews.other.svc.cluster.local").domains
    assert mesh.codes() == {"XB3004"}
    elsewhere = Mesh(BASE + service("reviews", "80/http", namespace="other"))
    assert "reviews" in elsewhere.message(VIRTUAL_HOST, VHOST).domains


def test_no_domain_is_in_two_virtual_hosts_of_a_port():
    text = "".join(service("reviews", namespace=space) for space in ("a", "b", "default")) + BASE
    mesh = Mesh(text)
    domains = [
        domain for key in mesh.resources() if key[1] == VIRTUAL_HOST for domain in mesh.message(*key[1:]).domains
    ]
    assert len(domains) == len(set(domains))


def test_a_request_that_no_route_matches_is_answered_404():
    assert route_names(Mesh(BASE).routes(VHOST)) == [names.DEFAULT_ROUTE]
    only = Mesh(BASE + ROUTE % "{match: [{uri: {exact: /a}}], route: [{destination: {host: reviews}}]}").routes(VHOST)
    assert route_names(only) == ["", names.NO_ROUTE]
    assert only[-1].direct_response.status == 404


def test_a_route_whose_action_cannot_be_expressed_fails_visibly_instead_of_falling_through():
    rewrite = r"rewrite: {uriRegexRewrite: {match: /a, rewrite: '/\9'}}"
    http = f"{{match: [{{uri: {{prefix: /a}}}}], {rewrite}, {TO_REVIEWS}}}, {{{TO_REVIEWS}}}"
    mesh = Mesh(BASE + ROUTE % http)
    first, second = mesh.routes(VHOST)
    assert (first.match.prefix, first.direct_response.status) == ("/a", 503)
    assert second.route.cluster == WHOLE
    assert mesh.codes() == {"XB3002"}


def test_a_table_row_for_each_address_and_the_address_as_envoy_prints_it():
    text = expression((("10.0.0.1", "a"), ("fd00::1", "b")))
    assert text.startswith("{'10.0.0.1':'a','[fd00::1]':'b'}[source.address.")
    assert expression(()) == "''"


def test_a_pod_whose_label_could_break_out_of_the_table_is_an_unknown_source():
    mesh = Mesh(BASE)
    evil = Pod(
        metadata=ObjectMeta(name="evil", namespace="default", labels=(("app", "x'}"),)),
        spec=PodSpec(node_name=NODE),
        status=PodStatus(phase="Running", pod_ip="10.1.0.66"),
    )
    with mesh.db.change() as change:
        put_object(change, evil.id, evil)
    table = mesh.message(EXTENSION, names.SOURCE_IDENTITY)
    assert b"10.1.0.1'" in table.typed_config.value
    assert b"10.1.0.66" not in table.typed_config.value
    assert "XB3020" in mesh.codes()


def test_a_stale_pod_with_anothers_address_does_not_make_the_whole_node_unknown():
    """CEL refuses a map with a key twice, whatever was looked up."""
    mesh = Mesh(BASE + pod("stale", "10.1.0.2", app="reviews", version="v0"))
    table = mesh.message(EXTENSION, names.SOURCE_IDENTITY).typed_config.value
    assert b"10.1.0.1'" in table
    assert b"10.1.0.2'" not in table
    assert "XB3021" in mesh.codes()
    same = Mesh(BASE + pod("stale", "10.1.0.2", app="reviews", version="v2"))
    assert same.message(EXTENSION, names.SOURCE_IDENTITY).typed_config.value.count(b"10.1.0.2'") == 2


def test_a_table_holds_the_pods_of_its_node_only():
    mesh = Mesh(BASE + pod("far", "10.1.0.99", app="far", node="node2"), nodes=(NODE, "node2"))
    tables = {key[0]: resource.body for key, resource in mesh.resources().items() if key[1] == EXTENSION}
    assert b"10.1.0.99" not in tables["node-envoy/node1"]
    assert b"10.1.0.99" in tables["node-envoy/node2"]
    assert b"10.1.0.1'" not in tables["node-envoy/node2"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_library_reads_the_same_from_what_we_encode():
    from envoy_data_plane.envoy.config.listener.v3 import Listener
    from envoy_data_plane.envoy.config.route.v3 import VirtualHost
    from envoy_data_plane.envoy.extensions.filters.listener.set_filter_state.v3 import Config

    source = Source("spiffe://td/ns/a/sa/b", ";ns=a;sa=b;")
    config = Config.parse(identity_table({"10.0.0.1": source}).typed_config.value)
    assert [value.object_key for value in config.on_accept] == [names.PRINCIPAL_KEY, names.ATTRIBUTES_KEY]
    assert ";ns=a;sa=b;" in config.on_accept[1].format_string.text_format_source.inline_string
    resources = Mesh(BASE).resources()
    found = Listener.parse(resources[names.SCOPE, LISTENER, names.OUT_HTTP].body)
    assert [chain.name for chain in found.filter_chains] == ["http|9080"]
    assert VirtualHost.parse(resources[names.SCOPE, VIRTUAL_HOST, VHOST].body).name == VHOST


def test_outputs_name_the_manifests_they_came_from():
    mesh = Mesh(BASE + RULE % PLAIN + ROUTE % "{route: [{destination: {host: reviews, subset: v2}}]}")
    mesh.db.watch(virtual_host, f"9080/{HOST}")
    mesh.db.drain()
    kinds = {(origin.object.kind, origin.path) for origin in mesh.db.origins(virtual_host, f"9080/{HOST}")}
    assert ("VirtualService", "spec.http[0]") in kinds
    assert any(kind == "Service" for kind, _ in kinds)


def test_a_maglev_table_that_envoy_would_refuse_gets_the_default_size():
    def table_of(size: int) -> tuple[bool, list[str]]:
        found: list[str] = []
        hashing = ConsistentHashLB(use_source_ip=True, maglev=MagLev(size))
        policy = load_balancing_policy(
            LoadBalancerSettings(consistent_hash=hashing), WHERE, lambda finding: found.append(finding.code)
        )
        table = Maglev()
        policy.policies[0].typed_extension_config.typed_config.Unpack(table)
        return table.HasField("table_size"), found

    assert table_of(101) == (True, [])
    assert table_of(100) == (False, ["XB3012"])
    assert table_of(5_000_077) == (False, ["XB3012"])
