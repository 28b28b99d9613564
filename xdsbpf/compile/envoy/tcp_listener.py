"""The listener `out_tcp`: outbound TCP of all workloads of a node (LDS).

One chain serves every service: it names the cluster after the original destination (`tcp|10.96.0.7:3306`), and
the cluster comes on demand. Who may connect is decided by the matcher that chooses the chain, before any filter
runs: a network RBAC filter decides at the client's first byte, when a server that speaks first has been heard.
Only the matcher ever changes, which drains no connection. Called by `listeners`.
"""

from __future__ import annotations

import ipaddress
from typing import Any as Message
from typing import Final

import msgspec
from envoy.config.listener.v3.listener_components_pb2 import FilterChain
from envoy.extensions.filters.common.set_filter_state.v3.value_pb2 import FilterStateValue
from envoy.extensions.filters.network.set_filter_state.v3.set_filter_state_pb2 import Config as SetFilterState
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from envoy.extensions.matching.common_inputs.network.v3.network_inputs_pb2 import (
    DestinationIPInput,
    DestinationPortInput,
    DirectSourceIPInput,
    FilterStateInput,
)
from envoy.type.v3.hash_policy_pb2 import HashPolicy
from google.protobuf.wrappers_pb2 import StringValue
from xds.core.v3.cidr_pb2 import CidrRange
from xds.type.matcher.v3.ip_pb2 import IPMatcher
from xds.type.matcher.v3.matcher_pb2 import Matcher

from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.encoding import any_of, over_ads
from xdsbpf.incremental import Database, query
from xdsbpf.mesh.authorization import Verdict
from xdsbpf.mesh.inputs import POLICIES_BY_NAMESPACE
from xdsbpf.mesh.policy_tables import Admission
from xdsbpf.mesh.services import service, service_ports
from xdsbpf.mesh.tcp_admission import tcp_admission
from xdsbpf.model.address_block import parse_block

ON_DEMAND_TIMEOUT: Final = 2
"""Seconds a connection waits for its cluster. The control plane answers for every name, at once."""
NO_CLUSTER: Final = "none"
"""What the TCP proxy would use without the filter state, which is always there; no cluster has this name."""


class Guard(msgspec.Struct, frozen=True, order=True):
    """A guarded destination of `out_tcp` and whom it admits."""

    address: str
    port: int
    admission: Admission


@query
def tcp_guards(db: Database) -> tuple[Guard, ...]:
    """Every TCP service port that does not admit everybody, whichever plane carries it, sorted by host.

    And those with the listener's own port number, which else stands for a dial of the proxy itself.
    Security: clusters exist for all of them, so all must be guarded: a connection can still be on its way to the
    proxy when its service has gone back to the kernel.
    """
    has_policies = bool(tuple(db.bucket_keys(POLICIES_BY_NAMESPACE)))
    asked = (pair for pair in service_ports(db) if has_policies or pair[1] == names.OUT_TCP_PORT)
    found = (_guard(db, host, port) for host, port in asked)
    return tuple(guard for guard in found if guard is not None)


@query
def _guard(db: Database, host: str, port: int) -> Guard | None:
    owner = service(db, host)
    info = owner.port(port) if owner is not None else None
    if owner is None or info is None or info.is_http:
        return None
    admission = tcp_admission(db, host, port)
    if admission.is_open and port != names.OUT_TCP_PORT:
        return None
    return Guard(owner.address, port, admission)


def tcp_chains() -> tuple[FilterChain, ...]:
    """The chain that serves, and the one that closes. They never change."""
    cluster = FilterStateValue(object_key=names.TCP_CLUSTER_KEY)
    name = f"{names.TCP_PREFIX}%DOWNSTREAM_LOCAL_ADDRESS%"
    cluster.format_string.text_format_source.inline_string = name
    proxy = TcpProxy(stat_prefix=names.OUT_TCP, cluster=NO_CLUSTER)
    proxy.on_demand.odcds_config.CopyFrom(over_ads())
    proxy.on_demand.timeout.seconds = ON_DEMAND_TIMEOUT
    # Only clusters whose balancer hashes look at it.
    proxy.hash_policy.add().source_ip.CopyFrom(HashPolicy.SourceIp())
    serving = FilterChain(name=names.TCP_CHAIN)
    serving.filters.add(name=names.SET_CLUSTER, typed_config=any_of(SetFilterState(on_new_connection=[cluster])))
    serving.filters.add(name=names.TCP_PROXY, typed_config=any_of(proxy))
    return serving, FilterChain(name=names.CLOSED_CHAIN)


def tcp_decision(guards: tuple[Guard, ...]) -> Message:
    """The chain for a connection of a known source: by destination, then by who the source is.

    Every branch ends in a chain. A branch without an answer would not mean "closed": Envoy goes on with
    the "no match" of the level above. Cost at a connection: three hash look-ups, whatever the number of guards, and
    one in a trie where policies go by blocks of addresses.
    """
    ports: dict[str, dict[str, Message]] = {}
    for guard in guards:
        ports.setdefault(guard.address, {})[str(guard.port)] = _by_source(guard.admission)
    addresses = {address: _by_port(found) for address, found in ports.items()}
    return _switch("address", DestinationIPInput(), addresses, _by_port({}))


def _by_port(cases: dict[str, Message]) -> Message:
    """Security: who dials the proxy itself has no original destination, and is closed before a cluster is asked for."""
    direct = {str(names.OUT_TCP_PORT): _chain(False)}
    return _switch("port", DestinationPortInput(), direct | cases, _chain(True))


def _by_source(admission: Admission) -> Message:
    """By the block that the source is in, then by who it is."""
    outside = _by_identity(admission)
    if not admission.inside:
        return outside
    ranges = IPMatcher()
    for text, inside in admission.inside:
        one = ranges.range_matchers.add(on_match=_by_identity(inside), exclusive=True)
        one.ranges.append(_range(text))
    found = Matcher.OnMatch()
    tree = found.matcher.matcher_tree
    tree.input.name = "source"
    tree.input.typed_config.CopyFrom(any_of(DirectSourceIPInput()))
    tree.custom_match.name = names.IP_MATCHER
    tree.custom_match.typed_config.CopyFrom(any_of(ranges))
    found.matcher.on_no_match.CopyFrom(outside)
    return found


def _by_identity(admission: Admission) -> Message:
    default = admission.default is Verdict.ALLOW
    exceptions = {identity: _chain(not default) for identity in admission.exceptions}
    return _switch(names.PRINCIPAL_KEY, FilterStateInput(key=names.PRINCIPAL_KEY), exceptions, _chain(default))


def _range(text: str) -> CidrRange:
    block = parse_block(text)
    found = CidrRange(address_prefix=str(ipaddress.ip_address(block.network)))
    found.prefix_len.value = block.bits
    return found


def _switch(name: str, input_: Message, cases: dict[str, Message], default: Message) -> Message:
    """The case of the input's text, or else the default."""
    if not cases:
        return default
    found = Matcher.OnMatch()
    tree = found.matcher.matcher_tree
    tree.input.name = name
    tree.input.typed_config.CopyFrom(any_of(input_))
    for text, case in cases.items():
        tree.exact_match_map.map[text].CopyFrom(case)
    found.matcher.on_no_match.CopyFrom(default)
    return found


def _chain(is_open: bool) -> Message:
    found = Matcher.OnMatch()
    found.action.name = "chain"
    chain = names.TCP_CHAIN if is_open else names.CLOSED_CHAIN
    found.action.typed_config.CopyFrom(any_of(StringValue(value=chain)))
    return found
