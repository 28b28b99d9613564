"""The reconciler: owner of what the kernel holds; applies plans and repairs what others changed.

Desired state in, map writes out, and per resource the error that kept it from being in force. One
owner, one task; every call is synchronous. The only caller of the kernel's tables for writing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from xdsbpf.agent.desired import DesiredState
from xdsbpf.agent.image import Problem
from xdsbpf.agent.ops import (
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
    WriteSlots,
)
from xdsbpf.agent.plan import NO_CGROUPS, Cgroups, numbers_of, plan
from xdsbpf.datapath import abi
from xdsbpf.datapath.tables import Kernel
from xdsbpf.errors import DatapathError
from xdsbpf.model.names import NODE_CONFIG

VERIFY_INTERVAL = 30.0
"""Seconds between two comparisons of the mirror with the kernel (reliability D7)."""
_REPLAN_DELAY = 1.0
_TABLES: tuple[TableName, ...] = (
    "names",
    "policies",
    "addresses",
    "netns",
    "veths",
    "backends",
    "frontends",
)


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
    `verify` found different from what was written.
    """

    def __init__(self, kernel: Kernel, hooks: VethHooks, cgroups: Cgroups = NO_CGROUPS) -> None:
        """Read the whole kernel state once and rebuild the numbers. Cost: O(entries)."""
        self._kernel = kernel
        self._hooks = hooks
        self._cgroups = cgroups
        self.realised = read_realised(kernel, hooks)
        self._numbers = numbers_of(self.realised)
        self.drift = 0

    @property
    def adopted(self) -> bool:
        """True if the kernel holds an earlier agent's state, which must not be pruned yet."""
        held = self.realised
        return bool(held.frontends or held.addresses or held.policies or held.attached)

    def apply(self, desired: DesiredState, now: float, *, prune: bool) -> Outcome:
        """Plan and write. A refused write fails its resource, not the others.

        Raises: DatapathError for a refusal that belongs to no resource (configuration).
        """
        result = plan(desired, self.realised, self._numbers, now, cgroups=self._cgroups, prune=prune)
        guarding = {address.policy for address in self.realised.addresses.values()}
        guarding |= {frontend.policy for frontend in self.realised.frontends.values()}
        failed: dict[Cause, str] = dict(result.failed)
        incomplete: set[int] = set()
        applied = 0
        for op in result.ops:
            if _blocked(op, failed, incomplete):
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
                    if op.key.policy not in guarding:
                        self._withdraw(op.key.policy)
        wake_at = result.wake_at
        if applied or failed:
            # Quarantine clocks start when the next plan sees that the last reference has gone.
            wake_at = min(now + _REPLAN_DELAY, wake_at or now + _REPLAN_DELAY)
        return Outcome(applied, failed, result.problems, wake_at)

    def verify(self, desired: DesiredState, now: float, *, prune: bool) -> Outcome:
        """Compare the mirror with the kernel, count the differences, and repair them. Cost: O(entries)."""
        found = read_realised(self._kernel, self._hooks, self.realised)
        self.drift += sum(_differences(found.table(name), self.realised.table(name)) for name in _TABLES)
        self.drift += _differences(found.slots, self.realised.slots)
        self.drift += len(found.attached ^ self.realised.attached) + (found.config != self.realised.config)
        self.realised = found
        return self.apply(desired, now, prune=prune)

    def _withdraw(self, policy: int) -> None:
        """A new policy that does not fit is withdrawn whole: its number then denies everything.

        Half of a policy could allow what the missing half denies (reliability D6: full is closed).
        """
        for key in [key for key in self.realised.policies if key.policy == policy]:
            self._write(Delete("policies", key))

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


def read_realised(kernel: Kernel, hooks: VethHooks, known: Realised | None = None) -> Realised:
    """What the kernel holds now.

    Slot ranges cannot be listed: those of the frontends are read, and those that `known` has in
    quarantine. Cost: one dump per map.
    """
    found = Realised()
    found.config = kernel.config()
    for name in _TABLES:
        found.table(name).update(getattr(kernel, name).items())
    ranges = found.slot_ranges_in_use() | (set(known.slots) if known is not None else set())
    found.slots = {(offset, count): kernel.slots.read(offset, count) for offset, count in sorted(ranges)}
    found.attached = set(hooks.veths())
    return found


def _differences(found: Mapping[Any, object], held: Mapping[Any, object]) -> int:
    changed = sum(1 for key, value in found.items() if held.get(key) != value)
    return changed + len(held.keys() - found.keys())


def _cause(op: Op) -> Cause | None:
    match op:
        case Put(cause=cause) | WriteSlots(cause=cause):
            return cause
        case AttachVeth(ifindex=ifindex) | DetachVeth(ifindex=ifindex):
            return NODE_CONFIG, f"interface {ifindex}"
        case _:
            return None


def _blocked(op: Op, failed: dict[Cause, str], incomplete: set[int]) -> bool:
    """True for what would build on something that is not there.

    An address is never held back: one that shall be guarded is, by an incomplete policy if need be,
    which denies what it does not hold. An old entry of an incomplete policy stays, it may be shielding.
    """
    match op:
        case Put(table="addresses"):
            return False
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
