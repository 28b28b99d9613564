"""Cycles are found whatever their length, named the same from everywhere, and can be repaired."""

from __future__ import annotations

import contextlib
import sys

import pytest

from xdsbpf.incremental import ABSENT, CycleError, Database, Failure, QueryError, Table, query
from xdsbpf.incremental.engine import MAX_DEPTH

ALIASES = Table[str, str]("aliases")
NUMBERS = Table[str, int]("numbers")


@query
def resolved(db: Database, name: str) -> str:
    target = db.input(ALIASES, name)
    return name if target is ABSENT else resolved(db, target)


@query
def guarded(db: Database, name: str) -> str:
    target = db.input(ALIASES, name)
    if target is ABSENT:
        return name
    try:
        return guarded(db, target)
    except QueryError:
        return "caught"


@query
def count(db: Database, left: int) -> int:
    """A chain of `left` queries, each of which also has an input of its own."""
    own = db.input(NUMBERS, str(left))
    return (0 if own is ABSENT else own) + (count(db, left - 1) if left else 0)


@query
def nested(db: Database, depth: int) -> int:
    def down(left: int) -> int:
        return down(left - 1) + 1 if left else 0

    return down(depth)


@query
def over_nested(db: Database, left: int, depth: int) -> int:
    return over_nested(db, left - 1, depth) if left else nested(db, depth)


def link(db: Database, **aliases: str) -> None:
    with db.change() as change:
        for name, target in aliases.items():
            change.put(ALIASES, name, target)


NAMES = ("resolved('a')", "resolved('b')", "resolved('c')")


@pytest.mark.parametrize("first", ["a", "b", "c", "outside"])
def test_a_cycle_names_its_queries_the_same_wherever_it_is_entered(first: str) -> None:
    db = Database()
    link(db, a="b", b="c", c="a", outside="b")
    with pytest.raises(CycleError) as caught:
        resolved(db, first)
    assert caught.value.cells == NAMES
    assert caught.value.cell == f"resolved('{first}')"
    assert "resolved('a') -> resolved('b') -> resolved('c') -> resolved('a')" in str(caught.value)


def test_a_cycle_reaches_watchers_as_a_failure_and_its_repair_publishes_again() -> None:
    db = Database()
    link(db, a="b", b="c", c="a", outside="b")
    for name in ("outside", "b", "a"):
        db.watch(resolved, name)
    revision = db.drain()
    assert revision is not None
    for output in revision.outputs:
        assert isinstance(output.value, Failure)
        assert output.value.cycle == NAMES
    link(db, c="d")
    revision = db.drain()
    assert revision is not None
    assert [output.value for output in revision.outputs] == ["d", "d", "d"]
    link(db, d="outside")
    revision = db.drain()
    assert revision is not None
    assert all(isinstance(output.value, Failure) for output in revision.outputs)
    link(db, d="e")
    assert resolved(db, "a") == "e"


def test_a_query_that_reads_itself_is_a_cycle_of_one() -> None:
    db = Database()
    link(db, a="a")
    with pytest.raises(CycleError) as caught:
        resolved(db, "a")
    assert caught.value.cells == ("resolved('a')",)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_cycle_cannot_be_caught_so_that_no_result_depends_on_who_came_first(order: str) -> None:
    db = Database()
    link(db, a="b", b="a")
    for name in order:
        db.watch(guarded, name)
    revision = db.drain()
    assert revision is not None
    assert all(isinstance(output.value, Failure) for output in revision.outputs)
    link(db, b="c")
    assert guarded(db, "a") == "c"


def test_a_cycle_longer_than_the_recursion_limit_is_found() -> None:
    db = Database()
    size = sys.getrecursionlimit() * 3
    link(db, **{f"n{i}": f"n{(i + 1) % size}" for i in range(size)})
    with pytest.raises(CycleError) as caught:
        resolved(db, "n7")
    assert len(caught.value.cells) == size
    assert db.cells == 0


