"""The database: inputs, outputs of interest and revisions over the cell graph.

Inputs go in through `change`, results come out of `drain` or `steps` as revisions, of watched
queries only. Shells own it: one task, no threads. It does no I/O, keeps no time and knows no
manifest; what is computed is up to the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Set
from typing import Any, Concatenate, ParamSpec, TypeVar

from xdsbpf.diagnostics import Cited, Diagnostic, Origin, object_of, origins_of
from xdsbpf.errors import InvariantError
from xdsbpf.incremental.cells import Cell, Watch
from xdsbpf.incremental.inputs import Inputs
from xdsbpf.incremental.tables import K, Table
from xdsbpf.incremental.values import Failure, Output, Revision

P = ParamSpec("P")
T = TypeVar("T")


class Database(Inputs):
    """Inputs, memoised queries over them, and revisions of the watched ones.

    `check_values` (for tests) makes results, inputs and arguments of forbidden types TypeErrors.
    """

    def __init__(self, *, check_values: bool = False) -> None:
        super().__init__(check_values=check_values)
        self.published: Revision | None = None
        self._revision = 0
        self._watches = 0
        self._refreshed: dict[Cell, None] = {}  # watched cells that the next revision compares
        self._draining = False

    # Side channels of a query

    def cite(self, *cited: Cited) -> None:
        """Name parts of manifests, or manifests, that the running query used; no part of its value."""
        run = self.running
        if run is None:
            raise InvariantError("cite outside a query")
        run.cited += cited

    def report(self, diagnostic: Diagnostic) -> None:
        """Add a finding of the running query; no part of its value."""
        run = self.running
        if run is None:
            raise InvariantError("report outside a query")
        if run.reports is None:
            run.reports = {}
        run.reports[diagnostic] = None

    # Outputs

    def watch(self, query: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs) -> tuple[Any, ...]:
        """Publish `query(*args)`, first in the next revision, then whenever its value changed.

        Returns the arguments as its outputs will have them, so that who keeps them needs no copy. Counted: as many
        `unwatch` calls end it. `kwargs` exists for the type checker only.
        """
        self.refuse_in_query("watch")
        cell = self._cell(query, args, kwargs)
        if cell.watch is not None:
            cell.watch.count += 1
        else:
            self._watches += 1
            cell.watch = Watch(query, self._watches)
            self.queue[cell] = None
        args_of_cell: tuple[Any, ...] = cell.key
        return args_of_cell

    def unwatch(self, query: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """End one `watch`; raises InvariantError if there is none. Frees what nobody needs."""
        self.refuse_in_query("unwatch")
        cell = self._cell(query, args, kwargs)
        if cell.watch is None:
            self.release(cell)
            raise InvariantError(f"{getattr(query, '__name__', query)}{args} is not watched")
        cell.watch.count -= 1
        if not cell.watch.count:
            cell.watch = None
            self.queue.pop(cell, None)
            self._refreshed.pop(cell, None)
            self.release(cell)

    @property
    def pending(self) -> bool:
        """Whether there is something to drain: a watched query that a change may have reached, or a new watch."""
        return bool(self.queue)

    def drain(self) -> Revision | None:
        """Refresh all watched queries and publish; None if no watched value changed."""
        for _ in self.steps():
            pass
        return self.published

    def steps(self) -> Generator[None, None, None]:
        """`drain` in steps of one output each; then `published` has the revision, or None.

        Changes and watches made between steps are part of the revision. A second iterator before
        the first one is exhausted or closed raises InvariantError.
        """
        self.refuse_in_query("drain")
        if self._draining:
            raise InvariantError("a drain is in progress")
        self._draining = True
        try:
            while self.queue:
                cell, _ = self.queue.popitem()
                self._refreshed[cell] = None
                try:
                    self.bring(cell)
                except BaseException:
                    self.queue[cell] = None
                    raise
                yield
            self.queue.clear()  # a dictionary that was large keeps its room till then
            self.sweep()
            self._publish()
        finally:
            self._draining = False

    def _publish(self) -> None:
        changed: list[tuple[int, Output]] = []
        refreshed, self._refreshed = self._refreshed, {}
        for cell in refreshed:
            watch, value = cell.watch, cell.value
            if watch is not None and (watch.published.__class__ is not value.__class__ or watch.published != value):
                watch.published = value
                changed.append((watch.number, Output(watch.query, cell.key, value)))
        self.published = None
        if changed:
            changed.sort()  # no two watches have the same number
            self._revision += 1
            self.published = Revision(self._revision, tuple([output for _, output in changed]))

    def origins(
        self, query: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[Origin, ...]:
        """All that was cited for the present value of `query(*args)`, there or below, sorted.

        Works for a failed query too. Cost: one visit per cell below.
        """
        found: set[Origin] = set()
        for cell in self._below(query, args, kwargs):
            for cited in cell.cited:
                found.update(origins_of(cited))
        return tuple(sorted(found))

    def diagnostics(
        self, query: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[Diagnostic, ...]:
        """All that was reported for the present value of `query(*args)`, there or below, sorted.

        Works for a failed query too; the failure itself is not among them. Cost as `origins`.
        """
        found: set[Diagnostic] = set()
        for cell in self._below(query, args, kwargs):
            found.update(cell.reports)
        return tuple(sorted(found, key=_rank))

    def reported(
        self, query: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[set[Diagnostic], Failure | None]:
        """All that was reported for any watched query or for `query(*args)`, there or below; unsorted.

        The same as the union of `diagnostics` over all of them, at one visit per cell that exists; and why
        `query(*args)` has no value, if it has none.
        """
        self.refuse_in_query("origins and diagnostics")
        cell = self._cell(query, args, kwargs)
        try:
            self.bring(cell)
            self._idle.pop(cell, None)  # held by this call
            self.sweep()  # what is left now is below a watch or below `cell`
            found = {report for cells in self._queries.values() for kept in cells.values() for report in kept.reports}
            return found, cell.value if isinstance(cell.value, Failure) else None
        finally:
            self.release(cell)

    def citing(self, table: Table[K, Any], keys: Set[K]) -> set[tuple[Callable[..., Any], tuple[Any, ...]]]:
        """The watched queries, with their arguments, for which an object was cited that is a key of these rows.

        The inverse of `origins`, as of the last drain, for who cites only what it has read. Cost: one visit per cell
        above the rows.
        """
        self.refuse_in_query("origins and diagnostics")
        roots = {cell for key in keys for cell in self.cells_reading(table, key)}
        citing = [cell for cell in self.above(roots) if any(object_of(cited) in keys for cited in cell.cited)]
        return {(cell.watch.query, cell.key) for cell in self.above(citing) if cell.watch is not None}

    @property
    def cells(self) -> int:
        """How many cells exist; for tests and metrics. Cost: one visit per query, table and index."""
        count = sum(len(cells) for cells in self._queries.values())
        for store in self._stores.values():
            count += len(store.cells)
            count += sum(len(buckets.cells) + len(buckets.keys_cells) for buckets in store.indexes.values())
        return count

    def _below(self, query: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Cell, ...]:
        self.refuse_in_query("origins and diagnostics")
        cell = self._cell(query, args, kwargs)
        try:
            self.bring(cell)
            return tuple(self.below(cell))
        finally:
            self.release(cell)

    def _cell(self, query: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cell:
        if kwargs:
            raise TypeError("arguments of a query are positional")
        function = getattr(query, "__wrapped__", None)
        if function is None:
            raise TypeError(f"{query!r} is not a query")
        return self.cell_of(query, function, args)


def _rank(diagnostic: Diagnostic) -> tuple[Any, ...]:
    target = diagnostic.object
    return (
        ("", "", "", "") if target is None else (target.kind, target.namespace, target.name, target.group),
        diagnostic.path,
        diagnostic.code,
        diagnostic.severity,
        diagnostic.message,
        diagnostic.hint,
        "" if diagnostic.location is None else str(diagnostic.location),
    )
