"""State of one (stream, type): what is subscribed, what the client holds, what is owed to it.

In: subscribe and unsubscribe lists, claims, ACKs and NACKs. Out: queues of names that `xds.session` turns
into responses. Holds names and versions only, never bytes, so a stalled stream stays small. Pure.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

from xdsbpf.errors import ProtocolError
from xdsbpf.model import names as model_names
from xdsbpf.model.resource import Requirement, Resource
from xdsbpf.xds import protocol, shared
from xdsbpf.xds.interest import Listening
from xdsbpf.xds.shared import SharedPage
from xdsbpf.xds.waits import Waiting

MAX_GLOBS = 100
"""Glob collections of one type on one stream: each is compared with every name of the type."""
NAME_COST: Final = 96
"""Bytes that a name is taken to cost beside its own length: here, and in the index of who listens."""
NO_CHANGE: Final = 0
"""Stamp of a response that brings nothing new."""
WHOLE_SET: Final = ""
"""Stands for all resources of a type where one is named."""


class Wildcard(enum.Enum):
    """Whether a type is subscribed as a whole; LEGACY came from an empty first request, not from `*`."""

    NONE = "none"
    LEGACY = "legacy"
    EXPLICIT = "explicit"


class Sent(msgspec.Struct, frozen=True):
    """A response that has no ACK or NACK yet; `stamp` is of the oldest change in it, `at` the clock's.

    `versions` are of the resources that are new to the client, `state` is the whole set where a response is one.
    `version` is what the client was told of the response as a whole, `uses` are the clusters that each of its listeners
    or routes names.
    """

    versions: dict[str, str]
    removed: tuple[str, ...]
    stamp: int
    at: float
    state: dict[str, Resource] | None = None
    version: str = ""
    uses: Mapping[str, frozenset[str]] = {}


class Nack(msgspec.Struct, frozen=True):
    """The client's refusal of one version of one resource; not `is_certain` if its text names none of several."""

    version: str
    text: str
    is_certain: bool = True


