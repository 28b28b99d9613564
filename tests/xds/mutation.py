"""How a broken server is made: a function of the product with a piece of its source replaced, for the time of one test.

In: a piece of source and what takes its place. Out: the function as edited. A piece that is no longer there is an
error: whoever changes the code says how to break it now. The broken servers themselves are in `mutants.py`.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import msgspec

from tests.xds.wire import Variant


class Edit(msgspec.Struct, frozen=True):
    """In the function `name` of `owner` (a class or a module), `old` becomes `new`."""

    owner: Any
    name: str
    old: str
    new: str

    def apply(self) -> Any:
        """The function as edited."""
        original = inspect.getattr_static(self.owner, self.name)
        source = textwrap.dedent(inspect.getsource(original))
        assert self.old in source, f"{self.name} has no {self.old!r} any more: say how to break it now"
        found: dict[str, Any] = {}
        code = compile(source.replace(self.old, self.new), f"<mutant of {self.name}>", "exec", dont_inherit=True)
        exec(code, original.__globals__, found)
        return found[self.name]


class Value(msgspec.Struct, frozen=True):
    """A constant of a module becomes `new`."""

    owner: Any
    name: str
    new: Any

    def apply(self) -> Any:
        """The other value."""
        assert hasattr(self.owner, self.name), f"no constant {self.name} any more"
        return self.new


class Mutant(msgspec.Struct, frozen=True):
    """A rule broken: in one sentence, by an edit, seen by `test` in `variant`."""

    rule: int
    breaks: str
    edit: Edit | Value
    test: Callable[..., Any]
    variant: Variant
    arguments: dict[str, Any] = {}
