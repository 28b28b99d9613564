"""What a sidecar is offered, by manifests: hosts by namespace, listeners, clusters, inbound ports and policies."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy

from tests.compiling import MESSAGES, Mesh, pod, service, slice_of
from xdsbpf.compile.generator import Generator
from xdsbpf.compile.sidecar.outputs import client_generators, shared_generators
from xdsbpf.compile.views import ClientView, client_view
from xdsbpf.errors import ProtocolError
from xdsbpf.incremental import ABSENT
from xdsbpf.mesh.clients import Client
from xdsbpf.mesh.inputs import MeshSettings
from xdsbpf.model.names import CLUSTER, LISTENER, ROUTES

REVIEWS = "reviews.default.svc.cluster.local:9080"
BASE = (
    service("reviews", "9080/http", address="10.96.0.1")
    + service("db", "5432/tcp", address="10.96.0.2")
    + service("other", "9080/http/8080", namespace="shop", address="10.96.0.3")
    + pod("r1", "10.1.0.1", app="reviews")
    + slice_of("reviews", ("r1", "10.1.0.1"))
)
GUARDED = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - match: [{sourceNamespace: shop}]
    directResponse: {status: 418}
  - route: [{destination: {host: reviews}}]
---
"""
TCP_SPLIT = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db, namespace: default}
spec:
  hosts: [db]
  tcp:
  - route:
    - {destination: {host: db}, weight: 9}
    - {destination: {host: reviews, port: {number: 9080}}, weight: 1}
