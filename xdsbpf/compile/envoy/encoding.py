"""Protobuf building blocks: typed extensions, durations, percentages, and the encoded resource.

The only module here that knows how a message becomes a `Resource`. Serialisation is deterministic,
so that equal input gives equal bytes and versions.
"""

from __future__ import annotations

import ipaddress
from typing import Any as Message

from envoy.config.core.v3.address_pb2 import CidrRange
from envoy.config.core.v3.config_source_pb2 import AggregatedConfigSource, ApiVersion, ConfigSource
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.type.v3.percent_pb2 import FractionalPercent
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration

from xdsbpf.model.address_block import parse_block
from xdsbpf.model.names import TYPE_PREFIX
from xdsbpf.model.resource import Requirement, Resource, make_resource
from xdsbpf.model.scalars import NANOSECONDS


def any_of(message: Message) -> Any:
    """`message` in an Any, with deterministic bytes."""
    return Any(
        type_url=TYPE_PREFIX + message.DESCRIPTOR.full_name,
        value=message.SerializeToString(deterministic=True),
    )


def typed(name: str, message: Message) -> TypedExtensionConfig:
    """An Envoy extension `name` with its configuration."""
    return TypedExtensionConfig(name=name, typed_config=any_of(message))


def cidr_range(block: str) -> CidrRange:
    """A block of addresses, as policies name it (`10.0.0.0/24`)."""
    parsed = parse_block(block)
    found = CidrRange(address_prefix=str(ipaddress.ip_address(parsed.network)))
    found.prefix_len.value = parsed.bits
    return found


def resource(
    type_url: str,
    name: str,
    message: Message,
    *,
    on_demand: bool = False,
    requires: tuple[Requirement, ...] = (),
) -> Resource:
    """The encoded resource of `message`."""
    body = message.SerializeToString(deterministic=True)
    return make_resource(type_url, name, body, on_demand=on_demand, requires=requires)


def duration(nanoseconds: int) -> Duration:
    """Nanoseconds as a protobuf Duration."""
    seconds, nanos = divmod(nanoseconds, NANOSECONDS)
    return Duration(seconds=seconds, nanos=nanos)


def over_ads() -> ConfigSource:
    """A subscription over the one ADS stream that waits until it is answered (no fetch timeout)."""
    return ConfigSource(
        ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3, initial_fetch_timeout=Duration()
    )


def fraction(millionths: int) -> FractionalPercent:
    """1,000,000 = 100 %, as Istio writes it: always per million."""
    return FractionalPercent(numerator=min(millionths, 1_000_000), denominator=FractionalPercent.MILLION)


def fraction_of_hundred(percent: int) -> FractionalPercent:
    """A whole percentage, for the legacy integer fields."""
    return FractionalPercent(numerator=min(percent, 100), denominator=FractionalPercent.HUNDRED)
