"""The fixed listeners of a node's proxy: `out_http` and `out_tcp`, outbound traffic of all workloads (LDS).

Fixed listener-level fields; `out_http` has one filter chain per HTTP service port number, `out_tcp` (`tcp_listener`)
one for everything. The chain is chosen by a matcher that requires a known source: a connection whose source
`srcid` does not know matches no chain and is closed, before any filter runs. Only chains and the matcher may
ever change: any other field of a listener drains all its connections when it is edited.
"""

from __future__ import annotations

from typing import Any as Message

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
from xdsbpf.compile.envoy.tcp_listener import Guard, tcp_chains, tcp_decision, tcp_guards
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
    """The listeners of every node. `out_http` only in a mesh with HTTP, as a listener needs a filter chain."""
    return (names.OUT_HTTP, names.OUT_TCP) if port_numbers(db) else (names.OUT_TCP,)


@query
def listener(db: Database, name: str) -> Resource | Absent:
    """A listener resource; ABSENT for an unknown name, and for `out_http` in a mesh without HTTP.

    `out_tcp` is always there: were it to go with the last TCP service, it would take its connections along.
    """
    if name == names.OUT_TCP:
        return resource(LISTENER, name, out_tcp(tcp_guards(db)))
    ports = port_numbers(db)
    return resource(LISTENER, name, out_http(ports)) if name == names.OUT_HTTP and ports else ABSENT


def out_http(ports: tuple[int, ...]) -> Listener:
    """`0.0.0.0:15001` with a chain for each of `ports`."""
    message = _outbound(names.OUT_HTTP, names.OUT_HTTP_PORT)
    for port in ports:
        chain = message.filter_chains.add(name=names.chain_name(port))
        chain.filters.add(name=names.CONNECTION_MANAGER, typed_config=any_of(connection_manager(port)))
        message.filter_chain_matcher.matcher_list.matchers.append(_chain_for(port))
    return message


def out_tcp(guards: tuple[Guard, ...]) -> Listener:
    """`0.0.0.0:15002` with one chain for all services, and a matcher that knows who may not reach which."""
    message = _outbound(names.OUT_TCP, names.OUT_TCP_PORT)
    message.filter_chains.extend(tcp_chains())
    known = message.filter_chain_matcher.matcher_list.matchers.add()
    known.predicate.CopyFrom(_is_known())
    known.on_match.CopyFrom(tcp_decision(guards))
    return message


def _outbound(name: str, port: int) -> Listener:
    """A listener of all workloads without its chains. Nothing in here may depend on manifests."""
    message = Listener(name=name, traffic_direction=TrafficDirection.OUTBOUND)
    message.address.socket_address.address = "0.0.0.0"
    message.address.socket_address.port_value = port
    # The original destination first: the identity table may come to read it.
    message.listener_filters.add(name=names.ORIGINAL_DST, typed_config=any_of(OriginalDst()))
    identity = message.listener_filters.add(name=names.SOURCE_IDENTITY).config_discovery
    identity.config_source.CopyFrom(over_ads())
    identity.type_urls.append(SET_FILTER_STATE_TYPE)
    return message


def _is_known() -> Message:
    """The source is in the identity table."""
    known = Predicate()
    known.single_predicate.input.name = names.ATTRIBUTES_KEY
    known.single_predicate.input.typed_config.CopyFrom(any_of(FilterStateInput(key=names.ATTRIBUTES_KEY)))
    known.single_predicate.value_match.prefix = ";"
    return known


def _chain_for(port: int) -> Matcher.MatcherList.FieldMatcher:
    """A known source and this destination port: the port's chain."""
    to_port = Predicate()
    to_port.single_predicate.input.name = "destination_port"
    to_port.single_predicate.input.typed_config.CopyFrom(any_of(DestinationPortInput()))
    to_port.single_predicate.value_match.exact = str(port)
    result = Matcher.MatcherList.FieldMatcher()
    result.predicate.and_matcher.predicate.extend((_is_known(), to_port))
    result.on_match.action.name = "chain"
    result.on_match.action.typed_config.CopyFrom(any_of(StringValue(value=names.chain_name(port))))
    return result
