"""Buckets: sorted by the table's order, never by arrival, and spoiled only by a change of contents."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import msgspec
import pytest

from xdsbpf.incremental import Database, Index, Table, query


class Rule(msgspec.Struct, frozen=True):
    name: str
    hosts: tuple[str, ...]
    created: str = ""
    weight: int = 0


RULES = Table[str, Rule]("rules", order=lambda rule: (rule.created or "~",))
BY_HOST = Index("by_host", RULES, keys=lambda rule: rule.hosts)
runs: list[str] = []


@pytest.fixture(autouse=True)
def _no_runs_yet() -> None:
    runs.clear()


@query
def names(db: Database, host: str) -> tuple[str, ...]:
    runs.append(host)
    return tuple(rule.name for rule in db.bucket(BY_HOST, host))


@query
def hosts(db: Database) -> tuple[str, ...]:
    runs.append("hosts")
    return db.bucket_keys(BY_HOST)


@query
def shared(db: Database) -> tuple[str, ...]:
    runs.append("shared")
    return db.shared_keys(BY_HOST)


def put(db: Database, *rules: Rule) -> None:
    with db.change() as change:
        for rule in rules:
            change.put(RULES, rule.name, rule)


def test_a_bucket_is_sorted_by_order_and_then_by_key_whatever_arrives_first() -> None:
    rules = [Rule("d", ("x",), "2"), Rule("b", ("x",), "3"), Rule("a", ("x",), "3"), Rule("c", ("x",))]
    for arrival in itertools.permutations(rules):
        db = Database()
        db.watch(names, "x")
        for rule in arrival:
            put(db, rule)
        assert names(db, "x") == ("d", "a", "b", "c")
        put(db, Rule("d", ("x",), "9"))
        assert names(db, "x") == ("a", "b", "d", "c")


def test_only_the_buckets_that_a_value_left_or_entered_are_spoiled() -> None:
    db = Database()
    put(db, Rule("a", ("x",)), Rule("b", ("y",)), Rule("c", ("z",)))
    for host in "xyz":
        db.watch(names, host)
    db.drain()
    runs.clear()
    put(db, Rule("a", ("y",)))
    revision = db.drain()
    assert sorted(runs) == ["x", "y"]
    assert revision is not None
    assert [output.value for output in revision.outputs] == [(), ("a", "b")]


def test_a_value_put_aside_and_back_in_one_change_spoils_nothing() -> None:
    db = Database()
    put(db, Rule("a", ("x",)))
    db.watch(names, "x")
    db.watch(hosts)
    db.drain()
    runs.clear()
    with db.change() as change:
        change.remove(RULES, "a")
        change.put(RULES, "a", Rule("a", ("x",)))
    assert db.drain() is None
    assert runs == []


def test_values_that_swap_their_keys_do_not_spoil_their_bucket() -> None:
    one, other = Rule("one", ("x",), "1"), Rule("other", ("x",), "2")
    db = Database()
    with db.change() as change:
        change.put(RULES, "p", one)
        change.put(RULES, "q", other)
    db.watch(names, "x")
    db.drain()
    runs.clear()
    with db.change() as change:
        change.put(RULES, "p", other)
        change.put(RULES, "q", one)
    assert db.drain() is None
    assert runs == []
    assert names(db, "x") == ("one", "other")


def test_an_empty_bucket_is_a_read() -> None:
    db = Database()
    db.watch(names, "x")
    db.drain()
    put(db, Rule("a", ("x",)))
    revision = db.drain()
    assert revision is not None
    assert revision.outputs[0].value == ("a",)


def test_bucket_keys_are_sorted_and_hold_only_buckets_that_are_not_empty() -> None:
    db = Database()
    put(db, Rule("a", ("y", "x")), Rule("b", ("y",)))
    db.watch(hosts)
    db.drain()
    assert hosts(db) == ("x", "y")
    put(db, Rule("c", ("w",)))
    with db.change() as change:
        change.remove(RULES, "a")
    assert hosts(db) == ("w", "y")
    runs.clear()
    put(db, Rule("b", ("y",), weight=3))
    assert db.drain() is not None  # the new bucket key, published once
    assert db.drain() is None
    put(db, Rule("b", ("y",), weight=4))
    assert db.drain() is None
    assert runs == []


def test_shared_keys_change_only_when_a_bucket_gets_its_second_member_or_loses_it() -> None:
    db = Database()
    put(db, Rule("a", ("x", "y")), Rule("b", ("z",)))
    db.watch(shared)
    db.drain()
    assert shared(db) == ()
    runs.clear()
    for rule in (Rule("c", ("w",)), Rule("a", ("x", "y"), weight=2), Rule("b", ("v",))):
        put(db, rule)
        assert db.drain() is None
    assert runs == []
    put(db, Rule("b", ("x",)))
    assert shared(db) == ("x",)
    put(db, Rule("c", ("x", "y")))
    assert shared(db) == ("x", "y")
    with db.change() as change:
        change.remove(RULES, "a")
        change.remove(RULES, "b")
    assert shared(db) == ()
    assert db.bucket(BY_HOST, "y") == (Rule("c", ("x", "y")),)
    assert db.bucket_keys(BY_HOST) == ("x", "y")


def test_a_value_that_names_a_bucket_twice_is_in_it_once() -> None:
    db = Database()
    put(db, Rule("a", ("x", "x")))
    assert names(db, "x") == ("a",)
    with db.change() as change:
        change.remove(RULES, "a")
    assert names(db, "x") == ()


def test_an_index_declared_after_the_values_has_them() -> None:
    table = Table[str, Rule]("late", order=lambda rule: (rule.created,))
    db = Database()
    with db.change() as change:
        change.put(table, "a", Rule("a", ("x",), weight=1))
    index = Index("late", table, keys=lambda rule: (rule.weight,))
    assert [rule.name for rule in db.bucket(index, 1)] == ["a"]
    another = Index("later", table, keys=lambda rule: rule.hosts)
    with db.change() as change:
        change.put(table, "b", Rule("b", ("x",), weight=2))
    assert [rule.name for rule in db.bucket(another, "x")] == ["a", "b"]
    assert db.bucket_keys(index) == (1, 2)


def test_a_put_whose_keys_raise_is_refused_and_leaves_the_change_whole() -> None:
    table = Table[str, Rule]("strict", order=lambda rule: (rule.created,))
    index = Index("first", table, keys=lambda rule: (rule.hosts[0],))
    db = Database()
    with db.change() as change:
        change.put(table, "a", Rule("a", ("x",)))
        with pytest.raises(IndexError):
            change.put(table, "b", Rule("b", ()))
    assert [rule.name for rule in db.bucket(index, "x")] == ["a"]


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_a_large_bucket_stays_sorted_through_single_changes_and_through_batches(batch: int) -> None:
    rng = random.Random(batch)
    db = Database()
    expected: dict[str, Rule] = {}
    for _ in range(120):
        with db.change() as change:
            for _ in range(batch if expected else 200):
                name = f"r{rng.randrange(250)}"
                if rng.random() < 0.3:
                    change.remove(RULES, name)
                    expected.pop(name, None)
                    continue
                shown = rng.choice((("x",), ("x", "y"), ("y",), ()))
                rule = expected[name] = Rule(name, shown, rng.choice("12345"), rng.randrange(3))
                change.put(RULES, name, rule)
        for key in ("x", "y"):
            members = sorted(
                (rule for rule in expected.values() if key in rule.hosts), key=lambda rule: (rule.created, rule.name)
            )
            assert db.bucket(BY_HOST, key) == tuple(members)
        counts = Counter(key for rule in expected.values() for key in rule.hosts)
        assert db.bucket_keys(BY_HOST) == tuple(sorted(counts))
        assert db.shared_keys(BY_HOST) == tuple(key for key in sorted(counts) if counts[key] > 1)
