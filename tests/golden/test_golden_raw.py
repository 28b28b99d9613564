"""The kernel's resources for raw Envoy resources, byte for byte as people read them.

`--update-golden` rewrites the file; the difference is for a human to review.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2 as pb
from xdsbpf.compiler import Compiler
from xdsbpf.mesh.inputs import MeshSettings
from xdsbpf.model.names import BACKENDS, FRONTEND, POLICY
from xdsbpf.report.listeners import listener_rows
from xdsbpf.sources.loading import load_once
from xdsbpf.xds.store import View

FILE = Path(__file__).parent / "datapath" / "envoy_tcp.json"
EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "examples" / "envoy-tcp"


def translated() -> dict[str, Any]:
    """The listeners with their planes, and type -> name -> origins and body."""
    catalog = load_once([], envoy_paths=[EXAMPLE])
    compiler = Compiler(MeshSettings())
    compiler.apply(catalog.manifests().items())
    compiler.compile()
    assert (*catalog.diagnostics(), *compiler.diagnostics()) == ()
    found: dict[str, Any] = {"listeners": listener_rows(compiler)}
    view = View(("datapath-raw",), "node1", "agent")
    for type_url in (POLICY, BACKENDS, FRONTEND):
        kind = type_url.rpartition(".")[2]
        for resource in compiler.store.wildcard(view, type_url):
            body = MessageToDict(getattr(pb, kind).FromString(resource.body), preserving_proto_field_name=True)
            origins = [str(origin) for origin in compiler.origins("datapath-raw", resource)]
            found.setdefault(kind, {})[resource.name] = {"origins": origins, "body": body}
    return found


def test_the_tcp_example_compiles_to_these_datapath_resources(update_golden: bool) -> None:
    text = json.dumps(translated(), indent=2, sort_keys=True) + "\n"
    if update_golden:
        FILE.write_text(text)
    assert text == FILE.read_text()
