"""The reconciler: owner of what the kernel holds; applies plans and repairs what others changed.

Desired state in, map writes out, and per resource the error that kept it from being in force. One
owner, one task; every call is synchronous. The only caller of the kernel's tables for writing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, cast

import msgspec

from xdsbpf.agent.desired import DesiredState
from xdsbpf.agent.fragment import Problem
from xdsbpf.agent.ops import (
    TABLES,
    AttachVeth,
    Cause,
    Delete,
    DetachVeth,
    FreeSlots,
    Op,
    Put,
    Realised,
    SetConfig,
    TableName,
    Verdicts,
    WriteSlots,
    interface_cause,
)
from xdsbpf.agent.plan import NO_CGROUPS, Cgroups, Plan, Planner
from xdsbpf.datapath import abi
from xdsbpf.datapath.tables import Kernel
from xdsbpf.errors import DatapathError, MapFull

VERIFY_INTERVAL = 30.0
"""Seconds between two comparisons of the mirror with the kernel (reliability D7)."""
_REPLAN_DELAY = 1.0
_SLICE = 256
"""Entries that are compared between two chances for others to run; about half a millisecond."""


class VethHooks(Protocol):
    """The part of `datapath.attach.Hooks` that plans use."""

    def attach_veth(self, ifindex: int) -> None:
        """Guard an interface."""

    def detach_veth(self, ifindex: int) -> None:
        """Stop guarding it."""

    def veths(self) -> tuple[int, ...]:
        """Guarded interfaces."""


class Outcome(msgspec.Struct, frozen=True):
    """What one pass did. `failed`: resources with an operation that the kernel refused, and why."""

    applied: int
    failed: dict[Cause, str]
    problems: tuple[Problem, ...]
    wake_at: float | None


class Reconciler:
    """Applies desired state to one kernel.

    Starts from what the kernel holds (an earlier agent's work); `drift` counts the entries that
    `compare` found different from what was written.
    """

    def __init__(self, kernel: Kernel, hooks: VethHooks, cgroups: Cgroups = NO_CGROUPS) -> None:
        """Read the whole kernel state once and rebuild the numbers. Cost: O(entries)."""
        self._kernel = kernel
        self._hooks = hooks
        self.realised = read_realised(kernel, hooks)
        self._planner = Planner(self.realised, cgroups)
        self.drift = 0

    @property
    def adopted(self) -> bool:
        """True if the kernel holds an earlier agent's state, which must not be pruned yet."""
        held = self.realised
        return bool(held.frontends or held.addresses or held.policies or held.attached)

    def apply(
        self, desired: DesiredState, now: float, *, prune: bool, changed: Iterable[Cause] | None = None
    ) -> Outcome:
        """Plan and write. A refused write fails its resource, not the others, and is tried again next time.

        `changed`, `prune`: see `Planner.plan`. Raises: DatapathError for a refusal that belongs to no
        resource (configuration).
        """
        failed: dict[Cause, str] = {}
        incomplete: set[int] = set()
        result = self._planner.plan(desired, now, changed=changed, prune=prune)
        applied = self._write_plan(result, failed, incomplete)
        while result.is_first_half and not incomplete:
            result = self._planner.plan(desired, now, changed=(), prune=prune)
            applied += self._write_plan(result, failed, incomplete)
        if result.is_first_half:
            text = "held back: the kernel has no room for the entries that a new block of source addresses needs"
            failed = dict.fromkeys(self._planner.waiting, text) | failed
        wake_at = result.wake_at
        if applied or failed:
            # Quarantine clocks start when the next plan sees that the last reference has gone.
            wake_at = min(now + _REPLAN_DELAY, wake_at or now + _REPLAN_DELAY)
        return Outcome(applied, failed, result.problems, wake_at)

    def _write_plan(self, plan: Plan, failed: dict[Cause, str], incomplete: set[int]) -> int:
        """Apply one plan; adds to `failed` and to `incomplete`, the policies with refused entries.

        Returns: number of operations that were applied.
        """
        failed.update(plan.failed)
        applied = 0
        for op in plan.ops:
            if _blocked(op, failed, incomplete) or (plan.is_first_half and incomplete and self._is_renaming(op)):
                continue
            try:
                self._write(op)
                applied += 1
            except DatapathError as err:
                cause = _cause(op)
                if cause is None:
                    raise
                failed.setdefault(cause, str(err))
                if isinstance(op, Put) and isinstance(op.key, abi.PolicyKey):
                    incomplete.add(op.key.policy)
                    # No address and no frontend has been written yet: this is what guarded before.
                    if Verdicts(op.key.policy) not in self.realised.uses:
                        self._withdraw(op.key.policy)
        return applied

    def _is_renaming(self, op: Op) -> bool:
        """Whether an operation only says anew who sends from an address, or from a block of them.

        Security: in the first half of a change it waits for entries of policies that found no room. Without
        them the new name would be judged as any source is.
        """
        if not isinstance(op, Put) or op.table != "addresses":
            return False
        value, held = cast(abi.Address, op.value), self.realised.addresses.get(cast(abi.AddressKey, op.key))
        is_block = cast(abi.AddressKey, op.key).prefix_length < 128
        return is_block or (held is not None and held.policy == value.policy)

    def compare(self) -> Iterator[None]:
        """Compare the mirror with the kernel, count the differences, and leave them to the next `apply`.

        A generator that stops about every half millisecond; `apply` may run in between, because an
        entry that a dump shows otherwise is read again before it counts. Cost: one dump per map.
        """
        for table in TABLES:
            yield from self._compare_table(table)
        for places in _slices(tuple(self.realised.slots)):
            for place in places:
                self._compare_slots(place)
            yield
        config = self._kernel.config()
        self.drift += config != self.realised.config
        self.realised.config = config
        attached = set(self._hooks.veths())
        self.drift += len(attached ^ self.realised.attached)
        self.realised.attached = attached

    def _compare_table(self, table: TableName) -> Iterator[None]:
        held = self.realised.table(table)
        seen: set[Any] = set()
        for entries in _slices(getattr(self._kernel, table).scan()):
            for key, value in entries:
                seen.add(key)
                if held.get(key) != value:
                    self._compare_entry(table, key)
            yield
        for keys in _slices(tuple(held)):
            for key in keys:
                if key not in seen:
                    self._compare_entry(table, key)
            yield

    def _compare_entry(self, table: TableName, key: Any) -> None:
        """Read one entry now; only what differs now was changed by somebody else."""
        found = getattr(self._kernel, table).get(key)
        if found == self.realised.table(table).get(key):
            return
        self.drift += 1
        if found is None:
            self.realised.remove(table, key)
        else:
            self.realised.put(table, key, found)
            if isinstance(found, abi.Frontend):
                _read_slots(self._kernel, self.realised, found)
        if table == "names" or table == "backends":
            self.realised.loose.add(key)
        self._planner.suspect(table, key)

    def _compare_slots(self, place: tuple[int, int]) -> None:
        held = self.realised.slots.get(place)
        if held is None:
            return
        found = self._kernel.slots.read(*place)
        if found != held:
            self.drift += 1
            self.realised.put_slots(place, found)
            self._planner.suspect_slots(place)

    def _withdraw(self, policy: int) -> None:
        """A new policy that does not fit is withdrawn whole: its number then denies everything.

        Half of a policy could allow what the missing half denies (reliability D6: full is closed).
        """
        for key in [key for key in self.realised.policies if key.policy == policy]:
            self._write(Delete("policies", key))
            self._planner.suspect("policies", key)

    def _write(self, op: Op) -> None:
        kernel = self._kernel
        match op:
            case Put(table=table, key=key, value=value):
                getattr(kernel, table).put(key, value)
            case Delete(table=table, key=key):
                getattr(kernel, table).delete(key)
            case WriteSlots(offset=offset, backends=backends):
                kernel.slots.write(offset, backends)
            case SetConfig(config=config):
                kernel.set_config(config)
            case AttachVeth(ifindex=ifindex):
                self._hooks.attach_veth(ifindex)
            case DetachVeth(ifindex=ifindex):
                self._hooks.detach_veth(ifindex)
            case FreeSlots():
                pass
        self.realised.record(op)


def read_realised(kernel: Kernel, hooks: VethHooks) -> Realised:
    """What the kernel holds now. Slot ranges cannot be listed: those of the frontends are read.

    Cost: one dump per map.
    """
    found = Realised()
    found.config = kernel.config()
    for table in TABLES:
        for key, value in getattr(kernel, table).items():
            found.put(table, key, value)
    for frontend in found.frontends.values():
        _read_slots(kernel, found, frontend)
    found.attached = set(hooks.veths())
    return found


def _read_slots(kernel: Kernel, realised: Realised, frontend: abi.Frontend) -> None:
    """Take a frontend's slots into the mirror.

    A range outside the arena (nothing of ours) is left out: its frontend is never as wanted, and put anew.
    """
    place = frontend.slot_offset, frontend.slot_count
    if not frontend.slot_count or place in realised.slots:
        return
    try:
        contents = kernel.slots.read(*place)
    except MapFull:
        return
    realised.put_slots(place, contents)


def _slices(things: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(things)
    while some := list(itertools.islice(iterator, _SLICE)):
        yield some


def _cause(op: Op) -> Cause | None:
    match op:
        case Put(cause=cause) | WriteSlots(cause=cause):
            return cause
        case AttachVeth(ifindex=ifindex) | DetachVeth(ifindex=ifindex):
            return interface_cause(ifindex)
        case _:
            return None


def _blocked(op: Op, failed: dict[Cause, str], incomplete: set[int]) -> bool:
    """True for what would build on something that is not there.

    The guard of an address is never held back: one that shall be guarded is, by an incomplete policy if
    need be, which denies what it does not hold; its identity is, until its interface is guarded. An old
    entry of an incomplete policy stays, it may be shielding.
    """
    match op:
        case Put(table="addresses", needs=needs):
            return needs is not None and needs in failed
        case Put(cause=cause, needs=needs):
            return cause in failed or (needs is not None and needs in failed)
        case WriteSlots(cause=cause):
            return cause in failed
        case Delete(table="policies", key=abi.PolicyKey(policy=policy)):
            return policy in incomplete
        case _:
            return False


def failures_of(outcome: Outcome, type_url: str, names: Iterable[str]) -> dict[str, str]:
    """The failed resources among `names` of one type, with their reasons."""
    return {name: outcome.failed[type_url, name] for name in names if (type_url, name) in outcome.failed}
