"""Endpoints: readiness, the join with pods, refused addresses, and what a change recomputes."""

from __future__ import annotations

from tests.builders import (
    Mesh,
    bookinfo,
    destination_rule,
    endpoint,
    endpoint_slice,
    host,
    pod,
    service,
    subset,
    workload,
)
from xdsbpf.mesh.endpoints import endpoint_set, endpoints, subset_endpoints
from xdsbpf.model.kube import ServicePort


def addresses(mesh: Mesh, name: str, subset: str = "", port: int = 9080) -> list[str]:
    return [entry.address for entry in subset_endpoints(mesh.db, host(name), port, subset)]


def test_an_endpoint_has_the_labels_and_namespace_of_its_pod() -> None:
    (first, *_) = endpoints(Mesh(*bookinfo()).db, host("reviews"), 9080)
    assert first.namespace == "default"
    assert first.labels == (("app", "reviews"), ("version", "v1"))


def test_endpoints_are_sorted_by_address_as_a_number() -> None:
    mesh = Mesh(service("a"), endpoint_slice("a", *(endpoint(f"10.0.0.{n}") for n in (10, 9, 100))))
    assert addresses(mesh, "a") == ["10.0.0.9", "10.0.0.10", "10.0.0.100"]


def test_unready_and_terminating_endpoints_are_left_out() -> None:
    mesh = Mesh(
        service("a"),
        endpoint_slice(
            "a",
            endpoint("10.0.0.1"),
            endpoint("10.0.0.2", ready=True),
            endpoint("10.0.0.3", ready=False),
            endpoint("10.0.0.4", ready=True, terminating=True),
        ),
    )
    assert addresses(mesh, "a") == ["10.0.0.1", "10.0.0.2"]


def test_refused_addresses_are_reported_with_their_place() -> None:
    mesh = Mesh(service("a"), endpoint_slice("a", endpoint("10.0.0.1"), endpoint("169.254.169.254")))
    assert addresses(mesh, "a") == ["10.0.0.1"]
    (found,) = mesh.findings("XB2010")
    assert found.path == "endpoints[1].addresses[0]"
    assert "metadata" in found.message


def test_the_slice_port_is_found_by_name() -> None:
    mesh = Mesh(
        service("a", ServicePort(80, "http", target_port="web"), ServicePort(90, "tcp-x")),
        endpoint_slice("a", endpoint("10.0.0.1"), ports=(("http", 8080), ("tcp-x", 9090))),
    )
    assert [entry.port for entry in endpoints(mesh.db, host("a"), 80)] == [8080]
    assert [entry.port for entry in endpoints(mesh.db, host("a"), 90)] == [9090]
    assert endpoints(mesh.db, host("a"), 91) == ()


def test_the_same_endpoint_in_two_slices_counts_once() -> None:
    mesh = Mesh(
        service("a"), endpoint_slice("a", endpoint("10.0.0.1")), endpoint_slice("a", endpoint("10.0.0.1"), name="a-2")
    )
    assert addresses(mesh, "a") == ["10.0.0.1"]


def test_a_slice_cannot_lend_a_pods_labels_to_another_address() -> None:
    mesh = Mesh(
        service("a"),
        workload("a", "v1", "10.0.0.1"),
        endpoint_slice("a", endpoint("10.0.0.1", "a-v1"), endpoint("10.0.0.66", "a-v1")),
    )
    honest, liar = endpoints(mesh.db, host("a"), 9080)
    assert honest.labels
    assert (liar.labels, liar.namespace) == ((), "")
    assert [found.path for found in mesh.findings("XB2011")] == ["endpoints[1].targetRef"]


def test_without_a_target_the_pod_is_found_by_address() -> None:
    mesh = Mesh(service("a"), workload("a", "v1", "10.0.0.1"), endpoint_slice("a", endpoint("10.0.0.1")))
    assert endpoints(mesh.db, host("a"), 9080)[0].labels == (("app", "a"), ("version", "v1"))


def test_subsets_select_by_labels_and_an_unknown_subset_has_no_endpoints() -> None:
    mesh = Mesh(*bookinfo(), destination_rule("reviews", "reviews", subset("v2"), subset("all", app="reviews")))
    assert addresses(mesh, "reviews", "v2") == ["10.10.2.22"]
    assert len(addresses(mesh, "reviews", "all")) == 3
    assert len(addresses(mesh, "reviews", "")) == 3
    assert addresses(mesh, "reviews", "v9") == []


def test_a_subset_without_endpoints_is_reported() -> None:
    mesh = Mesh(*bookinfo(), destination_rule("reviews", "reviews", subset("v2"), subset("v9")))
    (found,) = mesh.findings("XB2025")
    assert found.path == "spec.subsets[1].labels"


def test_a_changed_slice_recomputes_its_own_service_only() -> None:
    mesh = Mesh(*bookinfo())
    for name in ("reviews", "ratings", "details", "productpage"):
        mesh.db.watch(endpoint_set, host(name), 9080)
    mesh.db.drain()
    before = mesh.db.runs
    mesh.put(endpoint_slice("ratings", endpoint("10.10.2.99")))
    revision = mesh.db.drain()
    assert revision is not None
    assert [output.args for output in revision.outputs] == [(host("ratings"), 9080)]
    assert mesh.db.runs - before == 1


def test_the_origins_of_endpoints_are_the_slice_the_service_and_the_pods() -> None:
    mesh = Mesh(*bookinfo())
    assert mesh.origins(endpoint_set, host("ratings"), 9080) == {
        "EndpointSlice/default/ratings-1 endpoints[0]",
        "Pod/default/ratings-v1",
        "Service/default/ratings spec",
    }


def test_a_finished_pod_does_not_name_an_address_that_another_pod_has_now() -> None:
    mesh = Mesh(
        service("a"),
        pod("old", "10.0.0.1", phase="Succeeded", labels={"app": "old"}),
        pod("new", "10.0.0.1", labels={"app": "a"}),
        endpoint_slice("a", endpoint("10.0.0.1")),
    )
    assert endpoints(mesh.db, host("a"), 9080)[0].labels == (("app", "a"),)
