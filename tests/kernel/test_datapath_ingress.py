"""The destination's ingress: the authority, whatever the client's side did or did not check."""

from __future__ import annotations

import nodelab
import pytest
from nodelab import PODS, PORT, Node, attempt, ipv4, tcp_segment, verdict_of

from xdsbpf.datapath.abi import CounterIndex, Identity, Verdict
from xdsbpf.datapath.loader import Datapath

pytestmark = pytest.mark.root
SYN, ACK = 2, 16
DROP, PASS = 0, 1
IPV4, IPV6 = 0x0800, 0x86DD


def guard_pod2(kernel: Datapath) -> None:
    """Pod 2 admits pod 1 on PORT and nobody else."""
    nodelab.guard(kernel.tables, PODS[2], policy=9, identity=302)
    nodelab.verdict(kernel.tables, 9, 301, PORT, Verdict.ALLOW)
    nodelab.verdict(kernel.tables, 9, Identity.ANY, 0, Verdict.DENY)


def test_a_client_that_no_connect_program_saw_is_judged_by_its_address(kernel: Datapath, lab: Node) -> None:
    guard_pod2(kernel)
    before = kernel.tables.counters()

    assert lab.outsiders[1].run(lambda: attempt(PODS[2], PORT)) == "pod2"
    assert lab.outsiders[3].run(lambda: attempt(PODS[2], PORT, timeout=0.3)) == "TIMEOUT"

    after = kernel.tables.counters()
    assert after[CounterIndex.INGRESS_ALLOWED] - before[CounterIndex.INGRESS_ALLOWED] == 1
    assert after[CounterIndex.INGRESS_DENIED] - before[CounterIndex.INGRESS_DENIED] == 1
    assert after[CounterIndex.CONNECT_DENIED] == before[CounterIndex.CONNECT_DENIED]

    nodelab.guard(kernel.tables, PODS[2], policy=0, identity=302)  # the mechanism off, on purpose
    assert lab.outsiders[3].run(lambda: attempt(PODS[2], PORT, timeout=0.3)) == "pod2"


def test_an_unknown_address_is_denied_where_a_policy_guards(kernel: Datapath, lab: Node) -> None:
    guard_pod2(kernel)
    assert lab.outsiders[1].run(lambda: attempt(PODS[2], PORT)) == "pod2"
    kernel.tables.addresses.delete(nodelab.host_key(nodelab.packed(PODS[1])))
    assert lab.outsiders[1].run(lambda: attempt(PODS[2], PORT, timeout=0.3)) == "TIMEOUT"


def test_an_open_connection_outlives_a_policy_that_would_deny_it(kernel: Datapath, lab: Node) -> None:
    before = kernel.tables.counters()

    def client() -> int:
        with nodelab.dial(PODS[2], PORT) as connection:
            connection.recv(1000)
            guard_pod2(kernel)
            return connection.send(b"later")

    assert lab.pods[3].run(client) == 5
    after = kernel.tables.counters()
    assert after[CounterIndex.INGRESS_DENIED] == before[CounterIndex.INGRESS_DENIED]


@pytest.mark.parametrize(
    ("source", "payload", "options", "expected"),
    [
        pytest.param(PODS[1], tcp_segment(PORT, SYN), {}, PASS, id="allowed source"),
        pytest.param(PODS[3], tcp_segment(PORT, SYN), {}, DROP, id="denied source"),
        pytest.param(PODS[1], tcp_segment(PORT + 1, SYN), {}, DROP, id="denied port"),
        pytest.param(PODS[3], tcp_segment(PORT, SYN | ACK), {}, PASS, id="answer to the pod's own connect"),
        pytest.param(PODS[3], tcp_segment(PORT, ACK), {}, PASS, id="later segment"),
        pytest.param(PODS[1], tcp_segment(PORT, SYN), {"fragment": 2}, DROP, id="later fragment"),
        pytest.param(PODS[1], tcp_segment(PORT, SYN)[:13], {}, DROP, id="header cut off"),
        pytest.param(PODS[3], bytes(8), {"protocol": 17}, PASS, id="udp is not judged yet"),
        pytest.param(PODS[3], bytes(8), {"protocol": 1}, PASS, id="icmp is not judged yet"),
    ],
)
def test_a_packet_to_a_guarded_address(
    kernel: Datapath, source: str, payload: bytes, options: dict[str, int], expected: int
) -> None:
    guard_pod2(kernel)
    program = kernel.programs["xb_ingress"]
    assert verdict_of(program, IPV4, ipv4(source, PODS[2], payload, **options)) == expected
    # The same packet to an address without a policy always passes.
    assert verdict_of(program, IPV4, ipv4(source, PODS[3], payload, **options)) == PASS


def test_extension_headers_do_not_lead_past_a_guarded_ipv6_address(kernel: Datapath) -> None:
    address = bytes.fromhex("fd0099000000000000000000000000aa")
    kernel.tables.addresses.put(nodelab.host_key(address), nodelab.abi.Address(identity=0, policy=9))
    nodelab.verdict(kernel.tables, 9, Identity.ANY, PORT, Verdict.ALLOW)

    def packet(next_header: int, to: bytes) -> bytes:
        payload = tcp_segment(PORT, SYN)
        return b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + bytes([next_header, 64]) + bytes(16) + to + payload

    program = kernel.programs["xb_ingress"]
    assert verdict_of(program, IPV6, packet(6, address)) == PASS
    assert verdict_of(program, IPV6, packet(0, address)) == DROP
    assert verdict_of(program, IPV6, packet(0, address[:15] + b"\xbb")) == PASS
