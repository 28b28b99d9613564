"""A bare lab (network and pods, no mesh) on this machine: what it provides, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xdsbpf.errors import ConfigError
from xdsbpf.lab import bringup, cgroups, network
from xdsbpf.lab.bringup import down, up
from xdsbpf.lab.lab import Lab
from xdsbpf.lab.layout import STATE_ROOT, Layout, cgroup2_mount
from xdsbpf.lab.plan import LabOptions
from xdsbpf.lab.processes import LabError, wait_for
from xdsbpf.lab.state import read_record

pytestmark = pytest.mark.root

NAME = f"xbl{os.getpid()}"
OTHER = f"xblo{os.getpid()}"
MANIFESTS = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  selector: {app: db}
  ports: [{name: tcp-db, port: 5432}]
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
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: db, ports: [{containerPort: 5432}]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec: {serviceAccountName: visitor, containers: [{name: client}]}
"""
VIRTUAL = "240.240.0.10"
LINKS = ("up0", "pod", "node")


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("manifests") / "web.yaml"
    file.write_text(MANIFESTS)
    return file


@pytest.fixture(scope="module")
def lab(manifests: Path) -> Iterator[Lab]:
    """One lab for the tests that only use it."""
    try:
        yield up(LabOptions(name=NAME, paths=(manifests,), bare=True))
    finally:
        down(NAME)


@pytest.fixture
def other(manifests: Path) -> Iterator[LabOptions]:
    """Options of a lab that the test itself brings up; removed whatever happens."""
    try:
        yield LabOptions(name=OTHER, paths=(manifests,), bare=True)
    finally:
        down(OTHER)


def traces(name: str) -> dict[str, list[str]]:
    """Everything on this machine that a lab of that name could have made."""
    prefix = str(STATE_ROOT / name)
    processes = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"xdsbpf-{name}/" in command or f"{prefix}/" in command:
            processes.append(command)
    routes = subprocess.run(["ip", "route", "show", "table", "all"], capture_output=True, text=True, check=True)
    links = subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True)
    return {
        "processes": processes,
        "namespaces": [path.name for path in Path("/run/netns").glob(f"{name}-*")],
        "cgroups": [str(path) for path in cgroup2_mount().glob(f"*{name}*")],
        "files": [str(path) for path in STATE_ROOT.glob(f"{name}*")],
        "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if prefix in line],
        "routes": [line for line in routes.stdout.splitlines() if "240.240." in line or "10.88." in line],
        "links": [name for link in json.loads(links.stdout) if (name := link["ifname"]).startswith(LINKS)],
    }


def web_pods(lab: Lab) -> list[str]:
    return [pod.address for pod in lab.plan.pods if pod.owner == "web"]


def test_a_pod_reaches_pods_of_its_own_and_of_other_nodes(lab: Lab) -> None:
    assert {pod.node for pod in lab.plan.pods if pod.owner == "web"} == {"node1", "node2"}
    for address in web_pods(lab):
        answer = lab.client("client", "get", f"http://{address}:8080/", "-n", "5")
        assert answer["errors"] == {}
        (entry,) = answer["by"]
        assert (entry["status"], entry["service"], entry["count"]) == (200, "web", 5)


def test_the_destination_sees_the_address_of_the_client_pod(lab: Lab) -> None:
    program = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
    result = lab.run("client", (sys.executable, "-c", program, f"http://{web_pods(lab)[1]}:8080/"))
    assert json.loads(result.stdout)["peer"].partition(":")[0] == lab.pod("client").address


def test_a_virtual_address_leads_nowhere_while_a_pod_answers(lab: Lab) -> None:
    control = lab.client("client", "probe", f"{web_pods(lab)[1]}:8080", "-n", "10")
    virtual = lab.client("client", "probe", f"{VIRTUAL}:80", "-n", "10", "--timeout", "0.5")
    assert control["outcomes"] == {"connected": 10}
    assert virtual["outcomes"] == {"TIMEOUT": 10}


def test_nothing_outside_the_lab_is_reached_and_no_namespace_has_a_route_there(lab: Lab) -> None:
    outside = lab.client("client", "probe", "192.0.2.1:80", "-n", "3", "--timeout", "0.5")
    assert "connected" not in outside["outcomes"]
    for netns in (lab.plan.fabric, *(node.netns for node in lab.plan.nodes)):
        routes = subprocess.run(["ip", "-n", netns, "route"], capture_output=True, text=True, check=True)
        assert f"blackhole {lab.plan.service_cidr}" in routes.stdout
        assert "default" not in routes.stdout
    inet6 = subprocess.run(["ip", "-n", lab.pod("client").netns, "-6", "addr"], capture_output=True, text=True)
    assert inet6.stdout == ""


def test_a_server_first_port_greets_and_echoes(lab: Lab) -> None:
    answer = lab.client("client", "tcp", f"{lab.pod('db').address}:5432")
    assert answer["greeting"] == f"db {lab.pod('db').name}"
    assert (answer["echoed"], answer["error"]) == (1000, "")


