"""How a broken server is made: a function of the product with a piece of its source replaced, for the time of one test.

In: a piece of source and what takes its place. Out: the function as edited. A piece that is no longer there is an
error: whoever changes the code says how to break it now. The broken servers themselves are in `mutants`.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import msgspec

from tests.xds.wire import Variant
from xdsbpf.xds.transports import DEFAULT_TRANSPORT


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


class Seen(msgspec.Struct, frozen=True):
    """How the test sees it: the line of the test that fails (how it begins), and what the failure says.

    So that a server that falls over, or a test that fails before it comes to the rule, is not taken for a kill.
    """

    at: str
    says: str


def no_response(type_url: str) -> str:
    """What a test says that waits for a response in vain."""
    return f"no response of {type_url} within"


def noise(type_url: str) -> str:
    """What a test says that expected silence."""
    return f"expected silence, got [Response(type_url='{type_url}'"


class Mutant(msgspec.Struct, frozen=True):
    """A rule broken: in one sentence, by an edit, seen by `test` in `variant` over `transport`.

    `arguments` are those of the test beside `lab`.
    """

    rule: int
    breaks: str
    edit: Edit | Value
    test: Callable[..., Any]
    variant: Variant
    seen: Seen
    arguments: dict[str, Any] = {}
    transport: str = DEFAULT_TRANSPORT
