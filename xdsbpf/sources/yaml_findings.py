"""What the walk over a document finds, and the bounds it keeps.

A `Finding` is a diagnostic without an object, with its position inside the chunk of text; `Walk` is
the collector that `yaml_walk` passes along. Positions count from 1.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec
from yaml.nodes import MappingNode, Node, ScalarNode

from xdsbpf.diagnostics import Diagnostic, Location, ObjectId, Severity
from xdsbpf.model import codes
from xdsbpf.sources.yaml_nodes import PLAIN, Segment

MAX_DEPTH: Final = 32
MAX_ITEMS: Final = 10_000
MAX_OBJECT_BYTES: Final = 1 << 20
# Aliases count each time they are used. Honest text has fewer values than characters, so what goes
# beyond its length and this allowance is an alias bomb.
ALIAS_ALLOWANCE: Final = 10_000
MAX_FINDINGS: Final = 100

Path: TypeAlias = "tuple[Path, Segment] | None"
"""A field path as a linked list from the leaf, so that a walk without findings formats nothing."""


class Finding(msgspec.Struct, frozen=True):
    """One mistake at a place of the chunk of text that was walked."""

    code: str
    severity: Severity
    path: str
    message: str
    hint: str
    line: int
    column: int

    def diagnostic(self, object: ObjectId | None, file: str, first_line: int) -> Diagnostic:
        """The finding of `object` in `file`, whose chunk starts at line `first_line` (from 1)."""
        location = Location(file, first_line + self.line - 1, self.column)
        return Diagnostic(self.code, self.severity, object, self.path, self.message, self.hint, location)


def format_path(path: Path) -> str:
    """`spec.http[2].headers[end-user]`: names that could be mistaken are put into brackets."""
    segments: list[str] = []
    while path is not None:
        path, segment = path
        if isinstance(segment, str) and segment and not set(segment) & set(".[]/ "):
            segments.append(f".{segment}")
        else:
            segments.append(f"[{segment}]")
    return "".join(reversed(segments)).removeprefix(".")


class Budget:
    """How many values may still be visited; shared by all objects of one document."""

    __slots__ = ("left",)

    def __init__(self, text_length: int = 0) -> None:
        self.left = text_length + ALIAS_ALLOWANCE


class Walk:
    """Findings of one object, and the bounds on visiting it."""

    __slots__ = ("_budget", "_depth", "_max_depth", "findings", "overflowed", "strict")

    def __init__(self, budget: Budget, *, strict: bool, max_depth: int = MAX_DEPTH) -> None:
        self.strict = strict
        self._max_depth = max_depth
        self._budget = budget
        self.findings: list[Finding] = []
        self.overflowed = False
        self._depth = 0

    def report(
        self,
        code: str,
        path: Path,
        node: Node,
        message: str,
        hint: str = "",
        *,
        severity: Severity = Severity.ERROR,
    ) -> None:
        """Keep a finding at the start of `node`; after MAX_FINDINGS only the first ones are kept."""
        if len(self.findings) < MAX_FINDINGS:
            mark = node.start_mark
            self.findings.append(
                Finding(code, severity, format_path(path), message, hint, mark.line + 1, mark.column + 1)
            )

    def enter(self, node: Node, path: Path, size: int) -> bool:
        """Go one level down into a mapping or list of `size` entries; False if a bound is reached."""
        self._depth += 1
        self._budget.left -= size + 1
        if self._depth > self._max_depth:
            self._overflow(node, path, f"nested deeper than {self._max_depth} levels")
        elif self._budget.left < 0:
            self._overflow(node, path, "too many values once its aliases are expanded")
        else:
            return True
        self._depth -= 1
        return False

    def leave(self) -> None:
        """Come back from a level that `enter` allowed."""
        self._depth -= 1

    def _overflow(self, node: Node, path: Path, message: str) -> None:
        if not self.overflowed:
            self.overflowed = True
            self.report(codes.LIMIT, path, node, message, "split the object, or write its aliases out")

    @property
    def failed(self) -> bool:
        """Whether anything found is an error."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)


def describe(node: Node) -> str:
    """What a node is, for "expected X, found Y"; long text is cut."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if not isinstance(node, ScalarNode):
        return "a list"
    text = str(node.value)
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    if node.tag == PLAIN:
        return shown if shown else "nothing"
    return f'"{shown}"'
