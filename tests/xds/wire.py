"""The four variants of the protocol on the wire: method paths, requests, and responses as one plain value.

In: raw gRPC message bytes. Out: `Response`, the same for state of the world and delta. Every response is checked
here for what holds always: the right type, a nonce, no name twice. Shares no code with the server under test.
"""

from __future__ import annotations

import enum

import msgspec
from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
    Resource,
)

from tests.xds.resources import CDS, ECDS, EDS, LDS, LEDS, PREFIX, RDS, RTDS, SDS, SRDS, VHDS, read_any

_WRAPPED = PREFIX + Resource.DESCRIPTOR.full_name
_ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService"

SERVICES: dict[str, tuple[str, str]] = {
    LDS: ("/envoy.service.listener.v3.ListenerDiscoveryService", "Listeners"),
    RDS: ("/envoy.service.route.v3.RouteDiscoveryService", "Routes"),
    SRDS: ("/envoy.service.route.v3.ScopedRoutesDiscoveryService", "ScopedRoutes"),
    VHDS: ("/envoy.service.route.v3.VirtualHostDiscoveryService", "VirtualHosts"),
    CDS: ("/envoy.service.cluster.v3.ClusterDiscoveryService", "Clusters"),
    EDS: ("/envoy.service.endpoint.v3.EndpointDiscoveryService", "Endpoints"),
    LEDS: ("/envoy.service.endpoint.v3.LocalityEndpointDiscoveryService", "LocalityEndpoints"),
    SDS: ("/envoy.service.secret.v3.SecretDiscoveryService", "Secrets"),
    ECDS: ("/envoy.service.extension.v3.ExtensionConfigDiscoveryService", "ExtensionConfigs"),
    RTDS: ("/envoy.service.runtime.v3.RuntimeDiscoveryService", "Runtime"),
}
"""Type -> its own service, and what follows Stream or Delta in the names of its methods."""

DELTA_ONLY = frozenset({VHDS, LEDS})


class Variant(enum.Enum):
    """How a client speaks: whole state or differences, all types on one stream or a stream for each."""

    SOTW_ADS = "sotw-ads"
    SOTW_TYPE = "sotw-per-type"
    DELTA_ADS = "delta-ads"
    DELTA_TYPE = "delta-per-type"

    @property
    def is_delta(self) -> bool:
        return self in DELTA

    @property
    def is_ads(self) -> bool:
        return self in ADS

    def method(self, type_url: str) -> str:
        """The gRPC method that serves this type in this variant."""
        kind = "Delta" if self.is_delta else "Stream"
        if self.is_ads:
            return f"{_ADS}/{kind}AggregatedResources"
        service, noun = SERVICES[type_url]
        return f"{service}/{kind}{noun}"


ALL = tuple(Variant)
DELTA = (Variant.DELTA_ADS, Variant.DELTA_TYPE)
SOTW = (Variant.SOTW_ADS, Variant.SOTW_TYPE)
ADS = (Variant.SOTW_ADS, Variant.DELTA_ADS)
PER_TYPE = (Variant.SOTW_TYPE, Variant.DELTA_TYPE)

Request = DiscoveryRequest | DeltaDiscoveryRequest


class Item(msgspec.Struct, frozen=True):
    """One resource of a response; `edition` is None if it came without a body."""

    name: str
    version: str
    edition: int | None
    ttl_s: float = 0.0
    aliases: tuple[str, ...] = ()


class Response(msgspec.Struct, frozen=True):
    """A response of either kind; `version` is that of the response, `size` its length in bytes.

    `errors` are its resource_errors, name -> status code.
    """

    type_url: str
    nonce: str
    version: str
    items: tuple[Item, ...]
    removed: tuple[str, ...]
    size: int
    errors: dict[str, int]

    @property
    def holds(self) -> dict[str, int]:
        """Name -> edition of what came with a body."""
        return {item.name: item.edition for item in self.items if item.edition is not None}


def decode(raw: bytes, variant: Variant) -> Response:
    """Read a response and check what must hold of every one."""
    response = _delta(raw) if variant.is_delta else _whole(raw)
    names = [*(item.name for item in response.items), *response.removed]
    assert len(names) == len(set(names)), f"rule 30: a name twice in one response: {names}"
    assert response.holds.keys().isdisjoint(response.errors), "TP3: a resource that is there, and an error of it"
    assert response.nonce, "a response without a nonce cannot be ACKed"
    return response


def _delta(raw: bytes) -> Response:
    message = DeltaDiscoveryResponse.FromString(raw)
    items = tuple(_item(entry, message.type_url) for entry in message.resources)
    removed = tuple(message.removed_resources)
    errors = _errors(message)
    return Response(message.type_url, message.nonce, message.system_version_info, items, removed, len(raw), errors)


def _whole(raw: bytes) -> Response:
    message = DiscoveryResponse.FromString(raw)
    items = []
    for packed in message.resources:
        if packed.type_url == _WRAPPED:
            items.append(_item(Resource.FromString(packed.value), message.type_url))
        else:
            assert packed.type_url == message.type_url, "a resource of another type than its response"
            name, edition = read_any(packed)
            items.append(Item(name, message.version_info, edition))
    errors = _errors(message)
    return Response(message.type_url, message.nonce, message.version_info, tuple(items), (), len(raw), errors)


def _errors(message: DiscoveryResponse | DeltaDiscoveryResponse) -> dict[str, int]:
    found = {error.resource_name.name: error.error_detail.code for error in message.resource_errors}
    assert len(found) == len(message.resource_errors), "a name twice in resource_errors"
    return found


def _item(entry: Resource, type_url: str) -> Item:
    edition = None
    if entry.HasField("resource"):
        assert entry.resource.type_url == type_url, "a resource of another type than its response"
        _, edition = read_any(entry.resource)
    return Item(entry.name, entry.version, edition, entry.ttl.ToTimedelta().total_seconds(), tuple(entry.aliases))
