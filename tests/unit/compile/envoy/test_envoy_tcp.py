"""The listener for TCP and its clusters: what is in them, and what makes them change."""

from __future__ import annotations

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from tests.compiling import Mesh, pod, service, slice_of
from xdsbpf.compile.envoy import names
from xdsbpf.model.names import CLUSTER, ENDPOINTS, LISTENER
from xdsbpf.model.resource import Resource

DB, CACHE = "10.96.0.10", "10.96.0.11"
NAME = f"tcp|{DB}:3306"
USUAL = "outbound|3306||db.default.svc.cluster.local"
BASE = "".join(
    (
        service("db", "3306/tcp-db", address=DB),
        service("cache", "6379/tcp-cache", "80/http", address=CACHE),
        pod("db-v1", "10.0.0.1", app="db"),
        pod("db-v2", "10.0.0.2", app="db", version="v2"),
        pod("cache-v1", "10.0.0.3", app="cache"),
        slice_of("db", ("db-v1", "10.0.0.1"), ("db-v2", "10.0.0.2"), port=3306, title="tcp-db"),
        slice_of("cache", ("cache-v1", "10.0.0.3"), port=6379, title="tcp-cache"),
    )
)


def rule(subsets: str = "", traffic_policy: str = "{loadBalancer: {simple: LEAST_REQUEST}}") -> str:
    """A DestinationRule for `db` with subsets v1 and v2; `subsets` is what v2 has beside its labels."""
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: db, namespace: default}}
spec:
  host: db
  trafficPolicy: {traffic_policy}
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}{subsets}}}
---"""


def split(one: int, two: int) -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: db, namespace: default}}
spec:
  hosts: [db]
  tcp:
  - route:
    - {{destination: {{host: db, subset: v1}}, weight: {one}}}
    - {{destination: {{host: db, subset: v2}}, weight: {two}}}
---"""


