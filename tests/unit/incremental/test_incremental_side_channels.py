"""Citations and reports: right at any time, and no part of a value."""

from __future__ import annotations

import msgspec
import pytest

from xdsbpf.diagnostics import Diagnostic, ObjectId, Origin, Severity
from xdsbpf.errors import InvariantError
from xdsbpf.incremental import ABSENT, Database, QueryError, Table, query


class Rule(msgspec.Struct, frozen=True):
    name: str
    weight: int


RULES = Table[str, Rule]("rules")


def origin(name: str, path: str = "") -> Origin:
    return Origin(ObjectId("Rule", "", name), path)


def finding(name: str, message: str) -> Diagnostic:
    return Diagnostic("XB0", Severity.WARNING, ObjectId("Rule", "", name), "spec", message)


@query
def heavy(db: Database, name: str) -> bool:
    rule = db.input(RULES, name)
    if rule is ABSENT:
        return False
    db.cite(origin(rule.name, f"spec.{rule.weight}"))
    db.report(finding(rule.name, f"weighs {rule.weight}"))
    if rule.weight < 0:
        raise ValueError("negative")
    return rule.weight > 10


@query
def any_heavy(db: Database, *names: str) -> bool:
    return True in tuple(heavy(db, name) for name in names)


def put(db: Database, name: str, weight: int, label: str | None = None) -> None:
    with db.change() as change:
        change.put(RULES, name, Rule(label or name, weight))


def messages(db: Database, *names: str) -> list[str]:
    return [diagnostic.message for diagnostic in db.diagnostics(any_heavy, *names)]


def test_origins_and_diagnostics_are_the_sorted_union_of_what_is_below() -> None:
    db = Database()
    put(db, "b", 2)
    put(db, "a", 1)
    db.watch(any_heavy, "b", "a")
    db.drain()
    assert db.origins(any_heavy, "b", "a") == (origin("a", "spec.1"), origin("b", "spec.2"))
    assert messages(db, "b", "a") == ["weighs 1", "weighs 2"]
    assert db.origins(heavy, "b") == (origin("b", "spec.2"),)


def test_what_is_cited_twice_is_named_once() -> None:
    db = Database()
    put(db, "a", 1, label="same")
    put(db, "b", 1, label="same")
    assert db.origins(any_heavy, "a", "b") == (origin("same", "spec.1"),)
    assert messages(db, "a", "b") == ["weighs 1"]


def test_they_are_up_to_date_even_where_the_value_stayed_the_same() -> None:
    db = Database()
    put(db, "a", 1)
    db.watch(any_heavy, "a")
    db.drain()
    put(db, "a", 2)
    assert db.drain() is None
    assert db.origins(any_heavy, "a") == (origin("a", "spec.2"),)
    assert messages(db, "a") == ["weighs 2"]
    put(db, "a", 3)
    assert db.origins(any_heavy, "a") == (origin("a", "spec.3"),), "before a drain, too"


def test_what_is_no_longer_cited_is_gone() -> None:
    db = Database()
    put(db, "a", 1)
    db.watch(any_heavy, "a")
    db.drain()
    assert messages(db, "a") == ["weighs 1"]
    with db.change() as change:
        change.remove(RULES, "a")
    assert db.drain() is None
    assert db.origins(any_heavy, "a") == ()
    assert messages(db, "a") == []


def test_a_failed_query_keeps_what_it_cited_and_reported_before() -> None:
    db = Database()
    put(db, "a", -1)
    with pytest.raises(QueryError):
        any_heavy(db, "a")
    assert db.origins(any_heavy, "a") == (origin("a", "spec.-1"),)
    assert messages(db, "a") == ["weighs -1"]


def test_nothing_can_be_cited_or_reported_outside_a_query() -> None:
    db = Database()
    with pytest.raises(InvariantError):
        db.cite(origin("a"))
    with pytest.raises(InvariantError):
        db.report(finding("a", "x"))
