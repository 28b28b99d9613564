"""How an exception in a query becomes a value, and a value an exception again.

`engine` turns what a query raised into a `Failure` and raises `QueryError` in the readers. Stored
exceptions lose their tracebacks: frames would keep the values of their locals alive.
"""

from __future__ import annotations

import traceback

from xdsbpf.errors import XdsbpfError
from xdsbpf.incremental.cells import Cell, name_of
from xdsbpf.incremental.values import Failure


class QueryError(XdsbpfError):
    """A query that was read has no value: `cell` names it, `failure` says why.

    Chained (`__cause__`) from what the query raised, without its traceback: frames would keep the
    values of their locals alive.
    """

    cell: str
    failure: Failure

    def __init__(self, cell: str, failure: Failure) -> None:
        super().__init__(cell)
        self.cell = cell
        self.failure = failure

    def __str__(self) -> str:
        # Made when asked for: each of a thousand cells in a cycle stores an error that names them all.
        return f"{self.cell} failed: {self.failure}"


class CycleError(QueryError):
    """A query needs its own result; `cells` names the queries in the cycle, in call order."""

    cells: tuple[str, ...]

    def __init__(self, cell: str, failure: Failure) -> None:
        super().__init__(cell, failure)
        self.cells = failure.cycle


def error_of(cell: Cell, failure: Failure) -> QueryError:
    """What a reader of the failed `cell` gets."""
    kind = CycleError if failure.cycle else QueryError
    return kind(name_of(cell), failure)


def cycle_of(cells: list[Cell]) -> Failure:
    """The failure of every cell of a cycle, the same whichever of them was read first."""
    names = list(dict.fromkeys(map(name_of, cells)))
    least = names.index(min(names))
    names = names[least:] + names[:least]
    return Failure(f"cycle: {' -> '.join([*names, names[0]])}", cycle=tuple(names))


def failure_of(cell: Cell, error: BaseException) -> Failure:
    """The failure that `error`, raised by the function of `cell`, stands for."""
    if isinstance(error, QueryError):
        return error.failure
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = ""
    if trace is not None:
        file = trace.tb_frame.f_code.co_filename.rpartition("/")[2]
        where = f"{file}:{trace.tb_lineno}"
    # Unlike str(error), this survives a broken __str__.
    text = "".join(traceback.format_exception_only(error)).strip()
    return Failure(text.removeprefix(f"{type(error).__module__}."), name_of(cell), where)


def without_frames(error: BaseException) -> BaseException:
    """`error`, with every traceback in its chain dropped: frames would keep their locals alive."""
    stack: list[BaseException | None] = [error]
    seen: set[int] = set()
    while stack:
        link = stack.pop()
        if isinstance(link, QueryError) and link.__traceback__ is None:
            continue  # stored before, by the query that was read
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            stack += (link.__cause__, link.__context__)
    return error
