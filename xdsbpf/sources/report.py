"""Diagnostics as lines of text and as JSON.

The lines are what compilers print, so that editors find the place; the JSON objects are those of
`xdsbpf translate -o json` (DESIGN 10). Used by the command line and the web pages; prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from xdsbpf.diagnostics import Diagnostic, Location, Locator, Severity

_RANK = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}


def place_of(diagnostic: Diagnostic, locator: Locator | None) -> Location | None:
    """Its own location, or that of its object and path."""
    if diagnostic.location is not None:
        return diagnostic.location
    if locator is None or diagnostic.object is None:
        return None
    return locator.locate(diagnostic.object, diagnostic.path)


def format_lines(diagnostics: Iterable[Diagnostic], locator: Locator | None = None) -> list[str]:
    """`file:line:col: severity: Kind/ns/name path: message [code]`, and an indented hint, per finding."""
    lines = []
    for diagnostic in diagnostics:
        place = place_of(diagnostic, locator)
        subject = " ".join(str(part) for part in (diagnostic.object or "", diagnostic.path) if part)
        parts = [str(place)] if place is not None else []
        parts.append(diagnostic.severity.value)
        parts += [subject] if subject else []
        lines.append(": ".join([*parts, f"{diagnostic.message} [{diagnostic.code}]"]))
        if diagnostic.hint:
            lines.append(f"  hint: {diagnostic.hint}")
    return lines


def as_json(diagnostic: Diagnostic, locator: Locator | None = None) -> dict[str, str]:
    """The JSON object of one diagnostic; what is not known is an empty string."""
    place = place_of(diagnostic, locator)
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity.value,
        "object": str(diagnostic.object or ""),
        "location": str(place or ""),
        "path": diagnostic.path,
        "message": diagnostic.message,
        "hint": diagnostic.hint,
    }


def sort_by_place(diagnostics: Iterable[Diagnostic], locator: Locator | None = None) -> tuple[Diagnostic, ...]:
    """In the order of files and lines; equal ones once; errors before warnings on one line."""

    def key(diagnostic: Diagnostic) -> tuple[str, int, int, int, str, str, str]:
        place = place_of(diagnostic, locator) or Location("")
        rank = _RANK[diagnostic.severity]
        subject = str(diagnostic.object or "")
        return (place.file, place.line, place.column, rank, diagnostic.code, subject, diagnostic.message)

    return tuple(sorted(dict.fromkeys(diagnostics), key=key))
