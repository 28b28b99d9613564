"""What may be a value, and who says so."""

from __future__ import annotations

import enum

import msgspec
import pytest

from xdsbpf.incremental import ABSENT, Database, QueryError, Table, query

ANYTHING = Table[str, object]("anything")


class Frozen(msgspec.Struct, frozen=True):
    item: object


class Loose(msgspec.Struct):
    item: int


class Colour(enum.Enum):
    RED = "red"


@query
def produced(db: Database, name: str) -> object:
    return SAMPLES[name]


@query
def identity(db: Database, item: object) -> object:
    return 1


ALLOWED: dict[str, object] = {
    "text": "x",
    "number": 1,
    "bytes": b"x",
    "truth": True,
    "none": None,
    "member": Colour.RED,
    "absent": ABSENT,
    "nested": (Frozen((1, Frozen("x"))), ()),
}
FORBIDDEN: dict[str, object] = {
    "list": [1],
    "dict": {},
    "set": {1},
    "frozenset": frozenset({1}),
    "bytearray": bytearray(),
    "float": 0.5,
    "loose": Loose(1),
    "inside": (1, Frozen(("x", [2]))),
}
SAMPLES = ALLOWED | FORBIDDEN


@pytest.mark.parametrize("name", ALLOWED)
def test_a_permitted_value_passes_the_check(name: str) -> None:
    db = Database(check_values=True)
    with db.change() as change:
        change.put(ANYTHING, name, SAMPLES[name])
    assert produced(db, name) == SAMPLES[name]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_forbidden_value_is_a_type_error_where_it_was_made(name: str) -> None:
    db = Database(check_values=True)
    with pytest.raises(QueryError, match="produced") as caught:
        produced(db, name)
    assert isinstance(caught.value.__cause__, TypeError)
    with db.change() as change, pytest.raises(TypeError, match="anything"):
        change.put(ANYTHING, name, SAMPLES[name])
    assert db.input(ANYTHING, name) is ABSENT


def test_the_check_names_the_place_inside_the_value() -> None:
    with pytest.raises(QueryError, match=r"produced\('inside'\)\[1\]\.item\[1\]: list"):
        produced(Database(check_values=True), "inside")


def test_arguments_are_values_too() -> None:
    with pytest.raises(TypeError, match="arguments of identity"):
        identity(Database(check_values=True), frozenset({1}))
    assert identity(Database(check_values=True), ("x", 1)) == 1


def test_production_does_not_pay_for_the_check() -> None:
    assert produced(Database(), "list") == [1]
