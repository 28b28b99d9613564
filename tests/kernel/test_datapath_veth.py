"""The source check on the host side of a pod's veth."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

import nodelab
import pytest
from nodelab import PODS, Node, ipv4, packed, verdict_of, wait_until

from xdsbpf.datapath import abi
from xdsbpf.datapath.abi import CounterIndex
from xdsbpf.datapath.address import address16
from xdsbpf.datapath.attach import Attachments
from xdsbpf.datapath.loader import Datapath

pytestmark = pytest.mark.root
NEXT, SHOT = -1, 2
LOOPBACK = 1  # the interface of a test run
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
UDP = 17
PEER_PORT = 9999


@pytest.fixture
def hooks(kernel: Datapath, lab: Node) -> Iterator[Attachments]:
    """The check on pod 1's veth, with its own address allowed."""
    hooks = Attachments(kernel, netns=lab.host.netns_file)
    allow(kernel, PODS[1], lab.interfaces[1])
    hooks.attach_veth(lab.interfaces[1])
    yield hooks
    for ifindex in hooks.veths():
        hooks.detach_veth(ifindex)


def allow(kernel: Datapath, address: str, ifindex: int) -> None:
    kernel.tables.veths.put(abi.VethKey(address16(packed(address)), ifindex), abi.Veth(allowed=1))


def send_udp(source: str, text: bytes) -> Callable[[], int]:
    """Send a datagram to pod 3 with a source of our choice, as a pod with NET_RAW can."""

    def run() -> int:
        datagram = struct.pack("!HHHH", 1234, PEER_PORT, 8 + len(text), 0) + text
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            return raw.sendto(ipv4(source, PODS[3], datagram, protocol=UDP), (PODS[3], 0))

    return run


def spoofed(kernel: Datapath) -> int:
    return kernel.tables.counters()[CounterIndex.SPOOFED]


def received(lab: Node, sends: list[Callable[[], int]]) -> list[bytes]:
    """What pod 3 received while pod 1 did `sends` in order; the last one must arrive."""
    reader, writer = socket.socketpair()

    def collect(ready: Callable[[object], None]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("0.0.0.0", PEER_PORT))
            ready(True)
            while True:
                writer.send(receiver.recv(1000))

    child = nodelab.Child(lab.pods[3], collect)
    try:
        for send in sends:
            lab.pods[1].run(send)
        reader.settimeout(5)
        texts: list[bytes] = []
        while b"end" not in texts:
            texts += reader.recv(4096).split(b";")
        return [text for text in texts if text]
    finally:
        child.kill()


def test_a_forged_source_does_not_leave_the_pods_veth(kernel: Datapath, lab: Node, hooks: Attachments) -> None:
    before = spoofed(kernel)
    sends = [send_udp(PODS[2], b"forged;"), send_udp(PODS[1], b"own;"), send_udp(PODS[1], b"end;")]
    assert received(lab, sends) == [b"own", b"end"]
    assert spoofed(kernel) == before + 1

    hooks.detach_veth(lab.interfaces[1])  # the mechanism off, on purpose
    assert received(lab, sends) == [b"forged", b"own", b"end"]


def test_an_interface_without_entries_passes_nothing(kernel: Datapath, lab: Node, hooks: Attachments) -> None:
    assert lab.pods[1].run(lambda: nodelab.attempt(PODS[2], nodelab.PORT)) == "pod2"
    kernel.tables.veths.delete(abi.VethKey(address16(packed(PODS[1])), lab.interfaces[1]))
    assert lab.pods[1].run(lambda: nodelab.attempt(PODS[2], nodelab.PORT, timeout=0.3)) == "TIMEOUT"


