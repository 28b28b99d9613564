"""A failure is a value: stored, re-raised in readers, published, and repaired by its inputs."""

from __future__ import annotations

import gc
import weakref

import pytest

from xdsbpf.incremental import ABSENT, Database, Failure, QueryError, Table, query
from xdsbpf.incremental.values import Output

PORTS = Table[str, int]("ports")
runs: list[str] = []


@query
def port(db: Database, name: str) -> int:
    runs.append(name)
    value = db.input(PORTS, name)
    if value is ABSENT:
        raise LookupError(f"no port for {name}")
    if not value:
        raise ValueError("port 0")
    return value


@query
def listener(db: Database, name: str) -> str:
    return f"{name}:{port(db, name)}"


@query
def tolerant(db: Database, *names: str) -> tuple[str, ...]:
    lines = []
    for name in names:
        try:
            lines.append(listener(db, name))
        except QueryError as error:
            lines.append(f"{name}: {error.failure.text}")
    return tuple(lines)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@query
def odd(db: Database, how: str) -> int:
    if db.input(PORTS, "repaired") is not ABSENT:
        return 1
    if how == "unprintable":
        raise Unprintable
    if how == "exit":
        raise KeyboardInterrupt
    return 0


def put(db: Database, **ports: int) -> None:
    with db.change() as change:
        for name, value in ports.items():
            change.put(PORTS, name, value)


def published(db: Database) -> dict[tuple[object, ...], object]:
    revision = db.drain()
    outputs: tuple[Output, ...] = revision.outputs if revision else ()
    return {(output.query, *output.args): output.value for output in outputs}


def test_an_exception_is_raised_in_the_reader_with_the_query_and_its_arguments() -> None:
    with pytest.raises(QueryError) as caught:
        listener(Database(), "web")
    error = caught.value
    assert error.cell == "listener('web')"
    assert error.failure.cell == "port('web')"
    assert error.failure.text == "LookupError: no port for web"
    assert error.failure.where.startswith("test_incremental_failures.py:")
    assert isinstance(error.__cause__, QueryError)
    assert error.__cause__.cell == "port('web')"
    assert isinstance(error.__cause__.__cause__, LookupError)


def test_a_failure_reaches_the_watcher_and_a_repaired_input_publishes_again() -> None:
    db = Database()
    db.watch(listener, "web")
    failure = published(db)[listener, "web"]
    assert isinstance(failure, Failure)
    assert failure.text == "LookupError: no port for web"
    put(db, web=80)
    assert published(db) == {(listener, "web"): "web:80"}
    put(db, web=0)
    assert published(db)[listener, "web"] == Failure("ValueError: port 0", "port('web')", _place_of(db))
    put(db, web=81)
    assert published(db) == {(listener, "web"): "web:81"}


def _place_of(db: Database) -> str:
    with pytest.raises(QueryError) as caught:
        port(db, "web")
    return caught.value.failure.where


def test_a_failed_query_does_not_run_again_until_an_input_of_it_changed() -> None:
    db = Database()
    db.watch(listener, "web")
    db.drain()
    runs.clear()
    put(db, other=1)
    assert published(db) == {}
    for _ in range(3):
        with pytest.raises(QueryError):
            listener(db, "web")
    assert runs == []


def test_the_same_failure_again_is_not_published() -> None:
    db = Database()
    put(db, web=0)
    db.watch(listener, "web")
    assert published(db)
    put(db, web=False)
    assert published(db) == {}


def test_one_failing_query_does_not_keep_others_from_being_published() -> None:
    db = Database()
    put(db, a=1, c=3)
    for name in ("a", "b", "c"):
        db.watch(listener, name)
    outputs = published(db)
    assert outputs[listener, "a"] == "a:1"
    assert isinstance(outputs[listener, "b"], Failure)
    assert outputs[listener, "c"] == "c:3"


def test_a_reader_may_catch_a_failure_and_follows_its_repair() -> None:
    db = Database(check_values=True)
    put(db, a=1)
    db.watch(tolerant, "a", "b")
    assert published(db) == {(tolerant, "a", "b"): ("a:1", "b: LookupError: no port for b")}
    put(db, b=2)
    assert published(db) == {(tolerant, "a", "b"): ("a:1", "b:2")}


def test_an_exception_without_text_is_a_failure_like_any_other() -> None:
    db = Database()
    db.watch(odd, "unprintable")
    failure = published(db)[odd, "unprintable"]
    assert isinstance(failure, Failure)
    assert failure.text.startswith("Unprintable: ")
    put(db, repaired=1)
    assert published(db) == {(odd, "unprintable"): 1}


def test_an_interrupt_passes_and_loses_no_update() -> None:
    db = Database()
    put(db, web=80)
    db.watch(listener, "web")
    db.watch(odd, "exit")
    with pytest.raises(KeyboardInterrupt):
        db.drain()
    put(db, repaired=1)
    assert published(db) == {(listener, "web"): "web:80", (odd, "exit"): 1}


def test_a_stored_failure_keeps_no_frames_alive() -> None:
    class Local:
        pass

    alive: list[weakref.ref[Local]] = []

    @query
    def big(db: Database) -> int:
        local = Local()
        alive.append(weakref.ref(local))
        raise ValueError

    db = Database()
    gc.disable()
    try:
        db.watch(big)
        assert published(db)
        assert len(alive) == 1
        assert alive[0]() is None
    finally:
        gc.enable()
