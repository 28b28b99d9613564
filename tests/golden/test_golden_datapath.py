"""The kernel's resources for a Bookinfo-shaped mesh, byte for byte as people read them.

`--update-golden` rewrites the file; the difference is for a human to review.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from tests.builders import (
    Mesh,
    bookinfo,
    destination_rule,
    from_source,
    header,
    policy,
    route,
    rule,
    subset,
    to,
    to_operation,
    virtual_service,
)
from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2 as pb
from xdsbpf.compile.datapath.outputs import datapath_generators

FILE = Path(__file__).parent / "datapath" / "bookinfo.json"

MANIFESTS = (
    *bookinfo(),
    destination_rule("reviews", "reviews", subset("v1"), subset("v2"), subset("v3")),
    virtual_service(
        "reviews",
        "reviews",
        route(to("reviews", "v2"), match=(header("end-user", "jason"),)),
        route(to("reviews", "v1")),
    ),
    policy(
        "ratings-viewer",
        rule(from_source(service_accounts=("bookinfo-reviews",)), to_operation(ports=("9080",))),
        selector={"app": "ratings"},
    ),
)


def translated() -> dict[str, Any]:
    """type -> name -> what it requires of Envoy (names only), where it comes from, and its body."""
    mesh = Mesh(*MANIFESTS)
    found: dict[str, Any] = {}
    for generator in datapath_generators(("node1", "node2")):
        kind = generator.type_url.rsplit(".", 1)[1]
        for name in generator.names(mesh.db, *generator.args):
            resource = generator.build(mesh.db, *generator.args, name)
            message = getattr(pb, kind)()
            message.ParseFromString(resource.body)
            found.setdefault(kind, {})[name] = {
                "scope": generator.scope,
                "requires": [requirement.name for requirement in resource.requires],
                "origins": sorted(mesh.origins(generator.build, *generator.args, name)),
                "body": MessageToDict(message, preserving_proto_field_name=True),
            }
    return found


def test_bookinfo_compiles_to_these_datapath_resources(update_golden: bool) -> None:
    text = json.dumps(translated(), indent=2, sort_keys=True) + "\n"
    if update_golden:
        FILE.write_text(text)
    assert text == FILE.read_text()