def test_a_command_runs_in_the_pods_cgroup_and_with_its_hosts_file(lab: Lab) -> None:
    pod = lab.pod("client")
    cgroup = lab.run("client", ("grep", "^0::", "/proc/self/cgroup")).stdout.strip()
    assert cgroup == f"0::/xdsbpf-{NAME}/{pod.node}/pods/pod{pod.uid}"
    hosts = lab.run("client", ("cat", "/etc/hosts")).stdout
    assert f"{web_pods(lab)[0]} web.default.svc.cluster.local web.default.svc web.default web" in hosts
    assert "web.default" not in Path("/etc/hosts").read_text()


def test_the_status_shows_a_killed_pod_and_its_restart(lab: Lab) -> None:
    name = lab.pod("db").name

    def ready() -> bool:
        return next(pod for pod in lab.status().pods if pod.name == name).ready

    assert ready()
    lab.kill(f"pod/{name}", signal.SIGKILL)
    wait_for(lambda: not ready(), 5, "the pod to be gone")
    lab.restart(f"pod/{name}")
    assert ready()


def test_the_observed_manifests_can_be_read_back(lab: Lab) -> None:
    from xdsbpf.sources.loading import load_once

    catalog = load_once([str(lab.layout.observed)])
    kinds = [object_id.kind for object_id in catalog.manifests()]
    assert catalog.diagnostics() == ()
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"Node": 2, "Pod": 4, "EndpointSlice": 2}


def test_a_second_lab_of_the_same_name_is_refused_and_the_first_is_untouched(lab: Lab, manifests: Path) -> None:
    with pytest.raises(ConfigError, match="already a lab") as error:
        up(LabOptions(name=NAME, paths=(manifests,), bare=True))
    assert f"lab down --name {NAME}" in error.value.hint
    assert all(pod.ready for pod in lab.status().pods)


def test_down_leaves_nothing_behind(other: LabOptions) -> None:
    before = traces(OTHER)
    up(other)
    during = traces(OTHER)
    for kind in ("processes", "namespaces", "cgroups", "files"):
        assert during[kind], f"the check cannot see {kind}"
    assert down(OTHER) is True
    assert traces(OTHER) == before
    assert down(OTHER) is False


def test_down_also_ends_what_runs_in_a_pod(other: LabOptions) -> None:
    lab = up(other)
    shell = lab.start_client("client", "probe", f"{lab.pod('db').address}:5432")
    cgroup = lab.layout.pod_cgroup(lab.pod("client"))
    wait_for(lambda: shell.pid in cgroups.members(cgroup), 10, "the client to join its cgroup")
    down(OTHER)
    shell.communicate(timeout=10)
    assert shell.returncode == -signal.SIGKILL
    assert traces(OTHER)["processes"] == []


def test_down_wins_against_commands_that_are_just_starting(other: LabOptions) -> None:
    lab = up(other)
    shells = [lab.start_client("client", "probe", f"{lab.pod('db').address}:5432") for _ in range(8)]
    down(OTHER)
    for shell in shells:
        shell.communicate(timeout=10)
    assert all(shell.returncode != 0 for shell in shells)
    left = traces(OTHER)
    assert [left[kind] for kind in ("processes", "namespaces", "cgroups", "files")] == [[], [], [], []]


@pytest.mark.parametrize("step", ["cgroups", "network", "pods"])
def test_an_up_that_fails_cleans_up_after_itself(other: LabOptions, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LabError("on purpose")

    before = traces(OTHER)
    module = {"cgroups": cgroups, "network": network, "pods": Lab}[step]
    monkeypatch.setattr(module, "wait_ready" if step == "pods" else "build", fail)
    with pytest.raises(LabError, match="on purpose"):
        up(other)
    assert traces(OTHER) == before


def test_a_pod_that_cannot_start_is_reported_with_its_own_words(
    other: LabOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringup, "stand_in_config", lambda *_: b'{"no": "config"}')
    with pytest.raises(LabError, match="missing required field"):
        up(other)
    assert traces(OTHER)["namespaces"] == []


def test_what_a_crash_left_is_removed_even_without_the_record(other: LabOptions) -> None:
    lab = up(other)
    lab.layout.record.unlink()
    assert read_record(Layout(OTHER)) is None
    assert down(OTHER) is True
    left = traces(OTHER)
    assert [left[kind] for kind in ("processes", "namespaces", "cgroups", "files")] == [[], [], [], []]


def test_an_up_that_is_killed_half_way_is_removed_by_down(other: LabOptions, manifests: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from xdsbpf.lab import network, bringup;"
        "from xdsbpf.lab.plan import LabOptions; build = network.build;"
        "network.build = lambda plan: (build(plan), os.kill(os.getpid(), signal.SIGKILL));"
        "bringup.up(LabOptions(name=sys.argv[1], paths=(Path(sys.argv[2]),), bare=True))"
    )
    result = subprocess.run([sys.executable, "-c", program, OTHER, str(manifests)], timeout=60)
    assert result.returncode == -signal.SIGKILL
    assert traces(OTHER)["namespaces"]
    assert down(OTHER) is True
    left = traces(OTHER)
    assert [left[kind] for kind in ("processes", "namespaces", "cgroups", "files")] == [[], [], [], []]
