"""The incremental database: inputs in, memoised queries between, revisions of changed outputs out.

`mesh` and `compile` declare tables, indexes and queries with it; the shells own a `Database` and
publish its revisions. It performs no I/O and imports nothing of the mesh.
"""

from xdsbpf.incremental.database import Database
from xdsbpf.incremental.failures import CycleError, QueryError
from xdsbpf.incremental.queries import query
from xdsbpf.incremental.tables import Index, Table
from xdsbpf.incremental.values import ABSENT, Absent, Failure, Output, Revision

__all__ = [
    "ABSENT",
    "Absent",
    "CycleError",
    "Database",
    "Failure",
    "Index",
    "Output",
    "QueryError",
    "Revision",
    "Table",
    "query",
]
