"""Rows of `xdsbpf ps`: what every connected client has of every type that it asked for.

In: the status of the streams, the compiler (what a resource was made from) and the catalog (where that is written).
Out: the documented shape of `xdsbpf ps -o json` as structs. Called by the admin endpoint. Fields may be added to it,
none goes away or changes its meaning.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from xdsbpf.compiler import Compiler
from xdsbpf.model.names import short_name
from xdsbpf.report.origins import manifest_places
from xdsbpf.sources.catalog import Catalog
from xdsbpf.xds.status import NodeStatus, TypeStatus


class RefusedRow(msgspec.Struct, frozen=True):
    """A resource that the client refused in this version, in its own words.

    Is it one of several, it is in quarantine: the client keeps what it had of it and gets the others. `manifests` are
    `file:line object path` of what it was made from, [] once it is gone.
    """

    name: str
    version: str
    error: str
    manifests: tuple[str, ...] = ()


class WithheldRow(msgspec.Struct, frozen=True):
    """A resource that waits for the Envoy of the same node; `reasons` are sentences."""

    name: str
    reasons: tuple[str, ...]


class TypeRow(msgspec.Struct, frozen=True):
    """One type of one client.

    `state` is the first of these that applies. NACKED: the client refuses something of it, see `error` and `nacked`.
    STALE: no answer to a response for 60 s. PENDING: something is not answered, not sent or withheld. NOT-SENT: there
    is nothing of it for this client. SYNCED: it has everything, and said so.

    `version` is what the last response said of itself, `acked_version` the last one that was accepted: the number of
    the server's revision, or `version_info` for state of the world. `held` resources were sent or claimed, `accepted`
    of them were taken; an agent takes what is in force in its kernel. `subscribed` names were asked for one by one.
    Seconds since then: `sent_age_s`, `acked_age_s`, `nacked_age_s`; `waits_s` of the oldest response without an answer;
    null for what never happened.
    """

    type: str
    type_url: str
    state: str
    wildcard: bool
    subscribed: int
    held: int
    accepted: int
    version: str
    acked_version: str
    sent_age_s: float | None
    acked_age_s: float | None
    nacked_age_s: float | None
    waits_s: float | None
    error: str
    nacked: tuple[RefusedRow, ...]
    withheld: tuple[WithheldRow, ...]


class ProxyRow(msgspec.Struct, frozen=True):
    """One stream of a client; `node` is "" for one that belongs to no node, `variant` is `delta` or `sotw`."""

    node_id: str
    kind: str
    node: str
    variant: str
    connected_s: float
    types: tuple[TypeRow, ...]


def proxy_rows(statuses: Iterable[NodeStatus], compiler: Compiler, catalog: Catalog) -> list[ProxyRow]:
    """One per stream, its types in push order. Cost: one walk over the cells below each refused resource."""
    return [
        ProxyRow(
            node_id=status.node_id,
            kind=status.kind,
            node=status.node,
            variant=status.variant,
            connected_s=round(status.age_s, 3),
            types=tuple(_type_row(entry, status.scopes, compiler, catalog) for entry in status.types),
        )
        for status in statuses
    ]


def _type_row(entry: TypeStatus, scopes: tuple[str, ...], compiler: Compiler, catalog: Catalog) -> TypeRow:
    refused = (
        RefusedRow(
            nack.name,
            nack.version,
            nack.text,
            manifest_places(compiler, catalog, scopes, entry.type_url, nack.name),
        )
        for nack in entry.nacked
    )
    return TypeRow(
        type=short_name(entry.type_url),
        type_url=entry.type_url,
        state=entry.state.value,
        wildcard=entry.wildcard,
        subscribed=entry.subscribed,
        held=entry.held,
        accepted=entry.accepted,
        version=entry.version,
        acked_version=entry.acked_version,
        sent_age_s=_rounded(entry.sent_age_s),
        acked_age_s=_rounded(entry.acked_age_s),
        nacked_age_s=_rounded(entry.nacked_age_s),
        waits_s=_rounded(entry.waits_s),
        error=entry.error,
        nacked=tuple(refused),
        withheld=tuple(WithheldRow(waiting.name, waiting.reasons) for waiting in entry.withheld),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
