"""Inputs: declared tables and indexes, and what one database holds of them.

`Table` and `Index` are declarations, made once at import and shared by all databases. A `Store`
holds the rows of a table in one database and its buckets, and the cells of those that are read
at present. Called by `Database` only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

from xdsbpf.incremental.cells import Cell
from xdsbpf.incremental.values import ABSENT, Absent

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
B = TypeVar("B", bound=Hashable)


class Table(Generic[K, V]):
    """A declared kind of input: values of type V under keys of type K.

    `order` gives the sort key of a value in buckets; values with equal sort keys follow their
    table keys. Both must be comparable within the table. It must be pure.
    """

    __slots__ = ("indexes", "name", "order")

    def __init__(self, name: str, *, order: Callable[[V], Any] = lambda _: ()) -> None:
        self.name = name
        self.order = order
        self.indexes: list[Index[V, Any]] = []

    def __repr__(self) -> str:
        return f"Table({self.name})"


class Index(Generic[V, B]):
    """Declared buckets over a table: `keys` (pure) names the buckets that a value is in.

    Bucket keys are hashable, and comparable with one another if `bucket_keys` is used.
    """

    __slots__ = ("keys", "name", "table")

    def __init__(self, name: str, table: Table[Any, V], *, keys: Callable[[V], Iterable[B]]) -> None:
        self.name = name
        self.table = table
        self.keys = keys
        table.indexes.append(self)

    def __repr__(self) -> str:
        return f"Index({self.table.name}.{self.name})"


class Bucket:
    """The values of one bucket, in order; `ranks` holds (sort key, table key) of each."""

    __slots__ = ("ranks", "values")

    def __init__(self) -> None:
        self.ranks: list[tuple[Any, Any]] = []
        self.values: list[Any] = []

    def add(self, rank: tuple[Any, Any], value: Any) -> None:
        position = bisect_left(self.ranks, rank)
        self.ranks.insert(position, rank)
        self.values.insert(position, value)

    def discard(self, rank: tuple[Any, Any]) -> None:
        position = bisect_left(self.ranks, rank)
        del self.ranks[position], self.values[position]


class Buckets:
    """All buckets of one index in one database. Adding or removing a value costs O(log n) compares."""

    __slots__ = ("buckets", "cells", "index", "moved", "names", "names_cells", "touched")

    def __init__(self, index: Index[Any, Any]) -> None:
        self.index = index
        self.buckets: dict[Any, Bucket] = {}
        self.cells: dict[Any, Cell] = {}
        self.names: list[Any] | None = None  # sorted; kept once somebody asked
        self.names_cells: dict[Any, Cell] = {}
        self.touched: dict[Any, None] = {}
        self.moved = False

    def add(self, rank: tuple[Any, Any], value: Any) -> None:
        for key in dict.fromkeys(self.index.keys(value)):
            bucket = self.buckets.get(key)
            if bucket is None:
                bucket = self.buckets[key] = Bucket()
                self.moved = True
                if self.names is not None:
                    insort(self.names, key)
            bucket.add(rank, value)
            if key in self.cells:
                self.touched[key] = None

    def discard(self, rank: tuple[Any, Any], value: Any) -> None:
        for key in dict.fromkeys(self.index.keys(value)):
            bucket = self.buckets[key]
            bucket.discard(rank)
            if not bucket.ranks:
                del self.buckets[key]
                self.moved = True
                if self.names is not None:
                    del self.names[bisect_left(self.names, key)]
            if key in self.cells:
                self.touched[key] = None

    def values(self, key: Any) -> tuple[Any, ...]:
        bucket = self.buckets.get(key)
        return tuple(bucket.values) if bucket is not None else ()

    def keys(self) -> tuple[Any, ...]:
        if self.names is None:
            self.names = sorted(self.buckets)
        return tuple(self.names)

    def settle(self, clock: int) -> Iterable[Cell]:
        """Bring the cells up to date after a change; yield those whose contents changed."""
        touched, self.touched = self.touched, {}
        for key in touched:
            cell = self.cells[key]
            values = self.values(key)
            if values != cell.value:
                cell.value = values
                cell.changed = clock
                yield cell
        if self.moved:
            self.moved = False
            for cell in self.names_cells.values():
                keys = self.keys()
                if keys != cell.value:
                    cell.value = keys
                    cell.changed = clock
                    yield cell


class Store:
    """The rows and buckets of one table in one database."""

    __slots__ = ("cells", "indexes", "rows", "table")

    def __init__(self, table: Table[Any, Any]) -> None:
        self.table = table
        self.rows: dict[Any, Any] = {}
        self.cells: dict[Any, Cell] = {}
        self.indexes: dict[Index[Any, Any], Buckets] = {}
        self.adopt_indexes()

    def adopt_indexes(self) -> None:
        """Build the indexes that were declared since; one pass over the rows each."""
        for index in self.table.indexes:
            if index not in self.indexes:
                buckets = Buckets(index)
                for key, value in self.rows.items():
                    buckets.add((self.table.order(value), key), value)
                self.indexes[index] = buckets

    def replace(self, key: Any, value: Any | Absent) -> bool:
        """Put `value` under `key` (ABSENT: remove it); False if an equal one was there already."""
        old = self.rows.get(key, ABSENT)
        if old is value or (old.__class__ is value.__class__ and old == value):
            return False
        if len(self.indexes) != len(self.table.indexes):
            self.adopt_indexes()
        if old is not ABSENT:
            rank = (self.table.order(old), key)
            for buckets in self.indexes.values():
                buckets.discard(rank, old)
        if value is ABSENT:
            del self.rows[key]
            return True
        self.rows[key] = value
        rank = (self.table.order(value), key)
        for buckets in self.indexes.values():
            buckets.add(rank, value)
        return True
