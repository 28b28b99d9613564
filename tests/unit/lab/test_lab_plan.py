"""The scheduler: from Deployments to placed, named and addressed pods."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from lab_builders import deployment, service

from xdsbpf.errors import ConfigError
from xdsbpf.lab.plan import LabOptions, LabPlan, check_name, schedule
from xdsbpf.model.kube import Deployment, Pod, PodSpec, Service
from xdsbpf.model.meta import ObjectMeta


def plan(
    *deployments: Deployment,
    services: tuple[Service, ...] = (),
    pods: tuple[Pod, ...] = (),
    nodes: int = 2,
    replicas: tuple[tuple[str, int], ...] = (),
) -> LabPlan:
    options = LabOptions(paths=(Path("x"),), name="xbl", nodes=nodes, replicas=replicas)
    return schedule(options, deployments, pods, services)


def test_replicas_of_one_deployment_are_spread_over_the_nodes() -> None:
    placed = plan(deployment("web", replicas=4), nodes=2).pods
    assert Counter(pod.node for pod in placed) == {"node1": 2, "node2": 2}
    assert [pod.address for pod in placed] == ["10.88.1.2", "10.88.2.2", "10.88.1.3", "10.88.2.3"]


def test_a_plan_does_not_depend_on_the_order_of_the_files() -> None:
    a, b = deployment("a", replicas=2), deployment("b", replicas=3)
    assert plan(a, b) == plan(b, a)


def test_names_uids_and_addresses_of_pods_are_unique() -> None:
    pods = plan(deployment("a", replicas=3), deployment("a", replicas=3, namespace="other"), nodes=3).pods
    for field in ("name", "uid", "address", "netns"):
        assert len({getattr(pod, field) for pod in pods}) == 6, field


def test_replicas_are_overridden_by_deployment_name_or_app_label() -> None:
    details = deployment("details-v1", app="details", version="v1")
    assert len(plan(details, replicas=(("details", 3),)).pods) == 3
    assert len(plan(details, replicas=(("details-v1", 4),)).pods) == 4
    assert len(plan(details).pods) == 1


def test_an_unknown_name_in_replicas_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        plan(deployment("details-v1", app="details"), replicas=(("detials", 2),))
    assert "details, details-v1" in error.value.hint


def test_manifests_without_anything_to_run_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to run"):
        plan(deployment("web", replicas=0))


def test_a_pod_manifest_without_an_address_is_run_and_one_with_an_address_is_not() -> None:
    written = Pod(metadata=ObjectMeta(name="solo", namespace="default"), spec=PodSpec())
    assert [pod.name for pod in plan(pods=(written,)).pods] == ["solo"]


def test_a_pod_takes_the_default_service_account_if_it_names_none() -> None:
    (pod,) = plan(deployment("web")).pods
    assert pod.service_account == "default"


def test_a_pod_on_the_host_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="hostNetwork"):
        plan(deployment("agent", host_network=True))


def test_more_pods_than_a_node_has_addresses_for_are_refused() -> None:
    assert len(plan(deployment("web", replicas=253), nodes=1).pods) == 253
    with pytest.raises(ConfigError, match="more than 253 pods"):
        plan(deployment("web", replicas=254), nodes=1)


def test_a_stand_in_listens_on_container_ports_and_on_undeclared_target_ports() -> None:
    web = deployment("web", ports=((8080, ""),), app="web")
    services = (service("web", {"app": "web"}, ((80, "http", 8080), (81, "http-b", 8081))),)
    (pod,) = plan(web, services=services).pods
    assert [port.number for port in pod.ports] == [8080, 8081]


def test_a_port_is_server_first_if_its_own_or_its_services_name_says_tcp() -> None:
    echo = deployment("echo", ports=((9000, ""), (9001, "tcp-raw"), (9002, "")), app="echo")
    services = (service("echo", {"app": "echo"}, ((9000, "tcp-echo", None), (9002, "http", None))),)
    (pod,) = plan(echo, services=services).pods
    assert {port.number: port.server_first for port in pod.ports} == {9000: True, 9001: True, 9002: False}


@pytest.mark.parametrize("name", ["", "Xb", "x-b", "1x", "x" * 21, "x/b", "x b"])
def test_a_name_that_could_clash_or_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        check_name(name)
