"""Connect-time behaviour seen by real clients: balancing, refusal, redirect, policy, accounting."""

from __future__ import annotations

import ctypes
import errno
import signal
import socket
from collections import Counter
from collections.abc import Callable

import nodelab
import pytest
from nodelab import PODS, PORT, PROXY, VIP, Node, ask, attempt, dial, packed, wait_until

from xdsbpf.datapath import abi
from xdsbpf.datapath.abi import CounterIndex, Identity, Verdict
from xdsbpf.datapath.loader import Datapath

pytestmark = pytest.mark.root


def counted(datapath: Datapath, before: dict[CounterIndex, int], index: CounterIndex) -> int:
    return datapath.tables.counters()[index] - before[index]


def test_connections_are_spread_over_backends_by_weight(kernel: Datapath, lab: Node) -> None:
    nodelab.balance(kernel.tables, {PODS[2]: 3, PODS[3]: 1})
    before = kernel.tables.counters()

    seen = lab.pods[1].run(lambda: Counter(ask(VIP, 80)["name"] for _ in range(200)))

    assert seen["pod2"] + seen["pod3"] == 200
    assert 115 <= seen["pod2"] <= 180, seen  # 150 expected, 5.7 standard deviations
    assert counted(kernel, before, CounterIndex.LB) == 200


def test_the_backend_sees_the_pods_own_address(kernel: Datapath, lab: Node) -> None:
    nodelab.balance(kernel.tables, {PODS[2]: 1})
    assert lab.pods[1].run(lambda: ask(VIP, 80)) == {"name": "pod2", "peer": PODS[1]}


def test_an_ipv4_mapped_address_is_balanced_and_its_peer_name_is_the_service(kernel: Datapath, lab: Node) -> None:
    nodelab.balance(kernel.tables, {PODS[2]: 1})

    def client() -> tuple[str, str]:
        with dial(f"::ffff:{VIP}", 80) as connection:
            return connection.makefile().readline(), connection.getpeername()[0]

    line, peer = lab.pods[1].run(client)
    assert "pod2" in line
    assert peer == f"::ffff:{VIP}"


def test_getpeername_tells_the_service_and_not_the_backend(kernel: Datapath, lab: Node) -> None:
    nodelab.balance(kernel.tables, {PODS[2]: 1})

    def peers() -> list[tuple[str, int]]:
        with dial(VIP, 80) as balanced, dial(PODS[2], PORT) as direct:
            return [balanced.getpeername(), direct.getpeername()]

    assert lab.pods[1].run(peers) == [(VIP, 80), (PODS[2], PORT)]


def test_a_service_without_backends_refuses_at_once(kernel: Datapath, lab: Node) -> None:
    nodelab.balance(kernel.tables, {})
    before = kernel.tables.counters()
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) == "ECONNREFUSED"
    assert counted(kernel, before, CounterIndex.NO_BACKEND) == 1
    nodelab.balance(kernel.tables, {PODS[2]: 1})
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) == "pod2"


def test_a_backend_that_is_not_ready_gets_no_connection(kernel: Datapath, lab: Node) -> None:
    nodelab.balance(kernel.tables, {PODS[2]: 1})
    ready = kernel.tables.backends.get(1)
    assert ready is not None
    kernel.tables.backends.put(1, abi.Backend(ready.address, ready.port, 0, ready.service))
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) == "ECONNREFUSED"
    kernel.tables.backends.put(1, ready)
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) == "pod2"


def test_a_slot_that_names_no_backend_refuses_and_counts_as_dangling(kernel: Datapath, lab: Node) -> None:
    nodelab.balance(kernel.tables, {PODS[2]: 1})
    kernel.tables.backends.delete(1)
    before = kernel.tables.counters()
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) == "ECONNREFUSED"
    assert counted(kernel, before, CounterIndex.DANGLING) == 1


def test_an_address_that_is_no_service_is_left_alone(kernel: Datapath, lab: Node) -> None:
    before = kernel.tables.counters()
    assert lab.pods[1].run(lambda: attempt(PODS[3], PORT)) == "pod3"
    assert counted(kernel, before, CounterIndex.NO_FRONTEND) == 1


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_redirected_connection_tells_the_proxy_its_original_destination(
    kernel: Datapath, lab: Node, family: int
) -> None:
    child = lab.start(lab.proxy, nodelab.serve_original(15001, family))
    nodelab.redirect(kernel.tables, 15001)
    try:
        for dialled in (VIP, f"::ffff:{VIP}"):
            answer = lab.pods[1].run(lambda address=dialled: ask(address, 80))
            assert answer["level0"] == [socket.AF_INET, VIP, 80]
            assert answer["level41"] == [socket.AF_INET6, f"::ffff:{VIP}", 80]
            assert answer["peer"].removeprefix("::ffff:") == PODS[1]
        assert kernel.tables.handshakes.items() == []
    finally:
        child.kill()


