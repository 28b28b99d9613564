"""Whole translations for a sidecar and for a gRPC client: `sidecar/<name>.yaml`, and what each of the two gets.

Run with --update-golden to accept a change, and read the diff.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from tests.compiling import MESSAGES, Mesh
from xdsbpf.compile.outputs import generators, view_generators
from xdsbpf.compile.views import ClientView
from xdsbpf.incremental import ABSENT
from xdsbpf.mesh.clients import Client

DIRECTORY = Path(__file__).parent / "sidecar"
CASES = sorted(DIRECTORY.glob("*.yaml"))
WORKLOAD = Client("default", (("app", "reviews"), ("version", "v1")))


def translation(mesh: Mesh, kind: str) -> dict[str, Any]:
    """`<short type> <name>` -> body, and the findings."""
    resources: dict[str, Any] = {}
    findings = set()
    shared = {(entry.scope, entry.type_url) for entry in generators(())}
    offered = (entry for entry in generators((), (), frozenset({kind})) if (entry.scope, entry.type_url) not in shared)
    for generator in (*offered, *view_generators(ClientView(kind, WORKLOAD))):
        for name in generator.names(mesh.db, *generator.args):
            built = generator.build(mesh.db, *generator.args, name)
            findings.update(mesh.db.diagnostics(generator.build, *generator.args, name))
            if built is not ABSENT:
                message = MESSAGES[built.type_url].FromString(built.body)
                key = f"{built.type_url.rpartition('.')[2]} {name}"
                resources[key] = MessageToDict(message, preserving_proto_field_name=True)
    texts = sorted(f"{one.severity} {one.code} {one.object} {one.path}: {one.message}" for one in findings)
    return {"resources": dict(sorted(resources.items())), "findings": texts}


@pytest.mark.parametrize("kind", ["sidecar", "grpc"])
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_a_case_compiles_to_what_is_expected(case: Path, kind: str, update_golden: bool) -> None:
    text = json.dumps(translation(Mesh(case.read_text()), kind), indent=1, sort_keys=True) + "\n"
    expected = case.with_suffix(f".{kind}.json")
    if update_golden:
        expected.write_text(text)
    assert json.loads(text) == json.loads(expected.read_text())


def test_there_are_cases() -> None:
    assert CASES
