"""Raw Envoy resources in a real kernel: files, `xdsbpf serve`, an agent, and clients in pods; no Envoy anywhere."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.kernel.nodelab import attempt, wait_until
from tests.node.agentlab import NODE, PORT, PROXY, ROOT, VIP, AgentLab, pod_address
from tests.raw_texts import cluster, endpoint, listener, proxy, raw_file, rbac

pytestmark = pytest.mark.root

TRUST_DOMAIN = "xba"
PLACE = f"address: {{socket_address: {{address: {VIP}, port_value: 80}}}}"
POD_1 = f'{{authenticated: {{principal_name: {{exact: "spiffe://{TRUST_DOMAIN}/ns/default/sa/pod1"}}}}}}'
BACKENDS = cluster(endpoint(pod_address(3), PORT), endpoint(pod_address(4), PORT))


def manifests() -> str:
    node = f"""apiVersion: v1
kind: Node
metadata: {{name: {NODE}, annotations: {{xdsbpf.io/proxy-address: {PROXY}}}}}
"""
    pods = (
        f"""apiVersion: v1
kind: Pod
metadata: {{name: pod{number}}}
spec: {{nodeName: {NODE}, serviceAccountName: pod{number}}}
status: {{phase: Running, podIP: {pod_address(number)}, podIPs: [{{ip: {pod_address(number)}}}]}}
"""
        for number in (1, 2, 3, 4)
    )
    return "---\n".join((node, *pods))


class RawLab(AgentLab):
    """The lab with a control plane over files in place of the feed."""

    def start_control_plane(self) -> None:
        (self.state / "mesh.yaml").write_text(manifests())
        (self.state / "raw").mkdir()
        command = [sys.executable, "-m", "xdsbpf", "serve", "-f", str(self.state / "mesh.yaml")]
        command += ["--envoy-resources", str(self.state / "raw"), "--trust-domain", TRUST_DOMAIN]
        command += ["--listen", f"unix:{self.state}/xds.sock", "--admin", f"unix:{self.state}/admin.sock"]
        log = (self.state / "serve.log").open("ab")
        self.processes.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=-2))
        wait_until((self.state / "xds.sock").exists, "the control plane listens", 30.0)

    def write(self, *filters: str, nodes: str = "") -> None:
        text = listener("".join((*filters, proxy())), place=PLACE)
        (self.state / "raw" / "db.yaml").write_text(raw_file(text, BACKENDS, nodes=nodes))

    def outcome(self, pod: int, times: int = 1) -> Counter[str]:
        return Counter(self.pods[pod].run(lambda: [attempt(VIP, 80, timeout=1.0) for _ in range(times)]))


@pytest.fixture
def lab() -> Iterator[RawLab]:
    subprocess.run(["make", "-s", "-C", str(ROOT / "bpf")], check=True, capture_output=True)
    lab = RawLab()
    try:
        lab.open()
        for number in (1, 2, 3, 4):
            lab.add_pod(number)
        lab.start_control_plane()
        lab.start_agent()
        lab.wait(lambda status: status.synced and not status.not_enrolled, "synced", 30.0)
        yield lab
    finally:
        lab.close()


def test_a_raw_listener_is_balanced_and_guarded_by_the_kernel_alone(lab: RawLab) -> None:
    assert set(lab.outcome(1)).isdisjoint(("pod3", "pod4")), "nothing is there yet"
    lab.write()
    wait_until(lambda: set(lab.outcome(1)) <= {"pod3", "pod4"}, "the frontend", 15.0)
    found = lab.outcome(1, 60)
    assert set(found) == {"pod3", "pod4"}
    assert min(found.values()) > 10, found
    assert set(lab.outcome(2)) <= {"pod3", "pod4"}, "the control: no rule yet"

    lab.write(rbac(POD_1))
    wait_until(lambda: set(lab.outcome(2)) == {"EPERM"}, "the rule is in force", 15.0)
    assert set(lab.outcome(1, 20)) == {"pod3", "pod4"}
    (row,) = lab.tables().frontends
    assert (row.address, row.port, row.plane, row.policy) == (VIP, 80, "L4", "EnvoyResource/Listener/db")
    assert {entry.rule.rpartition(" ")[2] for entry in lab.tables().policies if entry.verdict == "ALLOW"} == {
        "filter_chains[0].filters[0].typed_config.rules.policies[app]"
    }

    block = f"{{direct_remote_ip: {{address_prefix: {pod_address(2)}, prefix_len: 32}}}}"
    lab.write(rbac(block))
    wait_until(lambda: set(lab.outcome(1)) == {"EPERM"}, "the rule by address is in force", 15.0)
    assert set(lab.outcome(2, 20)) == {"pod3", "pod4"}
    lab.write(rbac(block, action="DENY"))
    wait_until(lambda: set(lab.outcome(2)) == {"EPERM"}, "the denial by address is in force", 15.0)
    assert set(lab.outcome(1, 20)) == {"pod3", "pod4"}


def test_what_the_kernel_cannot_check_leaves_it_and_other_nodes_have_none_of_it(lab: RawLab) -> None:
    lab.write(rbac(POD_1))
    wait_until(lambda: set(lab.outcome(1)) <= {"pod3", "pod4"}, "the frontend", 15.0)
    lab.write(rbac("{header: {name: x, present_match: true}}"))
    wait_until(lambda: not lab.tables().frontends, "it has left the kernel", 15.0)
    assert set(lab.outcome(1)).isdisjoint(("pod3", "pod4")), "there is no Envoy at the address"
    assert "EPERM" not in lab.outcome(2)

    lab.write(rbac(POD_1), nodes="elsewhere")
    (lab.state / "raw" / "other.yaml").write_text(
        raw_file(listener(name="x", place=PLACE.replace(": 80", ": 81")), BACKENDS, nodes=f"'{NODE}'")
    )
    wait_until(lambda: [row.port for row in lab.tables().frontends] == [81], "only what is for this node", 15.0)
