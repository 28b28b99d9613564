"""The graph of cells: edges, what a change spoils, and what can be freed.

A cell lives as long as it has a reader or a watch. That is reference counting with the edges cut
by hand; the cells of a failed cycle read one another, so these are freed by a walk upwards. The
`Engine` computes cells, this class knows only how they hang together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from xdsbpf.incremental.cells import DIRTY, FEW, Cell


class Graph:
    """Owner of all query cells and of their edges."""

    def __init__(self) -> None:
        self.queue: dict[Cell, None] = {}  # watched cells to refresh
        self._queries: dict[Callable[..., Any], dict[tuple[Any, ...], Cell]] = {}
        self._errors: dict[Cell, BaseException] = {}  # what a failed cell raised, without traceback
        self._looped: set[Cell] = set()  # cells that failed with a cycle: their edges may form one
        self._suspects: dict[Cell, None] = {}  # those of them that lost a reader or a watch
        self._idle: dict[Cell, None] = {}  # cells that lost their last reader, to be freed

    def _connect(self, cell: Cell, reads: tuple[Cell, ...]) -> None:
        old = set(cell.reads)
        cell.reads = reads
        alone = (cell,)
        for read in reads:
            if read in old:
                continue  # not even looked at: mostly one of many reads is new
            readers = read.readers
            if not readers:
                read.readers = alone
            elif readers.__class__ is set:
                readers.add(cell)
            elif cell not in readers:
                readers = read.readers = (*readers, cell)
                if len(readers) > FEW:
                    read.readers = set(readers)
        for read in old.difference(reads):
            self._disconnect(read, cell)

    def _disconnect(self, read: Cell, reader: Cell) -> None:
        readers = read.readers
        if readers.__class__ is set:
            readers.discard(reader)
        else:
            read.readers = tuple(other for other in readers if other is not reader)
        self._unhook(read)

    # Spoiling and freeing

    def spoil(self, cell: Cell, *, rerun: bool = False) -> None:
        """Mark all that was computed from `cell`; dirty ones have only dirty ones above them.

        With `rerun` they will run even if none of their reads turns out to have changed.
        """
        stack = [cell]
        while stack:
            for reader in stack.pop().readers:
                if not reader.state:
                    reader.state = DIRTY
                    if rerun:
                        reader.computed = 0
                    if reader.watch is not None:
                        self.queue[reader] = None
                    if reader.readers:
                        stack.append(reader)

    def release(self, cell: Cell) -> None:
        """Free `cell` unless it is of use to somebody, and all else that is not. As `sweep`."""
        self._unhook(cell)
        self.sweep()

    def sweep(self) -> None:
        """Free the cells that are of use to nobody any more. Only while nothing runs."""
        while self._idle or self._suspects:
            while self._idle:
                cell, _ = self._idle.popitem()
                if not cell.readers and cell.watch is None:
                    self._free(cell)
            if self._suspects:
                cell, _ = self._suspects.popitem()
                if cell in self._looped:
                    for reader in self._unwatched_above(cell):
                        self._free(reader)

    def _unhook(self, cell: Cell) -> None:
        """Have the next sweep look at `cell`, which lost a reader, a watch or an unfinished run."""
        if not cell.readers:
            if cell.watch is None:
                self._idle[cell] = None
        elif cell in self._looped:
            self._suspects[cell] = None

    def _unwatched_above(self, cell: Cell) -> set[Cell]:
        """`cell` and all that reads it, directly or not; empty if one of these is watched."""
        above = {cell}
        stack = [cell]
        while stack:
            current = stack.pop()
            if current.watch is not None:
                return set()
            for reader in current.readers:
                if reader not in above:
                    above.add(reader)
                    stack.append(reader)
        return above

    def _free(self, cell: Cell) -> None:
        if cell.home.get(cell.key) is cell:
            del cell.home[cell.key]
        self._errors.pop(cell, None)
        self._looped.discard(cell)
        reads = cell.reads
        if reads:
            cell.reads = ()
        for read in reads:
            self._disconnect(read, cell)
        self._idle.pop(cell, None)

    def above(self, cells: Iterable[Cell]) -> Iterator[Cell]:
        """The cells and every cell that was made from one of them, each once."""
        stack = list(cells)
        seen = set(stack)
        while stack:
            current = stack.pop()
            yield current
            for reader in current.readers:
                if reader not in seen:
                    seen.add(reader)
                    stack.append(reader)

    def below(self, cell: Cell) -> Iterator[Cell]:
        """`cell` and every cell that its value was made from, each once."""
        seen = {cell}
        stack = [cell]
        while stack:
            current = stack.pop()
            yield current
            for read in current.reads:
                if read not in seen:
                    seen.add(read)
                    stack.append(read)
