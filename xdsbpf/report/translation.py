"""The document of `xdsbpf translate -o json` (DESIGN section 10): resources of one proxy with their origins."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import Default

from xdsbpf.compile.client_metadata import without_effect
from xdsbpf.compile.envoy.names import MESH_SCOPE
from xdsbpf.compile.envoy.newer_messages import CEL_MESSAGE, CEL_TYPE
from xdsbpf.compile.raw.references import decode
from xdsbpf.compiler import Compiler
from xdsbpf.diagnostics import Diagnostic, Severity
from xdsbpf.model.names import CLUSTER, ENDPOINTS, TYPE_PREFIX, NodeId
from xdsbpf.model.resource import Resource
from xdsbpf.report.origins import origin_text, visible
from xdsbpf.sources.catalog import Catalog
from xdsbpf.xds.protocol import PUSH_ORDER
from xdsbpf.xds.store import View

PREVIEW_ONLY: Final = "XB4003"
"""Finding of `translate` for a kind of proxy that the server does not serve yet."""
METADATA: Final = "XB4004"
"""Finding of `translate`: node metadata that have no effect."""
PREVIEW_TYPES: Final = {"router": (CLUSTER, ENDPOINTS)}
"""Node id type -> the resource types whose content is already what such a proxy would get."""


def preview(node_id: NodeId) -> tuple[View, tuple[str, ...], Diagnostic] | None:
    """(view, types, finding) for a proxy that is not served yet but partly translated; else None."""
    types = PREVIEW_TYPES.get(node_id.type)
    if types is None:
        return None
    finding = Diagnostic(
        PREVIEW_ONLY,
        Severity.WARNING,
        None,
        "",
        f"{node_id.type} proxies are not served yet: only their outbound clusters and endpoints are shown",
        "node~… shows the whole of a node's Envoy",
    )
    return View((MESH_SCOPE,), "", node_id.type), types, finding


def metadata_findings(metadata: Mapping[str, object]) -> tuple[Diagnostic, ...]:
    """What a sidecar's node metadata ask for and it does not get."""
    return tuple(Diagnostic(METADATA, Severity.WARNING, None, "", text) for text in without_effect(metadata))


class AnyTypes:
    """Types inside an Any: the CEL formatter is ours, because xds-protos lacks its one field."""

    def FindMessageTypeByName(self, name: str) -> Descriptor:
        return Default().FindMessageTypeByName(CEL_MESSAGE if TYPE_PREFIX + name == CEL_TYPE else name)


def body_json(resource: Resource) -> dict[str, Any]:
    """The resource as proto3 JSON; what nothing here can decode is shown as base64, never left out."""
    message = decode(resource.type_url, resource.body)
    if message is not None:
        # An Any in it may be of a type that is not known.
        with contextlib.suppress(KeyError, TypeError):
            return json_format.MessageToDict(message, descriptor_pool=AnyTypes())  # type: ignore[arg-type]
    return {"@type": resource.type_url, "value": base64.b64encode(resource.body).decode()}


def translation(
    compiler: Compiler, catalog: Catalog, view: View, wanted: set[str] | None
) -> dict[str, list[dict[str, Any]]]:
    """type URL -> resources of `view`, in push order and sorted by name; `wanted` limits the types."""
    result: dict[str, list[dict[str, Any]]] = {}
    held = {kind for scope in view.scopes for kind in compiler.store.types(scope)}
    for type_url in (*PUSH_ORDER, *sorted(held.difference(PUSH_ORDER))):
        if wanted is not None and type_url not in wanted:
            continue
        names = {name for scope in view.scopes for name in compiler.store.names(scope, type_url)}
        found = (visible(compiler, view.scopes, type_url, name) for name in sorted(names))
        rows = [_row(compiler, catalog, *entry) for entry in found if entry is not None]
        if rows:
            result[type_url] = rows
    return result


def _row(compiler: Compiler, catalog: Catalog, scope: str, resource: Resource) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": resource.name,
        "version": resource.version,
        "origins": [origin_text(catalog, origin) for origin in compiler.origins(scope, resource)],
        "body": body_json(resource),
    }
    if resource.requires:
        row["requires"] = [
            {"type": need.type_url, "name": need.name, "version": need.version} for need in resource.requires
        ]
    return row
