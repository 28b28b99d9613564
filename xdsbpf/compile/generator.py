"""What a compiler package offers to the server: families of resources as queries.

A `Generator` names one (scope, type) and two queries: which names there are, and the resource of a name.
Built in `compile`, watched by `xds.publisher`; holds no state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class Generator(msgspec.Struct, frozen=True):
    """A family of resources of one type in one scope of the store.

    `names(db, *args) -> tuple[str, ...]` lists them, `build(db, *args, name) -> Resource | ABSENT` makes
    one; both are queries of `xdsbpf.incremental`. `args` are their common leading arguments after `db`.
    """

    scope: str
    type_url: str
    names: Callable[..., Any]
    build: Callable[..., Any]
    args: tuple[Any, ...] = ()
