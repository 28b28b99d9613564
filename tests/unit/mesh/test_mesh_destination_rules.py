"""DestinationRules: which one applies, merging, and the effective policy per cluster."""

from __future__ import annotations

from tests.builders import Mesh, bookinfo, destination_rule, host, subset
from xdsbpf.mesh.destination_rules import destination_rule as rule_of
from xdsbpf.mesh.destination_rules import effective_policy, subsets
from xdsbpf.model.destination_rule import (
    ClientTLSSettings,
    ConnectionPoolSettings,
    HTTPSettings,
    LoadBalancerSettings,
    OutlierDetection,
    PortTrafficPolicy,
    TrafficPolicy,
    WorkloadSelector,
)
from xdsbpf.model.matching import PortSelector

ROUND_ROBIN = LoadBalancerSettings(simple="ROUND_ROBIN")
RANDOM = LoadBalancerSettings(simple="RANDOM")
POOL = ConnectionPoolSettings(http=HTTPSettings(max_retries=3))
OUTLIERS = OutlierDetection(consecutive_5xx_errors=7)
TLS = ClientTLSSettings(mode="SIMPLE")
REVIEWS = host("reviews")


def objects(mesh: Mesh) -> list[str]:
    rule = rule_of(mesh.db, REVIEWS)
    return [str(id) for id in rule.objects] if rule else []


def test_short_and_full_hosts_name_the_same_service() -> None:
    for written in ("reviews", "REVIEWS", REVIEWS):
        assert objects(Mesh(*bookinfo(), destination_rule("r", written))) == ["DestinationRule/default/r"]


def test_a_short_host_means_the_rules_own_namespace() -> None:
    assert objects(Mesh(*bookinfo(), destination_rule("r", "reviews", namespace="other"))) == []


def test_the_services_namespace_comes_first_then_others_then_the_root() -> None:
    own = destination_rule("own", "reviews", created="2025-01-01T00:00:00Z")
    other = destination_rule("other", REVIEWS, namespace="clients", created="2020-01-01T00:00:00Z")
    root = destination_rule("root", REVIEWS, namespace="istio-system", created="2019-01-01T00:00:00Z")
    mesh = Mesh(*bookinfo(), own, other, root)
    assert objects(mesh) == ["DestinationRule/default/own"]
    shadowed = {str(found.object) for found in mesh.findings("XB2020")}
    assert shadowed == {"DestinationRule/clients/other", "DestinationRule/istio-system/root"}
    mesh.remove(own.id)
    assert objects(mesh) == ["DestinationRule/clients/other"]
    mesh.remove(other.id)
    assert objects(mesh) == ["DestinationRule/istio-system/root"]


def test_an_own_wildcard_rule_beats_another_namespaces_exact_one() -> None:
    wild = destination_rule("wild", "*.default.svc.cluster.local")
    exact = destination_rule("exact", REVIEWS, namespace="clients")
    assert objects(Mesh(*bookinfo(), wild, exact)) == ["DestinationRule/default/wild"]


def test_the_most_specific_host_wins_and_wildcards_are_not_layered() -> None:
    wild = destination_rule("wild", "*.svc.cluster.local", traffic_policy=TrafficPolicy(load_balancer=RANDOM))
    wider = destination_rule("wider", "*.local")
    mesh = Mesh(*bookinfo(), wider, wild)
    assert objects(mesh) == ["DestinationRule/default/wild"]
    mesh.put(destination_rule("exact", "reviews"))
    assert objects(mesh) == ["DestinationRule/default/exact"]
    assert effective_policy(mesh.db, REVIEWS, 9080, "").load_balancer is None


def test_private_rules_of_other_namespaces_do_not_apply() -> None:
    for names in ((".",), ("clients",), ("~",)):
        rule = destination_rule("r", REVIEWS, namespace="clients", export_to=names)
        assert objects(Mesh(*bookinfo(), rule)) == []


def test_rules_for_selected_clients_are_reported_and_ignored() -> None:
    mesh = Mesh(*bookinfo(), destination_rule("r", "reviews", workload_selector=WorkloadSelector((("a", "b"),))))
    assert objects(mesh) == []
    assert len(mesh.findings("XB2023")) == 1


