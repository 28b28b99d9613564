"""The listener `out_http`: outbound HTTP of all workloads of a node (LDS).

Fixed listener-level fields, one filter chain per HTTP service port number. The chain is chosen by a
matcher that requires a known source: a connection whose source `srcid` does not know matches no chain and
is closed, before any filter runs. Only chains and the matcher may ever change: any other field of a
listener drains all its connections when it is edited.
"""

from __future__ import annotations

from envoy.config.core.v3.base_pb2 import TrafficDirection
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2 import OriginalDst
from envoy.extensions.matching.common_inputs.network.v3.network_inputs_pb2 import (
    DestinationPortInput,
    FilterStateInput,
)
from google.protobuf.wrappers_pb2 import StringValue
from xds.type.matcher.v3.matcher_pb2 import Matcher

from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.connection_manager import connection_manager
from xdsbpf.compile.envoy.encoding import any_of, over_ads, resource
from xdsbpf.compile.envoy.newer_messages import SET_FILTER_STATE_TYPE
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.services import http_ports
from xdsbpf.model.names import LISTENER
from xdsbpf.model.resource import Resource

Predicate = Matcher.MatcherList.Predicate


@query
def port_numbers(db: Database) -> tuple[int, ...]:
    """Service port numbers that speak HTTP anywhere in the mesh, sorted."""
    return tuple(sorted({port for _, port in http_ports(db)}))


@query
def listener_names(db: Database) -> tuple[str, ...]:
    """The listeners of every node; none in a mesh without HTTP, as a listener needs a filter chain."""
    return (names.OUT_HTTP,) if port_numbers(db) else ()


@query
def listener(db: Database, name: str) -> Resource | Absent:
    """The listener resource `out_http`; ABSENT for any other name, and in a mesh without HTTP."""
    ports = port_numbers(db)
    return resource(LISTENER, name, out_http(ports)) if name == names.OUT_HTTP and ports else ABSENT


def out_http(ports: tuple[int, ...]) -> Listener:
    """`0.0.0.0:15001` with a chain for each of `ports`."""
    message = Listener(name=names.OUT_HTTP, traffic_direction=TrafficDirection.OUTBOUND)
    message.address.socket_address.address = "0.0.0.0"
    message.address.socket_address.port_value = names.OUT_HTTP_PORT
    # The original destination first: the identity table may come to read it.
    message.listener_filters.add(name=names.ORIGINAL_DST, typed_config=any_of(OriginalDst()))
    identity = message.listener_filters.add(name=names.SOURCE_IDENTITY).config_discovery
    identity.config_source.CopyFrom(over_ads())
    identity.type_urls.append(SET_FILTER_STATE_TYPE)
    for port in ports:
        chain = message.filter_chains.add(name=names.chain_name(port))
        chain.filters.add(name=names.CONNECTION_MANAGER, typed_config=any_of(connection_manager(port)))
        message.filter_chain_matcher.matcher_list.matchers.append(_chain_for(port))
    return message


def _chain_for(port: int) -> Matcher.MatcherList.FieldMatcher:
    """A known source and this destination port: the port's chain."""
    known = Predicate()
    known.single_predicate.input.name = names.ATTRIBUTES_KEY
    known.single_predicate.input.typed_config.CopyFrom(any_of(FilterStateInput(key=names.ATTRIBUTES_KEY)))
    known.single_predicate.value_match.prefix = ";"
    to_port = Predicate()
    to_port.single_predicate.input.name = "destination_port"
    to_port.single_predicate.input.typed_config.CopyFrom(any_of(DestinationPortInput()))
    to_port.single_predicate.value_match.exact = str(port)
    result = Matcher.MatcherList.FieldMatcher()
    result.predicate.and_matcher.predicate.extend((known, to_port))
    result.on_match.action.name = "chain"
    result.on_match.action.typed_config.CopyFrom(any_of(StringValue(value=names.chain_name(port))))
    return result
