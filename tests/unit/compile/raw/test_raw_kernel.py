"""Raw listeners in the kernel: what is carried, with which weights and for whom, and what is left to Envoy and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.raw_texts import (
    ANY_OF_APP,
    APP,
    PLACE,
    T,
    cluster,
    compiled,
    eds_cluster,
    endpoint,
    listener,
    proxy,
    raw_file,
    rbac,
)
from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2 as pb
from xdsbpf.compile.raw.kernel_fields import may_meet
from xdsbpf.compile.views import view_scopes
from xdsbpf.compiler import Compiler
from xdsbpf.model.names import BACKENDS, FRONTEND, POLICY, NodeId
from xdsbpf.report.listeners import listener_rows
from xdsbpf.xds.store import View

NAME = "EnvoyResource/Listener/db"
FRONT = "10.96.0.7:5432/tcp"
MESH = """\
apiVersion: v1
kind: Pod
metadata: {name: app, labels: {app: app}}
spec: {nodeName: n1, serviceAccountName: app}
status: {phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, labels: {app: other}}
spec: {nodeName: n1, serviceAccountName: other}
status: {phase: Running, podIP: 10.1.0.2, podIPs: [{ip: 10.1.0.2}]}
"""


def held(compiler: Compiler, type_url: str, name: str, *, node: str = "n1") -> Any:
    """The decoded datapath resource that the agent of a node sees, or None."""
    scopes = view_scopes(NodeId("agent", "10.0.0.1", node, "x"), compiler.globs)
    found = compiler.store.get(View(scopes, node, "agent"), type_url, name)
    return None if found is None else getattr(pb, type_url.rpartition(".")[2]).FromString(found.body)


def mode(directory: Path, *resources: str, **options: Any) -> tuple[str, str]:
    """(plane, reason) of the one listener."""
    compiler, _ = compiled(directory, all=raw_file(*resources), **options)
    (row,) = listener_rows(compiler)
    is_held = held(compiler, FRONTEND, FRONT) is not None
    assert is_held is (row["plane"] == "L4"), row
    return row["plane"], row["reasons"][0]


def verdicts(directory: Path, filters: str) -> dict[tuple[str, str], bool]:
    """(identity or "any", block or "") -> whether it is let in."""
    compiler, _ = compiled(directory, MESH, all=raw_file(listener(filters + proxy()), cluster()))
    policy = held(compiler, POLICY, NAME)
    assert policy is not None, listener_rows(compiler)
    found = {}
    for entry in policy.entries:
        block = f"{'.'.join(map(str, entry.block.network))}/{entry.block.bits}" if entry.HasField("block") else ""
        assert not entry.HasField("port")
        found[entry.identity or "any", block] = entry.verdict == pb.ALLOW
    return found


def test_a_listener_of_tcp_proxy_and_a_static_cluster_is_balanced_by_the_kernel(tmp_path: Path) -> None:
    assert mode(tmp_path, listener(), cluster()) == ("L4", "tcp_proxy to db, and nothing asks for Envoy")
    compiler, _ = compiled(tmp_path)
    front = held(compiler, FRONTEND, FRONT)
    assert (bytes(front.address), front.port, front.protocol) == (bytes((10, 96, 0, 7)), 5432, pb.TCP)
    assert front.balance.backends == front.service == NAME
    (only,) = held(compiler, BACKENDS, NAME).backends
    assert (bytes(only.address), only.port, only.weight) == (bytes((10, 2, 0, 1)), 5432, 1)
    assert held(compiler, POLICY, NAME) is None


def test_endpoints_of_eds_are_taken_by_weight_without_the_unhealthy(tmp_path: Path) -> None:
    members = (
        endpoint("10.2.0.1", extra="load_balancing_weight: 2"),
        endpoint("10.2.0.2", extra="load_balancing_weight: 6, health_status: HEALTHY"),
        endpoint("10.2.0.3", extra="health_status: DRAINING"),
    )
    assert mode(tmp_path, listener(), eds_cluster(*members))[0] == "L4"
    found = held(compiled(tmp_path)[0], BACKENDS, NAME).backends
    assert [(entry.address[3], entry.weight) for entry in found] == [(1, 1), (2, 3)]


def test_weighted_clusters_are_shares_of_connections_whatever_the_number_of_endpoints(tmp_path: Path) -> None:
    target = "weighted_clusters: {clusters: [{name: db, weight: 90}, {name: canary, weight: 10}]}"
    many = cluster(endpoint("10.2.0.1"), endpoint("10.2.0.2"), endpoint("10.2.0.3"))
    assert mode(tmp_path, listener(proxy(target)), many, cluster(endpoint("10.2.0.9"), name="canary"))[0] == "L4"
    found = held(compiled(tmp_path)[0], BACKENDS, NAME).backends
    weights = {entry.address[3]: entry.weight for entry in found}
    assert weights == {1: 3, 2: 3, 3: 3, 9: 1}


def test_a_cluster_without_endpoints_is_a_frontend_that_refuses(tmp_path: Path) -> None:
    assert mode(tmp_path, listener(), eds_cluster(endpoint(extra="health_status: UNHEALTHY")))[0] == "L4"
    assert list(held(compiled(tmp_path)[0], BACKENDS, NAME).backends) == []


def test_the_frontend_of_a_guarded_listener_names_its_policy(tmp_path: Path) -> None:
    assert mode(tmp_path, listener(rbac(ANY_OF_APP) + proxy()), cluster())[0] == "L4"
    front = held(compiled(tmp_path)[0], FRONTEND, FRONT)
    assert front.WhichOneof("plane") == "guarded_balance"
    guarded = front.guarded_balance
    assert (guarded.backends, guarded.policy, guarded.policy_port) == (NAME, NAME, 5432)
    assert not held(compiled(tmp_path)[0], POLICY, NAME).destinations


def test_an_allow_lets_in_whom_it_names_and_nobody_else(tmp_path: Path) -> None:
    assert verdicts(tmp_path, rbac(ANY_OF_APP)) == {
        ("any", ""): False,
        (APP, ""): True,
        ("xdsbpf:unlocated", ""): False,
    }


def test_a_deny_refuses_whom_it_names_and_who_cannot_be_told(tmp_path: Path) -> None:
    assert verdicts(tmp_path, rbac(ANY_OF_APP, action="DENY")) == {
        ("any", ""): True,
        (APP, ""): False,
        ("xdsbpf:unlocated", ""): False,
    }


@pytest.mark.parametrize("field", ["source_ip", "direct_remote_ip", "remote_ip"])
def test_blocks_of_addresses_decide_with_or_against_a_name(tmp_path: Path, field: str) -> None:
    block = f"{{{field}: {{address_prefix: 10.1.0.0, prefix_len: 24}}}}"
    other = f"{{not_id: {ANY_OF_APP}}}"
    found = verdicts(tmp_path, rbac(f"{{and_ids: {{ids: [{block}, {other}]}}}}"))
    spiffe_other = APP.replace("sa/app", "sa/other")
    assert found[spiffe_other, "10.1.0.0/24"]
    assert not found["any", "10.1.0.0/24"], "who is not known cannot prove not to be the app"
    assert (APP, "") not in found, "it fares as anybody does"
    assert not found["any", ""]
    assert not found["xdsbpf:unlocated", ""]


def test_a_prefix_length_that_is_left_out_is_zero_as_it_is_to_envoy(tmp_path: Path) -> None:
    found = verdicts(tmp_path, rbac("{source_ip: {address_prefix: 10.1.0.1}}", action="DENY"))
    assert found["any", "0.0.0.0/0"] is False


def test_a_block_of_ipv6_matches_no_connection_to_an_ipv4_address(tmp_path: Path) -> None:
    found = verdicts(tmp_path, rbac("{source_ip: {address_prefix: '::', prefix_len: 0}}"))
    assert found == {("any", ""): False, ("xdsbpf:unlocated", ""): False}


def test_patterns_are_asked_of_every_identity_that_there_is(tmp_path: Path) -> None:
    found = verdicts(tmp_path, rbac('{authenticated: {principal_name: {suffix: "/sa/other"}}}'))
    assert found[APP.replace("sa/app", "sa/other"), ""]
    assert (APP, "") not in found
    found = verdicts(tmp_path, rbac("{authenticated: {}}"))
    assert found[APP, ""]
    assert not found["any", ""]


@pytest.mark.parametrize(
    ("permissions", "is_open"),
    [
        ("{destination_port: 5432}", True),
        ("{destination_port: 5433}", False),
        ("{destination_port_range: {start: 5000, end: 5432}}", False),
        ("{destination_port_range: {start: 5000, end: 5433}}", True),
        ("{destination_ip: {address_prefix: 10.96.0.0, prefix_len: 16}}", True),
        ("{not_rule: {destination_ip: {address_prefix: 10.96.0.0, prefix_len: 16}}}", False),
        ("{and_rules: {rules: [{any: true}, {destination_port: 1}]}}", False),
        ("{or_rules: {rules: [{any: true}, {destination_port: 1}]}}", True),
    ],
)
def test_permissions_are_about_the_address_of_the_listener(tmp_path: Path, permissions: str, is_open: bool) -> None:
    found = verdicts(tmp_path, rbac("{any: true}", permissions))
    assert found == {("any", ""): is_open, ("xdsbpf:unlocated", ""): is_open}


def test_every_filter_of_a_chain_must_let_a_client_in(tmp_path: Path) -> None:
    inside = rbac("{source_ip: {address_prefix: 10.1.0.0, prefix_len: 16}}")
    found = verdicts(tmp_path, inside + rbac(ANY_OF_APP))
    assert found[APP, "10.1.0.0/16"]
    assert not any(found[key] for key in found if key != (APP, "10.1.0.0/16"))


HCM = f"""\
    - name: http
      typed_config:
        "@type": {T}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: web
        route_config: {{name: web}}
