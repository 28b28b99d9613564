"""The plan: ordered map writes that turn what the kernel holds into what it shall hold.

A program in the kernel may run between any two operations, so the order is make before break:
configuration, names, policy entries, addresses, workloads, the identities that rest on their guarded
interfaces, endpoints, slots in a fresh range, then the one element of the frontend; what is no longer
wanted goes in the reverse order, and what programs may still be reading only after a quarantine. Pure:
time is passed in, failures are the reconciler's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from xdsbpf.agent.blocks import named_blocks
from xdsbpf.agent.desired import DesiredState, frontend_name
from xdsbpf.agent.fragment import Problem
from xdsbpf.agent.image import Image
from xdsbpf.agent.numbers import BLOCK_QUARANTINE, Numbers, Quarantine
from xdsbpf.agent.ops import (
    TABLES,
    AttachVeth,
    Cause,
    Delete,
    DetachVeth,
    Op,
    Put,
    Realised,
    SetConfig,
    SlotRange,
    TableName,
    WriteSlots,
    interface_cause,
    specificity,
)
from xdsbpf.agent.resting import Resting
from xdsbpf.datapath import abi
from xdsbpf.datapath.abi import NameSpace, PolicyKey
from xdsbpf.datapath.address import host_key
from xdsbpf.model.address_block import AddressBlock
from xdsbpf.model.names import BACKENDS


class Cgroups(msgspec.Struct, frozen=True):
    """Cgroup ids whose connects the kernel leaves alone (0: none)."""

    proxy: int = 0
    agent: int = 0


NO_CGROUPS = Cgroups()


class Plan(msgspec.Struct, frozen=True):
    """Operations in order.

    `failed`: resources without a place, with the reason; `wake_at`: when a quarantine ends and planning
    again does more (None: never). `is_first_half`: the changes come with the next plan, once this one is
    applied.
    """

    ops: tuple[Op, ...]
    problems: tuple[Problem, ...]
    failed: Mapping[Cause, str]
    wake_at: float | None
    is_first_half: bool = False


class Planner:
    """Makes plans for one kernel, each from what changed since the one before.

    Every key of a map that may differ from its image is *dirty*, and stays so until a plan finds it equal:
    an operation that failed, or was put off, is planned again. At first every key that the kernel holds is
    dirty, so the first plan with `prune` compares everything.
    """

    def __init__(self, realised: Realised, cgroups: Cgroups = NO_CGROUPS) -> None:
        """`realised` is the reconciler's, which records there what was written. Cost: O(its entries)."""
        self._realised = realised
        self._cgroups = cgroups
        self._numbers = Numbers(realised.names, realised.backends, realised.numbers_in_use())
        sources = (key for key in realised.names if key.space == NameSpace.IDENTITY and key in realised.uses)
        self._image = Image(self._numbers, sorted(set(named_blocks(realised.names[key].text for key in sources))))
        self._unused_blocks: Quarantine[AddressBlock] = Quarantine(BLOCK_QUARANTINE)
        self._dirty = self._image.touched
        self._resting = Resting(realised, self._image, self._numbers)
        for name in TABLES:
            self._dirty[name].update(realised.table(name))
        realised.loose.update(realised.things())

    def plan(
        self, desired: DesiredState, now: float, *, changed: Iterable[Cause] | None = None, prune: bool = True
    ) -> Plan:
        """Order the writes that turn the kernel's state into `desired`.

        `changed` are the resources that differ from the last call's (None: compare all of them); `now` is
        in seconds of one monotonic clock. With `prune` off (the first full state is not complete yet)
        nothing is taken away: no entry is deleted, no address loses its identity or its guard, no frontend
        is put without its endpoints.
        Guarantees after every single operation: a frontend's slots and endpoints are there; an address
        that is guarded before and after is guarded; an address of a pod of this node is somebody only while
        the pod's interface is guarded (before the first full state it may still be who it was); a (policy,
        source, port) has its old verdict or its new one, never a third. And from plan to plan: a policy that
        is gone keeps its verdicts until a second after the last address and frontend have left it, for
        POLICY_LIMIT seconds at most (then what still names it refuses), so a source that may use a service
        under its policies before and after may use it in between, and one that may not never can.
        A change that brings a new block of source addresses takes two plans: see `Image.update`.
        Shape: one operation per changed entry; empty when nothing changed and no quarantine has ended.
        Cost: O(entries of what changed, is not yet as wanted, or has rested); no kernel access.
        Spec: datapath part C, "Consistency rules".
        """
        blocks_end_at = self._forget_blocks(now) if prune else None
        self._image.update(desired, changed, is_first_half_done=not self._is_lacking())
        is_first_half = self._image.is_widening
        self._resting.collect()
        differing = {name: self._differing(name) for name in TABLES}
        failed = self._image.failed
        addresses, senders = self._address_puts(differing["addresses"], prune)
        slots, frontends = self._frontend_puts(differing["frontends"], failed, prune)
        ops: list[Op] = [
            *self._config(desired),
            *self._puts("names", sorted(differing["names"])),
            *self._puts("policies", sorted(differing["policies"], key=self._policy_order)),
            *addresses,
            *self._puts("netns", sorted(differing["netns"])),
            *self._puts("veths", sorted(differing["veths"])),
            *(AttachVeth(ifindex) for ifindex in sorted(self._image.attached - self._realised.attached)),
            *senders,
            *self._puts("backends", sorted(differing["backends"])),
            *slots,
            *frontends,
        ]
        wake_at = None
        if prune and not is_first_half:
            ops += self._deletes(desired, differing)
            rested, wake_at = self._resting.take_due(now)
            ops += rested
            wake_at = min((at for at in (wake_at, blocks_end_at) if at is not None), default=None)
        return Plan(tuple(ops), self._image.problems, failed, wake_at, is_first_half)

    def suspect(self, table: TableName, key: Any) -> None:
        """The kernel's entry was found, or left, other than planned: the next plan looks at it."""
        self._dirty[table].add(key)
        if isinstance(key, PolicyKey):
            self._resting.spoil(key.policy)

    def suspect_slots(self, place: SlotRange) -> None:
        """Slots were found other than written: frontends that point there are looked at, and the range rests."""
        held = self._realised.frontends
        self._dirty["frontends"].update(key for key in held if _place_of(held[key]) == place)
        self._realised.loose.add(place)

    @property
    def waiting(self) -> Iterable[Cause]:
        """Resources whose change is held back by the first half of a change that is not done yet."""
        return self._image.deferred

    def _is_lacking(self) -> bool:
        """Whether something is missing of the sources that the policies in force tell apart."""
        tables: tuple[TableName, ...] = ("policies", "addresses")
        return any(key in self._image.table(name) for name in tables for key in self._differing(name))

    def _forget_blocks(self, now: float) -> float | None:
        """Let the image drop the blocks that no policy has mentioned for a while. Returns: when there are more.

        The entries of a policy at rest do not follow it, so as long as there is one the blocks stay.
        """
        unused = self._image.unused_blocks
        for block in self._image.blocks:
            if block in unused:
                self._unused_blocks.start(block, now)
            else:
                self._unused_blocks.forget(block)
        if not self._resting.has_policies:
            self._image.forget_blocks(self._unused_blocks.take_due(now))
        return self._unused_blocks.wake_at()

    # --- what differs ---

    def _wanted(self, table: TableName, key: Any) -> Any:
        """The final value of an entry; None if there is none, or if its slots have no place yet."""
        entry = self._image.table(table).get(key)
        if entry is None or table != "frontends":
            return entry and entry[0]
        backends = self._image.balanced.get(key)
        if backends is None:
            return entry[0]
        contents = self._image.slots.get(backends)
        if not contents:
            return None if contents is None else entry[0]
        place = self._realised.places.get(contents)
        return None if place is None else _placed(entry[0], place)

    def _differing(self, table: TableName) -> set[Any]:
        """Dirty keys that are not as wanted; the others are clean from now on."""
        held = self._realised.table(table)
        differing = {key for key in self._dirty[table] if held.get(key) != self._wanted(table, key)}
        if table == "frontends":
            # Without a place for its slots it is still to be put.
            differing |= {key for key in self._dirty[table] if key in self._image.table(table) and not held.get(key)}
        self._dirty[table].intersection_update(differing)
        return differing

    def _puts(self, table: TableName, keys: Iterable[Any]) -> Iterator[Op]:
        wanted = self._image.table(table)
        for key in keys:
            if key in wanted:
                value, cause = wanted[key]
                yield Put(table, key, value, cause)

    # --- what is made ---

    def _config(self, desired: DesiredState) -> Iterator[Op]:
        held = self._realised.config
        proxy_address = desired.node.proxy_address if desired.node else held.proxy_address
        wanted = abi.Config(
            self._cgroups.proxy, self._cgroups.agent, proxy_address, abi.AbiVersion.VERSION, held.generation
        )
        if wanted != held:
            yield SetConfig(msgspec.structs.replace(wanted, generation=held.generation + 1 & 0xFFFFFFFF))

    def _policy_order(self, key: PolicyKey) -> tuple[int, int, PolicyKey]:
        """New and changed entries, the most specific first.

        An entry decides only for queries without a more specific one. With all more specific entries of
        the new set in place, whatever an entry newly decides it decides for good: a query goes from its old
        verdict to its new one in one step. Allows go before denies where the order is free.
        """
        entry = self._image.table("policies").get(key)
        return specificity(key), entry[0].verdict if entry else 0, key

    def _address_puts(self, keys: Iterable[abi.AddressKey], prune: bool) -> tuple[list[Op], list[Op]]:
        """Addresses, and again those that are somebody only when their interface is guarded.

        Guarded addresses first: if the map fills up, what is left out is an identity, not a guard.
        Before the first full state a missing claim is not known to be gone: what the kernel has stays, unless
        there are two claims already.
        """
        wanted, held = self._image.table("addresses"), self._realised.addresses
        open_interfaces = self._image.attached - self._realised.attached
        exposed = {
            host_key(address): ifindex
            for address, ifindex in (self._image.interface_of.items() if open_interfaces else ())
            if ifindex in open_interfaces
        }
        puts: list[Op] = []
        senders: list[Op] = []
        values = {key: wanted[key][0] for key in {*keys, *exposed} if key in wanted}
        for key in sorted(values, key=lambda key: (values[key].policy == 0, key)):
            (value, cause), before = wanted[key], held.get(key)
            if not prune and before is not None:
                known = not self._image.is_nobody(before.identity) and key.address not in self._image.contested
                keeps = known and self._image.is_nobody(value.identity)
                identity = before.identity if keeps else value.identity
                value = abi.Address(identity, value.policy or before.policy)
            if key in exposed and not self._image.is_nobody(value.identity):
                senders.append(Put("addresses", key, value, cause, interface_cause(exposed[key])))
                value = abi.Address(self._image.nobody_at(key.address), value.policy)
            if value != before:
                puts.append(Put("addresses", key, value, cause))
        return puts, senders

    def _frontend_puts(
        self, keys: Iterable[abi.FrontendKey], failed: dict[Cause, str], prune: bool
    ) -> tuple[list[Op], list[Op]]:
        """Slot ranges to fill, and the frontends that point to them. A range is shared by its frontends."""
        image, realised = self._image, self._realised
        taken: dict[tuple[int, ...], SlotRange] = {}
        puts: list[Op] = []
        for key in sorted(keys):
            if key not in image.table("frontends"):
                continue
            frontend, cause = image.table("frontends")[key]
            name = image.balanced.get(key)
            contents = image.slots.get(name) if name is not None else ()
            if contents is None or (not prune and not frontend.flags and not contents):
                continue
            if contents and name is not None:
                place = realised.places.get(contents) or taken.get(contents) or self._take(len(contents))
                if place is None:
                    message = f"no {len(contents)} adjacent slots are free; tried again when others are freed"
                    failed[BACKENDS, name] = message
                    continue
                if contents not in realised.places:
                    taken[contents] = place
                frontend = _placed(frontend, place)
            puts.append(Put("frontends", key, frontend, cause, None if name is None else (BACKENDS, name)))
        for place in taken.values():
            # Planned is not written: the range is occupied when the write is recorded.
            realised.room.give_back(*place)
        writes: list[Op] = [
            WriteSlots(place[0], contents, (BACKENDS, image.contents[contents])) for contents, place in taken.items()
        ]
        return writes, puts

    def _take(self, count: int) -> SlotRange | None:
        offset = self._realised.room.take(count)
        return None if offset is None else (offset, count)

    # --- what is taken away ---

    def _deletes(self, desired: DesiredState, differing: Mapping[TableName, set[Any]]) -> Iterator[Op]:
        """What nothing wants and no program can be in the middle of using: single lookups.

        Entries of a policy that is gone rest first (`Resting`). Those of others go the least specific first:
        an old specific entry shields its queries until everything behind it is of the new set alone.
        """
        attached = self._realised.attached - self._image.attached
        for key in self._gone("frontends", differing):
            if not desired.kept or frontend_name(key.address, key.port) not in desired.kept:
                yield Delete("frontends", key)
        yield from (DetachVeth(ifindex) for ifindex in sorted(attached))
        tables: tuple[TableName, ...] = ("veths", "netns", "addresses")
        for table in tables:
            yield from (Delete(table, key) for key in self._gone(table, differing))
        for key in sorted(self._gone("policies", differing), key=lambda key: (-specificity(key), key)):
            yield Delete("policies", key)

    def _gone(self, table: TableName, differing: Mapping[TableName, set[Any]]) -> list[Any]:
        return sorted(key for key in differing[table] if key not in self._image.table(table))


def _place_of(frontend: abi.Frontend) -> SlotRange:
    return frontend.slot_offset, frontend.slot_count


def _placed(frontend: abi.Frontend, place: SlotRange) -> abi.Frontend:
    return msgspec.structs.replace(frontend, slot_offset=place[0], slot_count=place[1])