def test_getpeername_of_a_redirected_connection_is_the_service(kernel: Datapath, lab: Node) -> None:
    child = lab.start(lab.proxy, nodelab.serve_original(15001))
    nodelab.redirect(kernel.tables, 15001)
    try:
        assert lab.pods[1].run(lambda: dial(VIP, 80).getpeername()) == (VIP, 80)
    finally:
        child.kill()


def test_a_process_outside_of_the_proxys_cgroup_is_not_answered(kernel: Datapath, lab: Node) -> None:
    child = lab.start(lab.host, nodelab.serve_original(15001))
    nodelab.redirect(kernel.tables, 15001)
    try:
        answer = lab.pods[1].run(lambda: ask(VIP, 80))
        assert isinstance(answer["level0"], str), "no answer was due, the redirect itself happened"
        assert isinstance(answer["level41"], str)
    finally:
        child.kill()


def test_a_pod_that_dials_the_proxy_itself_has_no_original_destination(kernel: Datapath, lab: Node) -> None:
    child = lab.start(lab.proxy, nodelab.serve_original(15001))
    nodelab.redirect(kernel.tables, 15001)
    try:
        assert lab.pods[1].run(lambda: ask(VIP, 80))["level0"] == [socket.AF_INET, VIP, 80]
        before = kernel.tables.counters()
        assert isinstance(lab.pods[1].run(lambda: ask(PROXY, 15001))["level0"], str)
        assert counted(kernel, before, CounterIndex.ORIGDST_MISS) == 2
    finally:
        child.kill()


def test_a_dead_proxy_refuses_and_leaves_no_record(kernel: Datapath, lab: Node) -> None:
    nodelab.redirect(kernel.tables, 15001)
    before = kernel.tables.counters()
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) == "ECONNREFUSED"
    assert counted(kernel, before, CounterIndex.RECORDED) == 1
    wait_until(lambda: kernel.tables.handshakes.items() == [], "the record of the refused client gone")


def test_a_pod_leaves_no_record_under_another_pods_address(kernel: Datapath, lab: Node) -> None:
    nodelab.redirect(kernel.tables, 15001)
    nodelab.ip("addr", "add", f"{PODS[2]}/32", "dev", "lo", netns=lab.pods[1].netns)

    def impersonate(ready: Callable[[int], None]) -> None:
        client = socket.socket()
        client.bind((PODS[2], 45678))
        client.setblocking(False)
        ready(client.connect_ex((VIP, 80)))
        signal.pause()

    def recorded() -> list[abi.Tuple]:
        child = nodelab.Child(lab.pods[1], impersonate)
        try:
            assert child.first == errno.EINPROGRESS
            return [key for key, _ in kernel.tables.handshakes.items()]
        finally:
            child.kill()

    try:
        before = kernel.tables.counters()
        assert recorded() == []
        assert counted(kernel, before, CounterIndex.SPOOFED) == 1
        for key, _ in kernel.tables.netns.items():  # the mechanism off, on purpose: nobody is enrolled
            kernel.tables.netns.delete(key)
        assert [(key.source, key.source_port) for key in recorded()] == [(nodelab.address16(packed(PODS[2])), 45678)]
        wait_until(lambda: kernel.tables.handshakes.items() == [], "the record gone with its client")
    finally:
        nodelab.ip("addr", "del", f"{PODS[2]}/32", "dev", "lo", netns=lab.pods[1].netns)


def test_a_redirect_without_a_proxy_address_refuses(kernel: Datapath, lab: Node) -> None:
    nodelab.redirect(kernel.tables, 15001)
    kernel.tables.set_config(abi.Config.unpack(bytes(abi.Config.SIZE)))
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) == "ECONNREFUSED"


