"""Plans, operation by operation: no reader between two writes sees something that never was wanted."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Redirect,
    Workload,
    frontend_name,
)
from xdsbpf.agent.ops import TABLES, Cause, Delete, Op, Put, Realised
from xdsbpf.agent.plan import Planner
from xdsbpf.datapath import abi
from xdsbpf.datapath.abi import AddressKey, FrontendKey, NameKey, NameSpace, PolicyKey, Verdict
from xdsbpf.datapath.abi import Identity as IdentityNumber
from xdsbpf.datapath.abi import Policy as PolicyValue
from xdsbpf.datapath.address import address16, host_key
from xdsbpf.model.names import BACKENDS, FRONTEND, IDENTITY, POLICY

ADDRESSES = [address16(bytes((10, 0, 0, last))) for last in range(1, 6)]
SERVICES = ["a.d:80", "b.d:80"]
IDENTITIES = ["spiffe://t/p", "spiffe://t/q", "spiffe://t/r"]
POLICIES = ["d/one", "d/one+d/two"]
PORTS = [0, 80, 81]


@st.composite
def desired_states(draw: st.DrawFn) -> DesiredState:
    """A consistent state: every address in one identity and under one policy at most."""
    backends = {}
    for service in draw(st.sets(st.sampled_from(SERVICES))):
        endpoints = draw(
            st.dictionaries(st.tuples(st.sampled_from(ADDRESSES), st.just(8080)), st.integers(1, 5), max_size=4)
        )
        backends[service] = Backends(service, tuple(Backend(*key, endpoints[key]) for key in sorted(endpoints)))
    identity_of = draw(st.dictionaries(st.sampled_from(ADDRESSES), st.sampled_from(IDENTITIES)))
    policy_of = draw(st.dictionaries(st.sampled_from(ADDRESSES), st.sampled_from(POLICIES)))
    policies = {name: draw(_policy(name, policy_of)) for name in sorted(set(policy_of.values()))}
    frontends = {}
    for last in draw(st.sets(st.integers(1, 4))):
        address, service = address16(bytes((240, 0, 0, last))), draw(st.sampled_from(SERVICES))
        plane = draw(
            st.one_of(
                st.just(Balance(service)),
                st.builds(Balance, st.just(service), st.sampled_from(["", *policies]), st.just(80)),
                st.builds(Redirect, st.just(15001), st.sampled_from(["", *policies]), st.just(80)),
            )
        )
        frontends[frontend_name(address, 80)] = Frontend(address, 80, service, plane)
    return DesiredState(
        frontends=frontends,
        backends=backends,
        identities={
            name: Identity(name, tuple(sorted(a for a, n in identity_of.items() if n == name)))
            for name in sorted(set(identity_of.values()))
        },
        policies=policies,
        node=NodeConfig(
            "n",
            draw(st.sampled_from(ADDRESSES[:2])),
            tuple(Workload(f"d/{i}", "", (ADDRESSES[i],), "") for i in sorted(draw(st.sets(st.integers(0, 3))))),
            "t",
        ),
        enrolled=tuple(
            Enrolled(f"d/{i}", 1000 + i, 10 + i, (ADDRESSES[i],)) for i in sorted(draw(st.sets(st.integers(0, 3))))
        ),
    )


@st.composite
def _policy(draw: st.DrawFn, name: str, policy_of: dict[bytes, str]) -> Policy:
    cells = draw(
        st.dictionaries(
            st.tuples(st.sampled_from([None, *IDENTITIES]), st.sampled_from(PORTS)),
            st.tuples(st.sampled_from([Verdict.ALLOW, Verdict.DENY]), st.sampled_from(["rule 1", "rule 2"])),
            max_size=9,
        )
    )
    entries = tuple(PolicyEntry(source, port, *cells[source, port]) for source, port in cells)
    return Policy(name, tuple(sorted(a for a, n in policy_of.items() if n == name)), entries)


Guarded = FrontendKey | AddressKey


class Snapshot(msgspec.Struct, frozen=True):
    """What programs in the kernel could read from a moment on, until the next one."""

    at: float
    policies: dict[PolicyKey, PolicyValue]
    guards: dict[Guarded, tuple[int, int]]
    """(policy number, port) that is asked for: at connect to a service, at an address."""


def snapshot(at: float, realised: Realised) -> Snapshot:
    """The present contents of the maps, of which the mirror keeps no history."""
    guards: dict[Guarded, tuple[int, int]] = {
        key: (value.policy, value.policy_port) for key, value in realised.frontends.items()
    }
    return Snapshot(
        at, dict(realised.policies), guards | {key: (value.policy, 80) for key, value in realised.addresses.items()}
    )


def may(guard: tuple[int, int], entries: Snapshot, source: int) -> bool:
    """May a source pass a guard that a program has read, with the entries that it finds then?"""
    policy, port = guard
    return not policy or verdict(entries, policy, source, port) is Verdict.ALLOW


def verdict(realised: Realised | Snapshot, policy: int, source: int, port: int) -> Verdict:
    """The kernel's lookups, in its order; nothing found: deny."""
    for key in (
        PolicyKey(policy, source, port, 6),
        PolicyKey(policy, source, 0, 6),
        PolicyKey(policy, IdentityNumber.ANY, port, 6),
        PolicyKey(policy, IdentityNumber.ANY, 0, 6),
    ):
        found = realised.policies.get(key)
        if found is not None:
            return Verdict(found.verdict)
    return Verdict.DENY


