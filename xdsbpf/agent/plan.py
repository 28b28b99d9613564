"""The plan: ordered map writes that turn what the kernel holds into what it shall hold.

A program in the kernel may run between any two operations, so the order is make before break:
configuration, names, policy entries, addresses, workloads, endpoints, slots in a fresh range, then the
one element of the frontend; what is no longer wanted goes in the reverse order, and what programs may
still be reading only after a quarantine. Pure: time is passed in, failures are the reconciler's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from xdsbpf.agent.desired import DesiredState
from xdsbpf.agent.image import Image, Problem, build_image
from xdsbpf.agent.numbers import BACKEND_QUARANTINE, NAME_QUARANTINE, SLOT_QUARANTINE, Numbers
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
from xdsbpf.agent.slots import SlotRanges
from xdsbpf.datapath import abi
from xdsbpf.datapath.abi import NameKey, PolicyKey
from xdsbpf.model.names import BACKENDS


class Cgroups(msgspec.Struct, frozen=True):
    """Cgroup ids whose connects the kernel leaves alone (0: none)."""

    proxy: int = 0
    agent: int = 0


NO_CGROUPS = Cgroups()


class Plan(msgspec.Struct, frozen=True):
    """Operations in order.

    `failed`: resources without a place, with the reason; `wake_at`: when a quarantine ends and planning
    again does more (None: never).
    """

    ops: tuple[Op, ...]
    problems: tuple[Problem, ...]
    failed: Mapping[Cause, str]
    wake_at: float | None


def plan(
    desired: DesiredState,
    realised: Realised,
    numbers: Numbers,
    now: float,
    *,
    cgroups: Cgroups = NO_CGROUPS,
    prune: bool = True,
    slot_capacity: int = abi.Limit.MAX_SLOTS,
) -> Plan:
    """Order the writes that turn `realised` into `desired`.

    `now` is in seconds of any monotonic clock, the same one for all plans with these `numbers`.
    With `prune` off (the first full state is not complete yet) nothing is taken away: no entry is
    deleted, no address loses its identity or its guard, no frontend is put without its endpoints.
    Guarantees after every single operation: a frontend's slots and endpoints are there; an address
    that is guarded before and after is guarded; a (policy, source, port) has its old verdict or its
    new one, never a third.
    Shape: one operation per changed entry; empty when nothing changed and no quarantine has ended.
    Cost: O(all entries); no kernel access. Allocates in `numbers`.
    Spec: datapath part C, "Consistency rules".
    """
    image = build_image(desired, numbers)
    if not prune:
        _keep_what_is_unclaimed(image, realised)
    builds = [
        *_config(desired, realised, cgroups),
        *_puts("names", image.names, realised.names),
        *_policy_puts(image, realised),
        *_address_puts(image, realised),
        *_puts("netns", image.netns, realised.netns),
        *_puts("veths", image.veths, realised.veths),
        *(AttachVeth(ifindex) for ifindex in sorted(image.attached - realised.attached)),
        *_puts("backends", image.backends, realised.backends),
    ]
    slots, frontends = _frontend_puts(image, realised, slot_capacity, prune)
    if not prune:
        return Plan((*builds, *slots, *frontends), tuple(sorted(image.problems)), image.failed, None)
    rested, wake_at = _rested(image, realised, numbers, now)
    ops = (*builds, *slots, *frontends, *_deletes(image, realised), *rested)
    return Plan(ops, tuple(sorted(image.problems)), image.failed, wake_at)


def _keep_what_is_unclaimed(image: Image, realised: Realised) -> None:
    """Before the first full state a missing claim is not known to be gone: keep what the kernel has."""
    for key, (wanted, cause) in image.addresses.items():
        held = realised.addresses.get(key)
        if held is not None:
            kept = abi.Address(wanted.identity or held.identity, wanted.policy or held.policy)
            image.addresses[key] = kept, cause


def _config(desired: DesiredState, realised: Realised, cgroups: Cgroups) -> Iterator[Op]:
    held = realised.config
    proxy_address = desired.node.proxy_address if desired.node else held.proxy_address
    wanted = abi.Config(cgroups.proxy, cgroups.agent, proxy_address, abi.AbiVersion.VERSION, held.generation)
    if wanted != held:
        yield SetConfig(msgspec.structs.replace(wanted, generation=held.generation + 1 & 0xFFFFFFFF))


def _puts(table: TableName, wanted: Mapping[Any, tuple[Any, Cause]], held: Mapping[Any, Any]) -> Iterator[Op]:
    for key in sorted(wanted):
        value, cause = wanted[key]
        if held.get(key) != value:
            yield Put(table, key, value, cause)


def _specificity(key: PolicyKey) -> int:
    """How early the kernel looks at an entry: 0 for (source, port), 3 for (any, any)."""
    return 2 * (key.source == abi.Identity.ANY) + (key.port == 0)


def _policy_puts(image: Image, realised: Realised) -> Iterator[Op]:
    """New and changed entries, the most specific first.

    An entry decides only for queries without a more specific one. With all more specific entries of
    the new set in place, whatever an entry newly decides it decides for good: a query goes from its old
    verdict to its new one in one step. Allows go before denies where the order is free.
    """

    def order(key: PolicyKey) -> tuple[int, int, PolicyKey]:
        return _specificity(key), image.policies[key][0].verdict, key

    for key in sorted(image.policies, key=order):
        value, cause = image.policies[key]
        if realised.policies.get(key) != value:
            yield Put("policies", key, value, cause)


def _policy_deletes(image: Image, realised: Realised) -> Iterator[Op]:
    """Entries that are not wanted any more, the least specific first.

    An old specific entry shields its queries until everything behind it is of the new set alone.
    """
    gone = realised.policies.keys() - image.policies.keys()
    for key in sorted(gone, key=lambda key: (-_specificity(key), key)):
        yield Delete("policies", key)


def _address_puts(image: Image, realised: Realised) -> Iterator[Op]:
    """Guarded addresses first: if the map fills up, what is left out is an identity, not a guard."""
    for key in sorted(image.addresses, key=lambda key: (image.addresses[key][0].policy == 0, key)):
        value, cause = image.addresses[key]
        if realised.addresses.get(key) != value:
            yield Put("addresses", key, value, cause)


def _frontend_puts(image: Image, realised: Realised, capacity: int, prune: bool) -> tuple[list[Op], list[Op]]:
    """Slot ranges to fill, and the frontends that point to them. A range is shared by its frontends."""
    places = {contents: place for place, contents in sorted(realised.slots.items(), reverse=True)}
    free: SlotRanges | None = None
    writes: list[Op] = []
    puts: list[Op] = []
    for key in sorted(image.frontends):
        frontend, cause = image.frontends[key]
        backends = image.balanced.get(key)
        contents = image.slots.get(backends) if backends is not None else None
        needs = (BACKENDS, backends) if backends is not None else None
        if backends is not None and contents is None:
            continue
        if not prune and not frontend.flags and not contents:
            continue
        if contents:
            place = places.get(contents)
            if place is None:
                free = free or SlotRanges(realised.slots, capacity)
                offset = free.take(len(contents))
                if offset is None:
                    message = f"no {len(contents)} adjacent slots are free; tried again when others are freed"
                    image.failed[BACKENDS, str(backends)] = message
                    continue
                place = places[contents] = (offset, len(contents))
                writes.append(WriteSlots(offset, contents, (BACKENDS, str(backends))))
            frontend = msgspec.structs.replace(frontend, slot_offset=place[0], slot_count=place[1])
        if realised.frontends.get(key) != frontend:
            puts.append(Put("frontends", key, frontend, cause, needs))
    return writes, puts


def _deletes(image: Image, realised: Realised) -> Iterator[Op]:
    """What nothing wants and no program can be in the middle of using: single lookups."""
    yield from _gone("frontends", image.frontends, realised.frontends)
    yield from (DetachVeth(ifindex) for ifindex in sorted(realised.attached - image.attached))
    yield from _gone("veths", image.veths, realised.veths)
    yield from _gone("netns", image.netns, realised.netns)
    yield from _gone("addresses", image.addresses, realised.addresses)
    yield from _policy_deletes(image, realised)


def _gone(table: TableName, wanted: Mapping[Any, Any], held: Mapping[Any, Any]) -> Iterator[Op]:
    for key in sorted(held.keys() - wanted.keys()):
        yield Delete(table, key)


def _rested(image: Image, realised: Realised, numbers: Numbers, now: float) -> tuple[list[Op], float | None]:
    """Slots, endpoints and names that nothing has referred to for their quarantine.

    "Nothing" looks at the kernel before this plan, so a clock starts only when the last reference has
    really gone, and at the image, so that what comes back is kept.
    """
    idle_slots = sorted(realised.slots.keys() - realised.slot_ranges_in_use() - _placed(image, realised))
    slots, wake_slots = numbers.due("slots", idle_slots, now, SLOT_QUARANTINE)
    referred = {index for contents in realised.slots.values() for index in contents}
    idle_backends = sorted(realised.backends.keys() - referred - image.backends.keys())
    backends, wake_backends = numbers.due("backends", idle_backends, now, BACKEND_QUARANTINE)
    used = {NameKey(space, number) for space, number in realised.numbers_in_use()}
    idle_names = sorted(realised.names.keys() - used - image.names.keys())
    names, wake_names = numbers.due("names", idle_names, now, NAME_QUARANTINE)
    ops: list[Op] = [FreeSlots(place) for place in slots]
    for index in backends:
        numbers.release_backend(index, realised.backends[index])
        ops.append(Delete("backends", index))
    for key in names:
        numbers.release_name(key)
        ops.append(Delete("names", key))
    wakes = [wake for wake in (wake_slots, wake_backends, wake_names) if wake is not None]
    return ops, min(wakes, default=None)


def _placed(image: Image, realised: Realised) -> set[tuple[int, int]]:
    wanted = set(image.slots.values())
    return {place for place, contents in realised.slots.items() if contents in wanted}


def numbers_of(realised: Realised) -> Numbers:
    """The allocator as it was before a restart, from what the kernel holds."""
    return Numbers(realised.names, realised.backends, realised.numbers_in_use())
