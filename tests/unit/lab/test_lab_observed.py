"""Workload feedback: what the lab tells the control plane about its pods."""

from __future__ import annotations

from pathlib import Path

import msgspec
from lab_builders import deployment, service

from xdsbpf.lab.observed import endpoint_slices, manifests, publish
from xdsbpf.lab.plan import LabOptions, PodPlan, schedule
from xdsbpf.model.kube import Deployment, Service


def pods(*deployments: Deployment, services: tuple[Service, ...] = ()) -> tuple[PodPlan, ...]:
    return schedule(LabOptions(paths=(Path("x"),), name="xbl"), deployments, (), services).pods


def addresses(slice_: dict[str, object]) -> list[str]:
    endpoints: list[dict[str, list[str]]] = slice_["endpoints"]  # type: ignore[assignment]
    return [endpoint["addresses"][0] for endpoint in endpoints]


def test_a_slice_lists_the_pods_that_the_service_selects_and_no_others() -> None:
    placed = pods(deployment("web", replicas=2, app="web"), deployment("other", app="other"))
    (slice_,) = endpoint_slices(service("web", {"app": "web"}, ((80, "http", 8080),)), placed)
    assert addresses(slice_) == [pod.address for pod in placed if pod.owner == "web"]
    assert slice_["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]
    assert slice_["metadata"]["labels"] == {"kubernetes.io/service-name": "web"}


def test_a_target_port_defaults_to_the_port() -> None:
    (slice_,) = endpoint_slices(
        service("web", {"app": "web"}, ((9080, "http", None),)), pods(deployment("web", app="web"))
    )
    assert slice_["ports"][0]["port"] == 9080


def test_a_named_target_port_gives_one_slice_per_number() -> None:
    placed = pods(
        deployment("old", ports=((8080, "web"),), app="web"),
        deployment("new", ports=((9090, "web"),), app="web"),
    )
    slices = endpoint_slices(service("web", {"app": "web"}, ((80, "http", "web"),)), placed)
    found = {slice_["ports"][0]["port"]: addresses(slice_) for slice_ in slices}
    assert {port: len(list_) for port, list_ in found.items()} == {8080: 1, 9090: 1}
    assert len({slice_["metadata"]["name"] for slice_ in slices}) == 2


def test_a_pod_without_the_named_port_is_in_a_slice_without_it() -> None:
    placed = pods(deployment("web", ports=((1, "other"),), app="web"))
    (slice_,) = endpoint_slices(service("web", {"app": "web"}, ((80, "http", "web"),)), placed)
    assert slice_["ports"] == []


def test_a_service_without_pods_has_an_empty_slice_and_one_without_selector_has_none() -> None:
    placed = pods(deployment("web", app="web"))
    (slice_,) = endpoint_slices(service("gone", {"app": "gone"}, ((80, "http", None),)), placed)
    assert addresses(slice_) == []
    assert endpoint_slices(service("manual", {}, ((80, "http", None),)), placed) == []


def test_pods_of_another_namespace_are_not_selected() -> None:
    placed = pods(deployment("web", app="web", namespace="shop"))
    (slice_,) = endpoint_slices(service("web", {"app": "web"}, ((80, "http", None),)), placed)
    assert addresses(slice_) == []


def test_publishing_the_same_plan_twice_touches_no_file(tmp_path: Path) -> None:
    plan = schedule(LabOptions(paths=(Path("x"),), name="xbl"), (deployment("web", replicas=2, app="web"),), (), ())
    web = service("web", {"app": "web"}, ((80, "http", None),))
    observed, scratch = tmp_path / "observed", tmp_path / "scratch"
    observed.mkdir()
    scratch.mkdir()
    assert publish(observed, scratch, manifests(plan, (web,))) == 5
    before = {path: path.stat().st_ino for path in observed.iterdir()}
    assert publish(observed, scratch, manifests(plan, (web,))) == 0
    assert {path: path.stat().st_ino for path in observed.iterdir()} == before
    assert list(scratch.iterdir()) == []


def test_a_pod_that_is_gone_loses_its_file_and_a_changed_slice_is_replaced(tmp_path: Path) -> None:
    observed, scratch = tmp_path / "observed", tmp_path / "scratch"
    observed.mkdir()
    scratch.mkdir()
    web = service("web", {"app": "web"}, ((80, "http", None),))
    for count in (3, 1):
        options = LabOptions(paths=(Path("x"),), name="xbl")
        plan = schedule(options, (deployment("web", replicas=count, app="web"),), (), ())
        publish(observed, scratch, manifests(plan, (web,)))
    assert len(list(observed.glob("pod-*"))) == 1
    (file,) = observed.glob("endpointslice-*")
    assert len(msgspec.json.decode(file.read_bytes())["endpoints"]) == 1