---
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: default}
spec: {selector: {matchLabels: {app: reviews}}, %s}
---
"""
WORKLOAD = Client("default", (("app", "reviews"), ("version", "v1")))


class Offer:
    """Every resource that the sidecar of one class of workloads sees."""

    def __init__(self, text: str, client: Client = WORKLOAD, *, registry_only: bool = False) -> None:
        self.mesh = Mesh(text, settings=MeshSettings(registry_only=registry_only))
        self.generators: tuple[Generator, ...] = (*shared_generators(), *client_generators("own", client))

    def named(self, type_url: str) -> dict[str, Any]:
        """Name -> message, of one type."""
        found = {}
        for generator in self.generators:
            for name in generator.names(self.mesh.db, *generator.args) if generator.type_url == type_url else ():
                built = generator.build(self.mesh.db, *generator.args, name)
                if built is not ABSENT:
                    assert not built.on_demand
                    found[name] = MESSAGES[type_url].FromString(built.body)
        return found

    def hosts(self, port: int = 9080) -> dict[str, Any]:
        return {host.name: host for host in self.named(ROUTES)[str(port)].virtual_hosts}

    def chains(self) -> dict[str, str]:
        """Inbound chain -> the cluster it goes to, or `denied`; "" is any other port."""
        listener = self.named(LISTENER)["virtualInbound"]
        found: dict[str, str] = {}
        for chain in listener.filter_chains:
            match = chain.filter_chain_match
            port = str(match.destination_port.value) if match.HasField("destination_port") else ""
            blocks = [f"{block.address_prefix}/{block.prefix_len.value}" for block in match.source_prefix_ranges]
            found |= {" from ".join((port, block)): goes_to(chain) for block in blocks} or {port: goes_to(chain)}
        if listener.HasField("default_filter_chain"):
            found[""] = goes_to(listener.default_filter_chain)
        return found

    def findings(self) -> set[str]:
        return {
            found.code
            for generator in self.generators
            for name in generator.names(self.mesh.db, *generator.args)
            for found in self.mesh.db.diagnostics(generator.build, *generator.args, name)
        }


def goes_to(chain: Any) -> str:
    manager, proxy = HttpConnectionManager(), TcpProxy()
    if chain.filters[0].typed_config.Unpack(proxy):
        return str(proxy.cluster)
    assert chain.filters[0].typed_config.Unpack(manager)
    if any(entry.name.startswith("authz") for entry in manager.http_filters):
        return "denied"
    return str(manager.route_config.virtual_hosts[0].routes[0].route.cluster)


def test_all_hosts_of_a_port_are_in_one_configuration_with_the_catch_all_last() -> None:
    hosts = Offer(BASE).hosts()
    assert list(hosts) == [REVIEWS, "other.shop.svc.cluster.local:9080", "allow_any"]
    assert hosts["allow_any"].routes[0].route.cluster == "PassthroughCluster"
    refused = Offer(BASE, registry_only=True).hosts()
    assert refused["block_all"].routes[0].direct_response.status == 502


def test_the_bare_name_is_a_domain_only_in_the_services_own_namespace() -> None:
    names = ["reviews.default.svc.cluster.local", "reviews.default.svc.cluster.local."]
    rest = ["reviews.default", "reviews.default.svc", "10.96.0.1"]
    assert Offer(BASE).hosts()[REVIEWS].domains == [*names, "reviews", *rest]
    assert Offer(BASE, Client("shop")).hosts()[REVIEWS].domains == [*names, *rest]


def test_a_client_gets_the_routes_of_its_namespace_without_guards() -> None:
    inside = Offer(BASE + GUARDED, Client("shop")).hosts()[REVIEWS].routes
    outside = Offer(BASE + GUARDED).hosts()[REVIEWS].routes
    assert [route.direct_response.status for route in inside] == [418]
    assert [route.route.cluster for route in outside] == ["outbound|9080||reviews.default.svc.cluster.local"]
    assert not any(route.match.filter_state for route in (*inside, *outside))


def test_the_destinations_policy_is_not_on_a_clients_routes() -> None:
    routes = Offer(BASE + POLICY % "rules: [{from: [{source: {namespaces: [x]}}]}]").hosts()[REVIEWS].routes
    assert [dict(route.typed_per_filter_config) for route in routes] == [{}]


def test_a_changed_rule_changes_one_virtual_host() -> None:
    offer = Offer(BASE)
    before = offer.hosts()
    offer.mesh.apply(GUARDED.replace("sourceNamespace: shop", "sourceNamespace: default"))
    after = offer.hosts()
    assert [name for name in before if before[name] != after[name]] == [REVIEWS]


def test_listeners_capture_and_hand_over_by_port_and_address() -> None:
    found = Offer(BASE + TCP_SPLIT).named(LISTENER)
    assert set(found) == {"virtualOutbound", "virtualInbound", "0.0.0.0_9080", "10.96.0.2_5432"}
    assert found["virtualOutbound"].use_original_dst.value
    assert not found["0.0.0.0_9080"].bind_to_port.value
    assert found["0.0.0.0_9080"].HasField("bind_to_port")
    assert goes_to(found["0.0.0.0_9080"].default_filter_chain) == "PassthroughCluster"
    proxy = TcpProxy()
    assert found["10.96.0.2_5432"].filter_chains[0].filters[0].typed_config.Unpack(proxy)
    assert [entry.weight for entry in proxy.weighted_clusters.clusters] == [9, 1]
    assert proxy.stat_prefix == "db.default"
    closed = Offer(BASE, registry_only=True).named(LISTENER)
    assert goes_to(closed["virtualOutbound"].filter_chains[-1]) == "BlackHoleCluster"


def test_a_port_that_sidecars_listen_on_is_left_out_and_reported() -> None:
    offer = Offer(BASE + service("odd", "15001/http", address="10.96.0.9"))
    assert "0.0.0.0_15001" not in offer.named(LISTENER)
    assert "XB3054" in offer.findings()
    assert "XB3054" not in Offer(BASE).findings()


def test_clusters_are_sent_unasked_with_the_catch_alls_and_the_workloads_own() -> None:
    found = Offer(BASE).named(CLUSTER)
    assert {"BlackHoleCluster", "PassthroughCluster", "InboundPassthroughCluster", "inbound|9080||"} <= set(found)
    own = found["inbound|9080||"]
    assert (own.type, own.upstream_bind_config.source_address.address) == (own.ORIGINAL_DST, "127.0.0.6")


@pytest.mark.parametrize(
    ("spec", "chains"),
    [
        ("rules: [{}]", ("inbound|9080||", "InboundPassthroughCluster")),
        ("rules: []", ("denied", "BlackHoleCluster")),
        ('rules: [{to: [{operation: {ports: ["9080"]}}]}]', ("inbound|9080||", "BlackHoleCluster")),
        ('action: DENY, rules: [{to: [{operation: {ports: ["9080"]}}]}]', ("denied", "InboundPassthroughCluster")),
        ("rules: [{from: [{source: {namespaces: [x]}}]}]", ("denied", "BlackHoleCluster")),
        ("action: DENY, rules: [{from: [{source: {namespaces: [x]}}]}]", ("denied", "BlackHoleCluster")),
    ],
)
def test_a_policy_opens_or_closes_ports_of_the_workloads_it_selects(spec: str, chains: tuple[str, str]) -> None:
    found = Offer(BASE + POLICY % spec).chains()
    assert (found["9080"], found[""]) == chains
    assert found["15006"] == "BlackHoleCluster"
    other = Offer(BASE + POLICY % spec, Client("default", (("app", "web"),))).chains()
    assert other[""] == "InboundPassthroughCluster"


def test_a_port_that_only_a_policy_mentions_has_a_chain_of_its_own() -> None:
    found = Offer(BASE + POLICY % 'action: DENY, rules: [{to: [{operation: {ports: ["22"]}}]}]').chains()
    assert (found["22"], found["9080"], found[""]) == (
        "BlackHoleCluster",
        "inbound|9080||",
        "InboundPassthroughCluster",
    )


def test_addresses_that_a_policy_asks_for_have_chains_of_their_own_and_the_narrowest_decides() -> None:
    inside = '{source: {ipBlocks: ["10.0.0.0/8"], notIpBlocks: ["10.9.0.0/16"]}}'
    open_, denied = "inbound|9080||", "denied"
    everywhere = {"0.0.0.0/0": False, "::/0": False, "10.0.0.0/8": True, "10.9.0.0/16": False}
    offer = Offer(BASE + POLICY % f"rules: [{{from: [{inside}]}}]")
    assert offer.chains() == {
        "15006": "BlackHoleCluster",
        **{f"9080 from {block}": open_ if is_in else denied for block, is_in in everywhere.items()},
        **{
            f" from {block}": "InboundPassthroughCluster" if is_in else "BlackHoleCluster"
            for block, is_in in everywhere.items()
        },
    }
    assert not {code for code in offer.findings() if code.startswith("XB206")}


def test_a_rule_that_asks_who_and_where_from_is_decided_by_the_address_alone() -> None:
    who = "{source: {namespaces: [x], ipBlocks: [10.0.0.5]}}"
    denied = Offer(BASE + POLICY % f"action: DENY, rules: [{{from: [{who}]}}]")
    assert denied.chains()["9080 from 10.0.0.5/32"] == "denied"
    assert denied.chains()["9080 from 0.0.0.0/0"] == "inbound|9080||"
    allowed = Offer(BASE + POLICY % f"rules: [{{from: [{who}]}}]")
    assert allowed.chains()["9080"] == "denied"
    assert {"XB2060", "XB2061"} <= allowed.findings() | denied.findings()


def view(node_id: str, metadata: dict[str, object] | None = None, **pods: Any) -> ClientView | None:
    return client_view(node_id, metadata or {}, lambda namespace, name: pods.get(name))


def test_a_view_is_of_the_pods_labels_and_not_of_what_the_client_says() -> None:
    node_id = "sidecar~10.1.0.1~r1.default~default.svc.cluster.local"
    claimed: dict[str, object] = {"LABELS": {"app": "forged"}, "NAMESPACE": "default"}
    known = view(node_id, claimed, r1=(("app", "reviews"),))
    assert known == ClientView("sidecar", Client("default", (("app", "reviews"),)))
    assert view(node_id, claimed) == ClientView("sidecar", Client("default", (("app", "forged"),)))
    assert view(node_id, {"GENERATOR": "grpc"}) == ClientView("grpc", Client("default"))
    assert view("free text", {"GENERATOR": "grpc"}) == ClientView("grpc", Client())
    assert view("free text", {"node.user_agent_name": "gRPC C-core linux Python"}) == ClientView("grpc", Client())
    assert view("free text", {"node.user_agent_name": "envoy"}) is None
    assert view("agent~1~n1~x", {"GENERATOR": "grpc"}) is None
    assert view("node~1~n1~x") is None
    assert known is not None
    assert known.scopes == ("mesh", "sidecar", "sidecar/default/app=reviews")


@pytest.mark.parametrize(
    ("node_id", "metadata"),
    [
        ("sidecar~10.1.0.1~r1~default.svc.cluster.local", {}),
        ("sidecar~10.1.0.1~r1.default", {}),
        ("sidecar~10.1.0.1~r1.default~x", {"NAMESPACE": "other"}),
    ],
)
def test_a_node_id_that_contradicts_itself_is_refused(node_id: str, metadata: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        view(node_id, metadata)
