"""From a change to its response and its ACK: what is measured, what is not, and that peers add no series."""

from __future__ import annotations

import itertools

from xds_stream_client import CDS, EDS, ENVOY_VIEW, NODE_ID, resource, store_with

from xdsbpf.xds import protocol, telemetry
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.request import decode_delta
from xdsbpf.xds.store import ResourceStore
from xdsbpf.xds.telemetry import BOUNDS_S, Telemetry


class Server:
    """Sessions that share stamps, telemetry and a clock, as those of one server do."""

    def __init__(self, store: ResourceStore, sessions: int = 1) -> None:
        self.store = store
        self.now = 0.0
        self.telemetry = Telemetry()
        self.stamps = itertools.count(1)
        nonces = itertools.count(1)
        self.sessions = [
            DeltaSession(
                ENVOY_VIEW,
                store,
                node_id=NODE_ID,
                nonces=nonces,
                stamps=self.stamps,
                clock=lambda: self.now,
                telemetry=self.telemetry,
            )
            for _ in range(sessions)
        ]

    def ask(self, index: int, type_url: str, *, nonce: str = "", error: str = "", names: tuple[str, ...] = ()) -> None:
        request = protocol.encode_request(type_url, nonce=nonce, error=error, subscribe=names)
        self.sessions[index].on_request(decode_delta(request))

    def send(self, index: int = 0) -> list[str]:
        return [response.nonce for response in self.sessions[index].poll()]

    def put(self, name: str, content: str, *, taken_at: float, type_url: str = CDS) -> None:
        changes = self.store.apply("node-envoy", [resource(type_url, name, content)])
        stamp = next(self.stamps)
        self.telemetry.change_taken(stamp, taken_at)
        for session in self.sessions:
            session.on_changes(changes, stamp)

    def sent(self, type_url: str = CDS) -> tuple[int, float]:
        return measured(self.telemetry.until_sent, type_url)

    def acked(self, type_url: str = CDS) -> tuple[int, float]:
        return measured(self.telemetry.until_acked, type_url)


def measured(histograms: dict[str, telemetry.Delays], type_url: str) -> tuple[int, float]:
    found = histograms.get(type_url)
    return (sum(found.counts), round(found.total, 6)) if found else (0, 0.0)


def test_a_change_is_measured_once_per_stream_from_its_source_to_the_response_and_to_the_ack() -> None:
    server = Server(store_with(resource(CDS, "a")), sessions=2)
    for index in (0, 1):
        server.ask(index, CDS)
        (nonce,) = server.send(index)
        server.ask(index, CDS, nonce=nonce)
    assert server.sent() == server.acked() == (0, 0.0), "the answer to a question is no push"
    server.put("a", "2", taken_at=10.0)
    server.now = 10.5
    (nonce,) = server.send(0)
    assert server.sent() == (1, 0.5)
    assert server.acked() == (0, 0.0)
    server.now = 12.0
    server.ask(0, CDS, nonce=nonce)
    assert server.acked() == (1, 2.0)
    server.send(1)
    assert server.sent() == (2, 2.5)


def test_of_changes_that_go_out_together_the_oldest_counts() -> None:
    server = Server(store_with(resource(CDS, "a"), resource(CDS, "b")))
    server.ask(0, CDS)
    (first,) = server.send()
    server.put("a", "2", taken_at=1.0)
    server.put("b", "2", taken_at=2.0)
    server.now = 3.0
    assert server.send() == [], "the first response is not answered yet"
    server.ask(0, CDS, nonce=first)
    server.send()
    assert server.sent() == (1, 2.0)


def test_a_refused_response_is_no_ack_and_a_change_that_makes_no_difference_is_not_measured() -> None:
    server = Server(store_with(resource(CDS, "a")))
    server.ask(0, CDS)
    server.ask(0, CDS, nonce=server.send()[0])
    server.put("a", "2", taken_at=0.0)
    server.ask(0, CDS, nonce=server.send()[0], error="a: no")
    assert (server.sent()[0], server.acked()[0]) == (1, 0)
    server.put("a", "1", taken_at=1.0)
    server.put("a", "2", taken_at=2.0)
    assert server.send() == []
    server.now = 100.0
    server.put("b", "1", taken_at=99.0)
    server.send()
    assert server.sent() == (2, 1.0), "what was not sent does not count for the next response"


def test_the_answer_to_a_question_while_a_change_waits_is_not_taken_for_the_change() -> None:
    server = Server(store_with(*(resource(EDS, name) for name in "ab")))
    server.ask(0, EDS, names=("a",))
    server.send()
    server.put("a", "2", taken_at=0.0, type_url=EDS)
    server.ask(0, EDS, names=("b",))
    server.now = 5.0
    assert len(server.send()) == 1
    assert server.sent(EDS) == (0, 0.0)


def test_a_wait_longer_than_the_last_bound_is_counted_and_old_changes_are_forgotten() -> None:
    found = Telemetry()
    for stamp in range(telemetry.REMEMBERED_CHANGES + 1):
        found.change_taken(stamp, 0.0)
    found.response_made(CDS, 0, 1.0, has_more=False)
    assert found.until_sent == {}
    found.response_made(CDS, 1, 10 * BOUNDS_S[-1], has_more=False)
    assert found.until_sent[CDS].counts[-1] == 1
    assert len(found._taken) == len(found._order) == telemetry.REMEMBERED_CHANGES


def test_a_thousand_unknown_types_are_one_label_and_a_known_one_is_another() -> None:
    found = Telemetry()
    for number in range(1000):
        url = f"type.googleapis.com/evil.v{number}"
        found.change_taken(number, 0.0)
        found.response_made(url, number, 1.0, has_more=True)
        found.response_accepted(url, number, 1.0)
        found.written(url, 10)
        found.received(url, 10)
        found.count("nacked", url)
    assert set(found.events) == {("sent", ""), ("unfinished", ""), ("nacked", "")}
    assert set(found.until_sent) == set(found.until_acked) == set(found.sent_bytes) == set(found.received_bytes) == {""}
    found.written(CDS, 10)
    assert set(found.sent_bytes) == {"", CDS}


def test_a_first_sync_in_pages_counts_the_responses_that_left_something_to_send() -> None:
    server = Server(store_with(*(resource(CDS, f"c{number}", "x" * 20_000) for number in range(200))))
    server.ask(0, CDS)
    (nonce,) = server.send()
    while nonce:
        server.ask(0, CDS, nonce=nonce)
        nonce = next(iter(server.send()), "")
    events = server.telemetry.events
    assert events["sent", CDS] >= 3
    assert events["unfinished", CDS] == events["sent", CDS] - 1
