"""The agent process on a real kernel: what clients in pods see when it starts, dies, and comes back."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.nodelab import ROOT_CGROUP, Place, attempt, wait_until
from tests.node import agentlab
from tests.node.agentlab import CGROUP, L7_VIP, NODE_NETNS, PIN_ROOT, PORT, ROOT, VIP, AgentLab, pod_address
from xdsbpf.agent import enrolment
from xdsbpf.agent.desired import Workload
from xdsbpf.datapath.address import address16
from xdsbpf.datapath.loader import open_datapath
from xdsbpf.model import names

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    subprocess.run(["make", "-s", "-C", str(ROOT / "bpf")], check=True, capture_output=True)


@pytest.fixture
def lab() -> Iterator[AgentLab]:
    lab = AgentLab()
    try:
        lab.open()
        for number in (1, 2, 3, 4):
            lab.add_pod(number)
        lab.start_feed()
        lab.change(
            agentlab.node_config(1, 2, 3, 4),
            *agentlab.identities(1, 2, 3, 4),
            agentlab.allow_only(1, (3, 4)),
            *agentlab.service(3, 4),
        )
        yield lab
    finally:
        lab.close()


def ready(status: Any) -> bool:
    return bool(status.synced and not status.not_enrolled)


def prober(address: str, port: int, stop: Path, pause: float = 0.0) -> Callable[[Callable[[Any], None]], None]:
    """Connects again and again, `pause` seconds apart, until `stop` exists, then reports outcomes by name."""

    def run(started: Callable[[Any], None]) -> None:
        results: Counter[str] = Counter()
        report = stop.with_suffix(".result")
        started(True)
        while not stop.exists():
            results[attempt(address, port)] += 1
            time.sleep(pause)
        report.write_text(repr(dict(results)))

    return run


def outcomes(stop: Path) -> dict[str, int]:
    report = stop.with_suffix(".result")
    wait_until(report.exists, "the prober reports")
    wait_until(lambda: report.read_text().endswith("}"), "the report is complete")
    result: dict[str, int] = eval(report.read_text())
    return result


def test_pods_reach_the_service_as_policy_says(lab: AgentLab) -> None:
    lab.start_agent()
    lab.wait(ready, "synced")

    assert lab.pods[1].run(lambda: {attempt(VIP, 80) for _ in range(40)}) == {"pod3", "pod4"}
    assert lab.pods[2].run(lambda: {attempt(VIP, 80) for _ in range(5)}) == {"EPERM"}
    assert lab.pods[1].run(lambda: attempt(pod_address(3), PORT)) == "pod3"
    assert lab.pods[2].run(lambda: attempt(pod_address(3), PORT)) in ("EPERM", "TIMEOUT")
    assert lab.pods[2].run(lambda: attempt(pod_address(1), PORT)) == "pod1"

    tables = lab.tables()
    assert [(row.address, row.plane, row.backends) for row in tables.frontends] == [(VIP, "L4", 2)]
    assert {row.address for row in tables.backends} == {pod_address(3), pod_address(4)}
    assert {(row.source, row.verdict) for row in tables.policies} == {
        (agentlab.identity(1), "ALLOW"),
        ("any", "DENY"),
    }
    assert lab.status().enrolled == [f"default/pod{number}" for number in (1, 2, 3, 4)]
    assert all(state[0] == "SYNCED" for state in lab.acked().values()), lab.acked()
    assert oct((lab.state / "agent" / "agent.sock").stat().st_mode)[-3:] == "600"


def test_endpoints_and_policy_change_without_a_restart(lab: AgentLab) -> None:
    lab.start_agent()
    lab.wait(ready, "synced")
    lab.change(*agentlab.service(4), agentlab.allow_only(2, (3, 4)))
    wait_until(lambda: lab.pods[2].run(lambda: attempt(VIP, 80)) == "pod4", "pod 2 is allowed now")
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) == "EPERM"
    assert lab.pods[2].run(lambda: {attempt(VIP, 80) for _ in range(20)}) == {"pod4"}

    lab.change(remove=((names.FRONTEND, f"{VIP}:80/tcp"), (names.POLICY, "default/only")))
    wait_until(lambda: lab.pods[1].run(lambda: attempt(pod_address(3), PORT)) == "pod3", "no policy any more")
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) not in ("pod3", "pod4")
    assert not lab.tables().frontends


def test_a_bad_resource_is_refused_by_name_and_its_last_version_stays(lab: AgentLab) -> None:
    lab.start_agent()
    lab.wait(ready, "synced")
    kind, name, policy = agentlab.allow_only(1, (3, 4))
    del policy.entries[0]  # type: ignore[attr-defined]
    policy.entries[0].ClearField("source")  # type: ignore[attr-defined]
    lab.change((kind, name, policy), *agentlab.service(3))
    wait_until(lambda: "default/only" in lab.acked()["Policy"][2], "NACK that names the policy")
    wait_until(lambda: len(lab.tables().backends) == 1, "the other change is in force")
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) == "pod3"
    assert lab.pods[2].run(lambda: attempt(VIP, 80)) == "EPERM"
    assert any("default/only" in problem.subject for problem in lab.status().problems)


def change_the_policies_twelve_times(lab: AgentLab) -> dict[str, dict[str, int]]:
    """Outcomes by client (pod 1 may, pod 2 may not) and plane, while the guarding policy changes its name.

    The frontend that names the new policy comes when 20 more connections have been tried.
    """
    names_of = ("default/only", "default/more+default/only")
    lab.start_proxy()
    lab.change(agentlab.redirected(names_of[0]))
    lab.start_agent()
    lab.wait(ready, "synced")
    clients = {
        f"pod{pod} {plane}": (pod, address) for pod in (1, 2) for plane, address in (("L4", VIP), ("L7", L7_VIP))
    }
    stops = {name: lab.state / f"stop {name}" for name in clients}
    for name, (pod, address) in clients.items():
        lab.start(lab.pods[pod], prober(address, 80, stops[name], 0.005))
    between: Counter[str] = Counter()
    for old, new in itertools.islice(itertools.pairwise(itertools.cycle(names_of)), 12):
        lab.change(agentlab.allow_only(1, (3, 4), new), remove=((names.POLICY, old),))
        wait_until(lambda new=new: guards(lab) == {new}, "the pods are guarded by the other policy")
        between.update(lab.pods[1].run(lambda: [attempt(L7_VIP, 80) for _ in range(20)]))
        lab.change(agentlab.redirected(new))
    wait_until(lambda: {row.policy for row in lab.tables().policies} == {new}, "the other policy has rested")
    for stop in stops.values():
        stop.touch()
    return {"between": dict(between)} | {name: outcomes(stop) for name, stop in stops.items()}


def guards(lab: AgentLab) -> set[str]:
    """Policies that guard an address."""
    return {row.policy for row in lab.tables().identities if row.policy}


def test_twelve_changes_of_the_policies_of_a_service_refuse_nobody_who_may(lab: AgentLab) -> None:
    found = change_the_policies_twelve_times(lab)
    assert found["between"] == {"proxy": 240}
    assert set(found["pod1 L4"]) == {"pod3", "pod4"}
    assert set(found["pod1 L7"]) == {"proxy"}
    assert set(found["pod2 L4"]) == set(found["pod2 L7"]) == {"EPERM"}
    assert min(sum(counts.values()) for counts in found.values()) > 200


def test_without_a_rest_for_old_policies_such_changes_refuse(lab: AgentLab) -> None:
    """Mutation of the test above."""
    lab.sabotage = "import xdsbpf.agent.resting as r; r.POLICY_QUARANTINE = r.POLICY_LIMIT = 0.0\n"
    found = change_the_policies_twelve_times(lab)
    assert found["between"]["EPERM"] > 20
    assert found["pod1 L7"]["EPERM"] > 0
    assert set(found["pod2 L4"]) == set(found["pod2 L7"]) == {"EPERM"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_agent_restart_neither_drops_nor_opens_anything(lab: AgentLab, number: signal.Signals) -> None:
    lab.start_agent()
    lab.wait(ready, "synced")
    before = lab.tables()
    stop = lab.state / "stop"
    lab.start(lab.pods[1], prober(VIP, 80, stop))
    denied = lab.state / "denied"
    lab.start(lab.pods[2], prober(VIP, 80, denied))
    for _ in range(3):
        lab.stop_agent(number)
        lab.start_agent()
        lab.wait(ready, "synced again")
    stop.touch()
    denied.touch()

    allowed, refused = outcomes(stop), outcomes(denied)
    assert set(allowed) == {"pod3", "pod4"}, allowed
    assert set(refused) == {"EPERM"}, refused
    assert min(sum(allowed.values()), refused["EPERM"]) > 200, (allowed, refused)
    after = lab.tables()
    assert after.frontends == before.frontends
    assert after.identities == before.identities, "numbers are stable over restarts"
    assert after.policies == before.policies


def test_what_vanished_while_the_agent_was_away_is_pruned_when_it_is_back(lab: AgentLab) -> None:
    lab.start_agent()
    lab.wait(ready, "synced")
    lab.stop_agent(signal.SIGKILL)
    lab.change(remove=((names.FRONTEND, f"{VIP}:80/tcp"), (names.IDENTITY, agentlab.identity(4))))
    lab.start_agent()
    lab.wait(ready, "synced again")
    assert not lab.tables().frontends
    assert pod_address(4) in {row.address for row in lab.tables().identities}, "guarded by the policy still"
    assert {row.identity for row in lab.tables().identities if row.address == pod_address(4)} == {""}


def test_without_a_control_plane_the_last_state_stays(lab: AgentLab) -> None:
    lab.start_agent()
    lab.wait(ready, "synced")
    assert lab.feed is not None
    lab.feed.kill()
    lab.stop_agent(signal.SIGKILL)
    lab.start_agent()
    lab.wait(lambda status: "disconnected" in status.xds_state, "no control plane")
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) in ("pod3", "pod4")
    assert lab.pods[2].run(lambda: attempt(VIP, 80)) == "EPERM"
    assert not lab.status().synced

    lab.start_feed()
    lab.change(
        agentlab.node_config(1, 2, 3, 4),
        *agentlab.identities(1, 2, 3, 4),
        agentlab.allow_only(1, (3, 4)),
        *agentlab.service(4),
    )
    lab.wait(ready, "synced with the control plane that came back")
    assert lab.pods[1].run(lambda: {attempt(VIP, 80) for _ in range(10)}) == {"pod4"}


def test_a_pod_that_starts_later_is_enrolled_and_one_that_ends_is_forgotten(lab: AgentLab) -> None:
    lab.start_agent()
    lab.wait(ready, "synced")
    lab.change(agentlab.node_config(1, 2, 3, 4, 5), *agentlab.identities(5), agentlab.allow_only(5, (3, 4)))
    lab.wait(lambda status: status.not_enrolled == ["default/pod5"], "pod 5 is missing")
    pod = lab.add_pod(5)
    lab.wait(lambda status: "default/pod5" in status.enrolled, "pod 5 is enrolled")
    wait_until(lambda: pod.run(lambda: attempt(VIP, 80)) in ("pod3", "pod4"), "pod 5 is let in")

    lab.children[-1].kill()
    lab.change(agentlab.node_config(1, 2, 3, 4))
    lab.wait(lambda status: "default/pod5" not in status.enrolled, "pod 5 is forgotten")


def a_pod_behind_a_bridge(lab: AgentLab) -> Place:
    """Pod 5, the only one that the policy allows; returns the place of its packets, seen by no connect hook."""
    lab.start_agent()
    lab.wait(ready, "synced")
    lab.add_pod(5)
    lab.bridge(5)
    lab.change(agentlab.node_config(1, 2, 3, 4, 5), *agentlab.identities(5), agentlab.allow_only(5, (3, 4)))
    lab.wait(lambda status: status.not_enrolled == ["default/pod5"], "pod 5 is behind a bridge")
    wait_until(lambda: {row.source for row in lab.tables().policies} == {agentlab.identity(5), "any"}, "the policy")
    return Place("outsider", ROOT_CGROUP, "xba5")


def test_a_pod_whose_interface_cannot_be_guarded_is_nobody_until_it_can(lab: AgentLab) -> None:
    outsider = a_pod_behind_a_bridge(lab)
    (row,) = [row for row in lab.tables().identities if row.address == pod_address(5)]
    assert (row.identity, row.number) == ("", 0)
    assert row.note.startswith("default/pod5: interface b5 has no peer")
    assert "default/pod5" in {problem.subject for problem in lab.status().problems}
    assert outsider.run(lambda: attempt(pod_address(3), PORT, timeout=1.0)) == "TIMEOUT"
    assert lab.pods[5].run(lambda: attempt(VIP, 80)) == "EPERM"

    lab.unbridge(5)
    lab.wait(ready, "pod 5 is enrolled")
    assert outsider.run(lambda: attempt(pod_address(3), PORT)) == "pod3"
    assert lab.pods[5].run(lambda: attempt(VIP, 80)) in ("pod3", "pod4")
    assert [row.note for row in lab.tables().identities if row.note] == []


def test_without_that_rule_its_address_alone_would_do(lab: AgentLab) -> None:
    """Mutation of the test above."""
    lab.sabotage = "from xdsbpf.agent.image import Image as i; i._is_known_sender = lambda self, address: True\n"
    outsider = a_pod_behind_a_bridge(lab)
    assert outsider.run(lambda: attempt(pod_address(3), PORT)) == "pod3"


def test_a_pod_that_is_replaced_at_its_address_is_enrolled_anew(lab: AgentLab) -> None:
    lab.start_agent()
    lab.wait(ready, "synced")
    server = lab.children[0]  # of pod 1
    before = lab.tables().identities
    lab.replace_pod(1, server)
    wait_until(lambda: lab.pods[1].run(lambda: attempt(VIP, 80)) in ("pod3", "pod4"), "the new pod 1 is let in")
    assert lab.tables().identities == before
    assert len(lab.guarded_interfaces()) == 4, "the old interface is forgotten"


def test_a_process_that_ends_while_pods_are_looked_for_does_not_lose_its_pod(
    lab: AgentLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = lab.children[0].pid
    read_cookie = enrolment.netns_cookie

    def late(path: Path) -> int:
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: "zombie" in Path(f"/proc/{server}/status").read_text(), "pod 1 has no process")
        return read_cookie(path)

    monkeypatch.setattr(enrolment, "netns_cookie", late)
    pods = (Workload("default/pod1", "1", (address16(agentlab.packed(pod_address(1))),), ""),)
    host = Place("host", CGROUP / "agent", NODE_NETNS)
    assert host.run(lambda: enrolment.find_workloads(pods, CGROUP, {})).missing == {}


def test_an_address_is_given_to_no_pod_but_the_one_that_it_is_routed_to(lab: AgentLab) -> None:
    kind, name, config = agentlab.node_config(1, 2, 3, 4)
    for claim, address in (("default/thief", pod_address(3)), ("default/far", "10.97.7.7")):
        workload = config.workloads.add(name=claim, uid=claim)  # type: ignore[attr-defined]
        workload.addresses.append(agentlab.packed(address))
    lab.change((kind, name, config))
    lab.start_agent()
    lab.wait(lambda status: status.synced, "synced")
    status = lab.status()
    assert status.enrolled == [f"default/pod{number}" for number in (1, 2, 3, 4)]
    reasons = {problem.subject: problem.message for problem in status.problems}
    assert "default/pod3" in reasons["default/thief"]
    assert "no route" in reasons["default/far"]


@pytest.mark.slow
def test_what_somebody_else_deletes_from_a_map_is_repaired_within_30_seconds(lab: AgentLab) -> None:
    lab.start_agent()
    lab.wait(ready, "synced")
    with open_datapath(PIN_ROOT) as datapath:
        for key, _ in datapath.tables.frontends.items():
            datapath.tables.frontends.delete(key)
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) not in ("pod3", "pod4")
    lab.wait(lambda status: any("repaired" in p.message for p in status.problems), "repair is reported", 35)
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) in ("pod3", "pod4")


def test_detach_leaves_nothing_behind(lab: AgentLab) -> None:
    lab.start_agent()
    lab.wait(ready, "synced")
    assert lab.pods[2].run(lambda: attempt(pod_address(3), PORT)) != "pod3"
    assert lab.stop_agent(signal.SIGTERM) == 0
    assert lab.pods[2].run(lambda: attempt(pod_address(3), PORT)) != "pod3", "SIGTERM leaves the datapath"
    secrets = lab.state / "agent" / "envoy" / "tls"
    secrets.mkdir(parents=True, exist_ok=True)
    (secrets / "key.pem").write_text("a key of an agent with mutual TLS")
    lab.detach()
    assert not PIN_ROOT.exists()
    assert not secrets.exists()
    assert lab.pods[2].run(lambda: attempt(pod_address(3), PORT)) == "pod3"
    attached = subprocess.run(
        ["bpftool", "cgroup", "tree", str(CGROUP)], capture_output=True, text=True, check=True
    ).stdout
    assert "xb_" not in attached, attached
    lab.detach()


@pytest.mark.envoy
def test_envoy_outlives_the_agent_and_is_adopted_and_replaced(lab: AgentLab, envoy: str) -> None:
    lab.start_agent(envoy=True, envoy_binary=envoy)
    lab.wait(lambda status: status.envoy_state == "LIVE", "Envoy is LIVE", 30)
    first = lab.status().envoy_pid
    procs = (CGROUP / "proxy" / "cgroup.procs").read_text().split()
    assert str(first) in procs
    assert oct((lab.state / "agent" / "envoy" / "admin.sock").stat().st_mode)[-3:] == "600"

    lab.stop_agent(signal.SIGKILL)
    assert Path(f"/proc/{first}").exists()
    lab.start_agent(envoy=True, envoy_binary=envoy)
    lab.wait(lambda status: status.synced and status.envoy_state == "LIVE", "adopted", 30)
    assert lab.status().envoy_pid == first

    os.kill(first, signal.SIGKILL)
    lab.wait(lambda s: s.envoy_state == "LIVE" and s.envoy_pid not in (0, first), "replaced", 30)
    second = lab.status().envoy_pid

    lab.stop_agent(signal.SIGTERM)
    assert Path(f"/proc/{second}").exists(), "SIGTERM leaves Envoy serving"
    lab.detach()
    wait_until(lambda: not Path(f"/proc/{second}").exists(), "detach ends Envoy", 10)


def test_the_agent_imports_no_manifest_reader_and_no_compiler() -> None:
    code = "import sys, xdsbpf.node; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    forbidden = ("yaml", "kubernetes", "xdsbpf.mesh", "xdsbpf.compile", "xdsbpf.sources", "xdsbpf.serve")
    found = [name for name in loaded.splitlines() if name.startswith(forbidden)]
    assert found == []
    assert "xdsbpf.agent.plan" in loaded.splitlines()
