"""A change: sets of inputs that take effect together.

`Database.change` hands one out; at the end of its `with` block the database applies it.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from xdsbpf.incremental.tables import K, Row, Table, V
from xdsbpf.incremental.values import check_value

if TYPE_CHECKING:
    from xdsbpf.incremental.inputs import Inputs


class Change:
    """A group of sets: all of them are in force after the `with` block, none if it raised."""

    def __init__(self, database: Inputs) -> None:
        self._database = database
        self._sets: dict[Table[Any, Any], dict[Any, Row | None]] = {}

    def put(self, table: Table[K, V], key: K, value: V) -> None:
        """Set the value of `key`, last one wins; raises what the table's `order` and `keys` raise."""
        self._database.refuse_in_query("put")
        if self._database.check_values:
            check_value(key, f"{table.name} key")
            check_value(value, f"{table.name}[{key}]")
        row = table.row(value)
        self._sets.setdefault(table, {})[key] = row

    def remove(self, table: Table[K, V], key: K) -> None:
        """Make `key` absent; nothing happens if it is."""
        self._database.refuse_in_query("remove")
        self._sets.setdefault(table, {})[key] = None

    def __enter__(self) -> Change:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sets, self._sets = self._sets, {}
        if kind is None and sets:
            self._database.apply(sets)
