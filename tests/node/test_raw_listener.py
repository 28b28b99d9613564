"""Raw Envoy resources in a real kernel: files, `xdsbpf serve`, an agent, and clients in pods.

There is an Envoy only where a test starts one: outside of the mesh, at the address of the listener.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kernel.nodelab import ROOT_CGROUP, Place, attempt, dial, wait_until
from tests.node.agentlab import NODE, NODE_NETNS, PORT, PROXY, ROOT, VIP, AgentLab, pod_address
from tests.raw_texts import cluster, endpoint, listener, proxy, raw_file, rbac

pytestmark = pytest.mark.root

TRUST_DOMAIN = "xba"
PLACE = f"address: {{socket_address: {{address: {VIP}, port_value: 80}}}}"
POD_1 = f'{{authenticated: {{principal_name: {{exact: "spiffe://{TRUST_DOMAIN}/ns/default/sa/pod1"}}}}}}'
ANSWERING = 8081
"""Port of servers that wait for the client's first byte: Envoy's RBAC decides about nothing before that comes."""


def backends(port: int = PORT) -> str:
    return cluster(endpoint(pod_address(3), port), endpoint(pod_address(4), port))


def answering(name: str) -> Callable[[Callable[[Any], None]], None]:
    """As `nodelab.serve`, but for the client that speaks first."""

    def run(ready: Callable[[Any], None]) -> None:
        listener = socket.create_server(("0.0.0.0", ANSWERING), backlog=256)
        ready(ANSWERING)
        while True:
            connection, peer = listener.accept()
            with connection:
                connection.settimeout(2.0)
                with contextlib.suppress(OSError):
                    if connection.recv(1):
                        connection.sendall(json.dumps({"name": name, "peer": peer[0]}).encode() + b"\n")

    return run


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

    def write(self, *filters: str, nodes: str = "", place: str = PLACE, port: int = PORT) -> None:
        text = listener("".join((*filters, proxy())), place=place)
        (self.state / "raw" / "db.yaml").write_text(raw_file(text, backends(port), nodes=nodes))

    def start_envoy(self, envoy: str) -> subprocess.Popen[bytes]:
        """A stock Envoy on the node, outside of what the agent looks after."""
        command = [sys.executable, "-m", "xdsbpf", "bootstrap", "--node-id", "edge-1"]
        command += ["--xds", f"unix:{self.state}/xds.sock", "--admin", f"{self.state}/envoy.sock"]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        (self.state / "bootstrap.yaml").write_bytes(printed.stdout)
        command = ["ip", "netns", "exec", NODE_NETNS, envoy, "-c", f"{self.state}/bootstrap.yaml"]
        command += ["--use-dynamic-base-id", "--concurrency", "1", "--drain-time-s", "1"]
        process = subprocess.Popen(command, stdout=(self.state / "envoy.log").open("ab"), stderr=-2)
        self.processes.append(process)
        return process

    def meets(self, place: Place) -> tuple[str, str]:
        """(who answers at the node's address, from where it sees the client); (what happened, "") without an answer."""

        def meet() -> tuple[str, str]:
            try:
                with dial(PROXY, 5432, timeout=1.0) as connection:
                    connection.sendall(b"?")
                    line = connection.makefile().readline()
            except OSError as error:
                return errno.errorcode.get(error.errno or 0, repr(error)), ""
            found = json.loads(line or '{"name": "closed", "peer": ""}')
            return found["name"], found["peer"]

        return place.run(meet)

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
        raw_file(listener(name="x", place=PLACE.replace(": 80", ": 81")), backends(), nodes=f"'{NODE}'")
    )
    wait_until(lambda: [row.port for row in lab.tables().frontends] == [81], "only what is for this node", 15.0)


@pytest.mark.envoy
def test_one_listener_is_the_kernel_s_for_pods_and_envoy_s_for_all_others_with_the_same_rule(
    lab: RawLab, envoy: str
) -> None:
    """A pod and somebody else in its network have one address, and a rule by address: both get the same answer."""
    place = PLACE.replace(VIP, PROXY).replace(": 80", ": 5432")
    others = {number: Place(f"other{number}", ROOT_CGROUP, f"xba{number}") for number in (1, 2)}
    servers = {"pod3", "pod4"}
    for number in (3, 4):
        lab.start(lab.pods[number], answering(f"pod{number}"))
    lab.write(place=place, port=ANSWERING)
    wait_until(lambda: [row.port for row in lab.tables().frontends] == [5432], "it is the kernel's", 15.0)
    assert lab.meets(lab.pods[1])[0] in servers
    assert lab.meets(others[1]) == ("ECONNREFUSED", ""), "there is no Envoy yet"
    process = lab.start_envoy(envoy)
    wait_until(lambda: lab.meets(others[1])[0] in servers, "Envoy listens, too", 30.0)

    for number in (1, 2):
        found = {client: [lab.meets(client) for _ in range(20)] for client in (lab.pods[number], others[number])}
        assert all({name for name, _ in answers} == servers for answers in found.values()), found
        assert {peer for _, peer in found[lab.pods[number]]} == {pod_address(number)}, "nobody stands between"
        assert pod_address(number) not in {peer for _, peer in found[others[number]]}, "Envoy does"

    block = f"{{direct_remote_ip: {{address_prefix: {pod_address(1)}, prefix_len: 32}}}}"
    for action, allowed, denied in (("ALLOW", 1, 2), ("DENY", 2, 1)):
        lab.write(rbac(block, action=action), place=place, port=ANSWERING)
        wait_until(lambda denied=denied: lab.meets(lab.pods[denied]) == ("EPERM", ""), "the kernel's rule", 15.0)
        wait_until(lambda denied=denied: lab.meets(others[denied]) == ("closed", ""), "Envoy's rule", 15.0)
        assert lab.meets(lab.pods[allowed])[0] in servers
        assert lab.meets(others[allowed])[0] in servers

    process.kill()
    process.wait()
    assert lab.meets(lab.pods[2])[0] in servers
    assert lab.meets(others[2]) == ("ECONNREFUSED", "")
