"""Inputs: declared tables and indexes, and what one database holds of them.

`Table` and `Index` are declarations, made once at import and shared by all databases. A `Store`
holds the rows of a table in one database and its buckets, and the cells of those that are read
at present. Called by `Database` only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from xdsbpf.incremental.cells import Cell

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
B = TypeVar("B", bound=Hashable)
_Groups: TypeAlias = dict[Any, list[Any]]
"""Bucket key -> table keys"""


class Row(msgspec.Struct, frozen=True, gc=False):
    """A value on its way into a table: its sort key, and its buckets in each index, in their order."""

    value: Any
    order: Any
    buckets: tuple[tuple[Any, ...], ...]


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

    def row(self, value: V) -> Row:
        """The row of a value; raises what `order` and the `keys` of an index raise, TypeError for no bucket key."""
        if not self.indexes:
            return Row(value, (), ())
        buckets = self.buckets_of(value)
        hash(buckets)
        return Row(value, self.order(value), buckets)

    def buckets_of(self, value: V) -> tuple[tuple[Any, ...], ...]:
        """The buckets that a value is in, of each index."""
        found = []
        for index in self.indexes:
            keys = index.keys(value)
            # Nearly always a tuple of one, for each of all objects: what it may be else is looked at in a function.
            found.append(keys if keys.__class__ is tuple and len(keys) < 2 else _each_once(keys))
        return tuple(found)


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

    def buckets_of(self, value: V) -> tuple[B, ...]:
        """The buckets that a value is in, each once."""
        return _each_once(self.keys(value))


def _each_once(keys: Iterable[B]) -> tuple[B, ...]:
    keys = tuple(keys)
    return keys if len(keys) < 2 else tuple(dict.fromkeys(keys))


BULK: Final = 16
"""From one in so many members on, a bucket is rebuilt instead of searched for each of them."""


class Buckets:
    """All buckets of one index in one database: table keys, sorted by `Store.rank` of their rows.

    A bucket is in `alone` with its one member or in `several` with its list of members: most buckets of most indexes
    have one, and a list costs 60 bytes. One value more or less costs O(log n) ranks; many at once cost one pass over
    the bucket.
    """

    __slots__ = ("alone", "cells", "index", "keys_cells", "moved", "names", "several", "shared", "store", "touched")

    def __init__(self, index: Index[Any, Any], store: Store) -> None:
        self.index = index
        self.store = store
        self.alone: dict[Any, Any] = {}
        self.several: dict[Any, list[Any]] = {}
        self.cells: dict[Any, Cell] = {}
        self.names: list[Any] | None = None  # of all buckets, sorted; kept once somebody asked
        self.keys_cells: dict[bool, Cell] = {}  # of `keys`, and for True of `shared_keys`
        self.touched: dict[Any, None] = {}
        self.moved = False  # there may be other buckets than before
        self.shared = False  # other buckets than before may have several members

    def add(self, groups: _Groups) -> None:
        """Put table keys, sorted by rank, into their buckets; their rows are in the store already."""
        alone, several = self.alone, self.several
        for key, members in groups.items():
            if key in several:
                self._insert(several[key], members)
                continue
            if key in alone:
                members = sorted((alone.pop(key), *members), key=self.store.rank)
            else:
                self.moved = True
                if self.names is not None:
                    insort(self.names, key)
            if len(members) == 1:
                alone[key] = members[0]
            else:
                several[key] = members
                self.shared = True

    def _insert(self, bucket: list[Any], members: list[Any]) -> None:
        if len(members) * BULK > len(bucket):
            bucket += members
            bucket.sort(key=self.store.rank)
        else:
            for member in members:
                insort(bucket, member, key=self.store.rank)

    def discard(self, key: Any, members: list[Any]) -> None:
        """Take table keys out of bucket `key`; their old rows are in the store still."""
        bucket = self.several.get(key)
        if bucket is None:
            del self.alone[key]
            self._note_empty(key)
            return
        if len(members) * BULK > len(bucket):
            gone = set(members)
            bucket[:] = [member for member in bucket if member not in gone]
        else:
            rank = self.store.rank
            for member in members:
                del bucket[bisect_left(bucket, rank(member), key=rank)]
        if len(bucket) < 2:
            del self.several[key]
            self.shared = True
            if bucket:
                self.alone[key] = bucket[0]
            else:
                self._note_empty(key)

    def _note_empty(self, key: Any) -> None:
        self.moved = True
        if self.names is not None:
            del self.names[bisect_left(self.names, key)]

    def move_out(self, position: int, gone: list[Any], fresh: list[tuple[Any, Row]], known: dict[Any, bool]) -> _Groups:
        """Take rows out of the buckets that they leave; bucket key -> the table keys that are to enter it, in order.

        `position` is that of the index in its table; `known` says of the keys that had a row if it keeps its rank.
        """
        rows, buckets_of = self.store.rows, self.index.buckets_of
        leaving: _Groups = {}
        entering: defaultdict[Any, list[Any]] = defaultdict(list)
        for key in gone:
            for bucket in buckets_of(rows[key]):
                leaving.setdefault(bucket, []).append(key)
        for key, row in fresh:
            after = row.buckets[position]
            if known and key in known:
                before = buckets_of(rows[key])
                if before == after and known[key]:
                    self.touch(before)
                    continue
                for bucket in before:
                    leaving.setdefault(bucket, []).append(key)
            for bucket in after:
                entering[bucket].append(key)
        self.touch(leaving)
        self.touch(entering)
        for bucket, members in leaving.items():
            self.discard(bucket, members)
        return entering

    def touch(self, keys: Iterable[Any]) -> None:
        """Note buckets whose contents may differ; `settle` compares those that somebody reads."""
        for key in keys if self.cells else ():
            if key in self.cells:
                self.touched[key] = None

    def values(self, key: Any) -> tuple[Any, ...]:
        members = self.several.get(key)
        if members is not None:
            return tuple(map(self.store.rows.__getitem__, members))
        return (self.store.rows[self.alone[key]],) if key in self.alone else ()

    def keys(self) -> tuple[Any, ...]:
        if self.names is None:
            self.names = sorted([*self.alone, *self.several])
        return tuple(self.names)

    def shared_keys(self) -> tuple[Any, ...]:
        """The keys of the buckets that have more than one member, sorted."""
        return tuple(sorted(self.several))

    def settle(self, clock: int) -> Iterable[Cell]:
        """Bring the cells up to date after a change; yield those whose contents changed."""
        touched, self.touched = self.touched, {}
        stale = [(self.cells[key], self.values(key)) for key in touched]
        if self.moved and False in self.keys_cells:
            stale.append((self.keys_cells[False], self.keys()))
        if self.shared and True in self.keys_cells:
            stale.append((self.keys_cells[True], self.shared_keys()))
        self.moved = self.shared = False
        for cell, value in stale:
            if value != cell.value:
                cell.value = value
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
                entering: _Groups = {}
                for key in sorted(self.rows, key=self.rank):
                    for bucket in index.buckets_of(self.rows[key]):
                        entering.setdefault(bucket, []).append(key)
                buckets.add(entering)

    def replace(self, sets: dict[Any, Row | None]) -> list[Any]:
        """Put rows under their keys (None: remove); the keys whose value is not equal to what was there.

        Buckets change in two passes, old rows out, new rows in, so that ranks always fit the rows. Cost: one sort
        for all indexes.
        """
        if len(self.indexes) != len(self.table.indexes):
            self.adopt_indexes()
        if len(sets) == 1:
            [(key, row)] = sets.items()
            if row is not None and key in self.rows and self._stays(self.rows[key], row):
                return [key] if self._exchange(key, row) else []
        rows, order = self.rows, self.table.order
        gone = [key for key, row in sets.items() if row is None and key in rows]
        fresh = [
            (key, row)
            for key, row in sets.items()
            if row is not None and (key not in rows or not _is_equal(rows[key], row.value))
        ]
        if self.indexes:
            fresh.sort(key=_rank_of)
        known = {key: order(rows[key]) == row.order for key, row in fresh if key in rows}
        entering = [
            (buckets, buckets.move_out(position, gone, fresh, known))
            for position, buckets in enumerate(self.indexes.values())
        ]
        for key in gone:
            del rows[key]
        for key, row in fresh:
            rows[key] = row.value
        for buckets, groups in entering:
            buckets.add(groups)
        return gone + [key for key, _ in fresh]

    def _stays(self, old: Any, row: Row) -> bool:
        """Whether a row has the rank and the buckets of the value before it, as after most changes."""
        return self.table.order(old) == row.order and self.table.buckets_of(old) == row.buckets

    def _exchange(self, key: Any, row: Row) -> bool:
        """Put a row in the place of another: no bucket moves. False if the value is equal to what was there."""
        if _is_equal(self.rows[key], row.value):
            return False
        self.rows[key] = row.value
        for buckets, names in zip(self.indexes.values(), row.buckets, strict=True):
            buckets.touch(names)
        return True


def _rank_of(entry: tuple[Any, Row]) -> tuple[Any, Any]:
    return (entry[1].order, entry[0])


def _is_equal(old: Any, new: Any) -> bool:
    return old is new or (old.__class__ is new.__class__ and old == new)
