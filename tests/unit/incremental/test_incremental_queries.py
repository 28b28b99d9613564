"""What a query recomputes, and when it does not."""

from __future__ import annotations

import pytest

from xdsbpf.incremental import ABSENT, Absent, Database, Table, query

NUMBERS = Table[str, int]("numbers")
runs: list[str] = []


@pytest.fixture(autouse=True)
def _no_runs_yet() -> None:
    runs.clear()


@query
def half(db: Database, name: str) -> int:
    """Half of it."""
    runs.append(f"half {name}")
    number = db.input(NUMBERS, name)
    return 0 if number is ABSENT else number // 2


@query
def both(db: Database, left: str, right: str) -> tuple[int, int]:
    runs.append(f"both {left} {right}")
    return (half(db, left), half(db, right))


@query
def chosen(db: Database, switch: str) -> int:
    runs.append(f"chosen {switch}")
    return half(db, "left") if db.input(NUMBERS, switch) == 1 else half(db, "right")


@query
def found(db: Database, name: str) -> int | Absent:
    return db.input(NUMBERS, name)


def put(db: Database, **numbers: int) -> None:
    with db.change() as change:
        for name, number in numbers.items():
            change.put(NUMBERS, name, number)


def test_a_query_keeps_its_name_and_documentation() -> None:
    assert (half.__name__, half.__doc__) == ("half", "Half of it.")


def test_a_watched_query_is_not_computed_twice_for_the_same_inputs() -> None:
    db = Database()
    put(db, a=10)
    db.watch(half, "a")
    db.drain()
    assert half(db, "a") == 5
    assert half(db, "a") == 5
    assert runs == ["half a"]


def test_a_change_reruns_only_what_read_it() -> None:
    db = Database()
    put(db, a=10, b=20, c=30)
    db.watch(both, "a", "b")
    db.watch(half, "c")
    db.drain()
    runs.clear()
    put(db, a=12)
    db.drain()
    assert sorted(runs) == ["both a b", "half a"]
    assert both(db, "a", "b") == (6, 10)


def test_a_change_stops_where_a_result_comes_out_equal() -> None:
    db = Database()
    put(db, a=10, b=20)
    db.watch(both, "a", "b")
    db.drain()
    before = both(db, "a", "b")
    runs.clear()
    put(db, a=11)
    assert db.drain() is None
    assert runs == ["half a"]
    assert both(db, "a", "b") is before


def test_an_equal_result_keeps_the_identity_of_the_old_object() -> None:
    db = Database()
    put(db, a=10, b=20)
    db.watch(both, "a", "b")
    db.drain()
    before = both(db, "a", "b")
    put(db, a=12)
    assert both(db, "a", "b") is not before
    before = both(db, "a", "b")
    put(db, a=14)
    put(db, a=12)
    assert both(db, "a", "b") is before


def test_putting_an_equal_value_changes_nothing() -> None:
    db = Database()
    put(db, a=10)
    db.watch(half, "a")
    db.drain()
    runs.clear()
    put(db, a=10)
    assert db.drain() is None
    assert runs == []


def test_a_query_follows_the_reads_of_its_last_run_only() -> None:
    db = Database()
    put(db, switch=1, left=2, right=4)
    db.watch(chosen, "switch")
    db.drain()
    runs.clear()
    put(db, right=6)
    assert db.drain() is None
    assert runs == []
    put(db, switch=0)
    db.drain()
    assert chosen(db, "switch") == 3
    runs.clear()
    put(db, left=20)
    assert db.drain() is None
    assert runs == []


def test_a_read_behind_a_changed_read_is_not_refreshed_in_vain() -> None:
    db = Database()
    put(db, switch=1, left=2, right=4)
    db.watch(chosen, "switch")
    db.drain()
    runs.clear()
    put(db, switch=0, left=8)
    db.drain()
    assert "half left" not in runs


def test_absence_is_a_read_and_is_not_none() -> None:
    db = Database()
    db.watch(found, "a")
    revision = db.drain()
    assert revision is not None
    assert revision.outputs[0].value is ABSENT
    assert ABSENT is not None
    put(db, a=1)
    revision = db.drain()
    assert revision is not None
    assert revision.outputs[0].value == 1
    with db.change() as change:
        change.remove(NUMBERS, "a")
    assert found(db, "a") is ABSENT


def test_two_databases_share_declarations_and_nothing_else() -> None:
    one, other = Database(), Database()
    put(one, a=10)
    assert half(one, "a") == 5
    assert half(other, "a") == 0


def test_a_query_asked_from_outside_is_fresh_without_a_drain() -> None:
    db = Database()
    put(db, a=10)
    db.watch(half, "a")
    db.drain()
    put(db, a=20)
    assert half(db, "a") == 10
    revision = db.drain()
    assert revision is not None
    assert [output.value for output in revision.outputs] == [10]


def test_arguments_by_name_and_plain_functions_are_refused() -> None:
    db = Database()
    with pytest.raises(TypeError, match="positional"):
        db.watch(half, name="a")
    with pytest.raises(TypeError, match="not a query"):
        db.watch(lambda db: 1)
    with pytest.raises(TypeError):
        half(db, name="a")
