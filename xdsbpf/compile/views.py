"""Which resources a client sees: the scopes of the store that its node id opens.

The xDS server asks when a stream opens; a node id of a kind that is not served yet gets a reason.
`known_nodes` says which nodes there are to compile for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final
from urllib.parse import quote

import msgspec

from xdsbpf.compile.client_metadata import check_interception
from xdsbpf.compile.datapath import names as datapath_names
from xdsbpf.compile.envoy import names as envoy_names
from xdsbpf.compile.proxyless import names as grpc_names
from xdsbpf.compile.raw.resources import Globs, grpc_scope, raw_scope
from xdsbpf.compile.sidecar import names as sidecar_names
from xdsbpf.errors import ProtocolError
from xdsbpf.mesh.clients import Client
from xdsbpf.mesh.identities import known_nodes
from xdsbpf.model.globs import glob_matches
from xdsbpf.model.names import NodeId, parse_node_id
from xdsbpf.model.scalars import Labels

_SIDECAR_HINT: Final = "sidecar~<ip>~<pod>.<namespace>~<namespace>.svc.<domain>"
_NOT_YET: Final = {
    "router": "gateways",
    "waypoint": "waypoints",
    "ztunnel": "ztunnel",
}
_SERVED: Final = frozenset({"node", "agent", "sidecar"})
_AGENT: Final = "agent"

GRPC: Final = "grpc"
SIDECAR: Final = "sidecar"

__all__ = ["ClientView", "client_scopes", "client_view", "is_mesh_client", "known_nodes", "other_scopes", "view_scopes"]


class ClientView(msgspec.Struct, frozen=True, order=True):
    """What the clients of one kind, namespace and labels see; compiled while any of them is connected."""

    kind: str
    client: Client

    @property
    def scope(self) -> str:
        """Store scope of what only these clients see."""
        labels = ",".join(f"{quote(key)}={quote(value)}" for key, value in self.client.labels)
        return f"{self.kind}/{quote(self.client.namespace)}/{labels}"

    @property
    def scopes(self) -> tuple[str, ...]:
        """Scopes that these clients see, the strongest last."""
        shared = grpc_names.SCOPE if self.kind == GRPC else sidecar_names.SCOPE
        return (envoy_names.MESH_SCOPE, shared, self.scope)


def client_view(
    node_id: str, metadata: Mapping[str, object], labels_of: Callable[[str, str], Labels | None]
) -> ClientView | None:
    """The view of a sidecar or proxyless gRPC client; None for every other kind of client.

    `labels_of(namespace, pod)` are the labels of a pod, None if it is not known: then what the client says of itself
    counts. A gRPC client shows in its user agent, or by GENERATOR; who it is, in an id of a sidecar's form, or in
    NAMESPACE only. Raises: ProtocolError for an id or metadata that contradict themselves or ask for too much.
    """
    agent = str(metadata.get("node.user_agent_name", ""))
    is_grpc = metadata.get("GENERATOR") == GRPC or agent.lower().startswith(GRPC)
    claimed = metadata.get("NAMESPACE", "")
    if not is_mesh_client(node_id):
        return ClientView(GRPC, Client(str(claimed), _labels(metadata))) if is_grpc else None
    if node_id.partition("~")[0] != SIDECAR:
        return None
    pod, dot, namespace = parse_node_id(node_id).name.rpartition(".")
    if not dot or not pod or not namespace:
        raise ProtocolError("INVALID_ARGUMENT", f"{node_id!r} names no <pod>.<namespace>", hint=_SIDECAR_HINT)
    if claimed not in ("", namespace):
        raise ProtocolError("INVALID_ARGUMENT", f"NAMESPACE is {claimed!r}, the node id says {namespace!r}")
    if not is_grpc:
        check_interception(metadata)
    known = labels_of(namespace, pod)
    labels = _labels(metadata) if known is None else known
    return ClientView(GRPC if is_grpc else SIDECAR, Client(namespace, labels))


def _labels(metadata: Mapping[str, object]) -> Labels:
    """The labels that a client gives itself."""
    labels = metadata.get("LABELS")
    if not isinstance(labels, Mapping):
        return ()
    return tuple(sorted((str(key), str(value)) for key, value in labels.items()))


def is_mesh_client(node_id: str) -> bool:
    """Whether a node id is of a type that the mesh gives out; every other one is an Envoy of its own."""
    head, separator, _ = node_id.partition("~")
    return bool(separator) and (head in _SERVED or head in _NOT_YET)


def client_scopes(node_id: str, globs: Iterable[Globs], own: ClientView | None = None) -> tuple[str, ...]:
    """Scopes of any client, the strongest last; `own` is its `client_view`.

    Raises: as `view_scopes`, for ids that only look like the mesh's.
    """
    if own is not None:
        return own_scopes(node_id, globs, own)
    if is_mesh_client(node_id):
        return view_scopes(parse_node_id(node_id), globs)
    return other_scopes(node_id, globs)


def own_scopes(node_id: str, globs: Iterable[Globs], own: ClientView) -> tuple[str, ...]:
    """Scopes of a sidecar or gRPC client, the strongest last.

    Raw resources add to what a client of the mesh sees, and win over it where the node id is not of the mesh's form.
    """
    is_mesh = is_mesh_client(node_id)
    lists = (*(() if is_mesh else ((),)), *_matching(node_id, globs))
    if own.kind == GRPC:
        raw = tuple(scope for nodes in lists for scope in (raw_scope(nodes), grpc_scope(nodes)))
    else:
        raw = tuple(map(raw_scope, lists))
    return (*raw, *own.scopes) if is_mesh else (*own.scopes, *raw)


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
        return (
            *(datapath_names.raw_scope(nodes) for nodes in sorted(globs) if _names_agent(nodes, node_id)),
            datapath_names.SCOPE,
            datapath_names.node_scope(node_id.name),
        )
    hint = "node~<ip>~<node name>~<domain> for a node's Envoy, agent~... for its agent"
    if node_id.type in _NOT_YET:
        raise ProtocolError("UNIMPLEMENTED", f"{_NOT_YET[node_id.type]} are not supported yet", hint=hint)
    raise ProtocolError("INVALID_ARGUMENT", f"{node_id.type!r} is not a type of node id", hint=hint)


def other_scopes(node_id: str, globs: Iterable[Globs]) -> tuple[str, ...]:
    """Scopes of an Envoy that is no proxy of the mesh: its raw resources win over the mesh's."""
    return (envoy_names.MESH_SCOPE, raw_scope(()), *_raw_scopes(node_id, globs))


def _names_agent(globs: Globs, node_id: NodeId) -> bool:
    """Whether globs name an agent: by its node's name, or by its id; none name every agent."""
    return not globs or any(glob_matches(glob, text) for glob in globs for text in (node_id.name, str(node_id)))


def _raw_scopes(node_id: str, globs: Iterable[Globs]) -> tuple[str, ...]:
    """Scopes of the raw resources that are addressed to this node id by globs, in their order."""
    return tuple(map(raw_scope, _matching(node_id, globs)))


def _matching(node_id: str, globs: Iterable[Globs]) -> tuple[Globs, ...]:
    """The lists of globs that name this node id, in their order."""
    return tuple(nodes for nodes in sorted(globs) if any(glob_matches(glob, node_id) for glob in nodes))
