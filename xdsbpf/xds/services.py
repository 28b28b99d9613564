"""The gRPC methods of xDS: which variant and which type each of them serves.

In: a method path. Out: a frozen `Method`. One aggregated service (ADS) takes
every type on one stream; beside it every type has a service of its own. Pure.
"""

from __future__ import annotations

import enum

import msgspec

from xdsbpf.model import names
from xdsbpf.xds import protocol

_PACKAGE = "envoy.service"


class Variant(enum.Enum):
    """How a method speaks: state of the world, differences, or one request and one response."""

    SOTW = "sotw"
    DELTA = "delta"
    FETCH = "fetch"


class Method(msgspec.Struct, frozen=True):
    """One method; `type_url` is "" for the aggregated service."""

    path: str
    variant: Variant
    type_url: str = ""


_SERVICES: tuple[tuple[str, str, str], ...] = (
    ("listener.v3.ListenerDiscoveryService", "Listeners", names.LISTENER),
    ("route.v3.RouteDiscoveryService", "Routes", names.ROUTES),
    ("route.v3.ScopedRoutesDiscoveryService", "ScopedRoutes", protocol.SCOPED_ROUTES),
    ("cluster.v3.ClusterDiscoveryService", "Clusters", names.CLUSTER),
    ("endpoint.v3.EndpointDiscoveryService", "Endpoints", names.ENDPOINTS),
    ("secret.v3.SecretDiscoveryService", "Secrets", names.SECRET),
    ("runtime.v3.RuntimeDiscoveryService", "Runtime", protocol.RUNTIME),
    ("extension.v3.ExtensionConfigDiscoveryService", "ExtensionConfigs", names.EXTENSION),
)
"""Services with all three methods: package and service below `envoy.service`, plural in the method names, type."""


def _methods() -> dict[str, Method]:
    found = [
        Method(protocol.DELTA_ADS, Variant.DELTA),
        Method(protocol.SOTW_ADS, Variant.SOTW),
        # These two have no state of the world: a virtual host and an endpoint are no sets of their own.
        Method(
            f"/{_PACKAGE}.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts", Variant.DELTA, names.VIRTUAL_HOST
        ),
        Method(
            f"/{_PACKAGE}.endpoint.v3.LocalityEndpointDiscoveryService/DeltaLocalityEndpoints",
            Variant.DELTA,
            protocol.LOCALITY_ENDPOINTS,
        ),
    ]
    for service, plural, type_url in _SERVICES:
        path = f"/{_PACKAGE}.{service}"
        found.append(Method(f"{path}/Stream{plural}", Variant.SOTW, type_url))
        found.append(Method(f"{path}/Delta{plural}", Variant.DELTA, type_url))
        found.append(Method(f"{path}/Fetch{plural}", Variant.FETCH, type_url))
    return {method.path: method for method in found}


METHODS: dict[str, Method] = _methods()
"""Every method that the server serves, by path."""
