"""One node for agent tests: pods in network namespaces, an agent process, a control plane process.

Everything is named xba… and removed by `close`. No traffic leaves the namespaces: the node has no
uplink and the service range is a blackhole.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from tests.kernel.nodelab import SYSCTLS, Child, Place, add_pod_network, ip, serve, wait_until
from xdsbpf._pb.xdsbpf.agent.v1 import agent_pb2
from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2 as pb
from xdsbpf.agent.status import fetch_status, fetch_tables
from xdsbpf.datapath.attach import detach_all
from xdsbpf.errors import SourceError
from xdsbpf.model import names

ROOT = Path(__file__).resolve().parents[2]
CGROUP = Path("/sys/fs/cgroup/unified/xba")
PIN_ROOT = Path("/sys/fs/bpf/xba")
NODE_NETNS = "xba0"
NODE = "nodea"
PROXY, SERVICES, VIP = "10.97.127.1", "10.97.128.0/17", "10.97.128.10"
L7_VIP, PROXY_PORT = "10.97.128.11", 15001
PORT = 8080
AGENT = """
import sys, msgspec
from xdsbpf.node import NodeAgentConfig, run, detach
config = msgspec.json.decode(sys.argv[2], type=NodeAgentConfig, dec_hook=lambda kind, value: kind(value))
sys.exit({"run": run, "detach": detach}[sys.argv[1]](config) or 0)
"""


def pod_address(number: int) -> str:
    return f"10.97.0.{number}"


def identity(number: int) -> str:
    return f"spiffe://xba/ns/default/sa/pod{number}"


def packed(address: str) -> bytes:
    return socket.inet_aton(address)


class AgentLab:
    """Pods 1 and 2 are clients, 3 and 4 servers of the service."""

    def __init__(self) -> None:
        self.pods: dict[int, Place] = {}
        self.children: list[Child] = []
        self.state = Path(tempfile.mkdtemp(prefix="xba-"))
        self.processes: list[subprocess.Popen[Any]] = []
        self.feed: subprocess.Popen[str] | None = None
        self.agent: subprocess.Popen[bytes] | None = None
        self.sabotage = ""
        """Statements that the agent runs before it starts: what a test breaks on purpose."""
        self.config: dict[str, Any] = {
            "node": NODE,
            "xds": f"unix:{self.state}/xds.sock",
            "cgroup_root": str(CGROUP),
            "pin_root": str(PIN_ROOT),
            "state_dir": str(self.state / "agent"),
            "envoy": False,
            "strict_envoy": True,
            "concurrency": 1,
        }

    # --- the place ---

    def open(self) -> None:
        self.sweep()
        (CGROUP / "agent").mkdir(parents=True)
        (CGROUP / "pods").mkdir()
        ip("netns", "add", NODE_NETNS)
        ip("link", "set", "lo", "up", netns=NODE_NETNS)
        ip("addr", "add", f"{PROXY}/32", "dev", "lo", netns=NODE_NETNS)
        ip("route", "add", "blackhole", SERVICES, netns=NODE_NETNS)
        subprocess.run(["ip", "netns", "exec", NODE_NETNS, "sysctl", "-qw", *SYSCTLS], check=True)

    def add_pod(self, number: int) -> Place:
        """A pod with its veth and a server on PORT."""
        netns, veth = f"xba{number}", f"v{number}"
        place = Place(f"pod{number}", CGROUP / "pods" / f"pod{number}", netns)
        place.cgroup.mkdir()
        add_pod_network(netns, veth, pod_address(number), NODE_NETNS, SERVICES)
        self.start(place, serve(place.name, PORT))
        self.pods[number] = place
        return place

    def bridge(self, number: int) -> None:
        """Put a pod's interface on a bridge, as some networks do: its address leads to the bridge."""
        ip("link", "add", f"b{number}", "type", "bridge", netns=NODE_NETNS)
        ip("addr", "add", "169.254.1.1/32", "dev", f"b{number}", netns=NODE_NETNS)
        ip("link", "set", f"b{number}", "up", netns=NODE_NETNS)
        ip("link", "set", f"v{number}", "master", f"b{number}", netns=NODE_NETNS)
        ip("route", "replace", f"{pod_address(number)}/32", "dev", f"b{number}", netns=NODE_NETNS)

    def unbridge(self, number: int) -> None:
        """Undo `bridge`."""
        ip("link", "set", f"v{number}", "nomaster", netns=NODE_NETNS)
        ip("route", "replace", f"{pod_address(number)}/32", "dev", f"v{number}", netns=NODE_NETNS)

    def replace_pod(self, number: int, server: Child) -> None:
        """End a pod and start another one with the same address and interface name."""
        server.kill()
        ip("netns", "del", f"xba{number}")
        wait_until(lambda: not self._has_link(f"v{number}"), "the old veth is gone")
        _remove_cgroup(self.pods[number].cgroup)
        self.add_pod(number)

    def _has_link(self, name: str) -> bool:
        command = ["ip", "-n", NODE_NETNS, "link", "show", name]
        return subprocess.run(command, capture_output=True).returncode == 0

    def guarded_interfaces(self) -> list[str]:
        """Pinned links of the source check."""
        return [path.name for path in PIN_ROOT.glob("v*/links/xb_veth-*")]

    def start_proxy(self) -> None:
        """A stand-in for the node's proxy: a server at its address."""
        place = Place("proxy", CGROUP / "proxy", NODE_NETNS)
        place.cgroup.mkdir()
        self.start(place, serve(place.name, PROXY_PORT))

    def start(self, place: Place, function: Callable[[Callable[[Any], None]], Any]) -> Child:
        child = Child(place, function)
        self.children.append(child)
        return child

    def close(self) -> None:
        for child in self.children:
            child.kill()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.sweep()
        shutil.rmtree(self.state, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a lab of this name left, in any state."""
        for procs in CGROUP.rglob("cgroup.procs"):
            for pid in procs.read_text().split():
                subprocess.run(["kill", "-9", pid], capture_output=True)
        detach_all(PIN_ROOT)
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            name = line.split()[0]
            if name.startswith("xba") and name[3:].isdigit():
                ip("netns", "del", name)
        if CGROUP.exists():
            for directory in sorted((p for p in CGROUP.rglob("*") if p.is_dir()), reverse=True):
                _remove_cgroup(directory)
            _remove_cgroup(CGROUP)

    # --- the control plane ---

    def start_feed(self) -> None:
        (self.state / "xds.sock").unlink(missing_ok=True)
        self.feed = subprocess.Popen(
            [sys.executable, "-m", "tests.node.xds_feed", str(self.state / "xds.sock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            stderr=(self.state / "feed.log").open("ab"),
        )
        self.processes.append(self.feed)
        assert self.feed.stdout is not None
        while "ready" not in self.feed.stdout.readline():
            assert self.feed.poll() is None

    def change(self, *puts: tuple[str, str, Message], remove: tuple[tuple[str, str], ...] = ()) -> Any:
        """Put and remove resources; returns the server's view of its clients."""
        assert self.feed is not None
        assert self.feed.stdin is not None
        assert self.feed.stdout is not None
        encoded = [
            [kind, name, base64.b64encode(message.SerializeToString(deterministic=True)).decode()]
            for kind, name, message in puts
        ]
        self.feed.stdin.write(json.dumps({"put": encoded, "remove": remove}) + "\n")
        self.feed.stdin.flush()
        # The server logs on stdout too: its status is the line that is a JSON list.
        while not (line := self.feed.stdout.readline()).startswith("[{") and line.strip() != "[]":
            assert self.feed.poll() is None
        return json.loads(line)

    def acked(self) -> dict[str, list[Any]]:
        """[state, resources held, error] by type of the agent."""
        for node in self.change():
            if node["node_id"].startswith("agent~"):
                types: dict[str, list[Any]] = node["types"]
                return types
        return {}

    # --- the agent ---

    def command(self, action: str, **changes: Any) -> list[str]:
        return [
            "/bin/sh",
            "-c",
            'echo $$ > "$0" && exec "$@"',
            str(CGROUP / "agent" / "cgroup.procs"),
            "nsenter",
            f"--net=/run/netns/{NODE_NETNS}",
            sys.executable,
            "-c",
            self.sabotage + AGENT,
            action,
            json.dumps({**self.config, **changes}),
        ]

    def start_agent(self, **changes: Any) -> None:
        self.agent = subprocess.Popen(
            self.command("run", **changes), cwd=ROOT, stdout=(self.state / "agent.log").open("ab"), stderr=-2
        )
        self.processes.append(self.agent)

    def stop_agent(self, number: signal.Signals) -> int:
        assert self.agent is not None
        self.agent.send_signal(number)
        return self.agent.wait(10)

    def detach(self) -> None:
        subprocess.run(self.command("detach"), cwd=ROOT, check=True, timeout=30)

    def status(self) -> agent_pb2.Status:
        """The agent's status; an empty one while nobody answers."""
        try:
            return fetch_status(self.state / "agent" / "agent.sock", timeout=2.0)
        except SourceError:
            assert self.agent is None or self.agent.poll() is None, self.log()
            return agent_pb2.Status()

    def tables(self) -> agent_pb2.Tables:
        return fetch_tables(self.state / "agent" / "agent.sock")

    def wait(self, condition: Callable[[agent_pb2.Status], object], what: str, seconds: float = 15.0) -> None:
        try:
            wait_until(lambda: condition(self.status()), what, seconds)
        except AssertionError as err:
            raise AssertionError(f"{err}\n{self.status()}\n{self.log()}") from err

    def log(self) -> str:
        return (self.state / "agent.log").read_text()[-2000:]


def _remove_cgroup(directory: Path) -> None:
    wait_until(lambda: not (directory / "cgroup.procs").read_text(), f"{directory} empty")
    directory.rmdir()


# --- resources ----------------------------------------------------------------------------------


def node_config(*pods: int) -> tuple[str, str, Message]:
    workloads = [
        pb.Workload(
            name=f"default/pod{pod}", uid=str(pod), addresses=[packed(pod_address(pod))], identity=identity(pod)
        )
        for pod in pods
    ]
    message = pb.NodeConfig(node=NODE, proxy_address=packed(PROXY), workloads=workloads, trust_domain="xba")
    return names.NODE_CONFIG, NODE, message


def identities(*pods: int) -> list[tuple[str, str, Message]]:
    return [
        (names.IDENTITY, identity(pod), pb.Identity(name=identity(pod), addresses=[packed(pod_address(pod))]))
        for pod in pods
    ]


def allow_only(source: int, destinations: tuple[int, ...], name: str = "default/only") -> tuple[str, str, Message]:
    """A policy: one identity may, nobody else."""
    entries = [
        pb.PolicyEntry(identity=identity(source), protocol=pb.TCP, verdict=pb.ALLOW, rule="only spec.rules[0]"),
        pb.PolicyEntry(any_source=pb.AnySource(), protocol=pb.TCP, verdict=pb.DENY, rule="only"),
    ]
    addresses = [packed(pod_address(pod)) for pod in destinations]
    return names.POLICY, name, pb.Policy(name=name, destinations=addresses, entries=entries)


def redirected(policy: str) -> tuple[str, str, Message]:
    """The service of L7_VIP: to the node's proxy, for whom `policy` allows."""
    plane = pb.Redirect(proxy_port=PROXY_PORT, policy=policy, policy_port=PORT)
    frontend = pb.Frontend(address=packed(L7_VIP), port=80, protocol=pb.TCP, service="l7:80", redirect=plane)
    return names.FRONTEND, f"{L7_VIP}:80/tcp", frontend


def service(*pods: int) -> list[tuple[str, str, Message]]:
    host = "web.default.svc.cluster.local:80"
    backends = [pb.Backend(address=packed(pod_address(pod)), port=PORT, weight=1) for pod in pods]
    frontend = pb.Frontend(
        address=packed(VIP), port=80, protocol=pb.TCP, service=host, balance=pb.Balance(backends=host)
    )
    return [
        (names.BACKENDS, host, pb.Backends(service=host, backends=backends)),
        (names.FRONTEND, f"{VIP}:80/tcp", frontend),
    ]
