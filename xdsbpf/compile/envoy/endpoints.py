"""Endpoints of a cluster: one ClusterLoadAssignment per (port, subset, host), the hot path of the mesh.

One locality; an endpoint change re-runs one of these queries and nothing else. An empty assignment is
still sent, so that a cluster without endpoints answers 503 instead of waiting. Locality and its weight are
for gRPC clients, which ignore endpoints without (xds-server.md rule 57).
"""

from __future__ import annotations

from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from xdsbpf.compile.envoy.clusters import cluster_names, known_cluster
from xdsbpf.compile.envoy.codes import check_size
from xdsbpf.compile.envoy.encoding import resource
from xdsbpf.diagnostics import Origin
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.endpoints import Endpoint, subset_endpoints
from xdsbpf.mesh.services import service
from xdsbpf.model.names import ENDPOINTS
from xdsbpf.model.resource import GRPC_LIMIT, Resource

endpoint_names = cluster_names
"""EDS names are cluster names."""


@query
def endpoints_resource(db: Database, name: str) -> Resource | Absent:
    """The endpoints of a cluster; ABSENT for a name that no service and subset stands behind."""
    key = known_cluster(db, name)
    if key is None:
        return ABSENT
    message = load_assignment(name, subset_endpoints(db, key.host, key.port, key.subset))
    built = resource(ENDPOINTS, name, message, on_demand=True)
    if len(built.body) > GRPC_LIMIT and (owner := service(db, key.host)) is not None:
        check_size(db.report, Origin(owner.object, "spec"), built)
    return built


def load_assignment(name: str, endpoints: tuple[Endpoint, ...]) -> ClusterLoadAssignment:
    """All endpoints in one locality, each with weight 1. Cost: about 1.5 us per endpoint."""
    message = ClusterLoadAssignment(cluster_name=name)
    if endpoints:
        group = message.endpoints.add()
        group.locality.SetInParent()
        group.load_balancing_weight.value = len(endpoints)
        add = group.lb_endpoints.add
        for endpoint in endpoints:
            address = add().endpoint.address.socket_address
            address.address = endpoint.address
            address.port_value = endpoint.port
    return message
