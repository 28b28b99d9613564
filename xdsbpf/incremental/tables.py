"""Inputs: declared tables and indexes, and what one database holds of them.

`Table` and `Index` are declarations, made once at import and shared by all databases. A `Store`
holds the rows of a table in one database and its buckets, and the cells of those that are read
at present. Called by `Database` only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, Generic, TypeVar

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


BULK: Final = 16
"""From one in so many members on, a bucket is rebuilt instead of searched for each of them."""


class Buckets:
    """All buckets of one index in one database: table keys, sorted by `Store.rank` of their rows.

    One value more or less costs O(log n) ranks; many at once cost one pass over the bucket.
    """

    __slots__ = ("cells", "index", "members", "moved", "names", "names_cells", "store", "touched")

    def __init__(self, index: Index[Any, Any], store: Store) -> None:
        self.index = index
        self.store = store
        self.members: dict[Any, list[Any]] = {}
        self.cells: dict[Any, Cell] = {}
        self.names: list[Any] | None = None  # sorted; kept once somebody asked
        self.names_cells: dict[Any, Cell] = {}
        self.touched: dict[Any, None] = {}
        self.moved = False

    def keys_of(self, value: Any) -> dict[Any, None]:
        """The buckets that a value is in, each once; none for ABSENT."""
        return dict.fromkeys(self.index.keys(value)) if value is not ABSENT else {}

    def add(self, key: Any, members: list[Any]) -> None:
        """Put table keys into bucket `key`; their rows are in the store already."""
        bucket = self.members.get(key)
        rank = self.store.rank
        if bucket is None:
            bucket = self.members[key] = []
            self.moved = True
            if self.names is not None:
                insort(self.names, key)
        if len(members) * BULK > len(bucket):
            bucket += members
            if len(bucket) > 1:
                bucket.sort(key=rank)
        else:
            for member in members:
                insort(bucket, member, key=rank)

    def discard(self, key: Any, members: list[Any]) -> None:
        """Take table keys out of bucket `key`; their old rows are in the store still."""
        bucket = self.members[key]
        if len(members) * BULK > len(bucket):
            gone = set(members)
            bucket[:] = [member for member in bucket if member not in gone]
        else:
            rank = self.store.rank
            for member in members:
                del bucket[bisect_left(bucket, rank(member), key=rank)]
        if not bucket:
            del self.members[key]
            self.moved = True
            if self.names is not None:
                del self.names[bisect_left(self.names, key)]

    def touch(self, keys: Iterable[Any]) -> None:
        """Note buckets whose contents may differ; `settle` compares those that somebody reads."""
        for key in keys:
            if key in self.cells:
                self.touched[key] = None

    def values(self, key: Any) -> tuple[Any, ...]:
        return tuple(map(self.store.rows.__getitem__, self.members.get(key, ())))

    def keys(self) -> tuple[Any, ...]:
        if self.names is None:
            self.names = sorted(self.members)
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

    def rank(self, key: Any) -> tuple[Any, Any]:
        """Place of the row under `key` in its buckets."""
        return (self.table.order(self.rows[key]), key)

    def adopt_indexes(self) -> None:
        """Build the indexes that were declared since; one pass over the rows each."""
        for index in self.table.indexes:
            if index not in self.indexes:
                buckets = self.indexes[index] = Buckets(index, self)
                everything = [(key, ABSENT, value) for key, value in self.rows.items()]
                for key, members in _move_out(buckets, everything, set()).items():
                    buckets.add(key, members)

    def replace(self, sets: list[tuple[Any, Any | Absent]]) -> list[Any]:
        """Put values under their keys (ABSENT: remove); the keys whose value is not equal to what was there.

        Buckets change in two passes, old rows out, new rows in, so that ranks always fit the rows.
        """
        if len(self.indexes) != len(self.table.indexes):
            self.adopt_indexes()
        rows = self.rows
        fresh = [
            (key, rows.get(key, ABSENT), value) for key, value in sets if not _is_equal(rows.get(key, ABSENT), value)
        ]
        stays = {key for key, old, new in fresh if self._has_equal_order(old, new)}
        entering = [(buckets, _move_out(buckets, fresh, stays)) for buckets in self.indexes.values()]
        for key, _, value in fresh:
            if value is ABSENT:
                del rows[key]
            else:
                rows[key] = value
        for buckets, groups in entering:
            for bucket, members in groups.items():
                buckets.add(bucket, members)
        return [key for key, _, _ in fresh]

    def _has_equal_order(self, old: Any, new: Any) -> bool:
        return old is not ABSENT and new is not ABSENT and bool(self.table.order(old) == self.table.order(new))


def _is_equal(old: Any, new: Any) -> bool:
    return old is new or (old.__class__ is new.__class__ and old == new)


def _move_out(buckets: Buckets, fresh: list[tuple[Any, Any, Any]], stays: set[Any]) -> dict[Any, list[Any]]:
    """Take rows out of the buckets that they leave; bucket key -> the table keys that are to enter it."""
    leaving: dict[Any, list[Any]] = {}
    entering: dict[Any, list[Any]] = {}
    for key, old, new in fresh:
        before, after = buckets.keys_of(old), buckets.keys_of(new)
        buckets.touch(before)
        if key in stays and before == after:
            continue
        buckets.touch(after)
        for bucket in before:
            leaving.setdefault(bucket, []).append(key)
        for bucket in after:
            entering.setdefault(bucket, []).append(key)
    for bucket, members in leaving.items():
        buckets.discard(bucket, members)
    return entering
