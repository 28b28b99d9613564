"""A raw Envoy resource: what a user wrote for Envoy itself, encoded, with the proxies that may see it.

Read by `sources.envoy_reader`; served as it is. It is a manifest like the others, so that it has one state, an
origin and a place in a file.
"""

from __future__ import annotations

from typing import Final

from xdsbpf.diagnostics import ObjectId
from xdsbpf.model.meta import Manifest, ObjectMeta
from xdsbpf.model.names import TYPE_PREFIX

KIND: Final = "EnvoyResource"
GROUP: Final = "envoy"


class EnvoyResource(Manifest, frozen=True, kw_only=True):
    """One resource: `body` is the encoded message, `version` as written, or "" for the hash of the body.

    `metadata.namespace` is the short type (`Cluster`) and `metadata.name` the name, followed by `@` and the globs
    if there are any: the same name for other proxies is another object. `nodes` are globs of node ids, sorted;
    none means every Envoy that is no proxy of the mesh. `ttl_ms`: see `Resource`.
    """

    type_url: str
    resource_name: str
    body: bytes
    version: str = ""
    nodes: tuple[str, ...] = ()
    ttl_ms: int = 0


def resource_id(type_url: str, name: str, nodes: tuple[str, ...]) -> ObjectId:
    """`EnvoyResource/Cluster/<name>`, or `EnvoyResource/Cluster/<name>@<glob>,<glob>`."""
    short = type_url.removeprefix(TYPE_PREFIX).rpartition(".")[2]
    suffix = f"@{','.join(nodes)}" if nodes else ""
    return ObjectId(KIND, short, f"{name}{suffix}", GROUP)


def make_envoy_resource(
    type_url: str, name: str, body: bytes, *, version: str = "", nodes: tuple[str, ...] = (), ttl_ms: int = 0
) -> EnvoyResource:
    """The resource with the metadata that goes with its type, name and globs."""
    id = resource_id(type_url, name, nodes)
    metadata = ObjectMeta(name=id.name, namespace=id.namespace)
    return EnvoyResource(
        metadata=metadata,
        type_url=type_url,
        resource_name=name,
        body=body,
        version=version,
        nodes=nodes,
        ttl_ms=ttl_ms,
    )
