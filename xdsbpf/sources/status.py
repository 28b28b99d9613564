"""What the catalog tells people: one status per occurrence of an object and one per source."""

from __future__ import annotations

from typing import Final

import msgspec

from xdsbpf.diagnostics import Diagnostic, Location, ObjectId, Severity, State
from xdsbpf.model import codes
from xdsbpf.model.meta import Manifest
from xdsbpf.sources.claims import Claim, Hold, Occurrence
from xdsbpf.sources.yaml_objects import Disposition
from xdsbpf.sources.yaml_reader import diagnostics_of


class ObjectStatus(msgspec.Struct, frozen=True):
    """Where one occurrence of an object ended as far as sources know.

    APPLIED means handed to the database; whether proxies have it is for xds to say. `detail` names
    the object or place that the state refers to. `in_force` says if this very text is.
    """

    object: ObjectId
    state: State
    location: Location
    diagnostics: tuple[Diagnostic, ...]
    in_force: bool
    detail: str = ""


class SourceStatus(msgspec.Struct, frozen=True):
    """A file or directory: ok, broken, suspect (half-written), held (mass removal) or lost."""

    path: str
    state: str
    diagnostics: tuple[Diagnostic, ...]


_FOREIGN: Final = frozenset({Disposition.UNSUPPORTED, Disposition.UNKNOWN})


def statuses_of(ranked: list[Claim], in_force: Manifest | None) -> list[ObjectStatus]:
    """Statuses of one object; `ranked` are its claims, the strongest last."""
    places = [(claim, place) for claim in ranked for place in claim.occurrences]
    result = []
    for index, (claim, place) in enumerate(places):
        later = [p for c, p in places[index + 1 :] if _wins(c, p)]
        result.append(_status(claim, place, later[-1] if later else None, in_force))
    return sorted(result, key=lambda status: status.location)


def _wins(claim: Claim, place: Occurrence) -> bool:
    """Whether a later place takes the object over: it is good, or stands for a good one it had before."""
    if place.read.manifest is not None:
        return True
    written = [other.read.manifest for other in claim.occurrences]
    return place is claim.occurrences[-1] and claim.good is not None and claim.good not in written


def _status(claim: Claim, place: Occurrence, winner: Occurrence | None, in_force: Manifest | None) -> ObjectStatus:
    read = place.read
    location = Location(place.file, place.first_line + read.line - 1, read.column)
    found = diagnostics_of(read, place.file, place.first_line)
    held = _held(claim, read.id, location)
    if held is not None:
        return ObjectStatus(read.id, State.PENDING, location, (held,), in_force is not None, held.message)
    if read.disposition in _FOREIGN:
        return ObjectStatus(read.id, State.NOT_ENFORCED, location, found, False, found[0].message)
    if read.disposition is Disposition.REJECTED:
        denies = read.placeholder is not None and in_force == read.placeholder
        found = (*found, _consequence(read.id, location, in_force, read.placeholder))
        return ObjectStatus(read.id, State.REJECTED, location, found, denies)
    if winner is not None:
        by = Location(winner.file, winner.first_line + winner.read.line - 1, winner.read.column)
        message = f"the same object comes again at {by}, which wins"
        shadowed = Diagnostic(codes.SHADOWED, Severity.WARNING, read.id, "", message, "remove one of the two", location)
        return ObjectStatus(read.id, State.SHADOWED, location, (*found, shadowed), False, str(by))
    return ObjectStatus(read.id, State.APPLIED, location, found, True)


def _held(claim: Claim, object_id: ObjectId, location: Location) -> Diagnostic | None:
    if claim.hold is Hold.BRIEF:
        message = "the object vanished from its file; it stays in force for a moment"
        return Diagnostic(codes.VANISHED, Severity.INFO, object_id, "", message, "", location)
    if claim.hold is Hold.CONFIRM:
        message = "the object vanished together with most others of its file; it is held and stays in force"
        hint = "run `xdsbpf confirm` if the removal is meant, or delete the file"
        return Diagnostic(codes.MASS_REMOVAL, Severity.WARNING, object_id, "", message, hint, location)
    return None


def _consequence(
    object_id: ObjectId, location: Location, in_force: Manifest | None, placeholder: Manifest | None
) -> Diagnostic:
    """What holds while the object is rejected."""
    if in_force is None:
        message, severity, code = (
            "the object is not applied; it has no good version",
            Severity.INFO,
            codes.LAST_GOOD,
        )
    elif placeholder is not None and in_force == placeholder:
        message = "the policy has no good version, so everything that it selects is denied until it is repaired"
        severity, code = Severity.ERROR, codes.FAIL_CLOSED
    else:
        message, severity, code = "its last good version stays in force", Severity.INFO, codes.LAST_GOOD
    return Diagnostic(code, severity, object_id, "", message, "", location)
