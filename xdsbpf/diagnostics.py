"""What a user did wrong, as data.

Parsers, validators and queries produce `Diagnostic` values; the shells print them. They name
the object and the field path only: the file and line are looked up when printed (`Locator`), so
that a comment added on top of a file changes nothing downstream.
"""

from __future__ import annotations

import enum
from typing import Protocol, TypeAlias

import msgspec


class ObjectId(msgspec.Struct, frozen=True, order=True, gc=False):
    """Identity of a manifest object; `group` is the API group without version ("" for core)."""

    kind: str
    namespace: str
    name: str
    group: str = ""

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}" if self.namespace else f"{self.kind}/{self.name}"


class Severity(enum.StrEnum):
    """How much a finding matters: an `error` object is not applied as written."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class State(enum.StrEnum):
    """Where an object ended (DESIGN: never silent)."""

    APPLIED = "APPLIED"
    PENDING = "PENDING"
    REJECTED = "REJECTED"
    NOT_ENFORCED = "NOT-ENFORCED"
    SHADOWED = "SHADOWED-BY"


class Location(msgspec.Struct, frozen=True, order=True):
    """A place in a file; line and column count from 1, 0 means unknown."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.file
        return f"{self.file}:{self.line}:{self.column}" if self.column else f"{self.file}:{self.line}"


class Diagnostic(msgspec.Struct, frozen=True):
    """One finding. `code` is stable; `path` is a field path such as `spec.http[2].route[0].weight`.

    `object` is None only when the text could not be attributed to an object; then `location`,
    which only sources set, says where.
    """

    code: str
    severity: Severity
    object: ObjectId | None
    path: str
    message: str
    hint: str = ""
    location: Location | None = None


class Origin(msgspec.Struct, frozen=True, order=True, gc=False):
    """The part of a manifest that an output was made from."""

    object: ObjectId
    path: str = ""

    def __str__(self) -> str:
        return f"{self.object} {self.path}" if self.path else str(self.object)


class Identified(Protocol):
    """A manifest: what can be named as a whole."""

    @property
    def id(self) -> ObjectId:
        """Its kind, namespace and name."""


class Items(msgspec.Struct, frozen=True, gc=False):
    """Items of a list in a manifest, such as `endpoints[0]` and `endpoints[3]`: one value in place of many origins."""

    object: ObjectId
    path: str
    positions: tuple[int, ...]


Cited: TypeAlias = Origin | Items | Identified
"""What a query can name as used: a part of a manifest, several, or all of it."""


def origins_of(cited: Cited) -> tuple[Origin, ...]:
    """The parts of manifests that are named."""
    if isinstance(cited, Origin):
        return (cited,)
    if isinstance(cited, Items):
        return tuple(Origin(cited.object, f"{cited.path}[{position}]") for position in cited.positions)
    return (Origin(cited.id),)


def object_of(cited: Cited) -> ObjectId:
    """The manifest that is named, or of which a part is."""
    return cited.object if isinstance(cited, Origin | Items) else cited.id


class Locator(Protocol):
    """Resolves an object and field path to the file position it came from."""

    def locate(self, object: ObjectId, path: str = "") -> Location | None:
        """Position of `path` inside `object`, of its nearest known parent, or None."""
