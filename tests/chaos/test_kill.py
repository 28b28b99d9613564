"""kill -9 of each process under traffic: L4 loses nothing, L7 comes back, the denied stay denied.

One lab for the whole file: two nodes, real Envoys, the examples' Bookinfo. Every fault runs with
three witnesses: a load on the kernel service from the allowed pod (the control), probes every few
milliseconds from the denied pod, and a load through Envoy.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from xdsbpf.lab.bringup import down, up
from xdsbpf.lab.lab import Lab
from xdsbpf.lab.measure import wait_until, xdsbpf_json
from xdsbpf.lab.plan import LabOptions

pytestmark = [pytest.mark.root, pytest.mark.envoy, pytest.mark.timeout(240)]

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples" / "bookinfo"
NAME = f"xbchaos{os.getpid()}"
REVIEWS = "http://reviews:9080/reviews/0"
MINIMUM_PROBES = 200


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manifests")
    for file in EXAMPLES.glob("*.yaml"):
        shutil.copy(file, directory)
    return directory


@pytest.fixture(scope="module")
def lab(manifests: Path) -> Iterator[Lab]:
    down(NAME)
    try:
        yield up(LabOptions(name=NAME, paths=(manifests,), nodes=2, replicas=(("details", 2),)), progress=None)
    finally:
        down(NAME)


@dataclass(frozen=True)
class Witnesses:
    """What the three clients saw while the fault happened."""

    allowed: dict[str, Any]
    denied: dict[str, Any]
    through_envoy: dict[str, Any]

    def broken_promises(self, *, envoy_survives: bool) -> list[str]:
        """Sentences about what must not have happened; empty if all is well."""
        promises = []
        connected = self.allowed["outcomes"].get("connected", 0)
        total = sum(self.allowed["outcomes"].values())
        if connected < MINIMUM_PROBES:
            promises.append(f"the control connected only {connected} times")
        if connected != total:
            promises.append(f"L4 lost {total - connected} of {total} connections: {self.allowed['outcomes']}")
        if sum(self.denied["outcomes"].values()) < MINIMUM_PROBES:
            promises.append("too few probes of the denied pair")
        if self.denied["outcomes"].get("connected", 0):
            promises.append(f"the denied pair connected: {self.denied['outcomes']}")
        if envoy_survives and failed(self.through_envoy):
            promises.append(
                f"{failed(self.through_envoy)} requests through Envoy failed: {self.through_envoy['errors']}"
            )
        return promises


def failed(answer: dict[str, Any]) -> int:
    return sum(answer["errors"].values()) + sum(e["count"] for e in answer["by"] if e["status"] != 200)


class Traffic:
    """The three clients, running until `stop`."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._stop = directory / "stop"
        until = ["--seconds", "60", "--stop-file", str(self._stop)]
        self._clients = [
            lab.start_client("client-allowed", "probe", "details:9080", "--interval-ms", "5", *until),
            lab.start_client("client-denied", "probe", "details:9080", "--interval-ms", "5", *until),
            lab.start_client("client-allowed", "load", REVIEWS, "-c", "2", *until),
        ]

    def stop(self) -> Witnesses:
        self._stop.touch()
        answers = [json.loads(client.communicate(timeout=30)[0]) for client in self._clients]
        return Witnesses(*answers)

    def kill(self) -> None:
        for client in self._clients:
            if client.poll() is None:
                client.kill()
                client.wait()


@pytest.fixture
def traffic(lab: Lab, tmp_path: Path) -> Iterator[Traffic]:
    running = Traffic(lab, tmp_path)
    try:
        yield running
    finally:
        running.kill()


def in_sync(lab: Lab) -> bool:
    """Every agent and Envoy is connected again and has ACKed what it asked for."""
    items = xdsbpf_json(lab, "ps")["items"]
    states = {entry["state"] for item in items for entry in item["types"]}
    return len(items) == 2 * len(lab.node_names) and states == {"SYNCED"}


def l7_works(lab: Lab) -> bool:
    try:
        answer = lab.client("client-allowed", "get", REVIEWS, "-n", "20", timeout=15)
    except subprocess.TimeoutExpired:
        return False
    return failed(answer) == 0


def enough_traffic(lab: Lab) -> None:
    """Let each witness see at least as much after the fault as the minimum asks for."""
    for _ in range(3):
        lab.client("client-allowed", "probe", "details:9080", "-n", str(MINIMUM_PROBES), "--interval-ms", "5")


@pytest.mark.parametrize("victim", ["control-plane", "agent/node1", "agent/node2"])
def test_killing_a_control_process_disturbs_no_traffic(lab: Lab, traffic: Traffic, victim: str) -> None:
    enough_traffic(lab)
    lab.kill(victim, signal.SIGKILL)
    enough_traffic(lab)
    lab.restart(victim)
    wait_until(lambda: in_sync(lab), 30, f"{victim} to be in sync again")
    enough_traffic(lab)
    assert traffic.stop().broken_promises(envoy_survives=True) == []


def test_killing_envoy_leaves_the_kernel_plane_alone_and_heals_by_itself(lab: Lab, traffic: Traffic) -> None:
    enough_traffic(lab)
    node = lab.pod("client-allowed").node
    lab.kill(f"envoy/{node}", signal.SIGKILL)
    enough_traffic(lab)
    wait_until(lambda: l7_works(lab), 30, "requests through Envoy")
    witnesses = traffic.stop()
    assert witnesses.broken_promises(envoy_survives=False) == []
    assert sum(entry["count"] for entry in witnesses.through_envoy["by"] if entry["status"] == 200) > 0


def test_the_witnesses_notice_when_the_policy_is_taken_away(lab: Lab, traffic: Traffic, manifests: Path) -> None:
    """Mutation of the checks above: without enforcement they must fail."""
    policy = manifests / "details-policy.yaml"
    text = policy.read_text()
    policy.unlink()
    try:
        probe = ("client-denied", "probe", "details:9080", "-n", "20")
        wait_until(lambda: lab.client(*probe)["outcomes"].get("connected", 0) == 20, 20, "the policy's removal")
        enough_traffic(lab)
        broken = traffic.stop().broken_promises(envoy_survives=True)
    finally:
        policy.write_text(text)
    assert any("the denied pair connected" in promise for promise in broken)
    wait_until(lambda: lab.client(*probe)["outcomes"].get("EPERM", 0) == 20, 20, "the policy in force again")
