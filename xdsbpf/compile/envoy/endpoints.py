"""Endpoints of a cluster: one ClusterLoadAssignment per (port, subset, host), the hot path of the mesh.

One locality; an endpoint change re-runs one of these queries and nothing else. An empty assignment is
still sent, so that a cluster without endpoints answers 503 instead of waiting. Locality and its weight are
for gRPC clients, which ignore endpoints without (xds-server.md rule 57).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from envoy.config.core.v3.base_pb2 import Locality
from envoy.config.endpoint.v3.endpoint_components_pb2 import LocalityLbEndpoints
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from xdsbpf.compile.envoy.clusters import cluster_names, known_cluster
from xdsbpf.compile.envoy.codes import check_size
from xdsbpf.compile.fragments import Frame, frame_of, nested, placeholder
from xdsbpf.diagnostics import Origin
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.endpoints import Endpoint, subset_endpoints
from xdsbpf.mesh.services import service
from xdsbpf.model.names import ENDPOINTS
from xdsbpf.model.resource import GRPC_LIMIT, Resource, make_resource

endpoint_names = cluster_names
"""EDS names are cluster names."""
_NAME_TAG: Final = ClusterLoadAssignment.CLUSTER_NAME_FIELD_NUMBER << 3 | 2
_ENDPOINTS_TAG: Final = ClusterLoadAssignment.ENDPOINTS_FIELD_NUMBER << 3 | 2
_LOCALITY: Final[bytes] = LocalityLbEndpoints(locality=Locality()).SerializeToString()


@query
def endpoints_resource(db: Database, name: str) -> Resource | Absent:
    """The endpoints of a cluster; ABSENT for a name that no service and subset stands behind."""
    key = known_cluster(db, name)
    if key is None:
        return ABSENT
    body = load_assignment(name, subset_endpoints(db, key.host, key.port, key.subset))
    built = make_resource(ENDPOINTS, name, body, on_demand=True)
    if len(built.body) > GRPC_LIMIT and (owner := service(db, key.host)) is not None:
        check_size(db.report, Origin(owner.object, "spec"), built)
    return built


def load_assignment(name: str, endpoints: tuple[Endpoint, ...]) -> bytes:
    """The encoded assignment: all endpoints in one locality, each with weight 1. Cost: about 0.4 us per endpoint."""
    head = nested(_NAME_TAG, name.encode()) if name else b""
    if not endpoints:
        return head
    parts = [_LOCALITY]
    frames = _Frames(0)
    for endpoint in endpoints:
        if endpoint.port != frames.port:  # mostly the same for all
            frames = _frames(endpoint.port)
        address = endpoint.address.encode()
        before, after = frames[len(address)]
        parts += (before, address, after)
    parts.append(_weight(len(endpoints)))
    return head + nested(_ENDPOINTS_TAG, b"".join(parts))


@lru_cache(maxsize=4096)
def _weight(weight: int) -> bytes:
    """The encoding of the weight of a locality."""
    message = LocalityLbEndpoints()
    message.load_balancing_weight.value = weight
    encoded: bytes = message.SerializeToString()
    return encoded


class _Frames(dict[int, Frame]):
    """By the length of an address, the encoding of an endpoint with that port around it; made when first needed."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port

    def __missing__(self, length: int) -> Frame:
        message = LocalityLbEndpoints()
        address = message.lb_endpoints.add().endpoint.address.socket_address
        address.address = placeholder(length).decode()
        address.port_value = self.port
        frame = self[length] = frame_of(message, length)
        return frame


_frames = lru_cache(maxsize=4096)(_Frames)
"""The same for nearly all endpoints of a mesh."""
