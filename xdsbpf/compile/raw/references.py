"""What a raw resource refers to: names of other resources, with the field that holds each.

Envoy accepts a route to a cluster that is not there and answers 503, and waits for a secret that never comes: only
the server can say so beforehand. A walk over the message, into its Anys; called by `checks`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from xdsbpf.model.names import CLUSTER, ENDPOINTS, EXTENSION, ROUTES, SECRET, TYPE_PREFIX

ANY: Final = "google.protobuf.Any"
_CLUSTER: Final = "envoy.config.cluster.v3.Cluster"
_FILTERS: Final = frozenset(
    {
        "envoy.config.listener.v3.Filter",
        "envoy.config.listener.v3.ListenerFilter",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
    }
)
_FIELDS: Final[dict[str, tuple[tuple[str, str, str], ...]]] = {
    "envoy.config.route.v3.RouteAction": (("cluster", CLUSTER, ""),),
    "envoy.config.route.v3.WeightedCluster.ClusterWeight": (("name", CLUSTER, ""),),
    "envoy.config.route.v3.RouteAction.RequestMirrorPolicy": (("cluster", CLUSTER, ""),),
    "envoy.config.route.v3.ScopedRouteConfiguration": (("route_configuration_name", ROUTES, ""),),
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy": (("cluster", CLUSTER, ""),),
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight": (("name", CLUSTER, ""),),
    "envoy.config.core.v3.GrpcService.EnvoyGrpc": (("cluster_name", CLUSTER, ""),),
    "envoy.extensions.filters.network.http_connection_manager.v3.Rds": (
        ("route_config_name", ROUTES, "config_source"),
    ),
    "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig": (("name", SECRET, "sds_config"),),
}
"""Message -> (field with the name, type of what is named, field with the source of configuration)."""


class Reference(msgspec.Struct, frozen=True, order=True):
    """The resource `name` of `type_url` is needed by the field `path`."""

    path: str
    type_url: str
    name: str


def references(type_url: str, body: bytes) -> tuple[Reference, ...]:
    """All references of an encoded resource; () for a type that cannot be decoded here. Cost: one visit per field."""
    message = decode(type_url, body)
    return tuple(_of(message, "")) if message is not None else ()


def decode(type_url: str, body: bytes) -> Message | None:
    """The message of a resource or an Any, or None if its type is not known or its bytes are not of it."""
    try:
        message = GetMessageClass(Default().FindMessageTypeByName(type_url.removeprefix(TYPE_PREFIX)))()
        message.ParseFromString(body)
    except (KeyError, DecodeError):
        return None
    return message


def _of(message: Message, path: str) -> Iterator[Reference]:
    name = message.DESCRIPTOR.full_name
    if name == ANY:
        packed: Any = message
        inner = decode(packed.type_url, packed.value)
        if inner is not None:
            yield from _of(inner, path)
        return
    for field, target, source in _FIELDS.get(name, ()):
        value = getattr(message, field)
        if value and (not source or _is_over_ads(getattr(message, source))):
            yield Reference(_join(path, field), target, value)
    if name == _CLUSTER:
        yield from _of_cluster(message, path)
    if name in _FILTERS:
        yield from _of_filter(message, path)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        place = _join(path, descriptor.name)
        if descriptor.message_type.GetOptions().map_entry:
            if descriptor.message_type.fields_by_name["value"].message_type is not None:
                for key in sorted(value, key=str):
                    yield from _of(value[key], f"{place}[{key}]")
        elif descriptor.is_repeated:
            for index, item in enumerate(value):
                yield from _of(item, f"{place}[{index}]")
        else:
            yield from _of(value, place)


def _of_cluster(cluster: Any, path: str) -> Iterator[Reference]:
    """An EDS cluster waits for its endpoints, under its own name or the one that it gives."""
    config = cluster.eds_cluster_config
    is_eds = cluster.WhichOneof("cluster_discovery_type") == "type" and cluster.type == cluster.EDS
    if is_eds and _is_over_ads(config.eds_config):
        yield Reference(_join(path, "eds_cluster_config"), ENDPOINTS, config.service_name or cluster.name)


def _of_filter(message: Any, path: str) -> Iterator[Reference]:
    """A filter with `config_discovery` waits for the extension of its own name."""
    if message.HasField("config_discovery") and _is_over_ads(message.config_discovery.config_source):
        yield Reference(_join(path, "config_discovery"), EXTENSION, message.name)


def _is_over_ads(source: Any) -> bool:
    return source.WhichOneof("config_source_specifier") in ("ads", "self")


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field
