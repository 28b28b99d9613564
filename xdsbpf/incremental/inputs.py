"""The inputs of a database: recorded reads of tables and buckets, and the changes to them.

A source cell exists only while a query reads it; the rows and buckets themselves are in a `Store`
per table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xdsbpf.errors import InvariantError
from xdsbpf.incremental.cells import Cell
from xdsbpf.incremental.changes import Change
from xdsbpf.incremental.engine import Engine
from xdsbpf.incremental.tables import B, Buckets, Index, K, Row, Store, Table, V
from xdsbpf.incremental.values import ABSENT, Absent


class Inputs(Engine):
    """An engine with tables under it."""

    def __init__(self, *, check_values: bool) -> None:
        super().__init__(check_values=check_values)
        self._stores: dict[Table[Any, Any], Store] = {}

    # Reads of a query

    def input(self, table: Table[K, V], key: K) -> V | Absent:
        """The value under `key`, or ABSENT; a recorded read."""
        run = self.running
        value: V | Absent
        if run is None:
            value = self._store(table).rows.get(key, ABSENT)
            return value
        try:
            cell = self._stores[table].cells[key]
        except KeyError:
            store = self._store(table)
            cell = Cell(store.cells, key, store.rows.get(key, ABSENT), self.clock)
        run.reads[cell] = None
        value = cell.value
        return value

    def bucket(self, index: Index[V, B], bucket: B) -> tuple[V, ...]:
        """The values in a bucket, () if none, in the table's order; a recorded read.

        Costs a copy of the bucket when it changed, else a lookup.
        """
        buckets = self._buckets(index)
        run = self.running
        if run is None:
            return buckets.values(bucket)
        cell = buckets.cells.get(bucket)
        if cell is None:
            cell = Cell(buckets.cells, bucket, buckets.values(bucket), self.clock)
        run.reads[cell] = None
        values: tuple[V, ...] = cell.value
        return values

    def bucket_keys(self, index: Index[V, B]) -> tuple[B, ...]:
        """The keys of the buckets that are not empty, sorted; a recorded read."""
        return self._keys(self._buckets(index), shared=False)

    def shared_keys(self, index: Index[V, B]) -> tuple[B, ...]:
        """The keys of the buckets that several values are in, sorted; a recorded read."""
        return self._keys(self._buckets(index), shared=True)

    def _keys(self, buckets: Buckets, *, shared: bool) -> tuple[Any, ...]:
        read = buckets.shared_keys if shared else buckets.keys
        run = self.running
        if run is None:
            return read()
        cell = buckets.keys_cells.get(shared)
        if cell is None:
            cell = Cell(buckets.keys_cells, shared, read(), self.clock)
        run.reads[cell] = None
        keys: tuple[Any, ...] = cell.value
        return keys

    def cells_reading(self, table: Table[K, Any], key: K) -> Iterator[Cell]:
        """The source cells that hold a row: its own, and the buckets that it is in; those that somebody reads."""
        store = self._store(table)
        found = [store.cells.get(key)]
        for buckets in store.indexes.values():
            if key in store.rows:
                found += [buckets.cells.get(bucket) for bucket in buckets.index.buckets_of(store.rows[key])]
        return (cell for cell in found if cell is not None)

    # Changes

    def change(self) -> Change:
        """A group of sets, to be used in a `with` statement."""
        self.refuse_in_query("change")
        return Change(self)

    def apply(self, sets: dict[Table[Any, Any], dict[Any, Row | None]]) -> None:
        """Make the sets of a finished `Change` at once and spoil what read them."""
        self.refuse_in_query("change")
        self.clock += 1
        for table, rows in sets.items():
            store = self._store(table)
            for key in store.replace(rows):
                cell = store.cells.get(key)
                if cell is not None:
                    cell.value = store.rows.get(key, ABSENT)
                    cell.changed = self.clock
                    self.spoil(cell)
            for buckets in store.indexes.values():
                if buckets.touched or buckets.moved or buckets.shared:
                    for cell in buckets.settle(self.clock):
                        self.spoil(cell)

    def refuse_in_query(self, what: str) -> None:
        """Raise InvariantError if a query is running: it may only read."""
        if self.running is not None:
            raise InvariantError(f"{what} inside a query")

    def _store(self, table: Table[Any, Any]) -> Store:
        store = self._stores.get(table)
        if store is None:
            store = self._stores[table] = Store(table)
        return store

    def _buckets(self, index: Index[Any, Any]) -> Buckets:
        store = self._stores.get(index.table) or self._store(index.table)
        buckets = store.indexes.get(index)
        if buckets is None:
            store.adopt_indexes()
            buckets = store.indexes[index]
        return buckets
