"""Which raw listeners the kernel carries, and why the others are for Envoy alone.

A listener is the kernel's if connections to its address need nothing but an endpoint and a check of who they are from:
one chain of `tcp_proxy`, network RBAC filters before it at most (DESIGN sections 6 and 7). Whether an Envoy serves it
as well makes no difference: who connects on a node with an agent is balanced there, everybody else reaches Envoy, and
both do the same. Read by `kernel_outputs` and by the reports; pure.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from google.protobuf.message import DecodeError

from xdsbpf.compile.raw.kernel_endpoints import RawBackend, Share, raw_backends
from xdsbpf.compile.raw.kernel_fields import NotForKernel, only, place_of, seen
from xdsbpf.compile.raw.kernel_rbac import RbacFilter, rbac_filter
from xdsbpf.compile.raw.resources import BY_FAMILY, Globs
from xdsbpf.diagnostics import Diagnostic, ObjectId, Origin, Severity
from xdsbpf.incremental import ABSENT, Database, Index, query
from xdsbpf.mesh.addresses import service_at
from xdsbpf.mesh.inputs import ENVOY_RESOURCES, PATCHED_TYPES, PODS_BY_ADDRESS
from xdsbpf.mesh.policy_groups import workload_policies
from xdsbpf.mesh.traffic_mode import Plane
from xdsbpf.model.envoy_resource import EnvoyResource
from xdsbpf.model.names import CLUSTER, ENDPOINTS, LISTENER, TYPE_PREFIX

ENVOY_ONLY: Final = "XB3050"
"""A raw listener of `tcp_proxy` that the kernel does not carry, and why."""

_TCP_PROXY: Final = TYPE_PREFIX + tcp_proxy_pb2.TcpProxy.DESCRIPTOR.full_name
_RBAC: Final = TYPE_PREFIX + rbac_pb2.RBAC.DESCRIPTOR.full_name
_LISTENER: Final = frozenset(
    {"name", "address", "stat_prefix", "filter_chains", "per_connection_buffer_limit_bytes", "metadata", "drain_type"}
    | {"traffic_direction", "enable_reuse_port", "tcp_backlog_size", "bind_to_port", "ignore_global_conn_limit"}
)
"""What stands here and is about Envoy itself (buffers, sockets, statistics) asks nothing of the kernel."""
_CHAIN: Final = frozenset({"filter_chain_match", "filters", "metadata", "name"})
_PROXY: Final = frozenset({"stat_prefix", "cluster", "weighted_clusters"})


class Carried(msgspec.Struct, frozen=True):
    """What the kernel does with connections to a listener's address."""

    address: str
    port: int
    backends: tuple[RawBackend, ...]
    filters: tuple[RbacFilter, ...]


class RawMode(msgspec.Struct, frozen=True):
    """The plane of a raw listener with the reason; `carried` on L4. `place` is `address:port`, "" if it has none."""

    id: ObjectId
    place: str
    plane: Plane
    reason: str
    carried: Carried | None = None


class _Chain(msgspec.Struct, frozen=True):
    address: str
    port: int
    shares: tuple[Share, ...]
    filters: tuple[RbacFilter, ...]


def _places(entry: EnvoyResource) -> tuple[tuple[Globs, str, int], ...]:
    """(globs, address, port) of a listener."""
    if entry.type_url != LISTENER:
        return ()
    try:
        socket = listener_pb2.Listener.FromString(entry.body).address.socket_address
    except DecodeError:
        return ()
    return ((entry.nodes, socket.address, socket.port_value),)


LISTENERS_BY_PLACE: Final = Index[EnvoyResource, tuple[Globs, str, int]](
    "envoy_listeners_by_place", ENVOY_RESOURCES, keys=_places
)


@query
def raw_listeners(db: Database, nodes: Globs) -> tuple[ObjectId, ...]:
    """The raw listeners with these globs, sorted."""
    return tuple(sorted(entry.id for entry in db.bucket(BY_FAMILY, (nodes, LISTENER))))


@query
def raw_mode(db: Database, id: ObjectId) -> RawMode:
    """Which plane carries a raw listener: the kernel only if it does all that the listener asks for."""
    entry = db.input(ENVOY_RESOURCES, id)
    if entry is ABSENT:
        return RawMode(id, "", Plane.L7, "there is no such listener")
    db.cite(Origin(id))
    message = _decoded(entry)
    socket = message.address.socket_address
    place = f"{socket.address}:{socket.port_value}" if socket.address else ""
    try:
        chain = _chain(message, id)
        seen(db, entry.nodes, LISTENER, entry.resource_name, "")
        _check_place(db, entry, chain)
        _check_plugins(db)
        backends = raw_backends(db, entry.nodes, chain.shares)
    except NotForKernel as error:
        text = f"{error.path}: {error}" if error.path else str(error)
        if _is_tcp(message):
            hint = "it is served to Envoys as it is"
            db.report(Diagnostic(ENVOY_ONLY, Severity.INFO, id, error.path, f"not for the kernel: {error}", hint))
        return RawMode(id, place, Plane.L7, text)
    guard = " behind network RBAC" if chain.filters else ""
    text = f"tcp_proxy{guard} to {', '.join(share.cluster for share in chain.shares)}, and nothing asks for Envoy"
    carried = Carried(chain.address, chain.port, backends, chain.filters)
    return RawMode(id, place, Plane.L4, text, carried)


