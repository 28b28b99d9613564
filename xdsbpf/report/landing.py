"""How what was compiled landed: clients' refusals and waits, brought home to the manifests.

In: the status of the connected clients, and the compiler, which knows what each resource was made from. Out:
findings on objects. Called by `report.objects`; looks only at what a client refused or is kept from, so that it
costs nothing while all is well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from xdsbpf.compiler import Compiler
from xdsbpf.diagnostics import Diagnostic, ObjectId, Severity
from xdsbpf.report.origins import visible
from xdsbpf.xds.status import NodeStatus

REFUSED: Final = "XB4001"
"""A client refused (NACK) the present version of a resource that was made from the object."""
WITHHELD: Final = "XB4002"
"""A resource that was made from the object waits for the node's Envoy."""

_KEEPS: Final = "the client keeps the version that it accepted last"


def landings(compiler: Compiler, statuses: Iterable[NodeStatus]) -> tuple[Diagnostic, ...]:
    """A finding per object and client that refused or waits for something made from it, each once.

    Cost: one walk over the cells below each refused or withheld resource.
    """
    found: dict[Diagnostic, None] = {}
    objects: dict[tuple[str, str, str], tuple[ObjectId, ...]] = {}
    for status in statuses:
        for type_url, name, version, code, text in _troubles(status):
            held = visible(compiler, status.scopes, type_url, name)
            if held is None or version not in ("", held[1].version):
                continue
            key = (held[0], type_url, name)
            if key not in objects:
                origins = compiler.origins(*held)
                objects[key] = tuple(sorted({origin.object for origin in origins}))
            severity = Severity.ERROR if code == REFUSED else Severity.INFO
            hint = _KEEPS if code == REFUSED else ""
            for target in objects[key]:
                found[Diagnostic(code, severity, target, "", text, hint)] = None
    return tuple(found)


def _troubles(status: NodeStatus) -> Iterator[tuple[str, str, str, str, str]]:
    """(type, name, version or "" for the present one, code, sentence) of what is not as it should be."""
    for entry in status.types:
        short = entry.type_url.rpartition(".")[2]
        for nack in entry.nacked:
            text = f"{status.node_id} refused {short} {nack.name!r}: {nack.text}"
            yield entry.type_url, nack.name, nack.version, REFUSED, text
        for waiting in entry.withheld:
            text = f"{short} {waiting.name!r} is withheld from {status.node_id}: {'; '.join(waiting.reasons)}"
            yield entry.type_url, waiting.name, "", WITHHELD, text