def test_rules_of_one_host_merge_subsets_and_take_the_first_policy() -> None:
    older = destination_rule("z", "reviews", subset("v1"), created="2020-01-01T00:00:00Z")
    newer = destination_rule(
        "a",
        "reviews",
        subset("v1", version="other"),
        subset("v2"),
        created="2021-01-01T00:00:00Z",
        traffic_policy=TrafficPolicy(load_balancer=RANDOM),
    )
    mesh = Mesh(*bookinfo(), newer, older)
    assert [(entry.name, entry.labels) for entry in subsets(mesh.db, REVIEWS)] == [
        ("v1", (("version", "v1"),)),
        ("v2", (("version", "v2"),)),
    ]
    assert [found.path for found in mesh.findings("XB2021")] == ["spec.subsets[0].name"]
    assert effective_policy(mesh.db, REVIEWS, 9080, "").load_balancer == RANDOM


def test_only_one_top_level_policy_counts_and_the_other_is_reported() -> None:
    first = destination_rule("a", "reviews", traffic_policy=TrafficPolicy(load_balancer=RANDOM))
    second = destination_rule("b", "reviews", traffic_policy=TrafficPolicy(outlier_detection=OUTLIERS))
    mesh = Mesh(*bookinfo(), first, second)
    found = effective_policy(mesh.db, REVIEWS, 9080, "")
    assert (found.load_balancer, found.outlier_detection) == (RANDOM, None)
    assert [finding.path for finding in mesh.findings("XB2020")] == ["spec.trafficPolicy"]


def port_entry(**blocks: object) -> tuple[PortTrafficPolicy, ...]:
    return (PortTrafficPolicy(port=PortSelector(9080), **blocks),)  # type: ignore[arg-type]


def test_a_port_level_entry_replaces_the_whole_top_level_policy() -> None:
    policy = TrafficPolicy(
        load_balancer=RANDOM, connection_pool=POOL, port_level_settings=port_entry(load_balancer=ROUND_ROBIN)
    )
    mesh = Mesh(*bookinfo(), destination_rule("r", "reviews", traffic_policy=policy))
    at_port = effective_policy(mesh.db, REVIEWS, 9080, "")
    assert (at_port.load_balancer, at_port.connection_pool) == (ROUND_ROBIN, None)
    elsewhere = effective_policy(mesh.db, REVIEWS, 9081, "")
    assert (elsewhere.load_balancer, elsewhere.connection_pool) == (RANDOM, POOL)


def test_a_subset_replaces_the_blocks_that_it_sets() -> None:
    top = TrafficPolicy(load_balancer=RANDOM, connection_pool=POOL)
    rule = destination_rule(
        "r", "reviews", subset("v1", TrafficPolicy(load_balancer=ROUND_ROBIN)), subset("v2"), traffic_policy=top
    )
    mesh = Mesh(*bookinfo(), rule)
    v1 = effective_policy(mesh.db, REVIEWS, 9080, "v1")
    assert (v1.load_balancer, v1.connection_pool) == (ROUND_ROBIN, POOL)
    v2 = effective_policy(mesh.db, REVIEWS, 9080, "v2")
    assert (v2.load_balancer, v2.connection_pool) == (RANDOM, POOL)


def test_a_subsets_port_level_entry_takes_four_blocks_even_when_unset() -> None:
    top = TrafficPolicy(load_balancer=RANDOM, connection_pool=POOL, tls=TLS)
    below = TrafficPolicy(outlier_detection=OUTLIERS, port_level_settings=port_entry(load_balancer=ROUND_ROBIN))
    mesh = Mesh(*bookinfo(), destination_rule("r", "reviews", subset("v1", below), traffic_policy=top))
    found = effective_policy(mesh.db, REVIEWS, 9080, "v1")
    assert found.load_balancer == ROUND_ROBIN
    assert (found.connection_pool, found.tls, found.outlier_detection) == (None, None, None)


def test_each_block_knows_where_it_stands() -> None:
    top = TrafficPolicy(load_balancer=RANDOM, connection_pool=POOL)
    rule = destination_rule("r", "reviews", subset("v1", TrafficPolicy(load_balancer=ROUND_ROBIN)), traffic_policy=top)
    found = effective_policy(Mesh(*bookinfo(), rule).db, REVIEWS, 9080, "v1")
    assert {name: origin.path for name, origin in found.blocks} == {
        "connectionPool": "spec.trafficPolicy.connectionPool",
        "loadBalancer": "spec.subsets[0].trafficPolicy.loadBalancer",
    }


def test_a_rule_for_an_unknown_host_is_reported_with_a_suggestion() -> None:
    (found,) = Mesh(*bookinfo(), destination_rule("r", "review")).findings("XB2022")
    assert found.hint == f'did you mean "{REVIEWS}"?'
