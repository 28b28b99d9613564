"""What is wrong with raw resources although each of them is well formed: findings, never a refusal.

References that lead nowhere, endpoints that a client refuses or misunderstands (spec rule 57), an API listener
where an Envoy would choke on it (rule 40). Queries beside `raw_resource`: what is served does not depend on them.
"""

from __future__ import annotations

import difflib
from collections import Counter
from typing import Any, Final

from xdsbpf.compile.envoy.clusters import known_cluster
from xdsbpf.compile.raw.references import Reference, decode, references
from xdsbpf.diagnostics import Diagnostic, ObjectId, Severity
from xdsbpf.incremental import ABSENT, Database, Index, query
from xdsbpf.mesh.inputs import ENVOY_RESOURCES
from xdsbpf.model.envoy_resource import EnvoyResource
from xdsbpf.model.names import CLUSTER, ENDPOINTS, LISTENER

NOWHERE: Final = "XB3040"
"""A raw resource refers to one that is not there."""
ENDPOINTS_ODD: Final = "XB3041"
"""Endpoints of a raw ClusterLoadAssignment that a client refuses or misunderstands."""
API_LISTENER: Final = "XB3042"
"""A raw listener for gRPC clients: an Envoy takes at most one, and answers no connection with it."""

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
    message: Any = decode(entry.type_url, entry.body)
    if message is not None and entry.type_url == ENDPOINTS:
        _check_endpoints(db, id, message)
    if message is not None and entry.type_url == LISTENER and message.HasField("api_listener"):
        text = "an api_listener is for gRPC clients; an Envoy takes at most one and answers no connection with it"
        _warn(db, API_LISTENER, id, "api_listener", text, "address it to the gRPC clients with nodes:")
    return True


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
    _warn(db, NOWHERE, id, reference.path, f"there is no {kind} {reference.name!r}", hint)


def _check_endpoints(db: Database, id: ObjectId, message: Any) -> None:
    places: Counter[tuple[int, str]] = Counter()
    addresses: Counter[str] = Counter()
    for index, group in enumerate(message.endpoints):
        path = f"endpoints[{index}]"
        locality = group.locality.SerializeToString(deterministic=True).decode("latin-1")
        places[group.priority, locality] += 1
        if places[group.priority, locality] == 2:
            text = f"the locality comes twice in priority {group.priority}; gRPC clients refuse the assignment"
            _warn(db, ENDPOINTS_ODD, id, path, text, "put all endpoints of a locality into one entry")
        for position, endpoint in enumerate(group.lb_endpoints):
            where = f"{path}.lb_endpoints[{position}]"
            address = endpoint.endpoint.address.SerializeToString(deterministic=True).decode("latin-1")
            addresses[address] += 1
            if address and addresses[address] == 2:
                text = "the address comes twice; gRPC clients refuse the assignment"
                _warn(db, ENDPOINTS_ODD, id, where, text, "give it a weight instead")
            if endpoint.HasField("load_balancing_weight") and endpoint.load_balancing_weight.value < 1:
                _warn(db, ENDPOINTS_ODD, id, f"{where}.load_balancing_weight", "a weight is at least 1")
    priorities = {group.priority for group in message.endpoints}
    if priorities and priorities != set(range(len(priorities))):
        listed = ", ".join(map(str, sorted(priorities)))
        text = f"the priorities have a gap ({listed}); they count from 0"
        _warn(db, ENDPOINTS_ODD, id, "endpoints", text)


def _warn(db: Database, code: str, id: ObjectId, path: str, message: str, hint: str = "") -> None:
    db.report(Diagnostic(code, Severity.WARNING, id, path, message, hint))