Query = tuple[int, int, int]


def verdicts(realised: Realised, policies: set[int], sources: set[int]) -> dict[Query, Verdict]:
    """Every verdict over the numbers in play, of unknown sources and unmentioned ports too."""
    queries = itertools.product(sorted(policies), sorted(sources | {0, 999}), (80, 81, 82))
    return {query: verdict(realised, *query) for query in queries}


def copy(realised: Realised, *, only_used_slots: bool = False) -> Realised:
    """An independent copy; what a new agent finds has only the slots that frontends refer to."""
    twin = Realised()
    twin.config, twin.attached = realised.config, set(realised.attached)
    for table in TABLES:
        for key, value in realised.table(table).items():
            twin.put(table, key, value)
    for place in twin.slot_ranges_in_use() if only_used_slots else realised.slots:
        twin.put_slots(place, realised.slots[place])
    return twin


def numbers_in(realised: Realised, space: NameSpace) -> set[int]:
    """Numbers of a space that the kernel knows."""
    return {key.number for key in realised.names if key.space == space} | {
        number for used, number in realised.numbers_in_use() if used is space
    }


def named(realised: Realised) -> object:
    """What the kernel holds with names for numbers: what two runs with different numbers share."""

    def name(space: NameSpace, number: int) -> str:
        if number in (0, IdentityNumber.ANY):
            return str(number)
        return realised.names[NameKey(space, number)].text

    frontends = {}
    for key, value in realised.frontends.items():
        place = (value.slot_offset, value.slot_count)
        slots = realised.slots[place] if value.slot_count else ()
        endpoints = sorted((realised.backends[i].address, realised.backends[i].port) for i in slots)
        frontends[key] = (
            name(NameSpace.SERVICE, value.service),
            endpoints,
            name(NameSpace.POLICY, value.policy),
            value.policy_port,
            value.proxy_port,
            value.flags,
        )
    return (
        frontends,
        {
            key: (name(NameSpace.IDENTITY, value.identity), name(NameSpace.POLICY, value.policy))
            for key, value in realised.addresses.items()
        },
        {
            (name(NameSpace.POLICY, key.policy), name(NameSpace.IDENTITY, key.source), key.port): (
                value.verdict,
                name(NameSpace.RULE, value.rule),
            )
            for key, value in realised.policies.items()
        },
        realised.netns,
        realised.veths,
        realised.attached,
        realised.config.proxy_address,
    )


def settle(desired: DesiredState, realised: Realised, planner: Planner, now: float) -> float:
    """Plan and apply until all quarantines have ended. Returns the time then."""
    for _ in range(12):
        for op in planner.plan(desired, now).ops:
            realised.record(op)
        now += 301
    return now


