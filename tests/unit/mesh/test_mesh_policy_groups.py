"""Groups of workloads with the same policies, and their decision tables."""

from __future__ import annotations

import pytest

from tests.builders import (
    Mesh,
    bookinfo,
    endpoint,
    endpoint_slice,
    from_source,
    host,
    pod,
    policy,
    rule,
    service,
    to_operation,
    workload,
)
from xdsbpf.mesh.authorization import Verdict
from xdsbpf.mesh.policy_groups import (
    GroupPort,
    destination_groups,
    group_addresses,
    policy_groups,
    possible_groups,
)
from xdsbpf.mesh.policy_tables import policy_table
from xdsbpf.model.authorization_policy import Condition

REVIEWS = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
VIEWER = policy(
    "viewer",
    rule(from_source(principals=("cluster.local/ns/default/sa/bookinfo-reviews",)), to_operation(ports=("9080",))),
    selector={"app": "ratings"},
)


def test_workloads_with_the_same_policies_form_a_group_named_after_them() -> None:
    mesh = Mesh(*bookinfo(), VIEWER, policy("base", rule(), namespace="istio-system"))
    assert policy_groups(mesh.db) == ("default/viewer+istio-system/base", "istio-system/base")
    assert group_addresses(mesh.db, "default/viewer+istio-system/base") == ("10.10.2.13",)
    assert "10.10.2.13" not in group_addresses(mesh.db, "istio-system/base")


def test_without_policies_there_are_no_groups() -> None:
    assert policy_groups(Mesh(*bookinfo()).db) == ()
    assert group_addresses(Mesh(*bookinfo()).db, "default/viewer") == ()


def test_policies_without_effect_form_no_group() -> None:
    assert policy_groups(Mesh(*bookinfo(), policy("audit", rule(), action="AUDIT")).db) == ()


def test_a_pod_that_comes_or_goes_recomputes_the_groups_of_its_own_kind_only() -> None:
    mesh = Mesh(*bookinfo(), VIEWER)
    mesh.db.watch(policy_groups)
    mesh.db.watch(group_addresses, "default/viewer")
    mesh.db.drain()
    before = mesh.db.runs
    mesh.put(pod("reviews-v9", "10.10.9.9", labels={"app": "reviews", "version": "v1"}))
    assert mesh.db.drain() is None
    assert mesh.db.runs == before
    mesh.put(pod("ratings-v9", "10.10.9.10", labels={"app": "ratings", "version": "v1"}))
    revision = mesh.db.drain()
    assert revision is not None
    assert [output.value for output in revision.outputs] == [("10.10.2.13", "10.10.9.10")]


def test_a_group_comes_from_the_pods_that_it_guards() -> None:
    assert Mesh(*bookinfo(), VIEWER).origins(group_addresses, "default/viewer") == {"Pod/default/ratings-v1"}


def test_a_group_of_a_root_policy_spans_namespaces() -> None:
    mesh = Mesh(
        workload("a", "v1", "10.0.0.1"),
        workload("b", "v1", "10.0.0.2", namespace="other"),
        policy("base", rule(), namespace="istio-system"),
    )
    assert group_addresses(mesh.db, "istio-system/base") == ("10.0.0.1", "10.0.0.2")


def test_the_table_is_the_full_cross_product_of_what_makes_a_difference() -> None:
    table = policy_table(Mesh(*bookinfo(), VIEWER).db, "default/viewer")
    assert table.ports == (9080,)
    assert [(row.identity, row.port, row.verdict) for row in table.rows] == [
        (None, 9080, Verdict.DENY),
        (None, None, Verdict.DENY),
        (REVIEWS, 9080, Verdict.ALLOW),
        (REVIEWS, None, Verdict.DENY),
    ]
    assert table.rows[2].rule == "AuthorizationPolicy/default/viewer spec.rules[0]"


def test_an_identity_that_is_named_but_not_running_has_its_rows() -> None:
    table = policy_table(Mesh(workload("ratings", "v1", "10.0.0.1"), VIEWER).db, "default/viewer")
    assert {row.identity for row in table.rows} == {None, REVIEWS}


def test_a_policy_that_only_names_identities_does_not_depend_on_which_run() -> None:
    mesh = Mesh(*bookinfo(), VIEWER)
    mesh.db.watch(policy_table, "default/viewer")
    mesh.db.drain()
    before = mesh.db.runs
    mesh.put(pod("new", "10.0.0.99", account="new"))
    assert mesh.db.drain() is None
    assert mesh.db.runs == before


