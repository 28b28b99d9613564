"""Which resources a client sees: the scopes of the store that its node id opens.

The xDS server asks when a stream opens; a node id of a kind that is not served yet gets a reason.
`known_nodes` says which nodes there are to compile for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from xdsbpf.compile.datapath import names as datapath_names
from xdsbpf.compile.envoy import names as envoy_names
from xdsbpf.compile.raw.resources import Globs, raw_scope
from xdsbpf.errors import ProtocolError
from xdsbpf.mesh.identities import known_nodes
from xdsbpf.model.globs import glob_matches
from xdsbpf.model.names import NodeId, parse_node_id

_NOT_YET: Final = {
    "sidecar": "sidecars",
    "router": "gateways",
    "waypoint": "waypoints",
    "ztunnel": "ztunnel",
}
_SERVED: Final = frozenset({"node", "agent"})
_AGENT: Final = "agent"

__all__ = ["client_scopes", "is_mesh_client", "known_nodes", "other_scopes", "view_scopes"]


def is_mesh_client(node_id: str) -> bool:
    """Whether a node id is of a type that the mesh gives out; every other one is an Envoy of its own."""
    head, separator, _ = node_id.partition("~")
    return bool(separator) and (head in _SERVED or head in _NOT_YET)


def client_scopes(node_id: str, globs: Iterable[Globs]) -> tuple[str, ...]:
    """Scopes of any client, the strongest last. Raises: as `view_scopes`, for ids that only look like the mesh's."""
    if is_mesh_client(node_id):
        return view_scopes(parse_node_id(node_id), globs)
    return other_scopes(node_id, globs)


def view_scopes(node_id: NodeId, globs: Iterable[Globs] = ()) -> tuple[str, ...]:
    """Scopes that a client of the mesh sees, the strongest last: raw resources add to it and replace nothing.

    `globs` are those of the raw resources that there are. Raises: ProtocolError(UNIMPLEMENTED) for a kind of
    client that is not served yet, ProtocolError(INVALID_ARGUMENT) for one that does not exist.
    """
    if node_id.type == "node":
        return (
            *_raw_scopes(str(node_id), globs),
            envoy_names.MESH_SCOPE,
            envoy_names.SCOPE,
            envoy_names.node_scope(node_id.name),
        )
    if node_id.type == _AGENT:
        return (datapath_names.SCOPE, datapath_names.node_scope(node_id.name))
    hint = "node~<ip>~<node name>~<domain> for a node's Envoy, agent~... for its agent"
    if node_id.type in _NOT_YET:
        raise ProtocolError("UNIMPLEMENTED", f"{_NOT_YET[node_id.type]} are not supported yet", hint=hint)
    raise ProtocolError("INVALID_ARGUMENT", f"{node_id.type!r} is not a type of node id", hint=hint)


def other_scopes(node_id: str, globs: Iterable[Globs]) -> tuple[str, ...]:
    """Scopes of an Envoy that is no proxy of the mesh: its raw resources win over the mesh's."""
    return (envoy_names.MESH_SCOPE, raw_scope(()), *_raw_scopes(node_id, globs))


def _raw_scopes(node_id: str, globs: Iterable[Globs]) -> tuple[str, ...]:
    """Scopes of the raw resources that are addressed to this node id by globs, in their order."""
    return tuple(
        raw_scope(nodes) for nodes in sorted(globs) if nodes and any(glob_matches(glob, node_id) for glob in nodes)
    )