def test_attaching_again_keeps_one_link_and_a_new_device_gets_a_new_one(
    kernel: Datapath, lab: Node, hooks: Attachments
) -> None:
    ifindex = lab.interfaces[1]
    hooks.attach_veth(ifindex)
    assert hooks.veths() == (ifindex,)
    hooks.detach_veth(ifindex)
    hooks.detach_veth(ifindex)
    assert hooks.veths() == ()

    nodelab.ip("link", "add", "vtmp", "type", "veth", "peer", "name", "vtmp2", netns=nodelab.NODE_NETNS)
    index = lab.host.run(lambda: socket.if_nametoindex("vtmp"))
    hooks.attach_veth(index)
    nodelab.ip("link", "del", "vtmp", netns=nodelab.NODE_NETNS)
    # Another device that happens to get the same number.
    nodelab.ip(
        "link",
        "add",
        "vtmp",
        "index",
        str(index),
        "type",
        "veth",
        "peer",
        "name",
        "vtmp2",
        netns=nodelab.NODE_NETNS,
    )
    nodelab.ip("link", "set", "vtmp", "up", netns=nodelab.NODE_NETNS)
    nodelab.ip("link", "set", "vtmp2", "up", netns=nodelab.NODE_NETNS)
    try:
        hooks.attach_veth(index)
        before = kernel.tables.counters()

        def forge() -> int:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                raw.bind(("vtmp2", IPV4))
                return raw.send(bytes(12) + struct.pack("!H", IPV4) + ipv4(PODS[2], PODS[3], bytes(8), protocol=UDP))

        lab.host.run(forge)
        wait_until(lambda: spoofed(kernel) > before[CounterIndex.SPOOFED], "the new device's packet counted")
    finally:
        nodelab.ip("link", "del", "vtmp", netns=nodelab.NODE_NETNS)
        hooks.detach_veth(index)


def arp(sender: str, protocol: int = IPV4) -> bytes:
    return struct.pack("!HHBBH", 1, protocol, 6, 4, 1) + bytes(6) + packed(sender) + bytes(6) + packed(PODS[3])


def ipv6(source: str, destination: str, following: int = 59) -> bytes:
    """An IPv6 header; `following` is the next header, 59: none."""
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return b"\x60\0\0\0\0\0" + bytes((following, 255)) + addresses


@pytest.mark.parametrize(
    ("protocol", "packet", "expected"),
    [
        pytest.param(IPV4, ipv4(PODS[1], PODS[3], b""), NEXT, id="own address"),
        pytest.param(IPV4, ipv4(PODS[2], PODS[3], b""), SHOT, id="another pod's address"),
        pytest.param(IPV4, ipv4("0.0.0.0", PODS[3], b""), SHOT, id="no address"),
        pytest.param(IPV4, ipv4(PODS[2], PODS[3], b"", fragment=3), SHOT, id="a fragment is checked too"),
        pytest.param(ARP, arp(PODS[1]), NEXT, id="arp for the own address"),
        pytest.param(ARP, arp("0.0.0.0"), NEXT, id="arp probe"),
        pytest.param(ARP, arp(PODS[2]), SHOT, id="arp for another address"),
        pytest.param(ARP, arp(PODS[1], protocol=0x1234), SHOT, id="arp for another protocol"),
        pytest.param(IPV6, ipv6("fe80::1", "ff02::2"), NEXT, id="ipv6 link-local"),
        pytest.param(IPV6, ipv6("fe80::1", "fe80::2", 58), NEXT, id="ipv6 neighbour discovery"),
        pytest.param(IPV6, ipv6("fe80::1", "fe80::2", 6), SHOT, id="tcp between link-local addresses"),
        pytest.param(IPV6, ipv6("fe80::1", "fe80::2", 0), SHOT, id="what a link-local extension header hides"),
        pytest.param(IPV6, ipv6("::", "ff02::1:ff00:1"), NEXT, id="ipv6 address detection"),
        pytest.param(IPV6, ipv6("::", "fd00::1"), SHOT, id="ipv6 unspecified to a unicast address"),
        pytest.param(IPV6, ipv6("fd00::1", "fd00::2"), SHOT, id="ipv6 address that is not the pod's"),
        pytest.param(IPV6, ipv6(f"::ffff:{PODS[2]}", "fd00::2"), SHOT, id="ipv6 that spells another pod's ipv4"),
        pytest.param(0x88CC, bytes(40), SHOT, id="neither ip nor arp"),
    ],
)
def test_a_packet_from_the_pod(kernel: Datapath, protocol: int, packet: bytes, expected: int) -> None:
    allow(kernel, PODS[1], LOOPBACK)
    assert verdict_of(kernel.programs["xb_veth"], protocol, packet) == expected


def test_an_enrolled_ipv6_address_passes(kernel: Datapath) -> None:
    source = socket.inet_pton(socket.AF_INET6, "fd00::1")
    program = kernel.programs["xb_veth"]
    assert verdict_of(program, IPV6, ipv6("fd00::1", "fd00::2")) == SHOT
    kernel.tables.veths.put(abi.VethKey(source, LOOPBACK), abi.Veth(allowed=1))
    assert verdict_of(program, IPV6, ipv6("fd00::1", "fd00::2")) == NEXT
