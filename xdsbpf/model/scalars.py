"""Scalar and map types of the manifest schema.

The structs in this package are the schema; `sources` walks them (msgspec.inspect) to report every
mistake with its position. Where YAML and value differ, the type says so through `Meta.extra`:

    Duration    "7s", "1m30s", "250ms" (Go syntax)   -> int nanoseconds
    Millionths  100.0 (percent)                      -> int, 1_000_000 = 100 %
    Decimal     1.5                                  -> int, 1_000_000 = 1
    Timestamp   RFC 3339                             -> str, in UTC (sorts by time)
    IntOrString 9080 or "http"                       -> int | str
    Pairs[V]    a YAML mapping                       -> tuple of (key, value), sorted by key
    Shared      a string that many objects have      -> str, one copy of it (`model/sharing.py`)
    SharedLabels  a mapping of such strings          -> Labels, one copy of it

    NonEmpty[V] a list that may be left out but not be given empty

Values are hashable and frozen: no dict and no list ever enters the database.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias, TypeVar

from msgspec import Meta

V = TypeVar("V")

Duration: TypeAlias = Annotated[int, Meta(extra={"yaml": "duration"})]
Millionths: TypeAlias = Annotated[int, Meta(extra={"yaml": "percent"})]
Decimal: TypeAlias = Annotated[int, Meta(extra={"yaml": "decimal"})]
Timestamp: TypeAlias = Annotated[str, Meta(extra={"yaml": "timestamp"})]
IntOrString: TypeAlias = int | str
Pairs: TypeAlias = tuple[tuple[str, V], ...]
Labels: TypeAlias = Pairs[str]
Shared: TypeAlias = Annotated[str, Meta(extra={"yaml": "shared"})]
SharedLabels: TypeAlias = Annotated[Labels, Meta(extra={"yaml": "shared labels"})]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
UInt32: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
UInt64: TypeAlias = Annotated[int, Meta(ge=0)]
NonEmpty: TypeAlias = Annotated[tuple[V, ...], Meta(min_length=1)]

NANOSECONDS = 1_000_000_000


def lookup(pairs: Pairs[V], key: str) -> V | None:
    """Value of `key` in a sorted mapping, or None. O(n): mappings of manifests are small."""
    for name, value in pairs:
        if name == key:
            return value
    return None


def is_subset(selector: Labels, labels: Labels) -> bool:
    """Whether every pair of `selector` is in `labels`; an empty selector selects everything."""
    return set(selector) <= set(labels)
