"""What sidecars are offered: families that all of them share, and what the workloads of one class see besides."""

from __future__ import annotations

from xdsbpf.compile.generator import Generator
from xdsbpf.compile.sidecar import clusters, inbound, listeners, routes
from xdsbpf.compile.sidecar.names import SCOPE
from xdsbpf.mesh.clients import Client
from xdsbpf.model.names import CLUSTER, LISTENER, ROUTES


def shared_generators() -> tuple[Generator, ...]:
    """What every sidecar sees. Endpoints are the mesh's."""
    return (
        Generator(SCOPE, CLUSTER, clusters.sidecar_cluster_names, clusters.sidecar_cluster),
        Generator(SCOPE, LISTENER, listeners.listener_names, listeners.listener),
    )


def client_generators(scope: str, client: Client) -> tuple[Generator, ...]:
    """What the sidecars of workloads of this namespace with these labels see besides."""
    return (
        Generator(scope, CLUSTER, clusters.inbound_cluster_names, clusters.inbound_cluster, (client,)),
        Generator(scope, LISTENER, inbound.inbound_listener_names, inbound.inbound_listener, (client,)),
        Generator(scope, ROUTES, routes.route_config_names, routes.route_config, (client,)),
    )
