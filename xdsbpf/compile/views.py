"""Which resources a client sees: the scopes of the store that its node id opens.

The xDS server asks when a stream opens; a node id of a kind that is not served yet gets a reason.
`known_nodes` says which nodes there are to compile for.
"""

from __future__ import annotations

from typing import Final

from xdsbpf.compile.datapath import names as datapath_names
from xdsbpf.compile.envoy import names as envoy_names
from xdsbpf.errors import ProtocolError
from xdsbpf.mesh.identities import known_nodes
from xdsbpf.model.names import NodeId

_NOT_YET: Final = {
    "sidecar": "sidecars",
    "router": "gateways",
    "waypoint": "waypoints",
    "ztunnel": "ztunnel",
}

__all__ = ["known_nodes", "view_scopes"]


def view_scopes(node_id: NodeId) -> tuple[str, ...]:
    """Scopes that a client sees, the shared one first.

    Raises: ProtocolError(UNIMPLEMENTED) for a kind of client that is not served yet,
    ProtocolError(INVALID_ARGUMENT) for one that does not exist.
    """
    if node_id.type == "node":
        return (envoy_names.MESH_SCOPE, envoy_names.SCOPE, envoy_names.node_scope(node_id.name))
    if node_id.type == "agent":
        return (datapath_names.SCOPE, datapath_names.node_scope(node_id.name))
    hint = "node~<ip>~<node name>~<domain> for a node's Envoy, agent~... for its agent"
    if node_id.type in _NOT_YET:
        raise ProtocolError("UNIMPLEMENTED", f"{_NOT_YET[node_id.type]} are not supported yet", hint=hint)
    raise ProtocolError("INVALID_ARGUMENT", f"{node_id.type!r} is not a type of node id", hint=hint)
