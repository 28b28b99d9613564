"""Which VirtualService owns a host, for which clients.

The most specific host wins (exact, then the longest wildcard); among equals, for a client namespace:
rules private to it, rules exported to it by name, public rules; then age (istio-translation 2.1 to
2.3). Rules are never merged for the mesh; who owns nothing is reported as shadowed.
"""

from __future__ import annotations

import msgspec

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import Database, query
from xdsbpf.mesh.codes import warn
from xdsbpf.mesh.inputs import VIRTUAL_SERVICES_BY_HOST, exact_key, parent_suffix, settings, suffix_keys
from xdsbpf.model.names import full_host
from xdsbpf.model.virtual_service import VirtualService

MESH_GATEWAY = "mesh"


class Owner(msgspec.Struct, frozen=True):
    """The VirtualService in force for the clients of `namespaces`; () = all others."""

    virtual_service: VirtualService
    namespaces: tuple[str, ...]


class _Candidate(msgspec.Struct, frozen=True):
    virtual_service: VirtualService
    specificity: int
    visible_to: tuple[str, ...]

    def is_visible_to(self, namespace: str) -> bool:
        return "*" in self.visible_to or namespace in self.visible_to

    def rank_for(self, namespace: str) -> tuple[int, int]:
        """Less is better; candidates of equal rank keep their age order."""
        own = self.visible_to == (self.virtual_service.namespace,) and self.virtual_service.namespace == namespace
        exported = 0 if own else 2 if "*" in self.visible_to else 1
        return (self.specificity, exported)


def _visible_to(virtual_service: VirtualService) -> tuple[str, ...]:
    names = virtual_service.spec.export_to
    if not names or "*" in names:
        return ("*",)
    return tuple(sorted({virtual_service.namespace if name == "." else name for name in names} - {"~"}))


def owners(db: Database, host: str) -> tuple[Owner, ...]:
    """Owners of a host: those for named client namespaces first, the one for all others last.

    A named namespace without an owner of its own follows the last entry; (() if nobody owns the host).
    """
    # Most services have no VirtualService: they need no cell for it.
    return _owners(db, host) if any(_covering(db, host)) else ()


@query
def _owners(db: Database, host: str) -> tuple[Owner, ...]:
    candidates = _candidates(db, host)
    if not candidates:
        return ()
    named = sorted({name for candidate in candidates for name in candidate.visible_to} - {"*"})
    public = [candidate for candidate in candidates if "*" in candidate.visible_to]
    rest = min(public, key=lambda candidate: candidate.rank_for("")) if public else None
    by_owner: dict[ObjectId, list[str]] = {}
    found: dict[ObjectId, VirtualService] = {}
    for namespace in named:
        visible = [candidate for candidate in candidates if candidate.is_visible_to(namespace)]
        best = min(visible, key=lambda candidate: candidate.rank_for(namespace)).virtual_service
        if rest is None or best.id != rest.virtual_service.id:
            by_owner.setdefault(best.id, []).append(namespace)
            found[best.id] = best
    result = [Owner(found[id], tuple(names)) for id, names in by_owner.items()]
    if rest is not None:
        result.append(Owner(rest.virtual_service, ()))
    for owner in result:
        db.cite(Origin(owner.virtual_service.id, "spec.hosts"))
    _report_shadowed(db, host, candidates, result)
    return tuple(result)


def _candidates(db: Database, host: str) -> list[_Candidate]:
    """Mesh VirtualServices with a host that covers `host`, by specificity, then age."""
    candidates: list[_Candidate] = []
    seen: set[ObjectId] = set()
    for specificity, group in enumerate(_covering(db, host)):
        for virtual_service in group:
            visible_to = _visible_to(virtual_service)
            if virtual_service.id in seen or not visible_to or not is_for_mesh(virtual_service):
                continue
            seen.add(virtual_service.id)
            candidates.append(_Candidate(virtual_service, specificity, visible_to))
    return sorted(candidates, key=lambda candidate: (candidate.specificity, *_age(candidate.virtual_service)))


def _covering(db: Database, host: str) -> tuple[tuple[VirtualService, ...], ...]:
    """VirtualServices for a host itself, then those for each wildcard that covers it, the most specific first."""
    near = db.bucket(VIRTUAL_SERVICES_BY_HOST, exact_key(host))
    return (tuple(found for found in near if _names(db, found, host)), *_wildcards(db, parent_suffix(host)))


def _names(db: Database, virtual_service: VirtualService, host: str) -> bool:
    domain = settings(db).domain
    hosts = virtual_service.spec.hosts
    return any(full_host(written, virtual_service.namespace, domain) == host for written in hosts)


@query
def _wildcards(db: Database, suffix: str) -> tuple[tuple[VirtualService, ...], ...]:
    """VirtualServices for wildcards that cover `*<suffix>`, by pattern, the most specific first."""
    return tuple(db.bucket(VIRTUAL_SERVICES_BY_HOST, key) for key in suffix_keys(suffix))


def _age(virtual_service: VirtualService) -> tuple[bool, str, str, str]:
    """Creation time (none last), name, namespace (istio-translation 2.1)."""
    created = virtual_service.metadata.creation_timestamp
    return (created is None, created or "", virtual_service.name, virtual_service.namespace)


def _report_shadowed(db: Database, host: str, candidates: list[_Candidate], result: list[Owner]) -> None:
    owning = {owner.virtual_service.id for owner in result}
    for candidate in candidates:
        id = candidate.virtual_service.id
        # A wildcard that yields to an exact host works as meant.
        if id not in owning and not candidate.specificity:
            warn(
                db,
                "XB2030",
                id,
                "spec.hosts",
                f"SHADOWED-BY {result[-1].virtual_service.id} for {host}: the oldest VirtualService owns it",
                "put the routes of a host into one VirtualService",
            )


def is_for_mesh(virtual_service: VirtualService) -> bool:
    """Whether it is for clients inside the mesh: `gateways` empty or with "mesh"."""
    return not virtual_service.spec.gateways or MESH_GATEWAY in virtual_service.spec.gateways
