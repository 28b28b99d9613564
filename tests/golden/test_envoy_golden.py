"""Whole translations: manifests of a case in, every Envoy resource as canonical proto JSON out.

A case is `envoy/<name>.yaml` with `envoy/<name>.json` beside it. Run with --update-golden to accept a
change, and read the diff.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from tests.compiling import MESSAGES, Mesh

CASES = sorted((Path(__file__).parent / "envoy").glob("*.yaml"))


def translation(mesh: Mesh) -> dict[str, Any]:
    """`<scope> <short type> <name>` -> body, and the findings of the compiler."""
    resources = {
        f"{scope} {type_url.rpartition('.')[2]} {name}": MessageToDict(
            MESSAGES[type_url].FromString(resource.body), preserving_proto_field_name=True
        )
        for (scope, type_url, name), resource in mesh.resources().items()
    }
    findings = sorted(
        f"{finding.severity} {finding.code} {finding.object} {finding.path}: {finding.message}"
        for finding in mesh.findings()
    )
    return {"resources": dict(sorted(resources.items())), "findings": findings}


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_a_case_compiles_to_what_is_expected(case: Path, update_golden: bool) -> None:
    text = json.dumps(translation(Mesh(case.read_text())), indent=1, sort_keys=True) + "\n"
    expected = case.with_suffix(".json")
    if update_golden:
        expected.write_text(text)
    assert json.loads(text) == json.loads(expected.read_text())


def test_there_are_cases() -> None:
    assert CASES
