"""What gRPC clients are offered: families that all of them share, and what one class of clients sees besides."""

from __future__ import annotations

from xdsbpf.compile.envoy.clusters import cluster_names
from xdsbpf.compile.generator import Generator
from xdsbpf.compile.proxyless import clusters, listeners, routes, server
from xdsbpf.compile.proxyless.names import SCOPE
from xdsbpf.mesh.clients import Client
from xdsbpf.model.names import CLUSTER, LISTENER, ROUTES


def shared_generators() -> tuple[Generator, ...]:
    """What every gRPC client sees, whoever it is. Endpoints are the mesh's."""
    return (
        Generator(SCOPE, CLUSTER, cluster_names, clusters.grpc_cluster),
        Generator(SCOPE, LISTENER, listeners.listener_names, listeners.listener),
        Generator(SCOPE, ROUTES, routes.route_config_names, routes.route_config),
    )


def client_generators(scope: str, client: Client) -> tuple[Generator, ...]:
    """What clients of this namespace and these labels see besides, or instead."""
    return (
        Generator(scope, LISTENER, listeners.own_listener_names, listeners.own_listener, (client,)),
        Generator(scope, ROUTES, routes.own_route_config_names, routes.own_route_config, (client,)),
    )


def server_generators(scope: str, client: Client) -> tuple[Generator, ...]:
    """What gRPC servers of this namespace and with these labels are offered."""
    return (Generator(scope, LISTENER, server.server_listener_names, server.server_listener, (client,)),)
