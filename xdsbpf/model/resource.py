"""One xDS resource: the value that compile produces, the store keeps and a session sends."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

_BLAKE2B_64: Final = hashlib.blake2b(digest_size=8)
AS_SERVED: Final = ""
"""Version of a requirement: the one that is served to that Envoy, whichever it is."""


class Requirement(msgspec.Struct, frozen=True, order=True):
    """A resource that a node's Envoy must have ACKed before a datapath resource may leave.

    `version` is the one that the datapath resource was compiled with, or AS_SERVED.
    """

    type_url: str
    name: str
    version: str


GRPC_LIMIT = (4 << 20) - (64 << 10)
"""Bytes that a resource for gRPC clients has at most: a message of over 4 MiB costs them their stream (rule 44)."""


class Resource(msgspec.Struct, frozen=True, gc=False):
    """A named, versioned, encoded resource.

    `body` is the deterministic serialisation of the message (the `value` of its `Any`), `version`
    a hash of it, so that versions survive restarts and are equal on replicas. `on_demand`
    resources are sent only to who names them, never through a wildcard. `requires` gates the
    resource on what the same node's Envoy has ACKed. Origins are not part of it: the database
    knows them (`Database.origins`). `ttl_ms`: a client forgets it when it has not heard of it for so many milliseconds;
    0: never.
    """

    type_url: str
    name: str
    version: str
    body: bytes
    on_demand: bool = False
    requires: tuple[Requirement, ...] = ()
    ttl_ms: int = 0


def version_of(body: bytes) -> str:
    """16 hex digits of BLAKE2b-64 over the encoded bytes."""
    digest = _BLAKE2B_64.copy()  # cheaper than a new one
    digest.update(body)
    return digest.hexdigest()


def make_resource(
    type_url: str,
    name: str,
    body: bytes,
    *,
    on_demand: bool = False,
    requires: tuple[Requirement, ...] = (),
) -> Resource:
    """A resource whose version is the hash of its bytes."""
    return Resource(type_url, name, version_of(body), body, on_demand, requires)
