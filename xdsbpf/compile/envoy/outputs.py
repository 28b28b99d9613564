"""What the Envoy compiler offers to the server: its families of resources, shared and per node."""

from __future__ import annotations

from xdsbpf.compile.envoy import (
    clusters,
    endpoints,
    identity_table,
    listeners,
    names,
    routes,
    tcp_clusters,
    virtual_hosts,
)
from xdsbpf.compile.generator import Generator
from xdsbpf.model.names import CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES, VIRTUAL_HOST


def envoy_generators(nodes: tuple[str, ...]) -> tuple[Generator, ...]:
    """Generators of node Envoys' resources: those that all proxies or all nodes share, then one table per node."""
    shared = (
        Generator(names.MESH_SCOPE, CLUSTER, clusters.cluster_names, clusters.cluster),
        Generator(names.MESH_SCOPE, ENDPOINTS, endpoints.endpoint_names, endpoints.endpoints_resource),
        Generator(names.SCOPE, CLUSTER, tcp_clusters.tcp_cluster_names, tcp_clusters.tcp_cluster),
        Generator(names.SCOPE, ENDPOINTS, tcp_clusters.tcp_assignment_names, tcp_clusters.tcp_assignment),
        Generator(names.SCOPE, ROUTES, routes.route_config_names, routes.route_config),
        Generator(names.SCOPE, VIRTUAL_HOST, virtual_hosts.virtual_host_names, virtual_hosts.virtual_host),
        Generator(names.SCOPE, LISTENER, listeners.listener_names, listeners.listener),
    )
    tables = tuple(
        Generator(names.node_scope(node), EXTENSION, identity_table.table_names, identity_table.table, (node,))
        for node in nodes
    )
    return shared + tables