def test_a_chain_longer_than_the_recursion_limit_is_computed_at_two_runs_per_query() -> None:
    db = Database()
    size = sys.getrecursionlimit() * 5
    db.watch(count, size)
    revision = db.drain()
    assert revision is not None
    assert revision.outputs[0].value == 0
    assert db.runs <= 2 * size + 2


def test_a_long_chain_is_refreshed_from_its_far_end() -> None:
    db = Database()
    size = sys.getrecursionlimit() * 5
    db.watch(count, size)
    db.drain()
    before = db.runs
    with db.change() as change:
        change.put(NUMBERS, "0", 7)
    assert count(db, size) == 7
    assert db.runs - before == size + 1


def test_a_long_chain_is_refreshed_when_all_of_it_changed() -> None:
    db = Database()
    size = sys.getrecursionlimit() * 5
    db.watch(count, size)
    db.drain()
    with db.change() as change:
        for left in range(size + 1):
            change.put(NUMBERS, str(left), 1)
    assert count(db, size) == size + 1


def test_a_recursion_error_of_the_query_itself_is_its_failure() -> None:
    db = Database()
    with pytest.raises(QueryError, match="RecursionError"):
        nested(db, sys.getrecursionlimit() * 2)
    assert nested(db, 5) == 5


def test_a_query_that_needs_most_of_the_python_stack_succeeds_below_others_too() -> None:
    depth = sys.getrecursionlimit() - frames() - 60
    db = Database()
    assert nested(db, depth) == depth
    for left in (5, MAX_DEPTH // 2, MAX_DEPTH - 2, 3 * MAX_DEPTH):
        assert over_nested(db, left, depth) == depth


def frames() -> int:
    frame, count = sys._getframe(), 0
    while frame.f_back is not None:
        frame, count = frame.f_back, count + 1
    return count


def test_nested_queries_leave_half_of_the_python_stack_to_the_functions() -> None:
    deepest = 0

    @query
    def sounding(db: Database, left: int) -> int:
        nonlocal deepest
        deepest = max(deepest, frames())
        return sounding(db, left - 1) if left else 0

    before = frames()
    sounding(Database(), 10 * MAX_DEPTH)
    assert MAX_DEPTH < deepest - before < sys.getrecursionlimit() // 2


@pytest.mark.parametrize("first", ["x", "y", "z"])
def test_the_first_cycle_that_a_query_meets_is_the_one_that_it_fails_with(first: str) -> None:
    @query
    def hub(db: Database) -> int:
        result = 0
        for spoke in ("y", "z"):
            try:
                result += leaf(db, spoke)
            except QueryError:
                result += 100
        return result

    @query
    def leaf(db: Database, name: str) -> int:
        return hub(db)

    db = Database()
    failures = []
    for name in (first, "x", "y", "z"):
        with pytest.raises(CycleError) as caught:
            hub(db) if name == "x" else leaf(db, name)
        failures.append(caught.value.cells)
    assert failures == [("hub()", "leaf('y')")] * 4
    assert db.cells == 0


def test_an_interrupt_inside_a_cycle_leaves_no_stale_failure_behind() -> None:
    @query
    def left(db: Database) -> int:
        if db.input(NUMBERS, "loop") is not ABSENT:
            with contextlib.suppress(QueryError):
                right(db)
            raise KeyboardInterrupt
        return 1

    @query
    def right(db: Database) -> int:
        return left(db) + 1

    db = Database()
    db.watch(left)
    db.drain()
    with db.change() as change:
        change.put(NUMBERS, "loop", 1)
    db.watch(right)
    with pytest.raises(KeyboardInterrupt):
        left(db)
    with db.change() as change:
        change.remove(NUMBERS, "loop")
    revision = db.drain()
    assert revision is not None
    assert [output.value for output in revision.outputs] == [2]
    db.unwatch(left)
    db.unwatch(right)
    assert db.cells == 0
