"""What is published, and when."""

from __future__ import annotations

import pytest

from xdsbpf.errors import InvariantError
from xdsbpf.incremental import ABSENT, Database, QueryError, Revision, Table, query

NUMBERS = Table[str, int]("numbers")


@query
def number(db: Database, name: str) -> int:
    value = db.input(NUMBERS, name)
    return -1 if value is ABSENT else value


@query
def total(db: Database) -> int:
    return number(db, "a") + number(db, "b")


@query
def meddling(db: Database, how: str) -> int:
    match how:
        case "change":
            with db.change() as change:
                change.put(NUMBERS, "a", 5)
        case "watch":
            db.watch(number, "a")
        case "unwatch":
            db.unwatch(number, "a")
        case "drain":
            db.drain()
        case "origins":
            db.origins(number, "a")
        case _:
            pass
    return number(db, "a")


def put(db: Database, **numbers: int) -> None:
    with db.change() as change:
        for name, value in numbers.items():
            change.put(NUMBERS, name, value)


def values(revision: Revision | None) -> dict[tuple[object, ...], object]:
    assert revision is not None
    return {(output.query, *output.args): output.value for output in revision.outputs}


def watching(*names: str) -> Database:
    db = Database(check_values=True)
    put(db, a=1, b=2)
    for name in names:
        db.watch(number, name)
    db.watch(total)
    return db


def test_the_first_drain_publishes_every_watched_query() -> None:
    db = watching("a")
    revision = db.drain()
    assert values(revision) == {(number, "a"): 1, (total,): 3}
    assert revision is not None
    assert revision.number == 1
    assert db.published is revision


def test_outputs_come_in_the_order_in_which_they_were_first_watched() -> None:
    db = Database()
    names = [f"n{(i * 37) % 101}" for i in range(101)]
    for name in names:
        db.watch(number, name)
    revision = db.drain()
    assert revision is not None
    assert [output.args[0] for output in revision.outputs] == names


def test_nothing_is_published_if_nothing_changed() -> None:
    db = watching("a")
    db.drain()
    assert db.drain() is None
    assert db.published is None
    put(db, c=9)
    assert db.drain() is None
    put(db, a=5)
    revision = db.drain()
    assert revision is not None
    assert revision.number == 2


def test_two_changes_before_a_drain_yield_one_revision() -> None:
    db = watching("a", "b")
    db.drain()
    put(db, a=10)
    put(db, b=20)
    assert values(db.drain()) == {(number, "a"): 10, (number, "b"): 20, (total,): 30}
    assert db.drain() is None


def test_a_value_that_went_and_came_back_is_not_published() -> None:
    db = watching("a")
    put(db, a=int("1000"))
    db.drain()
    put(db, a=10)
    assert number(db, "a") == 10
    put(db, a=int("1000"))  # equal, but another object
    assert db.drain() is None


def test_the_sets_of_one_change_are_seen_together() -> None:
    db = watching()
    db.drain()
    with db.change() as change:
        change.put(NUMBERS, "a", 2)
        assert total(db) == 3
        change.put(NUMBERS, "b", 1)
    assert db.drain() is None
    assert total(db) == 3


def test_a_change_that_raises_sets_nothing() -> None:
    db = watching()
    db.drain()

    def half_a_change() -> None:
        with db.change() as change:
            change.put(NUMBERS, "a", 50)
            raise KeyError

    with pytest.raises(KeyError):
        half_a_change()
    assert number(db, "a") == 1
    assert db.drain() is None


@pytest.mark.parametrize("how", ["change", "watch", "unwatch", "drain", "origins"])
def test_a_query_can_only_read(how: str) -> None:
    db = watching()
    with pytest.raises(QueryError, match="inside a query") as caught:
        meddling(db, how)
    assert isinstance(caught.value.__cause__, InvariantError)
    assert number(db, "a") == 1
    assert meddling(db, "nothing") == 1


def test_a_put_into_an_open_change_from_inside_a_query_raises() -> None:
    db = watching()
    with db.change() as change:

        @query
        def smuggle(db: Database) -> int:
            change.put(NUMBERS, "a", 5)
            return 0

        with pytest.raises(QueryError, match="put inside a query"):
            smuggle(db)
    assert number(db, "a") == 1


def test_nothing_is_published_before_the_queue_is_empty() -> None:
    db = watching("a", "b")
    steps = db.steps()
    next(steps)
    assert db.published is None
    for _ in steps:
        assert db.published is None
    assert len(values(db.published)) == 3


def test_a_change_between_steps_is_part_of_the_revision() -> None:
    db = watching("a", "b")
    steps = db.steps()
    for _ in range(3):
        next(steps)
    put(db, a=10)
    for _ in steps:
        pass
    assert values(db.published) == {(number, "a"): 10, (number, "b"): 2, (total,): 12}
    assert db.drain() is None


def test_a_drain_that_was_given_up_is_continued_by_the_next() -> None:
    db = watching("a", "b")
    steps = db.steps()
    next(steps)
    steps.close()
    assert len(values(db.drain())) == 3


def test_a_second_drain_meanwhile_is_refused() -> None:
    db = watching("a")
    steps = db.steps()
    next(steps)
    with pytest.raises(InvariantError, match="in progress"):
        db.drain()
    assert len(values((list(steps), db.published)[1])) == 2


def test_watches_are_counted() -> None:
    db = watching("a", "a")
    assert len(values(db.drain())) == 2
    db.unwatch(number, "a")
    put(db, a=5)
    assert (number, "a") in values(db.drain())
    db.unwatch(number, "a")
    put(db, a=6)
    assert (number, "a") not in values(db.drain())
    with pytest.raises(InvariantError, match="not watched"):
        db.unwatch(number, "a")


def test_a_query_watched_again_is_published_again() -> None:
    db = watching("a")
    db.drain()
    db.unwatch(number, "a")
    db.watch(number, "a")
    assert values(db.drain()) == {(number, "a"): 1}


def test_an_unwatched_query_that_is_still_read_is_not_published() -> None:
    db = watching("a")
    db.drain()
    put(db, a=5)
    db.unwatch(number, "a")
    assert values(db.drain()) == {(total,): 7}