"""
TLS = f"""\
transport_socket:
      name: tls
      typed_config: {{"@type": {T}.extensions.transport_sockets.tls.v3.DownstreamTlsContext}}"""
INSPECTOR = f"""\
listener_filters:
  - name: tls
    typed_config: {{"@type": {T}.extensions.filters.listener.tls_inspector.v3.TlsInspector}}"""
WEIGHTED = "weighted_clusters: {clusters: [{name: db, weight: 1}, {name: empty, weight: 1}]}"
NO_ENDPOINT = cluster(endpoint(extra="health_status: UNHEALTHY"), name="empty")


@pytest.mark.parametrize(
    ("resources", "reason"),
    [
        ((listener(HCM), cluster()), "only Envoy does HttpConnectionManager"),
        ((listener(HCM + proxy()), cluster()), "only Envoy does HttpConnectionManager"),
        ((listener(chain=TLS), cluster()), "only Envoy does transport_socket"),
        ((listener(chain="filter_chain_match: {destination_port: 1}"), cluster()), "only Envoy chooses a chain"),
        ((listener(more=INSPECTOR), cluster()), "only Envoy does listener_filters"),
        ((listener(more="access_log: [{name: x}]"), cluster()), "only Envoy does access_log"),
        ((listener(more="default_filter_chain: {}"), cluster()), "only Envoy does default_filter_chain"),
        ((listener(more="bind_to_port: false"), cluster()), "it does not listen"),
        ((listener(place=PLACE.replace("10.96.0.7", "127.0.0.1")), cluster()), "loopback"),
        ((listener(place=PLACE.replace("10.96.0.7", "0.0.0.0")), cluster()), "0.0.0.0/8"),
        ((listener(place=PLACE.replace("10.96.0.7", "'fd00::1'")), cluster()), "IPv6"),
        ((listener(place=PLACE.replace("{address", "{protocol: UDP, address")), cluster()), "TCP only"),
        ((listener(place="address: {pipe: {path: /x}}"), cluster()), "only Envoy does pipe"),
        ((listener(proxy(extra="idle_timeout: 5s")), cluster()), "only Envoy does idle_timeout"),
        ((listener(proxy(extra="hash_policy: [{source_ip: {}}]")), cluster()), "only Envoy does hash_policy"),
        ((listener(proxy("cluster: nowhere")), cluster()), "there is no raw Cluster 'nowhere'"),
        ((listener(), cluster(extra="lb_policy: LEAST_REQUEST")), "only Envoy does lb_policy LEAST_REQUEST"),
        ((listener(), cluster(extra="outlier_detection: {}")), "only Envoy does outlier_detection"),
        ((listener(), cluster(extra="circuit_breakers: {}")), "only Envoy does circuit_breakers"),
        ((listener(), cluster().replace("STATIC", "STRICT_DNS")), "type is STRICT_DNS"),
        ((listener(), cluster(group=", priority: 1")), "fails over"),
        ((listener(), cluster(endpoint("169.254.169.254"))), "metadata servers"),
        ((listener(), cluster(endpoint("127.0.0.1"))), "loopback"),
        ((listener(), cluster(endpoint("db.example"))), "is not an IP address"),
        ((listener(), eds_cluster(source="{path_config_source: {path: /x}}")), "do not come over ADS"),
        ((listener(), eds_cluster().rsplit("- ", 1)[0]), "there is no raw ClusterLoadAssignment"),
        ((listener(proxy(WEIGHTED)), cluster(), NO_ENDPOINT), "'empty' has no endpoint"),
        ((listener(rbac("{header: {name: x}}") + proxy()), cluster()), "only Envoy checks header"),
        ((listener(rbac(ANY_OF_APP.replace("exact: ", "safe_regex: {regex: ") + "}") + proxy()), cluster()), "safe_re"),
        ((listener(rbac(ANY_OF_APP.replace("exact", "ignore_case: true, exact")) + proxy()), cluster()), "ignore_case"),
        ((listener(rbac(ANY_OF_APP.replace(APP, "xdsbpf:node-proxy")) + proxy()), cluster()), "no name of a client"),
        ((listener(rbac(ANY_OF_APP.replace(APP, "")) + proxy()), cluster()), "no name of a client"),
        ((listener(rbac("{any: true}", "{requested_server_name: {exact: x}}") + proxy()), cluster()), "requested_serv"),
        ((listener(rbac("{any: true}", action="LOG") + proxy()), cluster()), "only Envoy logs"),
        ((listener(rbac("{any: true}", extra="enforcement_type: CONTINUOUS") + proxy()), cluster()), "enforcement"),
        (
            (listener(rbac("{any: true}", extra="shadow_rules: {}") + proxy()), cluster()),
            "only Envoy does shadow_rules",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_kernel_does_not_do_exactly_stays_with_envoy(
    tmp_path: Path, resources: tuple[str, ...], reason: str
) -> None:
    plane, said = mode(tmp_path, *resources)
    assert plane == "L7"
    assert reason in said
    compiler, _ = compiled(tmp_path)
    assert held(compiler, POLICY, NAME) is held(compiler, BACKENDS, NAME) is None


def test_a_tcp_listener_that_stays_with_envoy_says_so_where_it_is_written(tmp_path: Path) -> None:
    compiler, catalog = compiled(tmp_path, all=raw_file(listener(proxy(extra="idle_timeout: 5s")), cluster()))
    (found,) = compiler.diagnostics()
    assert (found.code, found.severity) == ("XB3050", "info")
    assert found.message == "not for the kernel: only Envoy does idle_timeout"
    assert found.object is not None
    location = catalog.locate(found.object, found.path)
    assert location is not None
    assert "idle_timeout" in (tmp_path / "raw" / "all.yaml").read_text().splitlines()[location.line - 1]
    assert compiled(tmp_path, all=raw_file(listener(HCM), cluster()))[0].diagnostics() == ()


def test_listeners_at_one_address_are_left_to_envoy_both(tmp_path: Path) -> None:
    compiler, _ = compiled(tmp_path, a=raw_file(listener(), cluster()), b=raw_file(listener(HCM, name="other")))
    assert {row["plane"] for row in listener_rows(compiler)} == {"L7"}
    assert held(compiler, FRONTEND, FRONT) is None


def test_the_address_of_a_service_is_the_services(tmp_path: Path) -> None:
    service = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}\n"
    )
    compiler, _ = compiled(tmp_path, service, a=raw_file(listener(), cluster()))
    (row,) = listener_rows(compiler)
    assert (row["plane"], "Service/default/web" in row["reasons"][0]) == ("L7", True)


def test_the_address_of_a_guarded_pod_is_left_alone(tmp_path: Path) -> None:
    policy = """\
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {selector: {matchLabels: {app: app}}}
"""
    at_pod = listener(place=PLACE.replace("10.96.0.7", "10.1.0.1"))
    (row,) = listener_rows(compiled(tmp_path, MESH, a=raw_file(at_pod, cluster()))[0])
    assert row["plane"] == "L4"
    (row,) = listener_rows(compiled(tmp_path, MESH + policy)[0])
    assert (row["plane"], "which policies guard" in row["reasons"][0]) == ("L7", True)


def test_globs_say_which_nodes_have_the_frontend(tmp_path: Path) -> None:
    files = {"a": raw_file(listener(), nodes="'edge-*', 'n1'"), "b": raw_file(cluster())}
    compiler, _ = compiled(tmp_path, **files)
    assert held(compiler, FRONTEND, FRONT) is not None
    assert held(compiler, FRONTEND, FRONT, node="n2") is None
    assert held(compiler, FRONTEND, FRONT, node="edge-7") is not None


def test_where_globs_may_decide_between_two_resources_of_a_name_neither_is_for_the_kernel(tmp_path: Path) -> None:
    own = raw_file(cluster(endpoint("10.2.0.5")), nodes="n1")
    compiler, _ = compiled(tmp_path, a=raw_file(listener(), nodes="n1"), b=raw_file(cluster()), c=own)
    assert [entry.address[3] for entry in held(compiler, BACKENDS, f"{NAME}@n1").backends] == [5]
    compiler, _ = compiled(tmp_path, c=raw_file(cluster(), nodes="n2"))
    assert [entry.address[3] for entry in held(compiler, BACKENDS, f"{NAME}@n1").backends] == [1]
    compiler, _ = compiled(tmp_path, c=raw_file(cluster(), nodes="'n*'"))
    (row,) = listener_rows(compiler)
    assert (row["plane"], "depends on the node" in row["reasons"][0]) == ("L7", True)


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("n1", "n2", False),
        ("n1", "n1", True),
        ("n1", "n10", False),
        ("n1*", "n10", True),
        ("n?", "n10", True),  # by their beginnings only
        ("edge-*", "core-*", False),
        ("edge-*", "*", True),
        ("n1", "agent~*", True),
        ("n1", "ag*", True),
        ("n1,x", "y,n1", True),
    ],
)
def test_two_lists_of_globs_may_name_one_agent_unless_their_beginnings_differ(one: str, other: str, meet: bool) -> None:
    lists = tuple(one.split(",")), tuple(other.split(","))
    assert may_meet(*lists) is may_meet(*reversed(lists)) is meet


def test_a_change_of_the_rules_to_what_cannot_be_told_takes_the_listener_out_of_the_kernel(tmp_path: Path) -> None:
    assert mode(tmp_path, listener(rbac(ANY_OF_APP) + proxy()), cluster())[0] == "L4"
    assert mode(tmp_path, listener(rbac("{metadata: {filter: x}}") + proxy()), cluster())[0] == "L7"
