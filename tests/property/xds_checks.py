"""What must hold of a stream at every moment, and once it is at rest: the judge of `xds_world`.

In: what has gone over the stream (`xds_stream`), the store, the model client. Out: assertion errors. It looks at the
messages alone, never into the session.

No server is blamed for what none can know: what a request says that is still on its way; and of a whole set (state of
the world) what a client of another stream has in force, unless it names the version of the present set.
"""

from __future__ import annotations

from tests.property.xds_client import NAMES, TYPES, Asked, ModelClient
from tests.property.xds_stream import Stream
from tests.xds.resources import CDS, LDS, RDS
from tests.xds.wire import Response
from xdsbpf.xds.guard import UNKNOWN_S
from xdsbpf.xds.store import ResourceStore, View

PAGE = 2
"""Resources on a page: the tests set it, so that paging happens."""


class Checks:
    """The world sets the attributes."""

    is_delta: bool
    store: ResourceStore
    client: ModelClient
    stream: Stream
    view: View
    now: float
    edition: int
    edition_of: dict[tuple[str, str], int]
    gone_since: dict[str, int]
    target: dict[int, str]
    made_at: dict[int, float]

    def check_pacing(self, sent: Response) -> None:
        """One response of a type at most waits for its answer, but for answers to questions; pages are small."""
        names = {*(item.name for item in sent.items), *sent.removed}
        if self.stream.unanswered[sent.type_url]:
            assert self.is_delta, f"a second response without an ACK: {sent}"
            assert names <= self.stream.due[sent.type_url], f"sent while a response is out: {sent}"
        if not self.client.is_whole(sent.type_url):
            assert len(names) <= PAGE, f"more than a page: {sent}"

    def check_reasons(self, sent: Response) -> None:
        """Nothing is sent without a change or a question, and what was refused only if it is asked for."""
        type_url = sent.type_url
        stream = self.stream
        given, gone, due = stream.given[type_url], stream.gone[type_url], stream.due[type_url]
        refused = stream.refused[type_url]
        for name, edition in sent.holds.items():
            assert refused.get(name) != edition or name in due | gone, f"{name} was refused, and is sent again: {sent}"
            if not self.client.is_whole(type_url):
                assert given.get(name) != edition or name in due | gone, f"{name} twice for one change: {sent}"
        if self.client.is_whole(type_url):
            assert sent.holds != given or self.stream.is_due[type_url], f"the set twice for one change: {sent}"
        for name in sent.removed:
            assert name in given or name in due, f"{name} was never sent, and is removed: {sent}"

    def check_order(self, sent: Response) -> None:
        """Nothing is sent before what it refers to, and no cluster leaves before the routes that used it."""
        given, type_url = self.stream.given, sent.type_url
        changed = {name for name, edition in sent.holds.items() if given[type_url].get(name) != edition}
        if changed:
            for earlier in TYPES[: TYPES.index(type_url)]:
                if not self.stream.unanswered[earlier]:
                    behind = self.behind(earlier)
                    assert not behind, f"{earlier} of {behind} was not sent before {sent}"
        on_its_way = [request.asked for request in self.client.to_server if request.type_url == CDS]
        asked = (self.asked(CDS), self.client.types[CDS].asked, *on_its_way)
        if type_url == RDS and all(each.wild for each in asked):
            self.check_targets({sent.holds[name] for name in changed})
        if type_url == CDS:
            held = self.client.types[CDS].held.keys()
            gone = held & set(sent.removed) if self.is_delta else held - set(sent.holds)
            self.check_removals(gone - self.stream.due[CDS])

    def behind(self, type_url: str) -> set[str]:
        """Names whose current content the client has not been sent."""
        given, withheld = self.stream.given[type_url], self.stream.withheld
        current = self.current(type_url)
        behind = {name for name, now in current.items() if now != given.get(name) and (type_url, now) not in withheld}
        return {name for name in behind if type_url != RDS or not self.may_wait(current[name])}

    def may_wait(self, edition: int) -> bool:
        """Whether these routes may wait for their cluster: as far as the server knows, the client has not got it."""
        target = self.target[edition]
        is_out = CDS in self.stream.frozen or any(target in sent.holds for sent in self.stream.unanswered[CDS])
        is_sent = target in self.stream.given[CDS] and target in self.current(CDS)
        return is_out or not is_sent or target not in self.client.types[CDS].held or bool(self.client.to_server)

    def check_targets(self, routes: set[int]) -> None:
        """Routes go to a client that has their clusters, or after a while."""
        ready = self.client.types[CDS].held.keys()
        for edition in routes:
            is_new = self.now - self.made_at[edition] < UNKNOWN_S
            late = is_new and self.target[edition] in self.current(CDS).keys() - ready
            assert not late, f"routes {edition} go before their cluster {self.target[edition]}"

    def check_removals(self, gone: set[str]) -> None:
        """A route that leaves a cluster, and is not refused, goes first, and its ACK has come.

        A cluster that is asked for by name as well does not wait for a route that waits for another cluster: with the
        next request for it the client asks again.
        """
        state = self.client.types[RDS]
        for name in self.asked(RDS).names & state.held.keys():
            now = self.current(RDS).get(name)
            uses = self.target[state.held[name]]
            is_later = now is not None and now > self.gone_since.get(uses, self.edition)
            if now is not None and uses in self.asked(CDS).names and self.may_wait(now):
                continue
            if now is not None and not is_later and self.target[now] != uses and not state.refused.get(name):
                assert uses not in gone, f"cluster {uses} leaves before the routes {name} that use it"

    def asked(self, type_url: str) -> Asked:
        """What the server has been asked for."""
        return self.stream.asked.get(type_url, Asked())

    def current(self, type_url: str) -> dict[str, int]:
        """What the client should have, by what it has asked the server for."""
        asked = self.asked(type_url)
        found = {name: self.store.get(self.view, type_url, name) for name in NAMES if asked.covers(name)}
        return {name: self.edition_of[type_url, item.version] for name, item in found.items() if item is not None}

    def has_unknown(self, type_url: str) -> bool:
        """Whether the client has anything of which the server cannot know what it refers to."""
        current = self.current(type_url)
        return any(current.get(name) != edition for name, edition in self.stream.unknown[type_url].items())

    def compare(self, type_url: str, *, without_refused: bool) -> None:
        """The client holds exactly what is current, or (`without_refused`) all of it that it did not refuse."""
        held, current = dict(self.client.types[type_url].held), self.current(type_url)
        if not self.is_delta and not self.client.is_whole(type_url):
            held = {name: edition for name, edition in held.items() if name in current}  # nothing says what is gone
        refused = self.client.types[type_url].refused
        if type_url == CDS:
            used = {self.target[edition] for edition in self.client.types[RDS].held.values()}
            if self.has_unknown(LDS) or self.has_unknown(RDS):
                used = set(NAMES)
            held = {name: edition for name, edition in held.items() if name in current or name not in used}
        if type_url == RDS and without_refused:
            clusters = self.client.types[CDS].refused
            for name in [name for name in current if clusters.get(self.target[current[name]])]:
                held.pop(name, None)
                current.pop(name, None)
        for name in [name for name in current if without_refused and current[name] in refused.get(name, ())]:
            held.pop(name, None)
            current.pop(name, None)
        assert held == current, f"{type_url}: holds {held}, is {current}, refused {refused}"