def policy(name: str, app: str, account: str) -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: default}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  action: DENY
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/{account}]}}}}]
---"""


def found(mesh: Mesh, type_url: str, name: str) -> Resource | None:
    return mesh.resources().get((names.SCOPE, type_url, name))


def balancer(cluster: object) -> str:
    (one,) = cluster.load_balancing_policy.policies  # type: ignore[attr-defined]
    return str(one.typed_extension_config.name).rpartition(".")[2]


def test_every_tcp_port_has_a_cluster_on_demand_and_http_ports_have_none() -> None:
    """A cluster for an HTTP port would lead around what the virtual host checks."""
    mesh = Mesh(BASE)
    listed = [key[2] for key in mesh.resources() if key[:2] == (names.SCOPE, CLUSTER)]
    assert listed == [f"tcp|{CACHE}:6379", NAME]
    resource = found(mesh, CLUSTER, NAME)
    assert resource is not None
    assert resource.on_demand
    message = mesh.message(CLUSTER, NAME)
    assert message.eds_cluster_config.service_name == USUAL
    assert message.alt_stat_name == "tcp|3306|db.default.svc.cluster.local;"
    assert mesh.message(ENDPOINTS, NAME) is None


@pytest.mark.parametrize(
    "name", ["", "tcp|", "tcp|x:1", f"tcp|{DB}:80", f"tcp|{CACHE}:80", f"{DB}:3306", "tcp|10.9.9.9:1"]
)
def test_names_that_stand_for_no_tcp_service_have_no_cluster(name: str) -> None:
    assert Mesh(BASE).message(CLUSTER, name) is None


def test_a_route_to_one_subset_uses_its_endpoints() -> None:
    mesh = Mesh(BASE + rule() + split(0, 100))
    assert mesh.message(CLUSTER, NAME).eds_cluster_config.service_name == USUAL.replace("||", "|v2|")
    assert mesh.message(ENDPOINTS, NAME) is None


def test_a_split_has_endpoints_of_its_own_with_the_kernels_weights() -> None:
    mesh = Mesh(BASE + rule() + split(80, 20))
    cluster = mesh.message(CLUSTER, NAME)
    assert cluster.eds_cluster_config.service_name == NAME
    assert balancer(cluster) == "round_robin"
    (locality,) = mesh.message(ENDPOINTS, NAME).endpoints
    weights = {
        entry.endpoint.address.socket_address.address: entry.load_balancing_weight.value
        for entry in locality.lb_endpoints
    }
    assert weights == {"10.0.0.1": 4, "10.0.0.2": 1}


def test_a_split_keeps_hashing_and_the_limits_of_its_destinations() -> None:
    policy = "{loadBalancer: {consistentHash: {useSourceIp: true}}, connectionPool: {tcp: {maxConnections: 7}}}"
    cluster = Mesh(BASE + rule(traffic_policy=policy) + split(80, 20)).message(CLUSTER, NAME)
    assert balancer(cluster) == "ring_hash"
    assert cluster.circuit_breakers.thresholds[0].max_connections.value == 7


def test_destinations_of_a_split_that_differ_are_reported() -> None:
    differs = ", trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}"
    mesh = Mesh(BASE + rule(differs) + split(80, 20))
    assert "XB3013" in mesh.codes()
    assert "XB3013" not in Mesh(BASE + rule() + split(80, 20)).codes()


def test_a_destination_that_asks_for_tls_is_not_called_in_plaintext() -> None:
    encrypted = ", trafficPolicy: {tls: {mode: SIMPLE}}"
    mesh = Mesh(BASE + rule(encrypted) + split(80, 20))
    assert mesh.message(CLUSTER, NAME) is None
    assert "XB3010" in mesh.codes()
    assert Mesh(BASE + rule(encrypted)).message(CLUSTER, NAME) is not None


def test_a_mesh_without_services_has_the_listener_for_tcp() -> None:
    """Were it to come and go with the services, the last one to go would take its connections along."""
    mesh = Mesh(pod("client", "10.0.0.9", app="client"))
    listener = mesh.message(LISTENER, names.OUT_TCP)
    assert listener.address.socket_address.port_value == 15002
    assert [chain.name for chain in listener.filter_chains] == ["tcp", "closed"]
    assert not listener.HasField("default_filter_chain")


def test_policies_change_only_the_matcher_of_the_listener() -> None:
    """Any other field would drain its connections."""
    bare, guarded = (
        Mesh(text).message(LISTENER, names.OUT_TCP) for text in (BASE, BASE + policy("p", "db", "mallory"))
    )
    assert bare != guarded
    for message in (bare, guarded):
        message.ClearField("filter_chain_matcher")
    assert bare == guarded


def test_endpoints_that_come_and_go_do_not_change_the_listener() -> None:
    mesh = Mesh(BASE + policy("p", "db", "mallory"))
    before = found(mesh, LISTENER, names.OUT_TCP)
    mesh.apply(pod("db-v3", "10.0.0.4", app="db") + slice_of("db", ("db-v3", "10.0.0.4"), port=3306, title="tcp-db"))
    assert found(mesh, LISTENER, names.OUT_TCP) == before


def test_the_names_of_tcp_clusters_are_what_envoy_prints() -> None:
    for address, name in (("10.96.0.7", "tcp|10.96.0.7:3306"), ("fd00::7", "tcp|[fd00::7]:3306")):
        assert names.tcp_cluster_name(address, 3306) == name
        assert names.parse_tcp_cluster(name) == (address, 3306)


def test_a_dial_of_the_proxy_itself_is_closed_and_a_service_on_its_port_number_is_not() -> None:
    def outcome(mesh: Mesh, address: str) -> str:
        found = mesh.message(LISTENER, names.OUT_TCP).filter_chain_matcher.matcher_list.matchers[0].on_match
        answers = {"address": address, "port": "15002"}
        while found.WhichOneof("on_match") == "matcher":
            tree = found.matcher.matcher_tree
            cases = dict(tree.exact_match_map.map)
            found = cases.get(answers[tree.input.name], found.matcher.on_no_match)
        value = StringValue()
        assert found.action.typed_config.Unpack(value)
        return str(value.value)

    for text in (BASE, BASE + policy("p", "db", "mallory")):
        assert outcome(Mesh(text), "10.88.255.1") == outcome(Mesh(text), DB) == "closed"
        busy = Mesh(text + service("busy", "15002/tcp", address="10.96.0.12"))
        assert (outcome(busy, "10.96.0.12"), outcome(busy, "10.88.255.1")) == ("tcp", "closed")
