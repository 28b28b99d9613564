"""A whole lab: control plane, agents and real Envoys come up, carry traffic, survive faults, and leave nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from xdsbpf.errors import ConfigError
from xdsbpf.lab.bringup import down, up
from xdsbpf.lab.lab import Lab
from xdsbpf.lab.plan import LabOptions
from xdsbpf.lab.processes import LabError, wait_for

pytestmark = [pytest.mark.root, pytest.mark.envoy]

NAME = f"xblm{os.getpid()}"
MANIFESTS = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, version: v1}}
    spec: {containers: [{name: web, ports: [{containerPort: 8080}]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec: {containers: [{name: client}]}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    file = tmp_path_factory.mktemp("manifests") / "web.yaml"
    file.write_text(MANIFESTS)
    try:
        yield up(LabOptions(name=NAME, paths=(file,)))
    finally:
        down(NAME)


def cgroup_ids(lab: Lab) -> set[int]:
    """Ids of the lab's cgroups: their inode numbers."""
    return {path.stat().st_ino for path in lab.layout.cgroup.rglob("*") if path.is_dir()}


def links_on(cgroups: set[int]) -> list[int]:
    """Ids of the BPF links that are attached to these cgroups."""
    result = subprocess.run(["bpftool", "-j", "link"], capture_output=True, text=True, check=True)
    return [link["id"] for link in json.loads(result.stdout) if link.get("cgroup_id") in cgroups]


def test_a_service_name_leads_to_its_virtual_address_and_the_kernel_spreads_over_the_pods(lab: Lab) -> None:
    hosts = lab.run("client", ("cat", "/etc/hosts")).stdout
    assert any(line.startswith("240.240.") and line.endswith(" web") for line in hosts.splitlines())
    answer = lab.client("client", "get", "http://web/", "-n", "200")
    assert answer["errors"] == {}
    assert {entry["pod"] for entry in answer["by"]} == {p.name for p in lab.plan.pods if p.owner == "web"}


def test_the_status_lists_every_process_of_the_mesh(lab: Lab) -> None:
    status = lab.status()
    assert status.ready
    assert [process.role for process in status.processes] == [
        "agent/node1", "agent/node2", "control-plane", "envoy/node1", "envoy/node2",
    ]  # fmt: skip
    assert all(process.alive for process in status.processes)


def test_a_killed_control_plane_is_seen_and_can_be_started_again(lab: Lab) -> None:
    lab.kill("control-plane", signal.SIGKILL)
    wait_for(lambda: "control-plane" in dead(lab), 5, "the control plane to be dead")
    assert lab.client("client", "get", "http://web/", "-n", "20")["errors"] == {}
    lab.restart("control-plane")
    assert dead(lab) == set()


def test_a_killed_envoy_is_started_again_by_its_agent_and_not_by_the_lab(lab: Lab) -> None:
    killed = lab.kill("envoy/node1", signal.SIGKILL)

    def back() -> bool:
        return any(p.role == "envoy/node1" and p.alive and p.pid != killed for p in lab.status().processes)

    wait_for(back, 20, "another Envoy")
    with pytest.raises(ConfigError, match="does not start envoy/node1"):
        lab.restart("envoy/node1")


def dead(lab: Lab) -> set[str]:
    return {process.role for process in lab.status().processes if not process.alive}


def test_an_envoy_that_cannot_start_fails_the_bring_up_with_a_reason_and_leaves_nothing(lab: Lab) -> None:
    paths = tuple(Path(path) for path in lab.paths)
    with pytest.raises(LabError) as error:
        up(LabOptions(name=f"{NAME}b", paths=paths, envoy_binary=Path("/bin/false")), ready_timeout=8)
    assert "agent/node1" in str(error.value)
    assert "Envoy" in error.value.hint or "Envoy" in str(error.value)
    assert down(f"{NAME}b") is False


def test_down_removes_pins_and_links_as_well(lab: Lab) -> None:
    cgroups = cgroup_ids(lab)
    assert lab.layout.pins.is_mount()
    assert any(lab.layout.pins.rglob("*"))
    assert links_on(cgroups)
    assert down(NAME) is True
    wait_for(lambda: links_on(cgroups) == [], 10, "the kernel to free the links")
    assert str(lab.layout.pins) not in Path("/proc/self/mounts").read_text()
    assert not lab.layout.state.exists()