class Subscription:
    """One type on one stream. Queues map a name to the stamp of the change that put it there."""

    __slots__ = (
        "accepted",
        "acked_at",
        "acked_version",
        "announced",
        "answer_due",
        "asked",
        "backlog",
        "backlog_named",
        "backlog_stamp",
        "changed_again",
        "crossed",
        "dirty",
        "first_stamp",
        "forced",
        "globs",
        "held",
        "in_flight",
        "is_first",
        "kept",
        "last_error",
        "last_heartbeat",
        "last_nonce",
        "last_revision",
        "last_version",
        "listening",
        "nacked_at",
        "nacks",
        "name_bytes",
        "names",
        "removals",
        "sent_at",
        "state",
        "too_large",
        "type_url",
        "unknown_uses",
        "unusable",
        "uses",
        "waiting",
        "wildcard",
        "withheld",
    )

    def __init__(self, type_url: str, first_stamp: int, listening: Listening) -> None:
        self.type_url = type_url
        self.listening = listening
        """Told of every name that comes or goes; of wildcards and globs after each request."""
        self.first_stamp = first_stamp
        """Of the first request for the type."""
        self.wildcard = Wildcard.NONE
        self.names: set[str] | frozenset[str] = frozenset()
        """Shared with other streams until it changes."""
        self.name_bytes = 0
        """What the names and claims of this client cost at most: peers choose how long they are."""
        self.asked: tuple[str, ...] | None = None
        """State of the world only: the names of the last request."""
        self.globs: set[str] = set()
        """Glob collections (`xdstp://authority/type/path/*`): every name below a path."""
        self.held: dict[str, str] = {}
        """name -> version that the client holds as far as we know: sent on this stream, or claimed."""
        self.forced: dict[str, int] = {}
        """Names to answer at once, current or not."""
        self.dirty: dict[str, int] = {}
        """Names that may differ from `held`."""
        self.changed_again: dict[str, int] = {}
        """Names that changed once more while they waited in `dirty`, with the stamp of the last change."""
        self.backlog: deque[SharedPage] | None = None
        """What a question that starts from nothing is still to be answered, in pages shared with other streams."""
        self.backlog_stamp = 0
        self.backlog_named = False
        self.removals: dict[str, int] = {}
        """Names known to be gone, waiting for their turn."""
        self.withheld: dict[str, tuple[Requirement, ...]] = {}
        self.waiting: dict[str, Waiting] = {}
        """Listeners and routes that wait for clusters, see `xds.guard`."""
        self.uses: dict[str, frozenset[str]] = {}
        """Clusters that the accepted version of a listener or route names."""
        self.unknown_uses: set[str] = set()
        """Listeners and routes that the client has from another stream in a version that nobody knows any more, so that
        they may name any cluster; WHOLE_SET for a whole set."""
        self.crossed: set[str] = set()
        """State of the world only: names given up in a request that crossed the response which is out."""
        self.unusable: set[str] = set()
        """Clusters only: sent for the first time, and not accepted yet."""
        self.kept: dict[str, str] = {}
        """Clusters only: gone, and named by what the client has: the name of that resource."""
        self.too_large: dict[str, int] = {}
        """Resources that are not sent, because a message of that many bytes is more than the client takes; WHOLE_SET
        for all of them together."""
        self.is_first = True
        """What was there at the first request has not been sent as a whole yet."""
        self.announced: set[str] = set()
        """Withheld names that the client knows to exist, though it was sent no content."""
        self.answer_due = False
        """A wildcard subscription that has not been answered: an empty response is owed."""
        self.in_flight: dict[str, Sent] = {}
        self.nacks: dict[str, Nack] = {}
        self.state: dict[str, Resource] = {}
        """Whole sets only: the last one sent."""
        self.accepted: dict[str, Resource] | None = {}
        """Whole sets only: the last one that the client took; None if it has one of another stream."""
        self.last_error = ""
        self.last_nonce = ""
        self.last_heartbeat = ""
        """Nonce of the last response that said only that resources are still there."""
        self.last_version = ""
        """What the last response said of itself, and when it went out; below, of the last one that was accepted."""
        self.sent_at: float | None = None
        self.acked_version = ""
        self.acked_at: float | None = None
        self.nacked_at: float | None = None
        self.last_revision = 0

    @property
    def is_wildcard(self) -> bool:
        return self.wildcard is not Wildcard.NONE

    @property
    def has_work(self) -> bool:
        """Whether anything waits to be sent, now or after an ACK."""
        return bool(self.forced or self.dirty or self.removals or self.answer_due or self.backlog)

    @property
    def has_names_queued(self) -> bool:
        return bool(self.forced or self.dirty or self.backlog)

    def covers(self, name: str) -> bool:
        """Whether the client asked for `name`, alone or with others; what is on demand must be in `names`."""
        return name in self.names or self.is_wildcard or self.in_glob(name)

    def in_glob(self, name: str) -> bool:
        return any(protocol.glob_matches(glob, name) for glob in self.globs)

    def mark(self, name: str, stamp: int) -> None:
        """The name may have changed: look at it when the type is next sent. The oldest stamp stays in `dirty`.

        A name that is to be answered anyway is not queued twice: the answer is made of the newest content.
        """
        self._is_back(name)
        if name not in self.forced and self.dirty.setdefault(name, stamp) != stamp:
            self.changed_again[name] = stamp

    def resume_waiting(self) -> None:
        """Look again at what waits for clusters, before anything newer."""
        again = {name: entry.stamp for name, entry in self.waiting.items() if name not in self.forced}
        self.changed_again |= {name: stamp for name, stamp in self.dirty.items() if name in again}
        self.dirty = again | {name: stamp for name, stamp in self.dirty.items() if name not in again}

    def force(self, name: str, stamp: int) -> None:
        """The name must be answered, even if the client holds the current version; once, so not on a page as well."""
        if self.backlog and any(name in page.versions or name in page.missing for page in self.backlog):
            self.unfold_backlog()
        self._is_back(name)
        # An answer to a question takes along the change that waited: removals that belong to it wait for the answer.
        self.forced.setdefault(name, min(stamp, self.dirty.pop(name, stamp)))

    def _is_back(self, name: str) -> None:
        """What was known to be gone is to be looked at anew."""
        if self.removals:
            self.removals.pop(name, None)
            self.kept.pop(name, None)

    def remove(self, name: str, stamp: int) -> None:
        """The name is gone, `stamp` is that of the queue it was in: it leaves after what changed before it went."""
        self.removals.setdefault(name, max(stamp, self.changed_again.get(name, stamp)))

    def queue_pages(self, pages: Iterable[SharedPage], stamp: int, *, named: bool) -> None:
        """Answer with these pages, in order; `named`: their names were asked for, and wait for no ACK."""
        if not self.backlog:
            self.backlog, self.backlog_stamp, self.backlog_named = deque(), stamp, named
        self.backlog.extend(pages)

    def unfold_backlog(self) -> None:
        """Queue the names of pages one by one instead: some of them are about to be treated differently."""
        pages, self.backlog = self.backlog or (), None
        for page in pages:
            for name in page.names:
                if name in self.names:
                    self.force(name, self.backlog_stamp)
                else:
                    self.mark(name, self.backlog_stamp)

    def subscribe(self, names: tuple[str, ...]) -> bool:
        """Add names; true if `*` was among them. Raises: ProtocolError for too many globs."""
        plain = shared.plain_names(names) if len(names) >= shared.MIN_NAMES and not self.names else None
        if plain is not None:
            self.add_names(plain)
            return False
        star = False
        for name in names:
            if name == protocol.WILDCARD:
                self.wildcard = Wildcard.EXPLICIT
                star = True
            elif name not in self.names:
                self._add_name(name)
                self.name_bytes += len(name) + NAME_COST
                # The catch-all virtual host of a route configuration is called `<route configuration>/*`.
                if self.type_url != model_names.VIRTUAL_HOST and protocol.is_glob(name):
                    self.globs.add(name)
                    if len(self.globs) > MAX_GLOBS:
                        text = f"more than {MAX_GLOBS} globs of {self.type_url} subscribed on one stream"
                        raise ProtocolError("RESOURCE_EXHAUSTED", text)
        return star

    def add_names(self, names: frozenset[str]) -> None:
        """Add new names that are neither `*` nor globs; the first ones stay shared with other streams."""
        self.charge(names)
        if self.names:
            self._own_names().update(names)
        else:
            self.names = names
        self.listening.share(names, self.names)

    def charge(self, texts: Collection[str]) -> None:
        """Count what these cost, names or claims."""
        self.name_bytes += sum(map(len, texts)) + NAME_COST * len(texts)

    def unsubscribe(self, names: Iterable[str], stamp: int) -> list[str]:
        """Drop names, unknown ones are ignored; returns what the client is taken to have forgotten.

        A name dropped under a wildcard is answered instead: with the resource if the wildcard still covers
        it, else as removed.
        """
        forgotten: list[str] = []
        self.unfold_backlog()
        for name in names:
            if name == protocol.WILDCARD:
                if self.is_wildcard:
                    self.wildcard = Wildcard.NONE
                    self.answer_due = False
                    forgotten.extend(other for other in self._queued() if not self.covers(other))
            elif name in self.names:
                own = self._own_names()
                own.discard(name)
                self.listening.drop(name, own)
                self.name_bytes -= len(name) + NAME_COST
                if name in self.globs:
                    self.globs.discard(name)
                    forgotten.extend(other for other in self._queued() if not self.covers(other))
                elif self.is_wildcard or self.in_glob(name):
                    self.force(name, stamp)
                else:
                    forgotten.append(name)
        for name in forgotten:
            self.forget(name)
        return forgotten

    def forget(self, name: str) -> None:
        """The client has nothing of that name any more, and is owed nothing."""
        for queue in (self.held, self.forced, self.dirty, self.removals, self.withheld, self.nacks):
            queue.pop(name, None)
        for record in (self.waiting, self.uses, self.kept, self.too_large):
            record.pop(name, None)
        for names in (self.announced, self.unusable, self.unknown_uses):
            names.discard(name)

    def oldest_unacked(self) -> int | None:
        """Stamp of the oldest change that was not sent, or sent and not answered; None if all is settled.

        What waits for a refused cluster may wait for ever: it keeps no removal, but those of what the client uses.
        """
        stamps = [sent.stamp for sent in self.in_flight.values() if sent.versions]
        stamps.extend(min(queue.values()) for queue in (self.forced, self.dirty) if queue)
        stamps.extend(entry.stamp for entry in self.waiting.values() if entry.until != math.inf)
        if self.backlog:
            stamps.append(self.backlog_stamp)
        return min(stamps, default=None)

    def oldest_waiting(self) -> float:
        """Stamp of the oldest change or question that waits to be sent, but for removals; infinity if none does."""
        oldest = min((min(queue.values()) for queue in (self.forced, self.dirty) if queue), default=math.inf)
        return min(oldest, self.backlog_stamp) if self.backlog else oldest

    def is_asked(self, name: str) -> bool:
        """Whether an answer about `name` is still to be sent."""
        return name in self.forced or any(name in page.versions or name in page.missing for page in self.backlog or ())

    def is_settled(self, name: str) -> bool:
        """Whether the client owes no answer about `name`, and did not refuse it."""
        if name in self.nacks:
            return False
        return not any(name in sent.versions or name in sent.removed for sent in self.in_flight.values())

    def answered(self, nonce: str) -> Sent | None:
        """Take the response of that nonce out of flight; None if the nonce is stale.

        A client answers in order, so older responses that it skipped are settled too, as neither
        accepted nor refused.
        """
        if nonce not in self.in_flight:
            return None
        for older in list(self.in_flight):
            sent = self.in_flight.pop(older)
            if older == nonce:
                return sent
        return None

    def _add_name(self, name: str) -> None:
        own = self._own_names()
        own.add(name)
        self.listening.add(name, own)

    def _own_names(self) -> set[str]:
        if isinstance(self.names, frozenset):
            self.names = set(self.names)
        return self.names

    def _queued(self) -> tuple[str, ...]:
        return (*self.held, *self.forced, *self.dirty, *self.removals, *self.withheld, *self.waiting)
