"""Workloads, identities and nodes: who is where, and who cannot be told apart."""

from __future__ import annotations

import pytest

from tests.builders import Mesh, node, pod, workload
from xdsbpf.incremental import Database, query
from xdsbpf.incremental.cells import Cell
from xdsbpf.mesh.identities import (
    NODE_PROXY,
    contested_on_node,
    identities,
    identity,
    is_seen_at,
    known_nodes,
    proxy_address,
    proxy_addresses,
    workloads_of_node,
)
from xdsbpf.mesh.inputs import MeshSettings


@query
def names_on(db: Database, node: str) -> tuple[str, ...]:
    return tuple(found.name for found, _ in workloads_of_node(db, node))


A = "spiffe://cluster.local/ns/default/sa/a"


def test_an_identity_has_the_addresses_of_its_running_pods() -> None:
    mesh = Mesh(
        pod("a1", "10.0.0.2", account="a"),
        pod("a2", "10.0.0.10", account="a"),
        pod("pending", "10.0.0.11", account="a", phase="Pending"),
        pod("done", "10.0.0.12", account="a", phase="Succeeded"),
        pod("host", "192.168.0.1", account="a", host_network=True),
        pod("nowhere", "", account="a"),
    )
    assert identities(mesh.db) == (A,)
    assert identity(mesh.db, A) == ("10.0.0.2", "10.0.0.10")


def test_an_unnamed_service_account_is_default() -> None:
    assert identities(Mesh(pod("x", "10.0.0.1")).db) == ("spiffe://cluster.local/ns/default/sa/default",)


def test_the_trust_domain_is_a_setting() -> None:
    mesh = Mesh(pod("x", "10.0.0.1", account="a"), settings=MeshSettings(trust_domain="corp.example"))
    assert identities(mesh.db) == ("spiffe://corp.example/ns/default/sa/a",)


def test_an_address_that_two_identities_claim_has_none() -> None:
    mesh = Mesh(pod("a", "10.0.0.1", account="a"), pod("b", "10.0.0.1", account="b"))
    assert identities(mesh.db) == ()
    assert contested_on_node(mesh.db, "node1") == ("10.0.0.1",)
    assert len(mesh.findings("XB2012")) == 2
    mesh.remove(pod("b", "").id)
    assert identity(mesh.db, A) == ("10.0.0.1",)


def test_a_pod_that_does_not_run_is_seen_where_a_running_one_has_its_identity() -> None:
    waiting = pod("waiting", "10.0.0.1", account="a", phase="Pending")
    alone = Mesh(waiting)
    assert not is_seen_at(alone.db, waiting, "10.0.0.1")
    assert not is_seen_at(Mesh(waiting, pod("b", "10.0.0.1", account="b")).db, waiting, "10.0.0.1")
    assert is_seen_at(Mesh(waiting, pod("a", "10.0.0.1", account="a")).db, waiting, "10.0.0.1")


def test_a_contested_address_is_so_on_every_node_that_has_it_and_leaves_a_pods_others_alone() -> None:
    both = pod("a", "10.0.0.1", account="a", others=("10.0.1.1",))
    waiting = pod("c", "10.0.1.1", account="a", node="node3", phase="Pending")
    mesh = Mesh(both, pod("b", "10.0.1.1", account="b", node="node2"), waiting, pod("d", "10.0.1.2", node="node4"))
    assert [contested_on_node(mesh.db, f"node{number}") for number in range(1, 5)] == [*[("10.0.1.1",)] * 3, ()]
    assert identity(mesh.db, A) == ("10.0.0.1",)


def test_two_pods_of_one_identity_at_one_address_keep_it() -> None:
    mesh = Mesh(pod("a1", "10.0.0.1", account="a"), pod("a2", "10.0.0.1", account="a"))
    assert identity(mesh.db, A) == ("10.0.0.1",)


@pytest.mark.parametrize("phase", ["Running", "Pending", "Unknown"])
def test_a_pod_cannot_take_the_proxys_address(phase: str) -> None:
    """Nor can the proxy then: the pod would be the proxy, which passes every policy."""
    mesh = Mesh(node("node1", proxy="10.0.0.1"), pod("thief", "10.0.0.1", account="a", phase=phase))
    assert identities(mesh.db) == ()
    assert identity(mesh.db, NODE_PROXY) == ()
    assert proxy_address(mesh.db, "node1") == ""
    assert ["Pod/default/thief" in found.message for found in mesh.findings("XB2014")] == [True]
    assert len(mesh.findings("XB2012")) == (1 if phase == "Running" else 0)
    mesh.remove(pod("thief", "").id)
    assert identity(mesh.db, NODE_PROXY) == ("10.0.0.1",)


def test_the_proxy_address_is_annotated_and_never_the_nodes_own_by_default() -> None:
    mesh = Mesh(node("a", "192.168.0.1", proxy="10.0.0.1"), node("b", "192.168.0.2"), node("c"))
    assert [proxy_address(mesh.db, name) for name in "abcd"] == ["10.0.0.1", "", "", ""]
    assert proxy_addresses(mesh.db) == ("10.0.0.1",)
    found = mesh.findings("XB2014")
    assert {(str(entry.object), entry.severity.value) for entry in found} == {
        ("Node/b", "warning"),
        ("Node/c", "warning"),
    }
    assert all("xdsbpf.io/proxy-address" in entry.message + entry.hint for entry in found)


def test_a_proxy_address_that_is_the_nodes_own_is_reported() -> None:
    mesh = Mesh(node("a", "192.168.0.1", proxy="192.168.0.1"))
    assert proxy_address(mesh.db, "a") == "192.168.0.1"
    (found,) = mesh.findings("XB2014")
    assert "host's network" in found.message


def test_an_unusable_proxy_address_is_reported() -> None:
    mesh = Mesh(node("a", "192.168.0.1", proxy="127.0.0.1"))
    assert proxy_address(mesh.db, "a") == ""
    assert [found.path for found in mesh.findings("XB2014")] == ["metadata.annotations[xdsbpf.io/proxy-address]"]


def test_nodes_are_known_from_node_objects_and_from_pods() -> None:
    assert known_nodes(Mesh(node("b"), pod("x", "10.0.0.1", node="a")).db) == ("a", "b")


def test_a_moved_pod_changes_both_nodes() -> None:
    mesh = Mesh(workload("a", "v1", "10.0.0.1", node="n1"))
    mesh.put(workload("a", "v1", "10.0.0.1", node="n2"))
    assert names_on(mesh.db, "n1") == ()
    assert names_on(mesh.db, "n2") == ("a-v1",)


def test_a_pod_that_comes_leaves_other_identities_alone_unless_it_has_their_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mesh = Mesh(pod("a1", "10.0.0.2", account="a"), pod("b1", "10.0.0.3", account="b"))
    mesh.db.watch(identity, A)
    mesh.db.drain()
    ran: list[object] = []
    run = mesh.db._run

    def record(cell: Cell) -> None:
        ran.append(cell.key)
        run(cell)

    monkeypatch.setattr(mesh.db, "_run", record)
    mesh.put(pod("b2", "10.0.0.4", account="b"))
    assert mesh.db.drain() is None
    assert (A,) not in ran
    mesh.put(pod("b3", "10.0.0.2", account="b"))
    revision = mesh.db.drain()
    assert revision is not None
    assert [output.value for output in revision.outputs] == [()]
    assert (A,) in ran
