"""One node for kernel tests: a network namespace with three pods behind veths, a cgroup tree, a pin root.

Everything is named xbk… and removed by `close`. Functions run inside a pod (its cgroup and network
namespace) in a forked child, so a test reads as client code. No traffic leaves the namespaces: the
node has no uplink and the service range is a blackhole.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from xdsbpf.datapath import abi, libbpf
from xdsbpf.datapath.address import address16, host_key
from xdsbpf.datapath.objects import Program
from xdsbpf.datapath.tables import Kernel

T = TypeVar("T")
BPF = Path(__file__).resolve().parents[2] / "bpf"
# Small arrays: a session of tests loads many times.
CAPACITIES = {"xb_slots": 4096, "xb_backends": 1024, "xb_active": 1024}
CGROUP = Path("/sys/fs/cgroup/unified/xbk")
ROOT_CGROUP = Path("/sys/fs/cgroup/unified")
PIN_ROOT = Path("/sys/fs/bpf/xbk")
NODE_NETNS = "xbk0"
PROXY, SERVICES = "10.98.255.1", "10.99.128.0/17"
VIP = "10.99.128.10"
PODS = {1: "10.99.0.1", 2: "10.99.0.2", 3: "10.99.0.3"}
PORT = 8080
SYSCTLS = ("net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
TCP = 6
_CLONE_NEWNET = 0x40000000


def packed(address: str) -> bytes:
    return socket.inet_aton(address)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 5.0) -> None:
    """Poll until `condition` holds; AssertionError that names `what` otherwise."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def ip(*arguments: str, netns: str | None = None) -> None:
    subprocess.run(["ip", *(["-n", netns] if netns else []), *arguments], check=True, capture_output=True)


def add_pod_network(pod: str, veth: str, address: str, node: str, services: str) -> None:
    """A namespace `pod` with that address, routed over `veth` of the namespace `node`; services lead nowhere."""
    ip("netns", "add", pod)
    ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", pod, netns=node)
    ip("addr", "add", "169.254.1.1/32", "dev", veth, netns=node)
    ip("link", "set", veth, "up", netns=node)
    ip("link", "set", "lo", "up", netns=pod)
    ip("addr", "add", f"{address}/32", "dev", "eth0", netns=pod)
    ip("link", "set", "eth0", "up", netns=pod)
    ip("route", "add", "169.254.1.1", "dev", "eth0", netns=pod)
    ip("route", "add", "blackhole", services, netns=pod)
    ip("route", "add", "default", "via", "169.254.1.1", netns=pod)
    ip("route", "add", f"{address}/32", "dev", veth, netns=node)


