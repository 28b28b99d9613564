"""The reconciler on tables in memory: full maps, tampering, restarts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from xdsbpf.agent import reconcile
from xdsbpf.agent.desired import (
    Backend,
    Backends,
    Balance,
    DesiredState,
    Enrolled,
    Frontend,
    Identity,
    NodeConfig,
    Policy,
    PolicyEntry,
    Workload,
    frontend_name,
)
from xdsbpf.agent.ops import Put, Realised
from xdsbpf.agent.plan import Planner
from xdsbpf.agent.reconcile import Outcome, Reconciler, failures_of, read_realised
from xdsbpf.agent.status import read_tables
from xdsbpf.datapath import abi
from xdsbpf.datapath.abi import Verdict
from xdsbpf.datapath.address import address16, host_key
from xdsbpf.datapath.memory import MemoryTables
from xdsbpf.model.names import BACKENDS, FRONTEND, POLICY

PODS = [address16(bytes((10, 0, 0, last))) for last in range(1, 9)]
VIP = address16(bytes((240, 0, 0, 1)))
NODE = NodeConfig("n", bytes(16), (Workload("d/pod", "1", (PODS[0],), "spiffe://t/b"),), "t")


class FakeHooks:
    """Interfaces with a link."""

    def __init__(self) -> None:
        self.attached: set[int] = set()

    def attach_veth(self, ifindex: int) -> None:
        self.attached.add(ifindex)

    def detach_veth(self, ifindex: int) -> None:
        self.attached.discard(ifindex)

    def veths(self) -> tuple[int, ...]:
        return tuple(sorted(self.attached))


def service(name: str, vip: bytes, *pods: bytes) -> dict[str, Any]:
    return {
        "frontends": {frontend_name(vip, 80): Frontend(vip, 80, name, Balance(name))},
        "backends": {name: Backends(name, tuple(Backend(pod, 8080, 1) for pod in sorted(pods)))},
    }


def guarded(name: str, *pods: bytes, allow: tuple[str, ...] = ()) -> Policy:
    entries = [PolicyEntry(source, 0, Verdict.ALLOW, "rule") for source in allow]
    return Policy(name, pods, (*entries, PolicyEntry(None, 0, Verdict.DENY, "rule")))


def small_state() -> DesiredState:
    return DesiredState(
        **service("web:80", VIP, PODS[0], PODS[1]),
        identities={"spiffe://t/a": Identity("spiffe://t/a", (PODS[2],))},
        policies={"d/p": guarded("d/p", PODS[0], allow=("spiffe://t/a",))},
        node=NODE,
        enrolled=(Enrolled("d/pod", 77, 5, (PODS[0],)),),
    )


def verify(reconciler: Reconciler, state: DesiredState, now: float) -> Outcome:
    """The periodic check as the main loop does it: compare all of the kernel, then apply nothing new."""
    for _ in reconciler.compare():
        pass
    return reconciler.apply(state, now, prune=True, changed=())


def test_applying_the_same_state_again_writes_nothing() -> None:
    kernel = MemoryTables()
    reconciler = Reconciler(kernel, FakeHooks())
    assert reconciler.apply(small_state(), 0.0, prune=True).applied > 0
    kernel.journal.clear()
    assert reconciler.apply(small_state(), 0.1, prune=True).applied == 0
    assert kernel.journal == []


def test_a_new_agent_finds_the_state_and_writes_nothing() -> None:
    kernel, hooks = MemoryTables(), FakeHooks()
    Reconciler(kernel, hooks).apply(small_state(), 0.0, prune=True)
    kernel.journal.clear()
    reborn = Reconciler(kernel, hooks)
    assert reborn.adopted
    assert not Reconciler(MemoryTables(), FakeHooks()).adopted
    assert reborn.apply(DesiredState(), 50.0, prune=False).applied == 0
    assert reborn.apply(small_state(), 51.0, prune=True).applied == 0
    assert kernel.journal == []


def test_tampering_is_counted_and_repaired() -> None:
    kernel, hooks = MemoryTables(), FakeHooks()
    reconciler = Reconciler(kernel, hooks)
    reconciler.apply(small_state(), 0.0, prune=True)
    good = read_tables(kernel, {})
    assert verify(reconciler, small_state(), 1.0).applied == 0
    assert reconciler.drift == 0

    (frontend_key, _), *_ = kernel.frontends.items()
    kernel.frontends.delete(frontend_key)
    kernel.addresses.put(host_key(bytes((10, 0, 0, 1))), abi.Address(0, 0))
    kernel.addresses.put(host_key(bytes((10, 9, 9, 9))), abi.Address(256, 0))
    for key, value in kernel.policies.items():
        kernel.policies.put(key, msgspec.structs.replace(value, verdict=Verdict.ALLOW))
    hooks.attached.clear()
    assert verify(reconciler, small_state(), 2.0).applied >= 5
    assert reconciler.drift == 5, "frontend, two addresses, one policy entry, one link"
    assert read_tables(kernel, {}) == good
    assert hooks.attached == {5}


def test_changes_during_the_check_are_no_drift_and_drift_is_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "_SLICE", 1)
    kernel, hooks = MemoryTables(), FakeHooks()
    reconciler = Reconciler(kernel, hooks)
    state = DesiredState(node=NODE, identities={name: Identity(name, (PODS[i + 1],)) for i, name in enumerate("abcd")})
    reconciler.apply(state, 0.0, prune=True)
    stray = host_key(bytes((10, 9, 9, 9)))
    kernel.addresses.put(stray, abi.Address(256, 0))
    states = [small_state(), state, DesiredState(), small_state()]
    for step, _ in enumerate(reconciler.compare()):
        state = states[step % len(states)]
        reconciler.apply(state, 1.0 + step, prune=True)
    assert step > 20
    assert reconciler.drift == 1
    reconciler.apply(state, 100.0, prune=True, changed=())
    assert kernel.addresses.get(stray) is None
    assert verify(reconciler, state, 101.0).applied == 0
    assert reconciler.drift == 1
    kernel.journal.clear()
    Reconciler(kernel, hooks).apply(state, 0.0, prune=True)
    assert kernel.journal == [], "a new agent finds nothing to write"


def test_a_frontend_that_was_sent_out_of_the_arena_is_put_right() -> None:
    kernel = MemoryTables()
    reconciler = Reconciler(kernel, FakeHooks())
    reconciler.apply(small_state(), 0.0, prune=True)
    ((key, good),) = kernel.frontends.items()
    wild = msgspec.structs.replace(good, slot_offset=abi.Limit.MAX_SLOTS - 1, slot_count=7)
    kernel.frontends.put(key, wild)
    verify(reconciler, small_state(), 1.0)
    assert kernel.frontends.get(key) == good
    kernel.frontends.put(key, wild)
    Reconciler(kernel, FakeHooks()).apply(small_state(), 0.0, prune=True)
    repaired = kernel.frontends.get(key)
    assert repaired is not None
    assert len(kernel.slots.read(repaired.slot_offset, repaired.slot_count)) == 2


def test_a_write_that_was_refused_is_tried_again_although_nothing_changed() -> None:
    kernel = MemoryTables(frontends=0)
    reconciler = Reconciler(kernel, FakeHooks())
    assert reconciler.apply(small_state(), 0.0, prune=True).failed
    assert reconciler.apply(small_state(), 1.0, prune=True, changed=()).failed
    kernel.frontends = MemoryTables().frontends
    assert not reconciler.apply(small_state(), 2.0, prune=True, changed=()).failed
    assert len(kernel.frontends.items()) == 1


def test_slots_that_were_overwritten_are_replaced() -> None:
    kernel = MemoryTables()
    reconciler = Reconciler(kernel, FakeHooks())
    reconciler.apply(small_state(), 0.0, prune=True)
    ((_, frontend),) = kernel.frontends.items()
    kernel.slots.write(frontend.slot_offset, [4000, 4000])
    verify(reconciler, small_state(), 1.0)
    ((_, repaired),) = kernel.frontends.items()
    chosen = kernel.slots.read(repaired.slot_offset, repaired.slot_count)
    held = dict(kernel.backends.items())
    assert {held[index].address for index in chosen} == {PODS[0], PODS[1]}


@pytest.mark.parametrize("room", [1, 2, 3])
def test_a_policy_that_does_not_fit_denies_and_the_others_stand(room: int) -> None:
    kernel = MemoryTables(policies=room)
    first = {"d/a": guarded("d/a", PODS[0])}
    reconciler = Reconciler(kernel, FakeHooks())
    reconciler.apply(DesiredState(policies=first), 0.0, prune=True)
    too_much = guarded("d/b", PODS[1], allow=("spiffe://t/a", "spiffe://t/b", "spiffe://t/c"))
    outcome = reconciler.apply(DesiredState(policies=first | {"d/b": too_much}), 1.0, prune=True)

    failed = failures_of(outcome, POLICY, ["d/a", "d/b"])
    assert set(failed) == {"d/b"}
    assert "entries" in failed["d/b"]
    value = kernel.addresses.get(host_key(PODS[1]))
    assert value is not None
    assert value.policy, "the destination is guarded"
    assert not [key for key, _ in kernel.policies.items() if key.policy == value.policy], "by nothing: denied"
    assert len(kernel.policies.items()) == 1


def test_a_changed_policy_that_does_not_fit_keeps_what_shields() -> None:
    kernel = MemoryTables(policies=2)
    any_allow = PolicyEntry(None, 0, Verdict.ALLOW, "")
    old = Policy("d/p", (PODS[0],), (PolicyEntry("spiffe://t/a", 80, Verdict.DENY, ""), any_allow))
    new = Policy("d/p", (PODS[0],), (PolicyEntry("spiffe://t/a", 0, Verdict.DENY, ""), any_allow))
    reconciler = Reconciler(kernel, FakeHooks())
    reconciler.apply(DesiredState(policies={"d/p": old}), 0.0, prune=True)
    outcome = reconciler.apply(DesiredState(policies={"d/p": new}), 1.0, prune=True)
    assert (POLICY, "d/p") in outcome.failed
    assert Verdict.DENY in {value.verdict for _, value in kernel.policies.items()}, "port 80 stays denied"


def test_a_service_without_room_is_left_as_it_was_and_comes_when_there_is_room() -> None:
    kernel = MemoryTables(slots=4)
    reconciler = Reconciler(kernel, FakeHooks())
    old = DesiredState(**service("web:80", VIP, *PODS[:2]))
    reconciler.apply(old, 0.0, prune=True)
    before = kernel.frontends.items()
    grown = DesiredState(**service("web:80", VIP, *PODS[:3]))
    outcome = reconciler.apply(grown, 1.0, prune=True)
    assert kernel.frontends.items() == before
    assert set(outcome.failed) == {(BACKENDS, "web:80")}
    smaller = DesiredState(**service("web:80", VIP, *PODS[2:4]))
    reconciler.apply(smaller, 2.0, prune=True)
    ((_, frontend),) = kernel.frontends.items()
    assert frontend.slot_count == 2


def test_a_service_for_which_no_slots_are_adjacent_is_named() -> None:
    state = DesiredState(**service("web:80", VIP, *PODS[:3]))
    result = Planner(Realised(slot_capacity=2)).plan(state, 0.0)
    assert set(result.failed) == {(BACKENDS, "web:80")}
    assert not [op for op in result.ops if isinstance(op, Put) and op.table == "frontends"]
    assert not Planner(Realised(slot_capacity=3)).plan(state, 0.0).failed


def test_a_full_backend_map_fails_the_service_that_needs_it() -> None:
    kernel = MemoryTables(backends=2)
    reconciler = Reconciler(kernel, FakeHooks())
    other = address16(bytes((240, 0, 0, 2)))
    one, two = service("a:80", VIP, PODS[0]), service("b:80", other, PODS[1], PODS[2])
    both = DesiredState(**{table: one[table] | two[table] for table in one})
    outcome = reconciler.apply(both, 0.0, prune=True)
    assert set(outcome.failed) == {(BACKENDS, "b:80")}
    assert [key.address for key, _ in kernel.frontends.items()] == [VIP]


def test_a_full_frontend_map_names_the_frontend() -> None:
    kernel = MemoryTables(frontends=0)
    outcome = Reconciler(kernel, FakeHooks()).apply(small_state(), 0.0, prune=True)
    assert set(outcome.failed) == {(FRONTEND, "240.0.0.1:80/tcp")}
    assert outcome.wake_at is not None


def test_what_is_removed_leaves_the_tables_after_its_quarantine() -> None:
    kernel, hooks = MemoryTables(), FakeHooks()
    reconciler = Reconciler(kernel, hooks)
    reconciler.apply(small_state(), 0.0, prune=True)
    now, wakes = 0.0, []
    outcome = reconciler.apply(DesiredState(), now, prune=True)
    assert kernel.frontends.items() == []
    assert kernel.backends.items() != []
    assert hooks.attached == set()
    while outcome.wake_at is not None:
        assert outcome.wake_at > now
        now = outcome.wake_at
        wakes.append(now)
        outcome = reconciler.apply(DesiredState(), now, prune=True)
    assert kernel.backends.items() == []
    assert kernel.names.items() == []
    assert now >= 300
    assert len(wakes) < 12
    left = read_realised(kernel, hooks)
    assert not any(left.table(name) for name in ("addresses", "policies", "netns", "veths"))


def test_the_status_shows_names_and_weights() -> None:
    kernel = MemoryTables()
    weighted = Backends("web:80", (Backend(PODS[0], 8080, 3), Backend(PODS[1], 8080, 1)))
    state = msgspec.structs.replace(small_state(), backends={"web:80": weighted})
    Reconciler(kernel, FakeHooks()).apply(state, 0.0, prune=True)
    tables = read_tables(kernel, {PODS[0]: "d/pod: no interface"})
    assert {row.address: row.note for row in tables.identities} == {"10.0.0.1": "d/pod: no interface", "10.0.0.3": ""}
    assert [(row.address, row.service, row.plane) for row in tables.frontends] == [("240.0.0.1", "web:80", "L4")]
    assert {(row.address, row.weight) for row in tables.backends} == {("10.0.0.1", 3), ("10.0.0.2", 1)}
    assert {(row.address, row.identity, row.policy) for row in tables.identities} == {
        ("10.0.0.3", "spiffe://t/a", ""),
        ("10.0.0.1", "", "d/p"),
    }
    assert {(row.policy, row.source, row.verdict) for row in tables.policies} == {
        ("d/p", "spiffe://t/a", "ALLOW"),
        ("d/p", "any", "DENY"),
    }
