"""Cells: the nodes of the dependency graph, and what one run of a query collects.

A cell is a source (an input, a bucket, the keys of an index: no `compute`) or the result of a
query for one tuple of arguments. Edges exist in both directions, and are cut by hand when a cell
is freed: the collector is frozen in production. Only `graph` and `tables` touch cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from xdsbpf.diagnostics import Cited, Diagnostic
from xdsbpf.incremental.values import Failure

CLEAN: Final = 0  # the value is that of the present inputs, and so is all below
DIRTY: Final = 1  # something below may have changed
CHECKING: Final = 2  # on the stack: its reads are being brought up to date, in order
RUNNING: Final = 3  # on the stack: its function has started; a read of it closes a cycle


FEW: Final = 16
"""So many readers are kept in a tuple: at most 170 bytes, where a set of five has 730."""


class Unset:
    """Type of the value of a cell that was never computed; equal to nothing else."""

    __slots__ = ()


UNSET: Final = Unset()


class Watch:
    """Interest of the outside in `query(*args)`: how often, since when, and what it was told last."""

    __slots__ = ("count", "number", "published", "query")

    def __init__(self, query: Callable[..., Any], number: int) -> None:
        self.query = query
        self.number = number
        self.count = 1
        self.published: Any = UNSET


SOURCE_SLOTS: Final = ("changed", "home", "key", "readers", "value")
"""What every cell has of its own. Named, as the type checker would refuse to set the others in `QueryCell`."""


class Cell:
    """A node of the graph; as it is, a source: an input, a bucket or the keys of an index, set and never computed.

    `changed` is the reading of the clock when its value was last new. `home` is the dictionary that
    holds it under `key`. `readers` is a tuple while they are few, as most cells have one, and a set
    from FEW on: `Graph` alone changes it.
    """

    __slots__ = SOURCE_SLOTS

    # The same for every source, so that they need no room for it: there is one per pod.
    state: int = CLEAN
    computed: int = 0
    compute: Callable[..., Any] | None = None
    reads: tuple[Cell, ...] = ()
    cited: tuple[Cited, ...] = ()
    reports: tuple[Diagnostic, ...] = ()
    watch: Watch | None = None

    def __init__(self, home: dict[Any, Cell], key: Any, value: Any = UNSET, changed: int = 0) -> None:
        self.home = home
        self.key = key
        self.value = value
        self.changed = changed
        self.readers: tuple[Cell, ...] | set[Cell] = ()
        home[key] = self


class QueryCell(Cell):
    """One memoised value of the query `compute` for the arguments `key`.

    `computed` is the reading of the clock at the last run (0: none counts). A reader is up to date
    if no read changed since it was computed.
    """

    __slots__ = ("cited", "compute", "computed", "reads", "reports", "state", "watch")

    def __init__(self, home: dict[Any, Cell], key: Any, compute: Callable[..., Any]) -> None:
        # As Cell.__init__, without the call: there are several per service.
        self.home = home
        self.key = key
        self.value = UNSET
        self.changed = 0
        self.readers = ()
        home[key] = self
        self.compute = compute
        self.state = DIRTY
        self.reads = ()
        self.computed = 0
        self.cited = ()
        self.reports = ()
        self.watch = None


class Run(msgspec.Struct):
    """What one run of a query has read, cited and reported so far, and the cycle it met, if any."""

    cell: Cell
    reads: dict[Cell, None]
    cited: list[Cited]
    reports: dict[Diagnostic, None] | None = None
    cycle: Failure | None = None


def name_of(cell: Cell) -> str:
    """`query('argument', 80)`, as errors show a query cell."""
    if cell.compute is None:
        return repr(cell.key)
    return f"{cell.compute.__name__}({', '.join(map(repr, cell.key))})"


class Suspended(BaseException):
    """Unwinds the Python stack to the outermost computation, which goes on with the work stack.

    Never leaves the package. A BaseException, so that no query can take it for a failure.
    """