def changed(old: DesiredState, new: DesiredState) -> set[Cause]:
    """The resources that differ, as a client notes them."""
    tables = {FRONTEND: "frontends", BACKENDS: "backends", IDENTITY: "identities", POLICY: "policies"}
    found = set()
    for type_url, table in tables.items():
        before, after = getattr(old, table), getattr(new, table)
        found |= {(type_url, name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return found


@given(st.lists(desired_states(), min_size=1, max_size=4), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_operation_of_a_plan_opens_closes_or_breaks_what_stays(states: list[DesiredState], slow: bool) -> None:
    realised, now = Realised(), 0.0
    planner = Planner(realised)
    for previous, desired in itertools.pairwise([DesiredState(), *states]):
        result = planner.plan(desired, now, changed=changed(previous, desired))
        check_senders(desired, copy(realised), result.ops)
        check_each_operation(realised, result.ops)
        assert not planner.plan(desired, now, changed=()).ops
        assert not planner.plan(desired, now).ops
        now += 400 if slow else 0.1


def check_each_operation(realised: Realised, ops: tuple[Op, ...]) -> None:
    """Apply, and look at what a program in the kernel could see after every single write."""
    before, final = copy(realised), copy(realised)
    for op in ops:
        final.record(op)
    policies = numbers_in(before, NameSpace.POLICY) | numbers_in(final, NameSpace.POLICY)
    sources = numbers_in(before, NameSpace.IDENTITY) | numbers_in(final, NameSpace.IDENTITY)
    old, new = verdicts(before, policies, sources), verdicts(final, policies, sources)
    guarded = {
        key
        for key, value in before.addresses.items()
        if value.policy and key in final.addresses and final.addresses[key].policy
    }
    last = dict(old)
    for op in ops:
        realised.record(op)
        realised.check()
        assert all(realised.addresses[key].policy for key in guarded)
        current = verdicts(realised, policies, sources)
        for query, verdict_now in current.items():
            assert verdict_now in (old[query], new[query])
            if last[query] == new[query]:
                assert verdict_now == new[query], "a verdict went back after it was final"
        last = current


def check_senders(desired: DesiredState, realised: Realised, ops: tuple[Op, ...]) -> None:
    """A pod of this node becomes somebody when its interface is guarded, and is nobody without."""
    assert desired.node is not None
    interface_of = {address: found.ifindex for found in desired.enrolled for address in found.addresses}
    local = {address for workload in desired.node.workloads for address in workload.addresses}
    exposed = {host_key(address) for address in local if interface_of.get(address) not in realised.attached}
    for op in ops:
        if isinstance(op, Put) and isinstance(op.value, abi.Address) and op.key in exposed and op.value.identity:
            assert interface_of[op.key.address] in realised.attached
        realised.record(op)
    for address in local - interface_of.keys():
        assert host_key(address) not in realised.addresses or not realised.addresses[host_key(address)].identity


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[DesiredState, float]]:
    """States that follow one another by a few resources at a time, with pauses; claims may contradict."""
    pool = draw(st.lists(desired_states(), min_size=2, max_size=3))
    state, history = pool[0], []
    for _ in range(draw(st.integers(1, 8))):
        source = draw(st.sampled_from([*pool, DesiredState(node=state.node)]))
        part = draw(st.sampled_from(["frontends", "backends", "identities", "policies", "enrolled", "node"]))
        value = getattr(source, part)
        if isinstance(value, dict):
            held = dict(getattr(state, part))
            for name in draw(st.sets(st.sampled_from(sorted(value.keys() | held.keys()) or [""]))):
                held.pop(name, None)
                held |= {name: value[name]} if name in value else {}
            value = held
        state = msgspec.structs.replace(state, **{part: value})
        history.append((state, draw(st.sampled_from([0.0, 0.1, 1.5, 70.0, 400.0]))))
    return history


@given(histories())
@settings(max_examples=400, deadline=None)
def test_a_plan_of_the_changes_is_the_plan_of_everything(history: list[tuple[DesiredState, float]]) -> None:
    """Two agents with one history, one told what changed, one comparing all: the same writes in the same order.

    And a third one, which starts now from what the kernel holds, finds nothing to write.
    """
    told, comparing, now = Realised(), Realised(), 0.0
    planner, other = Planner(told), Planner(comparing)
    previous = DesiredState()
    for desired, pause in history:
        result = planner.plan(desired, now, changed=changed(previous, desired))
        full = other.plan(desired, now)
        assert result == full
        check_each_operation(told, result.ops)
        for op in full.ops:
            comparing.record(op)
        reborn = copy(told)
        again = Planner(reborn).plan(desired, 0.0)
        assert not again.ops
        assert again.problems == result.problems
        check_books(told)
        previous, now = desired, now + pause
    settle(previous, told, planner, now)
    fresh = Realised()
    settle(previous, fresh, Planner(fresh), 0.0)
    assert named(told) == named(fresh)
    assert {v.text for v in told.names.values()} == {v.text for v in fresh.names.values()}
    assert len(told.backends) == len(fresh.backends)
    assert len(told.slots) == len(fresh.slots)


def check_books(realised: Realised) -> None:
    """What the mirror counts is what a count from the start gives."""
    counted = copy(realised)
    assert realised.uses == counted.uses
    assert realised.places == counted.places
    used = {slot for offset, count in realised.slots for slot in range(offset, offset + count)}
    first = realised.room.take(1)
    assert first == min(slot for slot in range(len(used) + 1) if slot not in used)
    realised.room.give_back(first, 1)
    assert not realised.room.overlapping


@given(st.lists(desired_states(), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_the_kernel_ends_with_exactly_what_the_last_state_says(states: list[DesiredState]) -> None:
    realised, now = Realised(), 0.0
    planner = Planner(realised)
    for desired in states:
        for op in planner.plan(desired, now).ops:
            realised.record(op)
        now += 0.5
    settle(states[-1], realised, planner, now)
    fresh = Realised()
    settle(states[-1], fresh, Planner(fresh), 0.0)
    assert named(realised) == named(fresh)
    assert {v.text for v in realised.names.values()} == {v.text for v in fresh.names.values()}
    assert (sorted(realised.slots) and len(realised.slots) == len(fresh.slots)) or not fresh.slots
    assert len(realised.backends) == len(fresh.backends)


@given(desired_states(), desired_states(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_crash_after_any_operation_is_made_good_by_the_next_agent(
    first: DesiredState, second: DesiredState, data: st.DataObject
) -> None:
    realised = Realised()
    planner = Planner(realised)
    for op in planner.plan(first, 0.0).ops:
        realised.record(op)
    ops = planner.plan(second, 1.0).ops
    for op in ops[: data.draw(st.integers(0, len(ops)), label="applied before the crash")]:
        realised.record(op)
    guarded = {key for key, value in realised.addresses.items() if value.policy}
    realised = copy(realised, only_used_slots=True)
    reborn = Planner(realised)
    for op in reborn.plan(DesiredState(node=second.node), 0.0, changed=(), prune=False).ops:
        realised.record(op)
    assert {key for key, value in realised.addresses.items() if value.policy} >= guarded
    for op in reborn.plan(second, 0.0, changed=changed(DesiredState(), second)).ops:
        realised.record(op)
        realised.check()
    settle(second, realised, reborn, 0.0)
    fresh = Realised()
    settle(second, fresh, Planner(fresh), 0.0)
    assert named(realised) == named(fresh)


@given(desired_states(), desired_states())
@settings(max_examples=150, deadline=None)
def test_an_incomplete_state_takes_nothing_away(first: DesiredState, part: DesiredState) -> None:
    realised = Realised()
    for op in Planner(realised).plan(first, 0.0).ops:
        realised.record(op)
    before = copy(realised)
    partial = msgspec.structs.replace(part, policies={}, frontends={})
    for op in Planner(realised).plan(partial, 1.0, prune=False).ops:
        realised.record(op)
        realised.check()
    assert realised.frontends == before.frontends
    assert realised.policies == before.policies
    assert realised.attached >= before.attached
    for key, value in before.addresses.items():
        assert realised.addresses[key].policy == value.policy
        assert realised.addresses[key].identity or not value.identity


def test_an_address_of_two_policies_is_closed_and_said_so() -> None:
    address = ADDRESSES[0]
    allow = PolicyEntry(None, 0, Verdict.ALLOW, "rule")
    desired = DesiredState(
        policies={name: Policy(name, (address,), (allow,)) for name in ("d/x", "d/y")},
        identities={name: Identity(name, (address,)) for name in ("spiffe://t/p", "spiffe://t/q")},
    )
    realised = Realised()
    result = Planner(realised).plan(desired, 0.0)
    for op in result.ops:
        realised.record(op)
    value = realised.addresses[host_key(address)]
    assert verdict(realised, value.policy, 999, 80) is Verdict.DENY
    assert value.identity == IdentityNumber.UNKNOWN
    assert {problem.name for problem in result.problems} == {"d/x", "d/y", "spiffe://t/p", "spiffe://t/q"}


@given(desired_states(), desired_states(), st.sampled_from([0.0, 0.4, 2.0, 4.9]))
@settings(max_examples=150, deadline=None)
def test_who_may_before_and_after_a_change_of_the_policies_of_a_service_may_in_between(
    old: DesiredState, new: DesiredState, late: float
) -> None:
    """The policies of a change come first, its frontends `late` seconds after them.

    A program may have read a guard (frontend, address) and look for entries up to a second later.
    Policies that exist before and after keep their entries: what the maps promise is about references.
    """
    kept = {name: msgspec.structs.replace(policy, entries=old.policies[name].entries)
            for name, policy in new.policies.items() if name in old.policies}  # fmt: skip
    new = msgspec.structs.replace(new, policies={**new.policies, **kept}, identities=old.identities)
    realised = Realised()
    planner = Planner(realised)
    pages = [(0.0, old), (10.0, msgspec.structs.replace(new, frontends=old.frontends)), (10.0 + late, new)]
    history = []
    for at in sorted({*(at for at, _ in pages), *(10 + step / 4 for step in range(40))}):
        current = [desired for page_at, desired in pages if page_at <= at][-1]
        for op in planner.plan(current, at).ops:
            realised.record(op)
            history.append(snapshot(at, realised))
        if at == 0.0:
            history = [snapshot(10.0, realised)]
    before, after = history[0], history[-1]
    for source, guarded in itertools.product((0, 999, *numbers_in(realised, NameSpace.IDENTITY)), before.guards):
        if guarded not in after.guards:
            continue
        verdicts_at_rest = {may(end.guards[guarded], end, source) for end in (before, after)}
        for index, reader in enumerate(history):
            if len(verdicts_at_rest) == 1 and guarded in reader.guards:
                in_time = [later for later in history[index:] if later.at < reader.at + 1]
                found = {may(reader.guards[guarded], later, source) for later in in_time}
                assert found == verdicts_at_rest


def test_a_frontend_that_keeps_a_policy_which_is_gone_refuses_after_five_seconds() -> None:
    """Its old verdicts stay until then, and never another one."""
    vip, client = address16(bytes((240, 0, 0, 1))), IDENTITIES[0]
    entries = (PolicyEntry(client, 0, Verdict.ALLOW, ""), PolicyEntry(client, 81, Verdict.DENY, ""),
               PolicyEntry(None, 82, Verdict.ALLOW, ""), PolicyEntry(None, 0, Verdict.DENY, ""))  # fmt: skip
    frontend = Frontend(vip, 80, SERVICES[0], Redirect(15001, "d/one", 80))
    old = DesiredState(
        frontends={frontend_name(vip, 80): frontend},
        identities={client: Identity(client, ADDRESSES[:1])},
        policies={"d/one": Policy("d/one", (), entries)},
    )
    realised = Realised()
    planner = Planner(realised)
    for op in planner.plan(old, 0.0).ops:
        realised.record(op)
    (guard,) = [value.policy for value in realised.frontends.values()]
    sources = numbers_in(realised, NameSpace.IDENTITY)
    first = verdicts(realised, {guard}, sources)
    assert Verdict.ALLOW in first.values()
    gone = msgspec.structs.replace(old, policies={})
    assert planner.plan(gone, 1.0).wake_at == 6.0
    assert not planner.plan(gone, 5.9).ops
    result = planner.plan(gone, 6.0)
    for op in result.ops:
        realised.record(op)
        found = verdicts(realised, {guard}, sources)
        assert all(found[query] in (first[query], Verdict.DENY) for query in found)
    assert set(verdicts(realised, {guard}, sources).values()) == {Verdict.DENY}
    assert not realised.policies
    assert any("d/one is not known" in problem.message for problem in result.problems)


def test_a_policy_at_rest_goes_at_once_when_somebody_else_changes_it() -> None:
    vip = address16(bytes((240, 0, 0, 1)))
    frontend = Frontend(vip, 80, SERVICES[0], Redirect(15001, "d/one", 80))
    old = DesiredState(
        frontends={frontend_name(vip, 80): frontend},
        policies={"d/one": Policy("d/one", (), (PolicyEntry(None, 0, Verdict.DENY, ""),))},
    )
    realised = Realised()
    planner = Planner(realised)
    for op in planner.plan(old, 0.0).ops:
        realised.record(op)
    gone = msgspec.structs.replace(old, policies={})
    assert not planner.plan(gone, 1.0).ops
    (key,) = realised.policies
    forged = msgspec.structs.replace(key, port=80)
    realised.put("policies", forged, PolicyValue(0, Verdict.ALLOW))
    planner.suspect("policies", forged)
    assert {op.key for op in planner.plan(gone, 1.1).ops if isinstance(op, Delete)} == {key, forged}
