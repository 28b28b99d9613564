"""Numbers and slots: stable over restarts, not reused early, weights met."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdsbpf.agent.numbers import Numbers, Quarantine
from xdsbpf.agent.slots import MAX_WEIGHTED_SLOTS, SlotRanges, slot_counts
from xdsbpf.datapath.abi import Backend, Name, NameKey, NameSpace
from xdsbpf.datapath.address import address16

ADDRESS = address16(bytes((10, 0, 0, 1)))


def test_identities_start_above_the_reserved_ones_and_names_keep_their_number() -> None:
    numbers = Numbers({}, {})
    first = numbers.number(NameSpace.IDENTITY, "spiffe://t/a")
    assert first == 256
    assert numbers.number(NameSpace.IDENTITY, "spiffe://t/b") == 257
    assert numbers.number(NameSpace.IDENTITY, "spiffe://t/a") == first
    assert numbers.number(NameSpace.POLICY, "spiffe://t/a") == 1
    assert numbers.text(NameSpace.IDENTITY, first) == "spiffe://t/a"


def test_a_restart_finds_every_number_again_and_takes_none_in_use() -> None:
    names = {NameKey(NameSpace.POLICY, 7): Name("d/p")}
    backends = {9: Backend(ADDRESS, 80, 1, 3)}
    numbers = Numbers(names, backends, [(NameSpace.POLICY, 8)])
    assert numbers.number(NameSpace.POLICY, "d/p") == 7
    assert numbers.number(NameSpace.POLICY, "d/q") == 9
    assert numbers.backend((3, ADDRESS, 80)) == 9
    assert numbers.backend((4, ADDRESS, 80)) == 10


def test_a_released_number_is_the_last_to_be_taken_again() -> None:
    numbers = Numbers({}, {})
    first = numbers.number(NameSpace.RULE, "a")
    numbers.release_name(NameKey(NameSpace.RULE, first))
    assert numbers.number(NameSpace.RULE, "b") != first
    assert numbers.text(NameSpace.RULE, first) is None
    index = numbers.backend((1, ADDRESS, 80))
    numbers.release_backend(index, Backend(ADDRESS, 80, 1, 1))
    assert numbers.backend((2, ADDRESS, 80)) != index


def test_two_entries_with_one_name_keep_the_lower_number() -> None:
    names = {NameKey(NameSpace.POLICY, number): Name("d/p") for number in (5, 3)}
    numbers = Numbers(names, {})
    assert numbers.number(NameSpace.POLICY, "d/p") == 3
    numbers.release_name(NameKey(NameSpace.POLICY, 5))
    assert numbers.number(NameSpace.POLICY, "d/p") == 3


def test_a_quarantine_starts_over_when_a_thing_was_used_in_between() -> None:
    quarantine: Quarantine[int] = Quarantine(5.0)
    quarantine.start(1, 10.0)
    quarantine.start(2, 10.0)
    quarantine.forget(1)
    quarantine.start(1, 12.0)
    quarantine.start(2, 12.0)
    assert quarantine.wake_at() == 15.0
    assert quarantine.take_due(14.9) == ()
    assert quarantine.take_due(15.0) == (2,)
    assert quarantine.wake_at() == 17.0
    assert quarantine.take_due(17.0) == (1,)
    assert quarantine.wake_at() is None


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([], ()),
        ([7, 7, 7], (1, 1, 1)),
        ([80, 20], (4, 1)),
        ([90, 9, 1], (90, 9, 1)),
        ([1_000_000, 1], (1023, 1)),
        ([1_000_000, 999_999], (512, 512)),
    ],
)
def test_weights_become_slots(weights: list[int], counts: tuple[int, ...]) -> None:
    assert slot_counts(weights) == counts


def test_equal_weights_take_one_slot_each_however_many() -> None:
    assert slot_counts([5] * 3000) == (1,) * 3000
    with pytest.raises(ValueError, match="unequal"):
        slot_counts([5] * 3000 + [6])


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=200))
def test_every_endpoint_has_a_slot_and_shares_are_close(weights: list[int]) -> None:
    counts = slot_counts(weights)
    assert len(counts) == len(weights)
    assert min(counts) >= 1
    assert sum(counts) <= max(MAX_WEIGHTED_SLOTS, len(weights))
    total, slots = sum(weights), sum(counts)
    for weight, count in zip(weights, counts, strict=True):
        # The minimum of one slot costs the large ones at most one slot per small one.
        assert abs(count / slots - weight / total) <= (len(weights) + 1) / slots


@given(st.lists(st.tuples(st.integers(1, 8), st.booleans()), max_size=40))
def test_ranges_never_overlap_and_freed_ones_are_found_again(steps: list[tuple[int, bool]]) -> None:
    ranges, held = SlotRanges((), 64), list[tuple[int, int]]()
    for size, give_back in steps:
        if give_back and held:
            ranges.give_back(*held.pop(size % len(held)))
            continue
        offset = ranges.take(size)
        used = {slot for start, count in held for slot in range(start, start + count)}
        fitting = [at for at in range(65 - size) if not used & set(range(at, at + size))]
        assert offset == (fitting[0] if fitting else None)
        if offset is not None:
            held.append((offset, size))
    assert not ranges.overlapping
    again = SlotRanges(held, 64)
    for arena in (ranges, again):
        covered = [slot for offset, count in held for slot in range(offset, offset + count)]
        while (offset := arena.take(1)) is not None:
            covered.append(offset)
        assert sorted(covered) == list(range(64))


def test_ranges_that_overlap_are_said_so_and_not_given_out() -> None:
    ranges = SlotRanges([(2, 4), (4, 4)], 10)
    assert ranges.overlapping
    assert [ranges.take(2), ranges.take(2), ranges.take(1)] == [0, 8, None]