def test_a_policy_with_patterns_follows_the_identities_that_run() -> None:
    mesh = Mesh(*bookinfo(), policy("ns", rule(from_source(namespaces=("default",)))))
    assert len({row.identity for row in policy_table(mesh.db, "default/ns").rows}) == 5
    mesh.put(pod("new", "10.0.0.99", account="new"))
    assert "spiffe://cluster.local/ns/default/sa/new" in {
        row.identity for row in policy_table(mesh.db, "default/ns").rows
    }


def test_a_block_of_sources_multiplies_the_rows_of_its_own_table_only() -> None:
    blocks = policy("blocks", rule(from_source(ip_blocks=("10.0.0.0/8", "10.1.0.0/16"))), selector={"app": "reviews"})
    mesh = Mesh(*bookinfo(), VIEWER, blocks)
    table = policy_table(mesh.db, "default/blocks")
    assert table.blocks == ("10.0.0.0/8", "10.1.0.0/16")
    assert [(row.identity, row.block, row.port, row.verdict) for row in table.rows] == [
        (None, "", None, Verdict.DENY),
        (None, "10.0.0.0/8", None, Verdict.ALLOW),
        (None, "10.1.0.0/16", None, Verdict.ALLOW),
    ]
    assert policy_table(mesh.db, "default/viewer") == policy_table(Mesh(*bookinfo(), VIEWER).db, "default/viewer")


def test_workloads_that_stand_in_different_blocks_of_destinations_are_guarded_apart() -> None:
    there = policy("there", rule(Condition("destination.ip", ("10.0.1.0/24",)), to_operation(ports=("9080",))))
    mesh = Mesh(
        workload("a", "v1", "10.0.1.1"),
        workload("a", "v2", "10.0.2.1"),
        service("a"),
        endpoint_slice("a", endpoint("10.0.1.1", "a-v1"), endpoint("10.0.2.1", "a-v2")),
        there,
    )
    inside = "default/there@10.0.1.0/24"
    assert policy_groups(mesh.db) == ("default/there", inside)
    assert group_addresses(mesh.db, inside) == ("10.0.1.1",)
    assert group_addresses(mesh.db, "default/there") == ("10.0.2.1",)
    assert {row.verdict for row in policy_table(mesh.db, "default/there").rows} == {Verdict.DENY}
    assert {row.verdict for row in policy_table(mesh.db, inside).rows if row.port == 9080} == {Verdict.ALLOW}
    found = destination_groups(mesh.db, host("a"), 9080, "")
    assert found == (GroupPort("default/there", 9080), GroupPort(inside, 9080))
    assert possible_groups(mesh.db, "default/there") == ("default/there", inside)


def test_the_groups_of_a_destination_are_those_of_its_endpoints() -> None:
    mesh = Mesh(*bookinfo(), policy("v2", rule(), selector={"version": "v2"}))
    assert destination_groups(mesh.db, host("reviews"), 9080, "") == (
        GroupPort("", 9080),
        GroupPort("default/v2", 9080),
    )
    assert destination_groups(mesh.db, host("ratings"), 9080, "") == (GroupPort("", 9080),)


@pytest.mark.parametrize("target", ["impostor", ""])
def test_a_pod_with_anothers_address_does_not_lead_around_the_others_policies(target: str) -> None:
    """An EndpointSlice of one's own, for a pod of one's own, at an address that is guarded by others."""
    impostor = pod("impostor", "10.0.0.7", namespace="mine", account="me")
    mesh = Mesh(
        workload("victim", "v1", "10.0.0.7"),
        policy("guard", rule(), selector={"app": "victim"}, action="DENY"),
        service("door", namespace="mine"),
        endpoint_slice("door", endpoint("10.0.0.7", target, namespace="mine"), namespace="mine"),
    )
    alone = (GroupPort("default/guard", 9080),)
    assert destination_groups(mesh.db, host("door", "mine"), 9080, "") == alone
    mesh.put(impostor)
    found = destination_groups(mesh.db, host("door", "mine"), 9080, "")
    assert found == (GroupPort("", 9080), *alone)


def test_a_policy_for_a_pod_on_the_hosts_network_is_reported_as_not_enforced() -> None:
    mesh = Mesh(pod("agent", "192.168.0.1", labels={"app": "agent"}, host_network=True), policy("p"))
    (found,) = mesh.findings("XB2013")
    assert "Pod/default/agent" in found.message
    assert policy_groups(mesh.db) == ()


def test_the_table_cites_its_policies() -> None:
    mesh = Mesh(*bookinfo(), VIEWER)
    assert "AuthorizationPolicy/default/viewer spec" in mesh.origins(policy_table, "default/viewer")
