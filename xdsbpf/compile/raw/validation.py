"""Raw resources -> the bootstrap with which `envoy --mode validate` judges them, and the search for what it refuses.

Listeners, clusters and secrets become static ones; what cannot be static by itself is put into one that can: routes
into an HTTP listener, endpoints into a cluster. Extensions (ECDS), scoped routes and runtime layers have no such
place and are not judged. Pure: who runs Envoy is `sources.envoy_validation`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from xdsbpf.model.envoy_resource import EnvoyResource
from xdsbpf.model.names import CLUSTER, ENDPOINTS, LISTENER, ROUTES, SECRET, VIRTUAL_HOST

_PREFIX: Final = "xdsbpf-validation"
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

Verdict = str
"""What Envoy says against a bootstrap; "" for nothing."""


def validation_bootstrap(resources: Sequence[EnvoyResource]) -> bytes:
    """The encoded bootstrap of these resources, each (type, name) once. Cost: O(bytes).

    The bytes of a resource go in as they are, so that Envoy sees what this release does not know, too.
    """
    bootstrap = bootstrap_pb2.Bootstrap()
    bootstrap.node.id = bootstrap.node.cluster = _PREFIX
    ads = bootstrap.dynamic_resources.ads_config
    ads.api_type = config_source_pb2.ApiConfigSource.GRPC
    ads.transport_api_version = config_source_pb2.V3
    ads.grpc_services.add().envoy_grpc.cluster_name = _PREFIX
    _ads_cluster(bootstrap.static_resources.clusters.add())
    for index, resource in enumerate(resources):
        add = _PLACES.get(resource.type_url)
        if add is not None:
            add(bootstrap.static_resources, f"{_PREFIX}-{index}", resource.body)
    encoded: bytes = bootstrap.SerializeToString(deterministic=True)
    return encoded


def first_refused(
    resources: Sequence[EnvoyResource], beside: Sequence[EnvoyResource]
) -> Generator[bytes, Verdict, tuple[int, Verdict] | None]:
    """Find the first resource with which `beside` and those before it are refused: its index, and what Envoy says.

    Yields bootstraps to judge and takes the verdicts; None if nothing is refused. `beside` that is refused by
    itself (a file that it names has gone) is left out. Cost: 1 run, and log2(resources) + 2 more if one is refused.
    """
    said = yield validation_bootstrap([*beside, *resources])
    if not said:
        return None
    if (yield validation_bootstrap(beside)):
        beside = ()
        said = yield validation_bootstrap(resources)
        if not said:
            return None
    good, bad = 0, len(resources)
    while bad - good > 1:
        middle = (good + bad) // 2
        verdict = yield validation_bootstrap([*beside, *resources[:middle]])
        if verdict:
            bad, said = middle, verdict
        else:
            good = middle
    return bad - 1, said


def _ads_cluster(cluster: Any) -> None:
    """What `ads: {}` in a resource refers to; nothing is connected to."""
    cluster.name = cluster.load_assignment.cluster_name = _PREFIX
    cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.pipe.path = _PREFIX
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.explicit_http_config.http2_protocol_options.SetInParent()
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].Pack(options)


def _add_listener(static: Any, name: str, body: bytes) -> None:
    static.listeners.add().MergeFromString(body)


def _add_cluster(static: Any, name: str, body: bytes) -> None:
    static.clusters.add().MergeFromString(body)


def _add_secret(static: Any, name: str, body: bytes) -> None:
    static.secrets.add().MergeFromString(body)


def _add_endpoints(static: Any, name: str, body: bytes) -> None:
    cluster = static.clusters.add()
    cluster.name, cluster.type = name, cluster_pb2.Cluster.STATIC
    cluster.load_assignment.MergeFromString(body)


def _add_routes(static: Any, name: str, body: bytes) -> None:
    manager = http_connection_manager_pb2.HttpConnectionManager(stat_prefix=name)
    manager.route_config.MergeFromString(body)
    _add_http(static, name, manager)


def _add_virtual_host(static: Any, name: str, body: bytes) -> None:
    manager = http_connection_manager_pb2.HttpConnectionManager(stat_prefix=name)
    manager.route_config.virtual_hosts.add().MergeFromString(body)
    _add_http(static, name, manager)


def _add_http(static: Any, name: str, manager: Any) -> None:
    if not manager.route_config.HasField("validate_clusters"):
        # Over RDS Envoy does not ask for the clusters of routes; what is not there is a finding of ours.
        manager.route_config.validate_clusters.value = False
    router = manager.http_filters.add()
    router.name = "envoy.filters.http.router"
    router.typed_config.Pack(router_pb2.Router())
    listener = static.listeners.add()
    listener.name = listener.address.pipe.path = name
    http = listener.filter_chains.add().filters.add()
    http.name = "envoy.filters.network.http_connection_manager"
    http.typed_config.Pack(manager)


_PLACES: Final[dict[str, Callable[[Any, str, bytes], None]]] = {
    LISTENER: _add_listener,
    CLUSTER: _add_cluster,
    SECRET: _add_secret,
    ENDPOINTS: _add_endpoints,
    ROUTES: _add_routes,
    VIRTUAL_HOST: _add_virtual_host,
}
