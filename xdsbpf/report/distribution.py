"""Whether what manifests say is in force everywhere, and who is in the way: the answer behind `xdsbpf wait`.

In: the objects that somebody waits for, each with the digest of its content ("": it is to be gone), and the parts of a
running server. Out: one `Distribution` for this moment. Called by the admin endpoint; decides nothing, keeps nothing.

The order is that of a change on its way: read, compiled, answered by every client up to the barrier of the change,
accepted resource by resource. The last step looks for what was made from the objects, which costs a walk over the
database, so it is taken only when the others are done, or when a client refuses something.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from xdsbpf.compile.views import client_scopes
from xdsbpf.compiler import Compiler
from xdsbpf.diagnostics import ObjectId
from xdsbpf.incremental import Absent
from xdsbpf.model.names import short_name
from xdsbpf.model.resource import Resource
from xdsbpf.sources.catalog import Catalog
from xdsbpf.sources.digest import content_digest
from xdsbpf.xds.barriers import Barriers, Span
from xdsbpf.xds.confirmation import Gap, Missing, behind, gaps
from xdsbpf.xds.pacing import unhurried
from xdsbpf.xds.publisher import Slot
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.session import Session
from xdsbpf.xds.store import AGENT, NODE_ENVOY

MAX_LISTED: Final = 20
"""Missing resources that are listed per client; the rest is counted."""

_ID_TYPES: Final = {AGENT: "agent", NODE_ENVOY: "node"}


class Verdict(enum.StrEnum):
    """`done`: in force everywhere. `waiting`: not yet. `failed`: not until somebody repairs something."""

    DONE = "done"
    WAITING = "waiting"
    FAILED = "failed"


class Awaited(msgspec.Struct, frozen=True):
    """An object that is waited for; `digest` is "" for one that is to be gone."""

    kind: str
    name: str
    digest: str
    namespace: str = ""
    group: str = ""

    @property
    def id(self) -> ObjectId:
        return ObjectId(self.kind, self.namespace, self.name, self.group)


class ObjectProgress(msgspec.Struct, frozen=True):
    """How far the server is with one object: `current`, `not-read`, `compiling` or `not-built`."""

    object: str
    state: str
    reason: str = ""


class MissingResource(msgspec.Struct, frozen=True):
    """What a client has not taken over; an empty name stands for something of that type. States: `Missing`."""

    type: str
    name: str
    state: str
    reason: str


class ClientProgress(msgspec.Struct, frozen=True):
    """How far one client is: `confirmed`, `waiting`, `refused` or `not-connected`.

    `node_id` is "" for one that is not there; `more` counts what is missing and not listed.
    """

    node_id: str
    kind: str
    node: str
    state: str
    reason: str = ""
    missing: tuple[MissingResource, ...] = ()
    more: int = 0


class Distribution(msgspec.Struct, frozen=True):
    """One moment. `resources` were made from the objects; 0 while that was not looked at."""

    verdict: Verdict
    reason: str
    objects: tuple[ObjectProgress, ...]
    clients: tuple[ClientProgress, ...] = ()
    resources: int = 0


class Distributor:
    """Answers for one server. `look` may be called as often as somebody likes to know."""

    def __init__(self, compiler: Compiler, catalog: Catalog, server: XdsServer, barriers: Barriers) -> None:
        self._compiler = compiler
        self._catalog = catalog
        self._server = server
        self._barriers = barriers

    async def look(self, awaited: Iterable[Awaited], *, connected_only: bool = False) -> Distribution:
        """Where the objects are at this moment; `connected_only`: who is away is not missed.

        A client that was found to have everything keeps it unless something changes again, so that clients are looked
        at one after the other, and others are served in between.
        """
        wanted = tuple(awaited)
        progress = tuple([self._object(entry) async for entry in unhurried(wanted)])
        if any(entry.state != "current" for entry in progress):
            pending = sum(entry.state != "current" for entry in progress)
            reason = f"{pending} of {len(progress)} objects are not in force on the server"
            return Distribution(Verdict.WAITING, reason, progress)
        ids = frozenset(entry.id for entry in wanted)
        spans = [span for span in map(self._barriers.of, ids) if span.until]
        span = Span(min((one.since for one in spans), default=0), max((one.until for one in spans), default=0))
        late = {session: tuple(behind(session, span)) async for session in unhurried(self._sessions())}
        refusing = any(asked.nacks for session in late for asked in session.subscriptions())
        failures = self._compiler.publisher.failures
        slots: set[Slot] = set()
        if refusing or failures or not any(late.values()):
            slots = self._compiler.made_from(ids)
        broken = [f"{slot.name or slot.type_url}: {failures[slot]}" for slot in sorted(slots & failures.keys())]
        if broken:
            progress = tuple(msgspec.structs.replace(entry, state="not-built") for entry in progress)
            return Distribution(Verdict.FAILED, f"not everything could be built: {broken[0]}", progress)
        made: dict[str, list[Resource]] = {}
        for slot in sorted(slots):
            resource = self._server.store.lookup((slot.scope,), slot.type_url, slot.name)
            if resource is not None:
                made.setdefault(slot.scope, []).append(resource)
        clients = [self._client(session, missing, made) async for session, missing in unhurried(late.items())]
        if not connected_only:
            is_removal = any(not entry.digest for entry in wanted)
            clients += self._absent(late.keys(), made, is_removal=is_removal)
        clients.sort(key=lambda client: (client.kind, client.node, client.node_id))
        return _judged(progress, tuple(clients), sum(map(len, made.values())))

    def _object(self, awaited: Awaited) -> ObjectProgress:
        object_id = awaited.id
        # What was read reaches the compiler a moment later: the compiler's word counts.
        applied = self._compiler.get(object_id)
        if applied is None:
            applied = self._catalog.get(object_id)
        found = "" if applied is None or isinstance(applied, Absent) else content_digest(applied)
        if found != awaited.digest:
            return ObjectProgress(str(object_id), "not-read", self._why_not_read(object_id, awaited.digest))
        if not self._barriers.is_published(object_id):
            return ObjectProgress(str(object_id), "compiling", "the server is compiling it")
        return ObjectProgress(str(object_id), "current")

    def _why_not_read(self, object_id: ObjectId, digest: str) -> str:
        places = self._catalog.states_of(object_id)
        if not places:
            return "the server has not read it yet: does it watch the file?"
        where = ", ".join(f"{status.location} is {status.state}" for status in places)
        if any(status.detail for status in places):
            where += f" ({next(status.detail for status in places if status.detail)})"
        return f"the server has another content, {where}" if digest else f"the server still has it, {where}"

    def _sessions(self) -> list[Session]:
        """Every stream; of several of one node's client the newest: the others are dead and not known to be."""
        newest: dict[tuple[str, ...], Session] = {}
        for session in self._server.streams.sessions():
            view = session.view
            key = (view.kind, view.node) if view.node else (view.kind, "", str(id(session)))
            if key not in newest or newest[key].opened_at <= session.opened_at:
                newest[key] = session
        return list(newest.values())

    def _client(self, session: Session, late: tuple[Gap, ...], made: dict[str, list[Resource]]) -> ClientProgress:
        view, server = session.view, self._server
        wanted = (resource for scope in view.scopes for resource in made.get(scope, ()))
        missing = (*gaps(session, server.gate, server.store, wanted), *late)
        is_refused = any(gap.missing is Missing.REFUSED for gap in missing)
        state = "refused" if is_refused else "waiting" if missing else "confirmed"
        listed = sorted(missing, key=lambda gap: gap.missing is not Missing.REFUSED)[:MAX_LISTED]
        rows = tuple(MissingResource(short_name(gap.type_url), gap.name, gap.missing, gap.reason) for gap in listed)
        more = len(missing) - len(rows)
        return ClientProgress(session.node_id, view.kind, view.node, state, missing=rows, more=more)

    def _absent(
        self, sessions: Iterable[Session], made: dict[str, list[Resource]], *, is_removal: bool
    ) -> Iterator[ClientProgress]:
        """Clients of the mesh's nodes that are to have something of it and are not there.

        Of kinds of which one was seen since the server started: a mesh may do without agents or Envoys.
        """
        present = {(session.view.kind, session.view.node) for session in sessions}
        roster, now = self._server.streams.roster, time.monotonic()
        for kind, id_type in _ID_TYPES.items():
            for node in self._compiler.nodes if kind in roster.kinds else ():
                if (kind, node) in present:
                    continue
                scopes = client_scopes(f"{id_type}~~{node}~", self._compiler.globs)
                if is_removal or not made.keys().isdisjoint(scopes):
                    left_at = roster.left_at(kind, node)
                    when = "since the control plane started" if left_at is None else f"for {now - left_at:.0f} s"
                    yield ClientProgress("", kind, node, "not-connected", f"not connected {when}")


def _judged(objects: tuple[ObjectProgress, ...], clients: tuple[ClientProgress, ...], resources: int) -> Distribution:
    missing = [client for client in clients if client.state != "confirmed"]
    refused = sum(client.state == "refused" for client in clients)
    if refused:
        verdict, reason = Verdict.FAILED, f"{refused} of {len(clients)} clients refuse something of it"
    elif missing:
        verdict, reason = Verdict.WAITING, f"{len(missing)} of {len(clients)} clients do not have all of it"
    elif not clients:
        verdict, reason = Verdict.WAITING, "no proxy and no agent is connected"
    else:
        verdict, reason = Verdict.DONE, f"{len(clients)} clients have all of it"
    return Distribution(verdict, reason, objects, clients, resources)