def test_the_proxys_own_connections_are_not_translated(kernel: Datapath, lab: Node) -> None:
    # The pod's address is a frontend too: without the guard the proxy would be sent to pod 3.
    nodelab.balance(kernel.tables, {PODS[3]: 1}, vip=PODS[2], port=PORT)
    before = kernel.tables.counters()
    assert lab.proxy.run(lambda: attempt(PODS[2], PORT)) == "pod2"
    assert counted(kernel, before, CounterIndex.PROXY_EXEMPT) == 1
    config = kernel.tables.config()
    kernel.tables.set_config(
        abi.Config(0, 0, config.proxy_address, config.abi, config.generation)  # the guard off, on purpose
    )
    assert lab.proxy.run(lambda: attempt(PODS[2], PORT)) == "pod3"


def test_the_agents_cgroup_is_exempt_too(kernel: Datapath, lab: Node) -> None:
    nodelab.balance(kernel.tables, {PODS[3]: 1}, vip=PODS[2], port=PORT)
    config = kernel.tables.config()
    assert lab.host.run(lambda: attempt(PODS[2], PORT)) == "pod3"
    agent = abi.Config(0, lab.host.cgroup.stat().st_ino, config.proxy_address, config.abi, config.generation)
    kernel.tables.set_config(agent)
    assert lab.host.run(lambda: attempt(PODS[2], PORT)) == "pod2"


def test_a_denied_client_gets_eperm_at_connect_and_an_allowed_one_is_served(kernel: Datapath, lab: Node) -> None:
    nodelab.balance(kernel.tables, {PODS[2]: 1})
    nodelab.guard(kernel.tables, PODS[2], policy=9, identity=302)
    nodelab.verdict(kernel.tables, 9, 301, PORT, Verdict.ALLOW)
    nodelab.verdict(kernel.tables, 9, Identity.ANY, 0, Verdict.DENY)
    before = kernel.tables.counters()

    assert lab.pods[1].run(lambda: attempt(VIP, 80)) == "pod2"
    assert lab.pods[3].run(lambda: attempt(VIP, 80)) == "EPERM"
    assert lab.pods[3].run(lambda: attempt(PODS[2], PORT)) == "EPERM"  # past the service address
    assert lab.host.run(lambda: attempt(VIP, 80)) == "EPERM"  # unknown source
    assert counted(kernel, before, CounterIndex.CONNECT_DENIED) == 3

    nodelab.guard(kernel.tables, PODS[2], policy=0, identity=302)  # the mechanism off, on purpose
    assert lab.pods[3].run(lambda: attempt(VIP, 80)) == "pod2"


def test_a_frontend_with_a_policy_is_balanced_only_for_whom_it_lets_in(kernel: Datapath, lab: Node) -> None:
    nodelab.balance(kernel.tables, {PODS[2]: 1}, policy=9, policy_port=80)
    nodelab.verdict(kernel.tables, 9, 301, 80, Verdict.ALLOW)
    before = kernel.tables.counters()
    assert lab.pods[1].run(lambda: attempt(VIP, 80)) == "pod2"
    assert lab.pods[3].run(lambda: attempt(VIP, 80)) == "EPERM"
    assert lab.host.run(lambda: attempt(VIP, 80)) == "EPERM"  # no workload's network, no entry
    assert lab.pods[3].run(lambda: attempt(PODS[2], PORT)) == "pod2"  # it is the frontend that is guarded
    assert counted(kernel, before, CounterIndex.CONNECT_DENIED) == 2

    nodelab.balance(kernel.tables, {PODS[2]: 1})  # the mechanism off, on purpose
    assert lab.pods[3].run(lambda: attempt(VIP, 80)) == "pod2"


