"""The publisher: outputs of the database become resources of the store, failures keep the last good one."""

from __future__ import annotations

from typing import Any

from xdsbpf.compile.generator import Generator
from xdsbpf.incremental import ABSENT, Database, Table, query
from xdsbpf.model.names import CLUSTER
from xdsbpf.model.resource import make_resource
from xdsbpf.xds.publisher import Publisher, Slot
from xdsbpf.xds.store import ResourceStore, View

LISTS = Table[str, tuple[str, ...]]("lists", order=lambda value: value)
BODIES = Table[str, str]("bodies", order=lambda value: value)
VIEW = View(("s",), "", "test")


@query
def cluster_names(db: Database, which: str) -> Any:
    names = db.input(LISTS, which)
    if names is not ABSENT and "boom" in names:
        raise ValueError("no list")
    return () if names is ABSENT else names


@query
def cluster(db: Database, which: str, name: str) -> Any:
    body = db.input(BODIES, name)
    if body is ABSENT:
        return ABSENT
    if body == "boom":
        raise ValueError("cannot build")
    return make_resource(CLUSTER, "elsewhere" if body == "misnamed" else name, f"{which}{body}".encode())


def family(which: str = "x", scope: str = "s") -> Generator:
    return Generator(scope, CLUSTER, cluster_names, cluster, (which,))


class Rig:
    def __init__(self) -> None:
        self.db = Database()
        self.store = ResourceStore()
        self.publisher = Publisher(self.db, self.store)

    def set(self, names: dict[str, tuple[str, ...]] | None = None, **bodies: str | None) -> Any:
        with self.db.change() as change:
            for which, value in (names or {}).items():
                change.put(LISTS, which, value)
            for name, body in bodies.items():
                if body is None:
                    change.remove(BODIES, name)
                else:
                    change.put(BODIES, name, body)
        return self.publisher.publish()

    def bodies(self) -> dict[str, bytes]:
        return {item.name: item.body for item in self.store.wildcard(VIEW, CLUSTER)}


def test_names_and_builds_become_resources_in_one_revision() -> None:
    rig = Rig()
    rig.publisher.add(family())
    changes = rig.set({"x": ("a", "b")}, a="1", b="2")
    assert rig.bodies() == {"a": b"x1", "b": b"x2"}
    assert changes.revision == rig.store.revision == 1


def test_a_change_touches_only_what_changed() -> None:
    rig = Rig()
    rig.publisher.add(family())
    rig.set({"x": ("a", "b")}, a="1", b="2")
    assert dict(rig.set(a="3").by_scope) == {"s": ((CLUSTER, "a"),)}
    assert not rig.set(a="3")


def test_a_name_that_leaves_the_list_leaves_the_store_and_the_database() -> None:
    rig = Rig()
    rig.publisher.add(family())
    rig.set({"x": ("a",)}, a="1", b="2")
    before = rig.db.cells
    rig.set({"x": ("a", "b")})
    rig.set({"x": ("a",)})
    assert rig.bodies() == {"a": b"x1"}
    assert rig.db.cells == before


def test_an_absent_build_is_not_in_the_store() -> None:
    rig = Rig()
    rig.publisher.add(family())
    rig.set({"x": ("a",)}, a="1")
    rig.set(a=None)
    assert rig.bodies() == {}
    rig.set(a="2")
    assert rig.bodies() == {"a": b"x2"}


def test_a_failed_build_keeps_the_last_good_resource_and_is_reported() -> None:
    rig = Rig()
    rig.publisher.add(family())
    rig.set({"x": ("a", "b")}, a="1", b="1")
    rig.set(a="boom", b="2")
    assert rig.bodies() == {"a": b"x1", "b": b"x2"}
    assert list(rig.publisher.failures) == [Slot("s", CLUSTER, "a")]
    assert "cannot build" in rig.publisher.failures[Slot("s", CLUSTER, "a")]
    rig.set(a="3")
    assert rig.bodies() == {"a": b"x3", "b": b"x2"}
    assert rig.publisher.failures == {}


def test_a_failed_list_of_names_keeps_all_resources() -> None:
    rig = Rig()
    rig.publisher.add(family())
    rig.set({"x": ("a",)}, a="1")
    rig.set({"x": ("boom",)})
    assert rig.bodies() == {"a": b"x1"}
    assert "no list" in rig.publisher.failures[Slot("s", CLUSTER, "")]
    rig.set({"x": ()})
    assert rig.bodies() == {}
    assert rig.publisher.failures == {}


def test_a_resource_under_another_name_is_a_failure() -> None:
    rig = Rig()
    rig.publisher.add(family())
    rig.set({"x": ("a",)}, a="misnamed")
    assert rig.bodies() == {}
    assert "elsewhere" in rig.publisher.failures[Slot("s", CLUSTER, "a")]


def test_two_generators_may_share_queries() -> None:
    rig = Rig()
    rig.publisher.add(family(scope="s"))
    rig.set({"x": ("a",)}, a="1")
    rig.publisher.add(family(scope="t"))
    rig.publisher.publish()
    assert rig.store.names("t", CLUSTER) == rig.store.names("s", CLUSTER) == ("a",)
    rig.publisher.remove(family(scope="s"))
    rig.publisher.publish()
    assert rig.store.scopes() == ("t",)
    rig.set(a="2")
    assert rig.store.get(View(("t",), "", ""), CLUSTER, "a") == make_resource(CLUSTER, "a", b"x2")


def test_two_builders_of_one_name_are_reported_and_the_first_counts() -> None:
    rig = Rig()
    rig.publisher.add(family("x"))
    rig.publisher.add(family("y"))
    rig.set({"x": ("a",), "y": ("a",)}, a="1")
    assert rig.bodies() == {"a": b"x1"}
    assert list(rig.publisher.failures) == [Slot("s", CLUSTER, "a")]
    rig.set({"x": ()})
    assert rig.bodies() == {"a": b"y1"}
    assert rig.publisher.failures == {}


def test_a_removed_generator_leaves_nothing_behind() -> None:
    rig = Rig()
    rig.set({"x": ("a",)}, a="1")
    before = rig.db.cells
    rig.publisher.add(family())
    rig.publisher.publish()
    rig.publisher.remove(family())
    assert rig.publisher.publish()
    assert rig.bodies() == {}
    assert rig.db.cells == before
    assert not rig.publisher._families, "scopes are named by clients"
