"""The accepted objects of all files: which version of each is in force, and why.

In: parsed files (`put_file`), deletions and the time. Out: `CatalogDelta` batches for the database,
`states()` for people, `locate` for positions. Pure: no I/O and no clock; time is passed in as seconds
of any monotonic clock. `serve` and `translate` own one; `files` feeds it. A version in force changes
only for a good version of the same object, a settled removal, or a confirmation: broken text,
half-written files and mass removals change nothing but the status (reliability.md I3, I4, I12).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from xdsbpf.diagnostics import Diagnostic, Location, ObjectId, Severity
from xdsbpf.model import codes
from xdsbpf.model.meta import Manifest
from xdsbpf.sources.claims import Claim, Hold, Occurrence, good_version
from xdsbpf.sources.positions import locate_in_text
from xdsbpf.sources.status import ObjectStatus, SourceStatus, statuses_of
from xdsbpf.sources.yaml_reader import ParsedFile

HOLD_S: Final = 2.0
"""How long vanished objects and half-written files are held."""

MASS_AT_LEAST: Final = 10
"""From this many objects on, losing more than half of them needs a confirmation."""

Order = tuple[int, str]
"""(index of the command-line argument, path): later ones win."""


class CatalogDelta(msgspec.Struct, frozen=True):
    """What changes in the database; both lists are sorted by object."""

    puts: tuple[tuple[ObjectId, Manifest], ...] = ()
    removes: tuple[ObjectId, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.puts or self.removes)


class _File:
    """One file: its last good content, what it claims, and a content that is not trusted yet."""

    __slots__ = ("claims", "order", "parsed", "problems", "suspect", "suspect_until")

    def __init__(self, order: Order) -> None:
        self.order = order
        self.parsed: ParsedFile | None = None
        self.problems: tuple[Diagnostic, ...] = ()
        self.suspect: ParsedFile | None = None
        self.suspect_until = 0.0
        self.claims: dict[ObjectId, Claim] = {}


class Catalog:
    """Owner of the objects in force. Not thread-safe: one task owns it."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._claims: dict[ObjectId, dict[str, Claim]] = {}
        self._in_force: dict[ObjectId, Manifest] = {}
        self._source_problems: dict[str, Diagnostic] = {}

    def previous(self, file: str) -> ParsedFile | None:
        """Last content taken or suspected of `file`, so that its unchanged parts need no reading."""
        entry = self._files.get(file)
        return (entry.suspect or entry.parsed) if entry is not None else None

    def put_file(self, parsed: ParsedFile, order: Order, now: float) -> CatalogDelta:
        """Take a new content of a file, or keep the last one if the new one is broken or suspect.

        Cost: O(objects of the file). Objects that are equal to those in force give no puts.
        """
        entry = self._files.setdefault(parsed.file, _File(order))
        entry.order = order
        for claim in entry.claims.values():
            claim.order = order
        self._source_problems.pop(parsed.file, None)
        entry.problems, entry.suspect = parsed.problems, None
        if parsed.problems:
            return CatalogDelta()
        if entry.parsed is not None and entry.claims and looks_half_written(entry.parsed.data, parsed.data):
            entry.suspect, entry.suspect_until = parsed, now + HOLD_S
            return CatalogDelta()
        return self._settle(self._take(entry, parsed, now + HOLD_S))

    def delete_file(self, file: str) -> CatalogDelta:
        """Forget a file that was deleted, and remove what only it claimed."""
        entry = self._files.pop(file, None)
        self._source_problems.pop(file, None)
        if entry is None:
            return CatalogDelta()
        for object_id in entry.claims:
            self._drop_claim(object_id, file)
        return self._settle(entry.claims)

    def source_lost(self, path: str, reason: str) -> None:
        """Say that a file or directory cannot be read; everything of it stays in force."""
        message = f"{reason}; its objects stay in force as they were last read"
        self._source_problems[path] = Diagnostic(
            codes.SOURCE_LOST,
            Severity.ERROR,
            None,
            "",
            message,
            "restore it, or restart without it",
            Location(path),
        )

    def source_found(self, path: str) -> None:
        """Take back `source_lost`."""
        self._source_problems.pop(path, None)

    def tick(self, now: float) -> CatalogDelta:
        """Do what has become due: take suspect contents that stayed, drop objects that stayed away."""
        affected: set[ObjectId] = set()
        for file, entry in self._files.items():
            if entry.suspect is not None and entry.suspect_until <= now:
                parsed, entry.suspect = entry.suspect, None
                affected.update(self._take(entry, parsed, now))
            due = [key for key, claim in entry.claims.items() if claim.is_due(now)]
            for object_id in due:
                del entry.claims[object_id]
                self._drop_claim(object_id, file)
            affected.update(due)
        return self._settle(affected)

    def next_deadline(self) -> float | None:
        """Time of the next `tick` that may change something, or None."""
        times = [entry.suspect_until for entry in self._files.values() if entry.suspect is not None]
        for entry in self._files.values():
            times.extend(claim.held_until for claim in entry.claims.values() if claim.hold is Hold.BRIEF)
        return min(times, default=None)

    def confirm(self, now: float, file: str | None = None) -> CatalogDelta:
        """Let held removals happen (all files, or one): the user says that they are meant."""
        affected: set[ObjectId] = set()
        for name, entry in self._files.items():
            if file is not None and name != file:
                continue
            if entry.suspect is not None:
                parsed, entry.suspect = entry.suspect, None
                affected.update(self._take(entry, parsed, now))
            held = [key for key, claim in entry.claims.items() if claim.hold is not Hold.NONE]
            for object_id in held:
                del entry.claims[object_id]
                self._drop_claim(object_id, name)
            affected.update(held)
        return self._settle(affected)

    def manifests(self) -> dict[ObjectId, Manifest]:
        """A copy of what is in force."""
        return dict(self._in_force)

    def get(self, object_id: ObjectId) -> Manifest | None:
        """The version in force of one object."""
        return self._in_force.get(object_id)

    def locate(self, object: ObjectId, path: str = "") -> Location | None:
        """Position in the newest text that holds the object (`Locator` of diagnostics.py)."""
        ranked = self._ranked(object)
        if not ranked:
            return None
        place = ranked[-1].occurrences[-1]
        line, column = locate_in_text(place.chunk.text, place.read, path)
        return Location(place.file, place.first_line + line - 1, column)

    def states(self) -> tuple[ObjectStatus, ...]:
        """One status per occurrence of an object, sorted by object, then by place."""
        return tuple(self.each_state())

    def each_state(self) -> Iterator[ObjectStatus]:
        """`states` one by one; the catalog may change in between: of what is gone by then there is none."""
        for object_id in sorted(self._claims):
            yield from self.states_of(object_id)

    def states_of(self, object_id: ObjectId) -> list[ObjectStatus]:
        """One status per occurrence of one object, sorted by place."""
        return statuses_of(self._ranked(object_id), self._in_force.get(object_id))

    def sources(self) -> tuple[SourceStatus, ...]:
        """Files, and directories with a problem, in order."""
        result = [SourceStatus(path, "lost", (found,)) for path, found in sorted(self._source_problems.items())]
        for file, entry in sorted(self._files.items(), key=lambda item: item[1].order):
            if file not in self._source_problems:
                result.append(_source_status(file, entry))
        return tuple(result)

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Everything found: of sources first, then of objects."""
        of_sources = (found for source in self.sources() for found in source.diagnostics)
        of_objects = (found for status in self.states() for found in status.diagnostics)
        return (*of_sources, *of_objects)

    def _take(self, entry: _File, parsed: ParsedFile, hold_until: float) -> set[ObjectId]:
        """Replace the content of a file; returns the objects concerned."""
        before = len(entry.claims)
        fresh: dict[ObjectId, list[Occurrence]] = {}
        for first_line, chunk, read in parsed.objects():
            fresh.setdefault(read.id, []).append(Occurrence(parsed.file, first_line, chunk, read))
        for object_id, occurrences in fresh.items():
            claim = entry.claims.get(object_id)
            if claim is None:
                claim = entry.claims[object_id] = Claim(entry.order)
                self._claims.setdefault(object_id, {})[parsed.file] = claim
            claim.occurrences = tuple(occurrences)
            claim.good = good_version(claim.occurrences, claim.good)
            claim.hold = Hold.NONE
        vanished = [key for key in entry.claims if key not in fresh]
        mass = not fresh or (before >= MASS_AT_LEAST and 2 * len(vanished) > before)
        for object_id in vanished:
            entry.claims[object_id].vanish(Hold.CONFIRM if mass else Hold.BRIEF, hold_until)
        entry.parsed = parsed
        return {*fresh, *vanished}

    def _drop_claim(self, object_id: ObjectId, file: str) -> None:
        claims = self._claims[object_id]
        del claims[file]
        if not claims:
            del self._claims[object_id]

    def _ranked(self, object_id: ObjectId) -> list[Claim]:
        """Claims on an object, the strongest last: live ones above vanished ones, then in order."""
        claims = self._claims.get(object_id, {}).values()
        return sorted(claims, key=lambda claim: (claim.hold is Hold.NONE, claim.order))

    def _effective(self, object_id: ObjectId) -> Manifest | None:
        ranked = self._ranked(object_id)
        for claim in reversed(ranked):
            if claim.good is not None:
                return claim.good
        for claim in reversed(ranked):
            placeholder = claim.occurrences[-1].read.placeholder
            if placeholder is not None:
                return placeholder
        return None

    def _settle(self, affected: Iterable[ObjectId]) -> CatalogDelta:
        """Bring what is in force up to date for `affected`, and say what that changed."""
        puts: list[tuple[ObjectId, Manifest]] = []
        removes: list[ObjectId] = []
        for object_id in sorted(affected):
            wanted = self._effective(object_id)
            current = self._in_force.get(object_id)
            if wanted is None:
                if current is not None:
                    del self._in_force[object_id]
                    removes.append(object_id)
            elif wanted is not current and wanted != current:
                self._in_force[object_id] = wanted
                puts.append((object_id, wanted))
        return CatalogDelta(tuple(puts), tuple(removes))


def looks_half_written(before: bytes, after: bytes) -> bool:
    """Whether `after` may be `before` cut off while it is being written again.

    True if it is a beginning of the old content, or if the newline at its end has gone.
    """
    if len(after) < len(before) and before.startswith(after):
        return True
    return before.endswith(b"\n") and not after.endswith(b"\n") and bool(after)


def _source_status(file: str, entry: _File) -> SourceStatus:
    if entry.problems:
        return SourceStatus(file, "broken", entry.problems)
    if entry.suspect is not None:
        message = "the file looks half-written; its last content stays in force for a moment"
        hint = "if it is meant, it is taken after 2 s without a change"
        found = Diagnostic(codes.HALF_WRITTEN, Severity.WARNING, None, "", message, hint, Location(file))
        return SourceStatus(file, "suspect", (found,))
    held = sum(claim.hold is Hold.CONFIRM for claim in entry.claims.values())
    if held:
        message = f"{held} of {len(entry.claims)} objects vanished at once; they are held and stay in force"
        hint = "run `xdsbpf confirm` if the removal is meant, or delete the file"
        found = Diagnostic(codes.MASS_REMOVAL, Severity.ERROR, None, "", message, hint, Location(file))
        return SourceStatus(file, "held", (found,))
    return SourceStatus(file, "ok", ())
