"""The proof of the incremental database: whatever happened, it knows what a fresh one would compute.

A mesh of small programs (`Node`) that read one another by name, by bucket and by choice, that
fail, catch failures and form cycles, is changed at random. A plain recursive interpreter, which
shares nothing with the database, checks the values as well.
"""

from __future__ import annotations

import os
import random
from unittest import mock

import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from xdsbpf.diagnostics import Diagnostic, ObjectId, Origin, Severity
from xdsbpf.incremental import (
    ABSENT,
    Database,
    Failure,
    Index,
    QueryError,
    Revision,
    Table,
    engine,
    query,
)

PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)  # tracing for `explain` costs minutes
NAMES = ("a", "b", "c", "d", "e", "f")
GROUPS = ("x", "y.x", "z.y.x")
OPERATIONS = (
    "sum", "sum", "half", "half", "guard", "pick", "weights", "first", "members", "groups", "fail", "group",
)  # fmt: skip


class Node(msgspec.Struct, frozen=True):
    name: str
    operation: str
    arguments: tuple[str, ...]
    weight: int
    group: str
    age: int

    @property
    def id(self) -> ObjectId:
        return ObjectId("Node", "", self.name)


NODES = Table[str, Node]("nodes", order=lambda node: (node.age,))
BY_GROUP = Index("by_group", NODES, keys=lambda node: (node.group,))
BY_READER = Index("by_argument", NODES, keys=lambda node: node.arguments)


class Fuse:
    """Interrupts the n-th query run from now, as Ctrl-C would."""

    left = 0


def suffixes(group: str) -> list[str]:
    labels = group.split(".")
    return [".".join(labels[i:]) for i in range(len(labels))]


@query
def value(db: Database, name: str) -> int:
    if Fuse.left:
        Fuse.left -= 1
        if not Fuse.left:
            raise KeyboardInterrupt
    node = db.input(NODES, name)
    if node is ABSENT:
        return 0
    if node.weight % 2:
        db.cite(Origin(node.id, "spec"))
    if node.weight % 3 == 0:
        db.report(Diagnostic("XB0", Severity.INFO, node.id, "spec", f"weight {node.weight}"))
    return operate(db, node)


def operate(db: Database, node: Node) -> int:
    match node.operation:
        case "half":
            return sum(value(db, name) for name in node.arguments) // 4
        case "guard":
            total = 0
            for name in node.arguments:
                try:
                    total += value(db, name)
                except QueryError:
                    total += 100
            return total
        case "pick":
            choice = value(db, node.arguments[0])
            return value(db, node.arguments[choice % len(node.arguments)])
        case "weights":
            return sum(weighed(db, group) for group in suffixes(node.group))
        case "first":
            return ages(db, node.group)[0]
        case "members":
            return sum(value(db, other.name) for other in db.bucket(BY_READER, node.name))
        case "groups":
            return len(db.bucket_keys(BY_GROUP)) + len(db.bucket_keys(BY_READER))
        case "fail":
            raise ValueError(f"{node.name} weighs {node.weight % 2}")
        case "group":
            return rank(db, node.group, node.name)
        case _:
            pass
    return node.weight + sum(value(db, name) for name in node.arguments)


@query
def weighed(db: Database, group: str) -> int:
    return sum(node.weight for node in db.bucket(BY_GROUP, group)) % 3


@query
def ages(db: Database, group: str) -> tuple[int, ...]:
    return tuple(node.weight for node in db.bucket(BY_GROUP, group))


@query
def rank(db: Database, group: str, name: str) -> int:
    return [node.name for node in db.bucket(BY_GROUP, group)].index(name)


class Looped(Exception):
    """The interpreter met a cycle."""


def interpret(nodes: dict[str, Node], name: str, path: tuple[str, ...] = ()) -> int:
    """What `value` should be, without memory and without a database."""
    if name in path:
        raise Looped
    node = nodes.get(name)
    if node is None:
        return 0

    def of(other: str) -> int:
        return interpret(nodes, other, (*path, name))

    ordered = sorted(nodes.values(), key=lambda other: (other.age, other.name))
    if node.operation == "guard":
        result = 0
        for other in node.arguments:
            try:
                result += of(other)
            except ValueError:
                result += 100
        return result
    if node.operation == "fail":
        raise ValueError
    match node.operation:
        case "half":
            return sum(of(other) for other in node.arguments) // 4
        case "pick":
            return of(node.arguments[of(node.arguments[0]) % len(node.arguments)])
        case "weights":
            groups = suffixes(node.group)
            return sum(sum(other.weight for other in ordered if other.group == group) % 3 for group in groups)
        case "first":
            return next(other.weight for other in ordered if other.group == node.group)
        case "members":
            return sum(of(other.name) for other in ordered if node.name in other.arguments)
        case "groups":
            return len({other.group for other in ordered}) + len(
                {argument for other in ordered for argument in other.arguments}
            )
        case "group":
            return [other.name for other in ordered if other.group == node.group].index(node.name)
        case _:
            pass
    return node.weight + sum(of(other) for other in node.arguments)


def verdict(nodes: dict[str, Node], name: str) -> int | str:
    try:
        return interpret(nodes, name)
    except Looped:
        return "cycle"
    except ValueError:
        return "failure"


