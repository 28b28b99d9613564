"""`virtualInbound`: what reaches a workload through its sidecar, port by port (istio-translation.md 6.2).

Connections that are redirected to 15006 are told apart by the port they were for, and where policies ask for it by
the address they come from. Without certificates a policy cannot tell who the peers are (`mesh.unauthenticated`). Who is
denied gets 403 from HTTP; TCP goes to a cluster without endpoints before a byte of the server is read.
"""

from __future__ import annotations

from envoy.config.core.v3.base_pb2 import TrafficDirection
from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2 import OriginalDst

from xdsbpf.compile.envoy.encoding import any_of, cidr_range, resource
from xdsbpf.compile.envoy.names import ORIGINAL_DST
from xdsbpf.compile.sidecar import names
from xdsbpf.compile.sidecar.managers import destination_port, inbound_manager, tcp_proxy
from xdsbpf.incremental import ABSENT, Absent, Database, query
from xdsbpf.mesh.authorization import PolicySet
from xdsbpf.mesh.clients import Client
from xdsbpf.mesh.inbound import InboundPort, inbound_ports
from xdsbpf.mesh.policy_tables import OTHER_PORT
from xdsbpf.mesh.services import HTTP_CLASS
from xdsbpf.mesh.unauthenticated import Admission, admissions, mentioned_ports, unproven_policies
from xdsbpf.model.names import LISTENER
from xdsbpf.model.resource import Resource


@query
def inbound_listener_names(db: Database, workload: Client) -> tuple[str, ...]:
    """The one inbound listener of a sidecar."""
    return (names.INBOUND,)


@query
def inbound_listener(db: Database, workload: Client, name: str) -> Resource | Absent:
    """The inbound listener of the workloads of a namespace with these labels; ABSENT for any other name."""
    if name != names.INBOUND:
        return ABSENT
    policies = unproven_policies(db, workload)
    ports = inbound_ports(db, workload)
    message = Listener(name=name, traffic_direction=TrafficDirection.INBOUND)
    message.address.socket_address.address = names.ANY_ADDRESS
    message.address.socket_address.port_value = names.INBOUND_PORT
    message.listener_filters.add(name=ORIGINAL_DST, typed_config=any_of(OriginalDst()))
    own = tcp_proxy(names.BLACK_HOLE, ((names.BLACK_HOLE, 1),))
    message.filter_chains.append(_chain(f"{names.INBOUND}-blackhole", names.INBOUND_PORT, own))
    for port in ports:
        for admission in admissions(policies, port.number):
            filter_ = _served(port, is_denied=admission.is_closed)
            message.filter_chains.append(_chain(_port_name(port.number), port.number, filter_, admission))
    _add_other_ports(message, policies, {port.number for port in ports})
    return resource(LISTENER, name, message)


def _add_other_ports(message: Listener, policies: tuple[PolicySet, ...], known: set[int]) -> None:
    """Ports that no service is for: those that a policy mentions, then all others."""
    others = admissions(policies, OTHER_PORT)
    for number in mentioned_ports(policies):
        own = admissions(policies, number)
        if number in known or number == names.INBOUND_PORT or own == others:
            continue
        for admission in own:
            filter_ = _unserved(is_denied=admission.is_closed)
            message.filter_chains.append(_chain(_port_name(number), number, filter_, admission))
    if len(others) == 1:
        filter_ = _unserved(is_denied=others[0].is_closed)
        message.default_filter_chain.CopyFrom(FilterChain(name=names.INBOUND, filters=[filter_]))
        return
    for admission in others:
        filter_ = _unserved(is_denied=admission.is_closed)
        message.filter_chains.append(_chain(names.INBOUND, 0, filter_, admission))


def _served(port: InboundPort, *, is_denied: bool) -> Filter:
    if port.protocol in HTTP_CLASS:
        return inbound_manager(port, is_denied=is_denied)
    name = names.BLACK_HOLE if is_denied else names.inbound_cluster(port.number)
    return tcp_proxy(name, ((name, 1),))


def _unserved(*, is_denied: bool) -> Filter:
    name = names.BLACK_HOLE if is_denied else names.INBOUND_PASSTHROUGH
    return tcp_proxy(name, ((name, 1),))


def _port_name(port: int) -> str:
    return names.listener_name(names.ANY_ADDRESS, port)


def _chain(name: str, port: int, filter_: Filter, admission: Admission | None = None) -> FilterChain:
    """A chain for connections to `port` (0: to any other) from where `admission` says."""
    chain = FilterChain(name=name, filters=[filter_])
    if port:
        chain.filter_chain_match.destination_port.CopyFrom(destination_port(port))
    if admission is not None and admission.blocks:
        chain.name = f"{name}-denied" if admission.is_closed else name
        chain.filter_chain_match.source_prefix_ranges.extend(map(cidr_range, admission.blocks))
    return chain
