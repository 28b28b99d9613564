"""Rows of `xdsbpf objects`, and where a reference printed elsewhere is written.

In: the catalog (what was read), the compiler (what became of it) and the clients' status (what they refused or
wait for). Out: exactly one state per object and place. Called by the admin endpoint; decides nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from xdsbpf.compiler import Compiler
from xdsbpf.diagnostics import Diagnostic, ObjectId, Severity, State
from xdsbpf.model.meta import GROUPS
from xdsbpf.report.landing import REFUSED, WITHHELD, landings
from xdsbpf.sources.catalog import Catalog
from xdsbpf.sources.report import as_json
from xdsbpf.sources.status import ObjectStatus, SourceStatus
from xdsbpf.xds.status import NodeStatus

REFERENCE = re.compile(r"(?P<kind>\w+)/(?P<first>[^/\s]+)(?:/(?P<second>\S+))?(?:\s+(?P<path>\S+))?$")

NOT_ENFORCED_CODES: Final = frozenset({"XB2001", "XB2034", "XB2035", "XB2041", "XB2053", "XB2056"})
"""Warnings that say that what the object asks for is not done; every error finding says so as well."""
_SHADOWED: Final = f"{State.SHADOWED} "
"""How a finding begins that says that another object is in force instead."""


_SOURCE_STATES: Final = {"broken": State.REJECTED, "suspect": State.PENDING, "lost": State.PENDING}
"""State of an accepted object whose file has a newer text that is not taken; its last good version is in force."""


class ObjectState(msgspec.Struct, frozen=True):
    """Where one occurrence of an object ended; `reason` explains every state but APPLIED."""

    status: ObjectStatus
    state: State
    reason: str
    diagnostics: tuple[Diagnostic, ...]


def object_states(compiler: Compiler, catalog: Catalog, clients: Iterable[NodeStatus]) -> Iterator[ObjectState]:
    """One per occurrence of an object, with the findings of every stage, sorted by object and place.

    Cost: `Compiler.diagnostics` at first, which is most of it, then little for each.
    """
    later: dict[ObjectId, list[Diagnostic]] = defaultdict(list)
    for found in (*compiler.diagnostics(), *landings(compiler, clients)):
        if found.object is not None:
            later[found.object].append(found)
    troubled = [source for source in catalog.sources() if source.state in _SOURCE_STATES]
    for status in catalog.each_state():
        found_later = tuple(later[status.object]) if status.in_force else ()
        source = _source_of(status, troubled)
        if source is not None and status.state is State.APPLIED:
            state, reason = _SOURCE_STATES[source.state], source.diagnostics[0].message
            found_later = (*source.diagnostics, *found_later)
        else:
            state, reason = _state(status, found_later)
        yield ObjectState(status, state, reason, (*status.diagnostics, *found_later))


def object_rows(compiler: Compiler, catalog: Catalog, clients: Iterable[NodeStatus]) -> list[dict[str, Any]]:
    """`object_states` as JSON items."""
    return [object_row(entry, catalog) for entry in object_states(compiler, catalog, clients)]


def object_row(entry: ObjectState, catalog: Catalog) -> dict[str, Any]:
    """One of them as a JSON item."""
    return {
        "object": str(entry.status.object),
        "state": entry.state.value,
        "detail": entry.reason,
        "location": str(entry.status.location),
        "diagnostics": [as_json(found, catalog) for found in entry.diagnostics],
    }


def source_rows(catalog: Catalog) -> list[dict[str, Any]]:
    """One item per file, or directory with a problem: whether its newest text is the one in force."""
    return [
        {
            "path": source.path,
            "state": source.state,
            "diagnostics": [as_json(found, catalog) for found in source.diagnostics],
        }
        for source in catalog.sources()
    ]


def _state(status: ObjectStatus, found: tuple[Diagnostic, ...]) -> tuple[State, str]:
    """What sources call APPLIED may have been refused by a proxy, or be of no effect in the mesh.

    The first that applies: refused, shadowed, not enforced, withheld.
    """
    if status.state is not State.APPLIED:
        return status.state, status.detail or _reason(status)
    wrong = (f for f in found if f.severity is Severity.ERROR or f.code in NOT_ENFORCED_CODES)
    outcomes = (
        (State.REJECTED, (f for f in found if f.code == REFUSED)),
        (State.SHADOWED, (f for f in found if f.message.startswith(_SHADOWED))),
        (State.NOT_ENFORCED, wrong),
        (State.PENDING, (f for f in found if f.code == WITHHELD)),
    )
    for state, reasons in outcomes:
        first = next(reasons, None)
        if first is not None:
            return state, first.message.removeprefix(_SHADOWED)
    return State.APPLIED, ""


def _source_of(status: ObjectStatus, sources: list[SourceStatus]) -> SourceStatus | None:
    """The file or directory among `sources` that the object was read from."""
    file = status.location.file
    return next((entry for entry in sources if file == entry.path or file.startswith(f"{entry.path}/")), None)


def _reason(status: ObjectStatus) -> str:
    """The first of an object's own findings, errors before all else."""
    ranked = sorted(status.diagnostics, key=lambda found: found.severity is not Severity.ERROR)
    return ranked[0].message if ranked else ""


def find_reference(catalog: Catalog, reference: str) -> str:
    """`file:line:column` of a printed `Kind/namespace/name path`; "" if nothing like it is in force."""
    match = REFERENCE.match(reference)
    if match is None:
        return ""
    namespace, name = (match["first"], match["second"]) if match["second"] else ("", match["first"])
    object_id = ObjectId(match["kind"], namespace, name, GROUPS.get(match["kind"], ""))
    location = catalog.locate(object_id, match["path"] or "")
    return str(location) if location is not None else ""