def test_a_redirect_is_checked_against_the_workloads_policy_first(kernel: Datapath, lab: Node) -> None:
    child = lab.start(lab.proxy, nodelab.serve_original(15001))
    nodelab.redirect(kernel.tables, 15001, policy=9, policy_port=PORT)
    nodelab.verdict(kernel.tables, 9, 301, PORT, Verdict.ALLOW)
    try:
        assert lab.pods[1].run(lambda: ask(VIP, 80))["level0"] == [socket.AF_INET, VIP, 80]
        assert lab.pods[3].run(lambda: attempt(VIP, 80)) == "EPERM"
        nodelab.redirect(kernel.tables, 15001)
        assert lab.pods[3].run(lambda: ask(VIP, 80))["level0"] == [socket.AF_INET, VIP, 80]
    finally:
        child.kill()


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param({}, "EPERM", id="a policy without entries denies"),
        pytest.param({(301, PORT): True, (301, 0): False, (Identity.ANY, PORT): False}, "pod2", id="source and port"),
        pytest.param({(301, PORT): False, (301, 0): True, (Identity.ANY, PORT): True}, "EPERM", id="deny first"),
        pytest.param({(301, 0): True, (Identity.ANY, PORT): False}, "pod2", id="source before any"),
        pytest.param({(Identity.ANY, PORT): True, (Identity.ANY, 0): False}, "pod2", id="port before any port"),
        pytest.param({(Identity.ANY, 0): True}, "pod2", id="any"),
        pytest.param({(302, PORT): True, (301, PORT + 1): True}, "EPERM", id="others do not count"),
        pytest.param({(0, PORT): True, (0, 0): True}, "EPERM", id="unknown is not any"),
    ],
)
def test_the_most_specific_policy_entry_decides(
    kernel: Datapath, lab: Node, entries: dict[tuple[int, int], bool], expected: str
) -> None:
    nodelab.guard(kernel.tables, PODS[2], policy=9)
    for (source, port), allowed in entries.items():
        nodelab.verdict(kernel.tables, 9, source, port, Verdict.ALLOW if allowed else Verdict.DENY)
    assert lab.pods[1].run(lambda: attempt(PODS[2], PORT)) == expected


def test_an_unknown_source_is_judged_by_the_entries_for_any(kernel: Datapath, lab: Node) -> None:
    nodelab.guard(kernel.tables, PODS[2], policy=9)
    nodelab.verdict(kernel.tables, 9, 0, 0, Verdict.ALLOW)  # nobody's: 0 is no identity
    nodelab.verdict(kernel.tables, 9, Identity.ANY, 0, Verdict.DENY)
    assert lab.host.run(lambda: attempt(PODS[2], PORT)) == "EPERM"
    nodelab.verdict(kernel.tables, 9, Identity.ANY, PORT, Verdict.ALLOW)
    assert lab.host.run(lambda: attempt(PODS[2], PORT)) == "pod2"


def test_open_connections_are_counted_and_given_back_after_kill_9(kernel: Datapath, lab: Node) -> None:
    nodelab.balance(kernel.tables, {PODS[2]: 1, PODS[3]: 1})
    tables = kernel.tables

    def hold(ready: Callable[[int], None]) -> None:
        held = [dial(VIP, 80) for _ in range(20)]
        ready(len(held))
        signal.pause()

    holder = nodelab.Child(lab.pods[1], hold)
    try:
        assert tables.active(1) + tables.active(2) == 20
        assert tables.active(1) > 0
        assert tables.active(2) > 0
    finally:
        holder.kill()
    wait_until(lambda: tables.active(1) == 0 and tables.active(2) == 0, "counts back to 0")


def test_a_refused_connection_is_given_back_when_its_socket_is_used_again(kernel: Datapath, lab: Node) -> None:
    nodelab.balance(kernel.tables, {PODS[2]: 1})
    backend = kernel.tables.backends.get(1)
    assert backend is not None
    kernel.tables.backends.put(1, abi.Backend(backend.address, PORT + 1, backend.flags, 1))  # nobody listens

    def twice() -> list[int]:
        connection = socket.socket()
        return [connection.connect_ex((VIP, 80)) for _ in range(2)]

    assert lab.pods[1].run(twice) == [111, 111]
    wait_until(lambda: kernel.tables.active(1) == 0, "the count back to 0")


def test_other_options_with_large_buffers_keep_the_kernels_answer(kernel: Datapath, lab: Node) -> None:
    def info_sizes() -> list[int]:
        with dial(PODS[2], PORT) as connection:
            return [len(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)) for size in (1000, 1024)]

    def large() -> bytes:
        # Python's own wrapper stops at 1024 bytes.
        libc = ctypes.CDLL(None, use_errno=True)
        with dial(PODS[2], PORT) as connection:
            buffer, size = ctypes.create_string_buffer(8192), ctypes.c_uint32(8192)
            result = libc.getsockopt(
                connection.fileno(), socket.IPPROTO_TCP, socket.TCP_INFO, buffer, ctypes.byref(size)
            )
            assert result == 0, ctypes.get_errno()
            return buffer.raw[: size.value]

    before = kernel.tables.counters()
    sizes = lab.proxy.run(info_sizes)
    assert lab.host.run(lambda: len(large())) == sizes[0]
    answer = lab.proxy.run(large)
    assert len(answer) == sizes[0]
    assert answer[0] == 1  # tcpi_state: established
    assert counted(kernel, before, CounterIndex.OTHER_OPTION) >= 3
