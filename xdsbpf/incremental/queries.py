"""The `query` decorator: a pure function becomes a memoised, recorded one.

A query reads inputs, buckets and other queries only through its database. It must be pure: it can
be run again at any time, and a deep first computation is abandoned half-way and restarted. Its
arguments are hashable values and positional; they must never be a name that a peer sent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from xdsbpf.incremental.database import Database

P = ParamSpec("P")
R = TypeVar("R")


def query(function: Callable[Concatenate[Database, P], R]) -> Callable[Concatenate[Database, P], R]:
    """Memoise `function` per database and arguments; calling the result is a recorded read.

    The call raises `QueryError` if the function raised, whatever it raised, and `CycleError` if it
    needs itself; from within a query and from outside alike. From outside, a result that nobody
    watches is forgotten when the call returns.
    """

    @functools.wraps(function)
    def read(db: Database, *args: Any) -> Any:
        return db.read(read, function, args)

    return cast("Callable[Concatenate[Database, P], R]", read)