def _decoded(entry: EnvoyResource) -> Any:
    try:
        return listener_pb2.Listener.FromString(entry.body)
    except DecodeError:
        return listener_pb2.Listener()  # without an address, so for Envoy to judge


def _is_tcp(message: Any) -> bool:
    chains = (*message.filter_chains, message.default_filter_chain)
    return any(entry.typed_config.type_url == _TCP_PROXY for chain in chains for entry in chain.filters)


def _check_plugins(db: Database) -> None:
    """Raises: NotForKernel where plug-ins patch what a listener is made of.

    Security: what they make of it (a rule, another endpoint) the kernel would not do.
    """
    for type_url in (LISTENER, CLUSTER, ENDPOINTS):
        plugin = db.input(PATCHED_TYPES, type_url)
        if plugin is not ABSENT:
            raise NotForKernel("", f"plug-in {plugin} patches each {type_url.rpartition('.')[2]}")


def _check_place(db: Database, entry: EnvoyResource, chain: _Chain) -> None:
    """Raises: NotForKernel where somebody else decides what is at the address."""
    address, port = chain.address, chain.port
    others = [other for other in db.bucket(LISTENERS_BY_PLACE, (entry.nodes, address, port)) if other.id != entry.id]
    if others:
        raise NotForKernel("address", f"{address}:{port} is also that of {others[0].id}")
    owner = service_at(db, address)
    if owner is not None:
        raise NotForKernel("address", f"{address} is that of Service/{owner[0]}/{owner[1]}")
    for pod in db.bucket(PODS_BY_ADDRESS, address):
        # Security: the kernel checks the policies of where a connection ends, and it would not end there.
        if workload_policies(db, pod.namespace, pod.metadata.labels):
            raise NotForKernel("address", f"{address} is that of {pod.id}, which policies guard")


def _chain(message: Any, id: ObjectId) -> _Chain:
    only(message, _LISTENER, "")
    address, port = place_of(message.address, "address")
    if message.HasField("bind_to_port") and not message.bind_to_port.value:
        raise NotForKernel("bind_to_port", "it does not listen")
    if len(message.filter_chains) != 1:
        raise NotForKernel("filter_chains", f"it has {len(message.filter_chains)} filter chains, not one")
    chain, path = message.filter_chains[0], "filter_chains[0]"
    only(chain, _CHAIN, path)
    if chain.filter_chain_match.ByteSize():
        raise NotForKernel(f"{path}.filter_chain_match", "only Envoy chooses a chain")
    *guards, proxy = _filters(chain, path)
    filters = []
    for index, (kind, config, at) in enumerate(guards):
        if kind != _RBAC:
            raise NotForKernel(f"{path}.filters[{index}]", f"only Envoy does {kind.rpartition('.')[2]}")
        rules = rbac_filter(rbac_pb2.RBAC.FromString(config), address, port, at, str(id))
        if rules is not None:
            filters.append(rules)
    kind, config, at = proxy
    if kind != _TCP_PROXY:
        raise NotForKernel(f"{path}.filters[{len(guards)}]", f"only Envoy does {kind.rpartition('.')[2] or 'that'}")
    return _Chain(address, port, _shares(tcp_proxy_pb2.TcpProxy.FromString(config), at), tuple(filters))


def _filters(chain: Any, path: str) -> list[tuple[str, bytes, str]]:
    """(type, configuration, path of it) of each filter. Raises: NotForKernel without filters."""
    found = []
    for index, entry in enumerate(chain.filters):
        at = f"{path}.filters[{index}]"
        only(entry, frozenset({"name", "typed_config"}), at)
        found.append((entry.typed_config.type_url, entry.typed_config.value, f"{at}.typed_config"))
    if not found:
        raise NotForKernel(f"{path}.filters", "it has no filters")
    return found


def _shares(proxy: Any, path: str) -> tuple[Share, ...]:
    only(proxy, _PROXY, path)
    if proxy.WhichOneof("cluster_specifier") == "cluster":
        return (Share(proxy.cluster, 1, f"{path}.cluster"),)
    only(proxy.weighted_clusters, frozenset({"clusters"}), f"{path}.weighted_clusters")
    shares = []
    for index, entry in enumerate(proxy.weighted_clusters.clusters):
        at = f"{path}.weighted_clusters.clusters[{index}]"
        only(entry, frozenset({"name", "weight"}), at)
        shares.append(Share(entry.name, entry.weight, f"{at}.name"))
    if not any(share.weight for share in shares):
        raise NotForKernel(path, "it names no cluster")
    return tuple(shares)
