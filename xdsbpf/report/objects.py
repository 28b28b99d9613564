"""Rows of `xdsbpf objects`, and where a reference printed elsewhere is written."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from xdsbpf.compiler import Compiler
from xdsbpf.diagnostics import Diagnostic, ObjectId, Severity, State
from xdsbpf.model.meta import GROUPS
from xdsbpf.sources.catalog import Catalog
from xdsbpf.sources.report import as_json

REFERENCE = re.compile(r"(?P<kind>\w+)/(?P<first>[^/\s]+)(?:/(?P<second>[^/\s]+))?(?:\s+(?P<path>\S+))?$")


def object_rows(compiler: Compiler, catalog: Catalog) -> list[dict[str, Any]]:
    """One item per occurrence of an object: its state, place and findings of every stage."""
    later: dict[ObjectId, list[Diagnostic]] = defaultdict(list)
    for found in compiler.diagnostics():
        if found.object is not None:
            later[found.object].append(found)
    rows = []
    for status in catalog.states():
        mesh_findings = later[status.object] if status.in_force else []
        rows.append(
            {
                "object": str(status.object),
                "state": str(_state(status.state, mesh_findings)),
                "detail": status.detail,
                "location": str(status.location),
                "diagnostics": [as_json(found, catalog) for found in (*status.diagnostics, *mesh_findings)],
            }
        )
    return rows


def _state(state: State, findings: list[Diagnostic]) -> State:
    """What sources call APPLIED may turn out not to be enforceable when the mesh is compiled."""
    if state is State.APPLIED and any(found.severity is Severity.ERROR for found in findings):
        return State.NOT_ENFORCED
    return state


def find_reference(catalog: Catalog, reference: str) -> str:
    """`file:line:column` of a printed `Kind/namespace/name path`; "" if nothing like it is in force."""
    match = REFERENCE.match(reference)
    if match is None:
        return ""
    namespace, name = (match["first"], match["second"]) if match["second"] else ("", match["first"])
    object_id = ObjectId(match["kind"], namespace, name, GROUPS.get(match["kind"], ""))
    location = catalog.locate(object_id, match["path"] or "")
    return str(location) if location is not None else ""
