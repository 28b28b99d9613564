"""The values that go through the database and come out of it.

Inputs and results are str, int, bytes, bool, None, enums, tuples, and frozen msgspec structs of
these: immutable, compared with `==`. Equality decides early cut-off, so 1 and True count as the
same value. `check_value` proves the rule in tests; production does not pay for it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

import msgspec


class Absent(enum.Enum):
    """Type of `ABSENT`, so that `value is ABSENT` narrows a union."""

    ABSENT = "ABSENT"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent.ABSENT
"""What a table holds where it holds nothing. It is truthy: test with `is ABSENT`."""


class Failure(msgspec.Struct, frozen=True):
    """What a query came to that has no value; the same for every reader that let it through.

    `text` is the exception ("ValueError: no port 80"), `cell` the query that raised it, `where`
    the file name and line. For a cycle, `cycle` names its cells in call order, starting from the
    least name, and `cell` and `where` are empty.
    """

    text: str
    cell: str = ""
    where: str = ""
    cycle: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = f" (in {self.cell}, {self.where})" if self.cell else ""
        return f"{self.text}{place}"


class Output(msgspec.Struct, frozen=True):
    """A watched query whose value changed; `value` is its result, ABSENT or a `Failure`."""

    query: Callable[..., object]
    args: tuple[Any, ...]
    value: Any


class Revision(msgspec.Struct, frozen=True):
    """One consistent state: every output here was computed from the same inputs.

    `number` counts from 1 without gaps; `outputs` is never empty and is in the order in which
    they were first watched.
    """

    number: int
    outputs: tuple[Output, ...]


def check_value(value: object, path: str) -> None:
    """Raise TypeError naming `path` unless `value` is of the permitted types, all the way down.

    Cost: one visit per nested value.
    """
    if value is None or isinstance(value, str | int | bytes | enum.Enum):
        return
    if type(value) is tuple:
        for position, item in enumerate(value):
            check_value(item, f"{path}[{position}]")
        return
    if isinstance(value, msgspec.Struct):
        if not value.__struct_config__.frozen:
            raise TypeError(f"{path}: {type(value).__name__} is not a frozen struct")
        for field in value.__struct_fields__:
            check_value(getattr(value, field), f"{path}.{field}")
        return
    raise TypeError(f"{path}: {type(value).__name__} cannot be a value of the database")
