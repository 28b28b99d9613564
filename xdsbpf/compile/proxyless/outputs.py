"""What gRPC clients are offered: families that all of them share, and what one class of clients sees besides."""

from __future__ import annotations

from xdsbpf.compile.envoy.clusters import cluster_names
from xdsbpf.compile.generator import Generator
from xdsbpf.compile.proxyless import clusters, listeners, routes, server
from xdsbpf.compile.proxyless.names import SCOPE, SERVER_PREFIX
from xdsbpf.incremental import Absent, Database, query
from xdsbpf.mesh.clients import Client
from xdsbpf.model.names import CLUSTER, LISTENER, ROUTES
from xdsbpf.model.resource import Resource


def shared_generators() -> tuple[Generator, ...]:
    """What every gRPC client sees, whoever it is. Endpoints are the mesh's."""
    return (
        Generator(SCOPE, CLUSTER, cluster_names, clusters.grpc_cluster),
        Generator(SCOPE, LISTENER, listeners.listener_names, listeners.listener),
        Generator(SCOPE, ROUTES, routes.route_config_names, routes.route_config),
    )


@query
def own_listener_names(db: Database, client: Client) -> tuple[str, ...]:
    """Listeners of bare names, for clients, and of the workload's own ports, for servers."""
    return listeners.own_listener_names(db, client) + server.server_listener_names(db, client)


@query
def own_listener(db: Database, client: Client, name: str) -> Resource | Absent:
    """A listener of either kind; ABSENT for any other name."""
    if name.startswith(SERVER_PREFIX):
        return server.server_listener(db, client, name)
    return listeners.own_listener(db, client, name)


def client_generators(scope: str, client: Client) -> tuple[Generator, ...]:
    """What clients of this namespace and these labels see besides, or instead."""
    return (
        Generator(scope, LISTENER, own_listener_names, own_listener, (client,)),
        Generator(scope, ROUTES, routes.own_route_config_names, routes.own_route_config, (client,)),
    )