def outcome(db: Database, name: str) -> int | Failure:
    try:
        return value(db, name)
    except QueryError as error:
        return error.failure


def everything(db: Database, names: list[str]) -> dict[str, tuple[object, ...]]:
    return {name: (outcome(db, name), db.origins(value, name), db.diagnostics(value, name)) for name in names}


def fresh(nodes: dict[str, Node], rng: random.Random) -> Database:
    db = Database(check_values=True)
    rows = list(nodes.values())
    rng.shuffle(rows)
    with db.change() as change:
        for node in rows:
            change.put(NODES, node.name, node)
    return db


names = st.sampled_from(NAMES)
nodes = st.builds(
    Node,
    name=names,
    operation=st.sampled_from(OPERATIONS),
    arguments=st.lists(names, min_size=1, max_size=3).map(tuple),
    weight=st.integers(0, 5),
    group=st.sampled_from(GROUPS),
    age=st.integers(0, 2),
)
changes = st.lists(st.one_of(nodes, names), min_size=1, max_size=4)
actions = st.one_of(
    st.tuples(st.just("change"), changes),
    st.tuples(st.just("change"), changes),
    st.tuples(st.just("watch"), names),
    st.tuples(st.just("unwatch"), names),
    st.tuples(st.just("ask"), names),
    st.tuples(st.just("drain"), st.none()),
    st.tuples(st.just("step"), st.tuples(st.integers(0, 3), changes)),
    st.tuples(st.just("interrupt"), st.integers(1, 6)),
)


class World:
    """A database with a long life, what it should hold, and what its watchers were told."""

    def __init__(self) -> None:
        self.db = Database(check_values=True)
        self.nodes: dict[str, Node] = {}
        self.watched: dict[str, int] = {}
        self.told: dict[str, object] = {}
        self.revisions = 0

    def act(self, action: str, detail: object) -> None:
        getattr(self, action)(detail)

    def change(self, sets: list[Node | str]) -> None:
        with self.db.change() as change:
            for item in sets:
                if isinstance(item, Node):
                    change.put(NODES, item.name, item)
                    self.nodes[item.name] = item
                else:
                    change.remove(NODES, item)
                    self.nodes.pop(item, None)

    def watch(self, name: str) -> None:
        self.db.watch(value, name)
        self.watched[name] = self.watched.get(name, 0) + 1

    def unwatch(self, name: str) -> None:
        if name in self.watched:
            self.db.unwatch(value, name)
            self.watched[name] -= 1
            if not self.watched[name]:
                del self.watched[name]
                self.told.pop(name, None)

    def ask(self, name: str) -> None:
        outcome(self.db, name)

    def drain(self, _: object = None) -> None:
        self.hear(self.db.drain())

    def step(self, detail: tuple[int, list[Node | str]]) -> None:
        count, sets = detail
        steps = self.db.steps()
        finished = any(next(steps, self) is self for _ in range(count))
        if not finished:
            self.change(sets)
            for _ in steps:
                pass
        self.hear(self.db.published)

    def interrupt(self, after: int) -> None:
        Fuse.left = after
        try:
            self.drain()
            for name in NAMES:
                outcome(self.db, name)
        except KeyboardInterrupt:
            pass
        finally:
            Fuse.left = 0

    def hear(self, revision: Revision | None) -> None:
        if revision is None:
            return
        self.revisions += 1
        assert revision.number == self.revisions
        assert revision.outputs
        for output in revision.outputs:
            assert output.query is value
            (name,) = output.args
            assert name in self.watched
            assert name not in self.told or self.told[name] != output.value, "published without a change"
            self.told[name] = output.value


def check(world: World, rng: random.Random) -> None:
    world.drain()
    order = list(NAMES)
    rng.shuffle(order)
    reference = fresh(world.nodes, rng)
    expected = everything(reference, order)
    rng.shuffle(order)
    assert everything(world.db, order) == expected
    assert world.told == {name: expected[name][0] for name in world.watched}
    for name in NAMES:
        found = expected[name][0]
        kind = ("cycle" if found.cycle else "failure") if isinstance(found, Failure) else found
        assert kind == verdict(world.nodes, name)
    watched = list(world.watched)
    rng.shuffle(watched)
    for name in watched:
        reference.watch(value, name)
    reference.drain()
    assert world.db.cells == reference.cells, "a cell leaked, or one was freed too early"


@settings(
    max_examples=10_000 if os.environ.get("XDSBPF_LONG") == "1" else 1000,
    deadline=None,
    phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    script=st.lists(actions, min_size=5, max_size=25),
    start=st.lists(nodes, min_size=4, max_size=8),
    seed=st.integers(0, 1000),
    depth=st.sampled_from((1, 2, 3, 40)),
)
def test_after_any_sequence_of_changes_every_query_equals_its_value_in_a_fresh_database(
    script: list[tuple[str, object]], start: list[Node], seed: int, depth: int
) -> None:
    rng = random.Random(seed)
    world = World()
    with mock.patch.object(engine, "MAX_DEPTH", depth):
        world.change(list(start))
        for position, (action, detail) in enumerate(script):
            world.act(action, detail)
            if position % 8 == 7:
                check(world, rng)
        check(world, rng)
        for name in list(world.watched):
            while name in world.watched:
                world.unwatch(name)
        assert world.db.cells == 0
