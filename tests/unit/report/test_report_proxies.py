"""The documents of `ps`, `why` and `wait`: their shape, which people build on, and what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_report_objects import BASE, ENVOY, HOST, compiled

from xdsbpf.compile.views import client_scopes
from xdsbpf.model.names import VIRTUAL_HOST
from xdsbpf.report.distribution import Distribution
from xdsbpf.report.proxies import ProxyRow, proxy_rows
from xdsbpf.xds.status import NackedResource, NodeStatus, SyncState, TypeStatus, WithheldResource

SHAPES = Path(__file__).resolve().parents[2] / "golden" / "json"


def shape(type_: Any) -> Any:
    """Field -> its type as JSON has it, nested; what a reader of the document may rely on."""

    def of(schema: dict[str, Any]) -> Any:
        if "$ref" in schema:
            return of(definitions[schema["$ref"].rpartition("/")[2]])
        if "anyOf" in schema:
            return [of(option) for option in schema["anyOf"]]
        if schema.get("type") == "array":
            return [of(schema["items"])]
        if schema.get("type") == "object":
            return {name: of(field) for name, field in sorted(schema["properties"].items())}
        return schema.get("enum", schema.get("type"))

    (schema,), definitions = msgspec.json.schema_components([type_])
    return of(schema)


def keeps(old: Any, new: Any) -> bool:
    """Whether everything that was there is still there, with the same type; more may have come."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(name in new and keeps(old[name], new[name]) for name in old)
    if isinstance(old, list) and len(old) == 1 and isinstance(new, list) and len(new) == 1:
        return keeps(old[0], new[0])
    return bool(old == new)


@pytest.mark.parametrize(("file", "type_"), [("proxy_status", ProxyRow), ("wait_result", Distribution)])
def test_no_field_of_a_document_goes_away_or_changes_its_type(file: str, type_: Any) -> None:
    old = json.loads((SHAPES / f"{file}.json").read_text())
    assert keeps(old, shape(type_)), "a field may be added to a document, none may go away"
    assert old == shape(type_), f"a field was added: add it to tests/golden/json/{file}.json as well"


def test_the_comparison_of_shapes_sees_a_field_that_went_away_and_one_that_changed() -> None:
    old = {"a": "string", "b": [{"c": "integer"}]}
    assert keeps(old, {**old, "d": "string"})
    assert not keeps(old, {"a": "string"})
    assert not keeps(old, {"a": "string", "b": [{"c": "string"}]})
    assert not keeps(old, {"a": "string", "b": [{}]})


def test_a_refused_resource_is_brought_home_to_the_lines_of_its_manifests(tmp_path: Path) -> None:
    compiler, catalog = compiled(tmp_path, *BASE)
    entry = TypeStatus(
        VIRTUAL_HOST,
        SyncState.NACKED,
        error="no such filter",
        nacked=(NackedResource(HOST, "7", "no such filter"), NackedResource("gone", "1", "no such filter")),
        withheld=(WithheldResource("x", ("Envoy is away",)),),
    )
    status = NodeStatus(ENVOY, "node-envoy", "node1", (entry,), scopes=client_scopes(ENVOY, ()))
    (row,) = proxy_rows([status], compiler, catalog)
    (of_type,) = row.types
    refused, gone = of_type.nacked
    place = f"{tmp_path}/a.yaml:14 VirtualService/default/reviews"
    assert any(found.startswith(place) for found in refused.manifests), refused.manifests
    assert not any("details" in found for found in refused.manifests)
    assert (gone.manifests, of_type.withheld[0].reasons) == ((), ("Envoy is away",))
    assert (of_type.type, of_type.state, of_type.acked_age_s) == ("vhds", "NACKED", None)
