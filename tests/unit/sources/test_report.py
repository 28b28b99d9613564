"""What people and programs get to read."""

from __future__ import annotations

from tests.manifest_texts import found, read, service, service_id, virtual_service
from xdsbpf.diagnostics import Diagnostic, Severity
from xdsbpf.model import codes
from xdsbpf.sources.report import as_json, format_lines, sort_by_place


def test_a_line_names_place_severity_object_path_and_code() -> None:
    lines = format_lines(found(service("a", 0)))
    assert lines[0] == (
        "a.yaml:11:11: error: Service/default/a spec.ports[0].port: expected 1 to 65535, found 0 [XB1026]"
    )


def test_a_hint_follows_on_a_line_of_its_own() -> None:
    lines = format_lines(found(virtual_service("a").replace("http:", "htpp:")))
    assert "  hint: did you mean http?" in lines


def test_the_place_of_a_finding_without_one_is_looked_up() -> None:
    catalog = read(service("a"))
    finding = Diagnostic("XB2001", Severity.WARNING, service_id("a"), "spec.ports[0].name", "no such thing")
    assert format_lines([finding], catalog) == [
        "a.yaml:10:11: warning: Service/default/a spec.ports[0].name: no such thing [XB2001]"
    ]
    assert format_lines([finding]) == ["warning: Service/default/a spec.ports[0].name: no such thing [XB2001]"]


def test_json_has_the_fields_of_the_contract() -> None:
    assert as_json(found(service("a", 0))[0]) == {
        "code": "XB1026",
        "severity": "error",
        "object": "Service/default/a",
        "location": "a.yaml:11:11",
        "path": "spec.ports[0].port",
        "message": "expected 1 to 65535, found 0",
        "hint": "",
    }


def test_findings_are_sorted_by_place_and_told_once() -> None:
    items = found("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 0}, {port: 1.5}]}\n")
    ordered = sort_by_place([*reversed(items), *items])
    assert [item.location.column for item in ordered if item.location] == [1, 23, 34]


def test_every_code_has_a_title_and_every_title_a_code() -> None:
    named = {value for name, value in vars(codes).items() if name.isupper() and isinstance(value, str)}
    assert named == set(codes.TITLES)