class Place:
    """Where a process runs: a cgroup and a network namespace."""

    def __init__(self, name: str, cgroup: Path, netns: str) -> None:
        self.name, self.cgroup, self.netns = name, cgroup, netns

    @property
    def netns_file(self) -> Path:
        return Path("/run/netns") / self.netns

    def enter(self) -> None:
        # The cgroup first: a socket keeps the cgroup that its process had when it was made.
        (self.cgroup / "cgroup.procs").write_text("0")
        with self.netns_file.open() as netns:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(netns.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def run(self, function: Callable[[], T]) -> T:
        """The result of `function`, called in a child at this place; its exception is raised here."""
        child = Child(self, lambda ready: ready(function()))
        try:
            return child.first
        finally:
            child.kill()


class Child:
    """A forked process at a place. `function` gets `ready(value)`; `first` is that value."""

    def __init__(self, place: Place, function: Callable[[Callable[[Any], None]], Any]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(reader)
            _child(place, function, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as answer:
            length = answer.read(8)
            ok, value = pickle.loads(answer.read(struct.unpack("=Q", length)[0]))
        self._reaped = False
        if not ok:
            self.kill()
            raise value
        self.first: Any = value

    def kill(self) -> None:
        """kill -9 and reap; again is a no-op."""
        if not self._reaped:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._reaped = True


def _child(place: Place, function: Callable[[Callable[[Any], None]], Any], writer: int) -> None:
    def answer(ok: bool, value: object) -> None:
        data = pickle.dumps((ok, value))
        os.write(writer, struct.pack("=Q", len(data)) + data)

    try:
        place.enter()
        function(lambda value: answer(True, value))
        signal.pause()
    except BaseException as error:  # noqa: BLE001 - raised again in the parent, whatever it is
        answer(False, error)
    finally:
        os._exit(0)


# --- what runs inside ------------------------------------------------------------------------


def serve(name: str, port: int) -> Callable[[Callable[[Any], None]], None]:
    """A server that tells every client its name and the client's address, then keeps the socket open."""

    def run(ready: Callable[[Any], None]) -> None:
        listener = socket.create_server(("0.0.0.0", port), backlog=256)
        ready(port)
        held = []
        while True:
            connection, peer = listener.accept()
            connection.sendall(json.dumps({"name": name, "peer": peer[0]}).encode() + b"\n")
            held.append(connection)

    return run


def serve_original(port: int, family: int = socket.AF_INET) -> Callable[[Callable[[Any], None]], None]:
    """A stand-in proxy: tells every client what SO_ORIGINAL_DST says at both levels."""

    def run(ready: Callable[[Any], None]) -> None:
        any_address = "0.0.0.0" if family == socket.AF_INET else "::"
        listener = socket.create_server(
            (any_address, port), family=family, backlog=64, dualstack_ipv6=family == socket.AF_INET6
        )
        ready(port)
        while True:
            connection, peer = listener.accept()
            answer = {"level0": original(connection, 0, 16), "level41": original(connection, 41, 28)}
            connection.sendall(json.dumps({**answer, "peer": peer[0]}).encode() + b"\n")
            connection.close()

    return run


def original(connection: socket.socket, level: int, size: int) -> list[Any] | str:
    """[family, address, port] of SO_ORIGINAL_DST, or the error's name."""
    try:
        answer = connection.getsockopt(level, 80, 128)
    except OSError as error:
        return os.strerror(error.errno or 0)
    assert len(answer) == size, answer
    family, port = struct.unpack_from("=H", answer)[0], struct.unpack_from("!H", answer, 2)[0]
    if level == 0:
        return [family, socket.inet_ntoa(answer[4:8]), port]
    return [family, socket.inet_ntop(socket.AF_INET6, answer[8:24]), port]


def dial(address: str, port: int, *, timeout: float = 2.0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    connection.connect((address, port))
    return connection


def ask(address: str, port: int, *, timeout: float = 2.0) -> dict[str, Any]:
    """Connect, read the server's line."""
    with dial(address, port, timeout=timeout) as connection:
        line: dict[str, Any] = json.loads(connection.makefile().readline())
        return line


def attempt(address: str, port: int, *, timeout: float = 2.0) -> str:
    """The server's name, or the errno's name (`TIMEOUT` when nothing came back)."""
    try:
        return str(ask(address, port, timeout=timeout)["name"])
    except TimeoutError:
        return "TIMEOUT"
    except OSError as error:
        return {1: "EPERM", 12: "ENOMEM", 111: "ECONNREFUSED"}.get(error.errno or 0, repr(error))


class RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts (bpf/bpf.h)."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        *((name, ctypes.c_uint32) for name in ("ctx_size_in", "ctx_size_out", "retval")),
        ("repeat", ctypes.c_int),
        *((name, ctypes.c_uint32) for name in ("duration", "flags", "cpu", "batch_size")),
    )


def verdict_of(program: Program, protocol: int, packet: bytes) -> int:
    """What a packet program returns for `packet` (from the network header on), signed."""
    frame = bytes(12) + struct.pack("!H", protocol) + packet
    options = RunOptions(size=ctypes.sizeof(RunOptions), data_in=frame, data_size_in=len(frame), repeat=1)
    libbpf.call("bpf_prog_test_run_opts", program.fd, ctypes.byref(options))
    return ctypes.c_int32(options.retval).value


def ipv4(source: str, destination: str, payload: bytes, *, protocol: int = TCP, fragment: int = 0) -> bytes:
    """An IPv4 packet without options; `fragment` is its offset in 8-byte units."""
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, protocol, 0)
    return header + packed(source) + packed(destination) + payload


def tcp_segment(port: int, flags: int) -> bytes:
    """A TCP header; 2 is SYN, 16 is ACK."""
    return struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 0x50, flags, 1024, 0, 0)


# --- the node --------------------------------------------------------------------------------


class Node:
    """The places of the lab."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.pods = {number: Place(f"pod{number}", CGROUP / f"pod{number}", f"xbk{number}") for number in PODS}
        self.proxy = Place("proxy", CGROUP / "proxy" / "worker", NODE_NETNS)
        self.host = Place("host", CGROUP / "host", NODE_NETNS)
        # In a pod's network, but outside of the node's cgroup: no connect-time program sees it.
        self.outsiders = {number: Place(f"outsider{number}", ROOT_CGROUP, f"xbk{number}") for number in PODS}
        self.interfaces: dict[int, int] = {}

    def open(self) -> None:
        for place in (*self.pods.values(), self.proxy, self.host):
            place.cgroup.mkdir(parents=True)
        ip("netns", "add", NODE_NETNS)
        ip("link", "set", "lo", "up", netns=NODE_NETNS)
        ip("addr", "add", f"{PROXY}/32", "dev", "lo", netns=NODE_NETNS)
        ip("route", "add", "blackhole", SERVICES, netns=NODE_NETNS)
        subprocess.run(
            ["ip", "netns", "exec", NODE_NETNS, "sysctl", "-qw", *SYSCTLS],
            check=True,
        )
        for number, address in PODS.items():
            self._open_pod(number, address)

    def _open_pod(self, number: int, address: str) -> None:
        veth = f"v{number}"
        add_pod_network(f"xbk{number}", veth, address, NODE_NETNS, SERVICES)
        self.interfaces[number] = self.host.run(lambda: socket.if_nametoindex(veth))

    def start(self, place: Place, function: Callable[[Callable[[Any], None]], Any]) -> Child:
        """Start a child that `close` ends."""
        child = Child(place, function)
        self.children.append(child)
        return child

    def close(self) -> None:
        for child in self.children:
            child.kill()
        for netns in (*(place.netns for place in self.pods.values()), NODE_NETNS):
            subprocess.run(["ip", "netns", "del", netns], capture_output=True)
        for directory in sorted(CGROUP.rglob("*/"), reverse=True):
            if directory.is_dir():
                remove_cgroup(directory)
        if CGROUP.exists():
            remove_cgroup(CGROUP)


def remove_cgroup(directory: Path) -> None:
    wait_until(lambda: not (directory / "cgroup.procs").read_text(), f"{directory} empty")
    directory.rmdir()


# --- table entries, as the agent would write them -----------------------------------------------


def frontend_key(address: str = VIP, port: int = 80) -> abi.FrontendKey:
    return abi.FrontendKey(address=address16(packed(address)), port=port, protocol=TCP)


def balance(
    kernel: Kernel,
    backends: dict[str, int],
    *,
    vip: str = VIP,
    port: int = 80,
    first: int = 1,
    policy: int = 0,
    policy_port: int = 0,
) -> None:
    """A service over `backends` (address to weight), backend indexes and slots from `first` on."""
    slots: list[int] = []
    for index, (address, weight) in enumerate(backends.items(), start=first):
        kernel.backends.put(
            index,
            abi.Backend(address=address16(packed(address)), port=PORT, flags=abi.BackendFlag.READY, service=1),
        )
        slots += [index] * weight
    kernel.slots.write(first, slots)
    kernel.frontends.put(
        frontend_key(vip, port),
        abi.Frontend(
            service=1,
            slot_offset=first,
            slot_count=len(slots),
            policy=policy,
            policy_port=policy_port,
            proxy_port=0,
            flags=0,
        ),
    )


def redirect(kernel: Kernel, proxy_port: int, *, policy: int = 0, policy_port: int = 0) -> None:
    """The service VIP:80 goes to the proxy."""
    kernel.frontends.put(
        frontend_key(),
        abi.Frontend(
            service=1,
            slot_offset=0,
            slot_count=0,
            policy=policy,
            policy_port=policy_port,
            proxy_port=proxy_port,
            flags=abi.FrontendFlag.REDIRECT,
        ),
    )


def guard(kernel: Kernel, address: str, policy: int, identity: int = 0) -> None:
    kernel.addresses.put(host_key(packed(address)), abi.Address(identity=identity, policy=policy))


def verdict(kernel: Kernel, policy: int, source: int, port: int, decision: abi.Verdict) -> None:
    kernel.policies.put(
        abi.PolicyKey(policy=policy, source=source, port=port, protocol=TCP),
        abi.Policy(rule=1, verdict=decision),
    )
