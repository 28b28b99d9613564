"""Cells that nobody watches are freed, without the help of the collector."""

from __future__ import annotations

import gc
import weakref

import pytest

from xdsbpf.incremental import ABSENT, Database, Index, QueryError, Table, query
from xdsbpf.incremental.cells import FEW, Cell

TARGETS = Table[str, tuple[str, ...]]("targets")
BY_TARGET = Index("by_target", TARGETS, keys=lambda targets: targets)


@query
def reach(db: Database, name: str) -> tuple[str, ...]:
    """All that `name` leads to; `!` fails."""
    targets = db.input(TARGETS, name)
    if targets is ABSENT:
        return (name, str(len(db.bucket(BY_TARGET, name))), str(len(db.bucket_keys(BY_TARGET))))
    if targets == ("!",):
        raise ValueError(name)
    return tuple(sorted({end for target in targets for end in reach(db, target)}))


@query
def reader(db: Database, number: int) -> tuple[object, int]:
    return (db.input(TARGETS, "k"), number)


def put(db: Database, **targets: str) -> None:
    with db.change() as change:
        for name, value in targets.items():
            change.put(TARGETS, name, tuple(value))


def churn(db: Database, turn: int) -> None:
    """New names, moved edges, a failure and a cycle; all of it taken back."""
    put(db, r="ab", a="cd", b="d", **{f"n{turn}": "a"})
    db.watch(reach, f"n{turn}")
    db.watch(reach, "r")
    db.drain()
    put(db, a="!", b="x")
    db.drain()
    put(db, a="b", b="r")
    db.drain()
    with pytest.raises(QueryError):
        reach(db, "b")
    put(db, b="c")
    db.drain()
    reach(db, f"n{turn}")
    put(db, b="r")
    db.unwatch(reach, "r")
    db.drain()
    db.unwatch(reach, f"n{turn}")
    with db.change() as change:
        change.remove(TARGETS, f"n{turn}")


def test_after_a_hundred_rounds_of_churn_there_are_as_many_cells_as_after_one() -> None:
    db = Database()
    put(db, kept="uv")
    db.watch(reach, "kept")
    churn(db, 0)
    after_one = db.cells
    for turn in range(1, 100):
        churn(db, turn)
    assert db.cells == after_one
    db.unwatch(reach, "kept")
    assert after_one > 0
    assert db.cells == 0


def test_freed_cells_are_gone_with_the_collector_off() -> None:
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(item, Cell) for item in gc.get_objects())
        db = Database()
        for turn in range(5):
            churn(db, turn)
        assert sum(isinstance(item, Cell) for item in gc.get_objects()) == before
    finally:
        gc.enable()


def test_a_query_asked_from_outside_leaves_nothing_behind() -> None:
    db = Database()
    failed: list[str] = []
    put(db, r="ab", a="!", l="l")
    for name in ("r", "a", "b", "l"):
        try:
            reach(db, name)
        except QueryError as error:
            failed.append(error.cell)
        db.origins(reach, name)
        db.diagnostics(reach, name)
    assert failed == ["reach('r')", "reach('a')", "reach('l')"]
    assert db.cells == 0


def test_a_cell_lives_as_long_as_one_reader_of_it() -> None:
    db = Database()
    put(db, r="a", s="a", a="b")
    db.watch(reach, "r")
    db.watch(reach, "s")
    db.drain()
    db.unwatch(reach, "r")
    runs = db.runs
    assert reach(db, "a") == ("1", "2", "b")
    assert db.runs == runs, "still known: s reads it"
    db.unwatch(reach, "s")
    assert db.cells == 0


def test_an_edge_that_a_run_dropped_frees_what_was_below() -> None:
    db = Database()
    put(db, r="a", a="b", c="d")
    db.watch(reach, "r")
    db.drain()
    before = db.cells
    put(db, r="c")
    db.drain()
    assert db.cells == before
    put(db, r="z")
    db.drain()
    assert db.cells < before


def test_an_unwatched_cycle_is_freed_and_a_watched_one_is_kept() -> None:
    db = Database()
    put(db, a="b", b="c", c="a", top="a")
    db.watch(reach, "top")
    db.watch(reach, "c")
    db.drain()
    db.unwatch(reach, "top")
    assert db.cells == 6
    put(db, b="z")
    assert reach(db, "c") == ("1", "3", "z")
    db.unwatch(reach, "c")
    assert db.cells == 0


def test_an_interrupted_query_leaves_no_cells_behind() -> None:
    @query
    def interrupted(db: Database) -> int:
        reach(db, "r")
        raise KeyboardInterrupt

    db = Database()
    put(db, r="ab", a="cd")
    with pytest.raises(KeyboardInterrupt):
        interrupted(db)
    assert db.cells == 0
    assert reach(db, "c") == ("c", "1", "4")


def test_the_values_of_freed_cells_are_released() -> None:
    class Payload(str):
        __slots__ = ("__weakref__",)

    alive: list[weakref.ref[Payload]] = []

    @query
    def payload(db: Database) -> str:
        value = Payload("x")
        alive.append(weakref.ref(value))
        return value

    db = Database()
    gc.disable()
    try:
        db.watch(payload)
        db.drain()
        assert alive[0]() is not None
        db.drain()  # `published` holds the last revision
        db.unwatch(payload)
        assert alive[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 3 * FEW])
def test_a_value_with_few_or_many_readers_tells_all_that_are_left_and_no_others(count: int) -> None:
    db = Database()
    put(db, k="a")
    for number in range(count):
        db.watch(reader, number)
    db.drain()
    for number in range(1, count):
        db.unwatch(reader, number)
    put(db, k="b")
    revision = db.drain()
    assert revision is not None
    assert [output.args for output in revision.outputs] == [(0,)]
    db.unwatch(reader, 0)
    assert db.cells == 0, "the input, too, lost its last reader"
