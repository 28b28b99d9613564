"""What is wrong with raw resources although each of them is well formed: findings, never a refusal.

References that lead nowhere, endpoints that a client refuses or misunderstands (spec rule 57), an API listener
that no Envoy gets (rule 40). Queries beside `raw_resource`: what is served does not depend on them.
"""

from __future__ import annotations

import difflib
from typing import Any, Final

from xdsbpf.compile.envoy.clusters import known_cluster
from xdsbpf.compile.raw.grpc_endpoints import for_grpc
from xdsbpf.compile.raw.references import Reference, decode, references
from xdsbpf.diagnostics import Diagnostic, ObjectId, Severity
from xdsbpf.incremental import ABSENT, Database, Index, query
from xdsbpf.mesh.inputs import ENVOY_RESOURCES
from xdsbpf.model.envoy_resource import EnvoyResource
from xdsbpf.model.names import CLUSTER, ENDPOINTS, LISTENER

NOWHERE: Final = "XB3040"
"""A raw resource refers to one that is not there."""
ENDPOINTS_ODD: Final = "XB3041"
"""Endpoints of a raw ClusterLoadAssignment that gRPC clients would refuse or misread: they get other ones."""
API_LISTENER: Final = "XB3042"
"""A raw listener for gRPC clients: Envoys do not get it."""

BY_NAME: Final = Index[EnvoyResource, tuple[str, str]](
    "envoy_resources_by_name", ENVOY_RESOURCES, keys=lambda v: ((v.type_url, v.resource_name),)
)
BY_TYPE: Final = Index[EnvoyResource, str]("envoy_resources_by_type", ENVOY_RESOURCES, keys=lambda v: (v.type_url,))


@query
def checked(db: Database, id: ObjectId) -> bool:
    """Report what is wrong with a raw resource. Always true: nothing that is served changes by it."""
    entry = db.input(ENVOY_RESOURCES, id)
    if entry is ABSENT:
        return True
    for reference in references(entry.type_url, entry.body):
        if not is_there(db, reference.type_url, reference.name):
            _report_nowhere(db, id, reference)
    message: Any = decode(ENDPOINTS, entry.body) if entry.type_url == ENDPOINTS else None
    if message is not None:
        for repair in for_grpc(message)[1]:
            if repair.is_odd:
                warn(db, ENDPOINTS_ODD, id, repair.path, repair.message, repair.hint)
    if is_api_listener(entry):
        text = "an api_listener is for gRPC clients: who asks for it by name gets it, and no Envoy that asks for all"
        db.report(Diagnostic(API_LISTENER, Severity.INFO, id, "api_listener", text))
    return True


def is_api_listener(entry: EnvoyResource) -> bool:
    """Whether a raw resource is a listener without a socket: an Envoy takes at most one (spec rule 40)."""
    message: Any = decode(LISTENER, entry.body) if entry.type_url == LISTENER else None
    return message is not None and message.HasField("api_listener")


@query
def is_there(db: Database, type_url: str, name: str) -> bool:
    """Whether a raw resource, or a resource of the mesh, has that name."""
    if db.bucket(BY_NAME, (type_url, name)):
        return True
    return type_url in (CLUSTER, ENDPOINTS) and known_cluster(db, name) is not None


def _report_nowhere(db: Database, id: ObjectId, reference: Reference) -> None:
    kind = reference.type_url.rpartition(".")[2]
    known = [entry.resource_name for entry in db.bucket(BY_TYPE, reference.type_url)]
    near = difflib.get_close_matches(reference.name[:64], known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"add it, unless the bootstrap of Envoy has the {kind}"
    warn(db, NOWHERE, id, reference.path, f"there is no {kind} {reference.name!r}", hint)


def warn(db: Database, code: str, id: ObjectId, path: str, message: str, hint: str = "") -> None:
    """Report what is wrong with a raw resource."""
    db.report(Diagnostic(code, Severity.WARNING, id, path, message, hint))
