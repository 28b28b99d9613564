"""The cell graph: spoiling, refreshing, running, freeing. `Database` adds inputs and outputs.

Refreshing works on an explicit stack and follows reads in their order: a dirty cell runs only when
a read of it did change, and reads after that one are left to the run. While a query computes
another for the first time they are plain Python calls, but only MAX_DEPTH of them: the next one
abandons the calls in progress (`Suspended`), is computed from the work stack, and then the
abandoned ones run again and find it done. So a chain of any length works, at two runs per query,
under any recursion limit that leaves room for MAX_DEPTH nested queries. A RecursionError in a
query that was not the outermost is treated the same; in the outermost it is that query's failure.
A cycle is a read of a query that has started and not ended. Whoever reads a cycle fails with it,
even if it catches the error: else results would depend on which query of the cycle came first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from xdsbpf.incremental.cells import CHECKING, CLEAN, DIRTY, RUNNING, Cell, QueryCell, Run, Suspended, name_of
from xdsbpf.incremental.failures import CycleError, cycle_of, error_of, failure_of, without_frames
from xdsbpf.incremental.graph import Graph
from xdsbpf.incremental.values import Failure, check_value

MAX_DEPTH: Final = 40


class Engine(Graph):
    """Computes cells. One task, no threads; not to be used but through `Database`."""

    def __init__(self, *, check_values: bool) -> None:
        super().__init__()
        self.check_values = check_values
        self.clock = 1  # counts changes of the inputs
        self.runs = 0  # how often a query's function was called
        self.running: Run | None = None
        self._stack: list[Cell] = []
        self._next: list[int] = []  # per stack entry: the read to check next
        self._depth = 0

    # Reading

    def read(self, query: Callable[..., Any], function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Value of `query(*args)`, recorded as a read of the running query."""
        run = self.running
        if run is not None and run.cycle is not None:
            raise error_of(run.cell, run.cycle)
        try:
            cell = self._queries[query][args]
        except KeyError:
            cell = self.cell_of(query, function, args)
        if run is None:
            return self._read_from_outside(cell)
        run.reads[cell] = None
        if cell.state:
            self._refresh(cell)
        value = cell.value
        if value.__class__ is Failure:
            if value.cycle:
                run.cycle = value
            raise error_of(cell, value) from self._errors.get(cell)
        return value

    def cell_of(self, query: Callable[..., Any], function: Callable[..., Any], args: tuple[Any, ...]) -> Cell:
        """The cell of `query(*args)`, made if there is none yet."""
        cells = self._queries.setdefault(query, {})
        cell = cells.get(args)
        if cell is None:
            if self.check_values:
                check_value(args, f"arguments of {function.__name__}")
            cell = QueryCell(cells, args, function)
        return cell

    def _read_from_outside(self, cell: Cell) -> Any:
        try:
            self.bring(cell)
            value = cell.value
            if value.__class__ is Failure:
                raise error_of(cell, value) from self._errors.get(cell)
            return value
        finally:
            self.release(cell)

    # Refreshing

    def bring(self, cell: Cell) -> None:
        """Make `cell` and all below it clean. Only from outside any query.

        Raises nothing that a query raises; KeyboardInterrupt and its like pass, and leave the
        cells that were in progress dirty.
        """
        if cell.state == CLEAN:
            return
        self._push(cell)
        while self._stack:
            try:
                self._work(0)
            except Suspended:
                continue
            except BaseException:
                self._abandon()
                raise

    def _refresh(self, cell: Cell) -> None:
        """Make a dirty cell clean that the running query reads."""
        run = self.running
        assert run is not None
        if cell.state == RUNNING:
            run.cycle = self._cycle_through(cell)
            raise CycleError(name_of(cell), run.cycle)
        self._push(cell)
        if self._depth >= MAX_DEPTH:
            raise Suspended
        self._work(len(self._stack) - 1)

    def _push(self, cell: Cell) -> None:
        self._stack.append(cell)
        self._next.append(0)

    def _work(self, base: int) -> None:
        """Take cells off the work stack until it is `base` high."""
        stack, positions = self._stack, self._next
        while len(stack) > base:
            cell = stack[-1]
            state = cell.state
            # A run that was abandoned has state RUNNING: it is known to be needed. A cell may be on
            # the stack twice (checked below, read by what it made run): the second find is clean.
            if state == RUNNING or (state and (not cell.computed or self._must_run(cell))):
                height = len(stack) - 1
                self._run(cell)
                del stack[height:], positions[height:]
            elif stack[-1] is cell and not cell.state:
                stack.pop()
                positions.pop()

    def _must_run(self, cell: Cell) -> bool:
        """Whether a read of `cell`, which has run before, changed; if that is not known yet, push the read to refresh.

        Becomes clean if no read changed.
        """
        computed = cell.computed
        cell.state = CHECKING
        start = self._next[-1]
        for read in cell.reads[start:] if start else cell.reads:
            if read.state:
                if read.state == DIRTY:
                    self._next[-1] = cell.reads.index(read, start)
                    self._push(read)
                    return False
                return True  # a read that is itself on the stack may close a cycle: only a run can tell
            if read.changed > computed:
                return True
        cell.state = CLEAN
        return False

    def _run(self, cell: Cell) -> None:
        outer = self.running
        run = self.running = Run(cell, {}, [])
        cell.state = RUNNING
        self._depth += 1
        self.runs += 1
        value: Any = None
        error: Exception | None = None
        try:
            assert cell.compute is not None
            value = cell.compute(self, *cell.key)
            if self.check_values:
                check_value(value, name_of(cell))
        except RecursionError as raised:
            if self._depth > 1:
                self._forget(run)
                raise Suspended from None
            error = raised
        except Exception as raised:  # noqa: BLE001  a failure is a value: this is where it becomes one
            error = raised
        except BaseException:
            self._forget(run)
            raise
        finally:
            self._depth -= 1
            self.running = outer
        if run.cycle is not None:
            value = run.cycle
        elif error is not None:
            value = failure_of(cell, error)
        self._finish(run, value, error)

    def _finish(self, run: Run, value: Any, error: Exception | None) -> None:
        cell = run.cell
        reads = tuple(run.reads)
        if reads != cell.reads:
            self._connect(cell, reads)
        old, clock = cell.value, self.clock
        if old.__class__ is not value.__class__ or old != value:
            cell.value = value  # else the old object stays: cut-off, and one copy in memory
            cell.changed = clock
        cell.cited = tuple(run.cited)
        cell.reports = tuple(run.reports) if run.reports else ()
        if error is not None:
            self._errors[cell] = without_frames(error)
        elif self._errors:
            self._errors.pop(cell, None)
        if run.cycle is not None:
            self._looped.add(cell)
        elif self._looped:
            self._looped.discard(cell)
        cell.computed = clock
        cell.state = CLEAN

    def _cycle_through(self, cell: Cell) -> Failure:
        start = len(self._stack) - 1
        while self._stack[start] is not cell:
            start -= 1
        return cycle_of(self._stack[start:])

    def _forget(self, run: Run) -> None:
        """Drop an unfinished run; what it made and nobody else reads can be freed."""
        for read in run.reads:
            self._unhook(read)

    def _abandon(self) -> None:
        """Leave a consistent graph behind after an interrupt: nothing in progress, no lost update."""
        stack = list(self._stack)
        self._stack.clear()
        self._next.clear()
        for cell in stack:
            if cell.state:
                cell.state = DIRTY
                # What read it in a cycle is clean, above a dirty cell, and never saw a value of it.
                self.spoil(cell, rerun=True)
