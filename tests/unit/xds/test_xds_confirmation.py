"""What a client is still missing: up to a barrier, and of certain resources; in both variants of the protocol."""

from __future__ import annotations

from xds_stream_client import (
    AGENT_VIEW,
    CDS,
    EDS,
    LDS,
    VHDS,
    SotwClient,
    StreamClient,
    need,
    resource,
    store_with,
)

from xdsbpf.diagnostics import ObjectId
from xdsbpf.model.names import BACKENDS, FRONTEND, IDENTITY, NODE_CONFIG, POLICY
from xdsbpf.model.resource import Resource
from xdsbpf.xds import barriers, roster
from xdsbpf.xds.barriers import Barriers, Span
from xdsbpf.xds.confirmation import Gap, Missing, behind, gaps
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.roster import Roster
from xdsbpf.xds.store import NODE_ENVOY, View

NOW = 1_000_000
"""A barrier after everything that happens here."""


def missing(
    client: StreamClient | SotwClient, *wanted: Resource, gate: Gate | None = None
) -> list[tuple[str, Missing]]:
    return [(gap.name, gap.missing) for gap in gaps(client.session, gate or Gate(), client.store, wanted)]


def late(client: StreamClient | SotwClient, barrier: int = NOW, since: int = 0) -> list[tuple[str, Missing]]:
    return [(gap.type_url, gap.missing) for gap in behind(client.session, Span(since, barrier))]


def others_asked(client: StreamClient) -> None:
    """The types that a node's Envoy always asks for, so that they are no gap."""
    for type_url in (LDS, VHDS):
        client.ack_all(client.on(type_url))
    client.ack_all(client.on("type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", "srcid"))


def test_a_version_counts_once_it_is_accepted_and_no_longer_when_there_is_a_newer_one() -> None:
    for client in (StreamClient(store_with(resource(CDS, "a"))), SotwClient(store_with(resource(CDS, "a")))):
        first = client.on(CDS)
        assert missing(client, resource(CDS, "a")) == [("a", Missing.UNANSWERED)]
        assert late(client) == [(CDS, Missing.UNANSWERED)]
        client.ack_all(first)
        assert missing(client, resource(CDS, "a")) == late(client) == []
        second = client.put(resource(CDS, "a", "2"))
        assert missing(client, resource(CDS, "a", "2")) == [("a", Missing.UNANSWERED)]
        client.ack_all(second)
        assert missing(client, resource(CDS, "a", "2")) == []


def test_a_refused_version_is_refused_and_what_came_with_it_waits_for_its_second_turn() -> None:
    for kind in (StreamClient, SotwClient):
        both = (resource(CDS, "bad"), resource(CDS, "good"))
        client = kind(store_with(*both))
        again = client.nack(client.on(CDS)[0], "cluster bad: no")
        assert missing(client, *both) == [("bad", Missing.REFUSED), ("good", Missing.UNANSWERED)], kind
        client.ack_all(again)
        assert missing(client, *both) == [("bad", Missing.REFUSED)], kind
        client.ack_all(client.put(resource(CDS, "bad", "2")))
        assert missing(client, resource(CDS, "bad", "2"), both[1]) == [], kind


def test_between_a_refusal_and_the_second_turn_nothing_is_taken_for_accepted() -> None:
    """The writer has not run yet: what is to be sent again looks as if it were held."""
    both = (resource(CDS, "bad"), resource(CDS, "good"))
    client = StreamClient(store_with(*both))
    first = client.on(CDS)[0]
    client.session.poll = lambda: ()  # type: ignore[method-assign]
    client.nack(first, "cluster bad: no")
    assert missing(client, *both) == [("bad", Missing.REFUSED), ("good", Missing.UNSENT)]
    assert late(client, 1) == [], "the barrier alone would not see it"


def test_a_change_that_waits_behind_an_unanswered_response_is_not_sent_yet() -> None:
    client = StreamClient(store_with(resource(CDS, "a"), resource(CDS, "b")))
    client.ack_all(client.on(CDS))
    client.put(resource(CDS, "a", "2"))
    barrier = client.session._stamp
    client.put(resource(CDS, "b", "2"))
    assert missing(client, resource(CDS, "b", "2")) == [("b", Missing.UNSENT)]
    assert late(client, barrier) == [(CDS, Missing.UNANSWERED)]
    assert late(client, barrier - 1) == [], "what changed later than the barrier does not count"


def test_a_removal_counts_from_its_change_to_its_answer() -> None:
    for kind in (StreamClient, SotwClient):
        client = kind(store_with(resource(CDS, "a"), resource(CDS, "b")))
        client.ack_all(client.on(CDS))
        gone = client.remove(CDS, "a")
        barrier = client.session._stamp
        assert late(client, barrier) == [(CDS, Missing.UNANSWERED)], kind
        assert missing(client, resource(CDS, "a")) == []
        client.ack_all(gone)
        assert late(client, barrier) == [], kind


def test_a_removal_that_waits_for_who_may_refer_to_it_counts() -> None:
    client = StreamClient(store_with(resource(CDS, "a"), resource(LDS, "l")))
    client.ack_all((*client.on(CDS), *client.on(LDS)))
    changes = client.store.apply("node-envoy", [resource(LDS, "l", "2")], [(CDS, "a")])
    client.changed(changes)
    stamp = client.session._stamp
    assert (CDS, Missing.UNSENT) in late(client, stamp, since=stamp - 1)
    assert (CDS, Missing.UNSENT) not in late(client, stamp + 9, since=stamp), "the removal belongs to another change"


def test_what_a_new_stream_claims_to_hold_and_is_gone_counts_though_the_change_is_older() -> None:
    client = StreamClient(store_with(resource(CDS, "a")))
    sent = client.on(CDS, claims={"gone": "1"})
    assert late(client, 0) == [(CDS, Missing.UNANSWERED)]
    client.ack_all(sent)
    assert late(client, 0) == []


def test_what_is_not_in_view_not_asked_for_or_on_demand_is_no_gap() -> None:
    demanded = resource(CDS, "demanded", on_demand=True)
    client = StreamClient(store_with(resource(EDS, "a"), resource(EDS, "b"), demanded))
    client.ack_all(client.on(EDS, "a"))
    client.ack_all(client.on(CDS))
    assert missing(client, resource(EDS, "a"), resource(EDS, "b"), demanded) == []
    sent = client.on(CDS, "demanded")
    assert missing(client, demanded) == [("demanded", Missing.UNANSWERED)]
    client.ack_all(sent)
    assert missing(client, demanded) == []


def test_a_type_that_every_such_client_asks_for_is_a_gap_until_it_is_asked_for() -> None:
    wanted = (resource(LDS, "l"), resource(EDS, "a"))
    client = StreamClient(store_with(*wanted))
    assert missing(client, *wanted) == [("", Missing.UNASKED)]
    client.ack_all(client.on(LDS))
    assert missing(client, *wanted) == []
    other = StreamClient(store_with(*wanted), View(("node-envoy",), "", "envoy"))
    assert missing(other, *wanted) == [], "nobody knows what an Envoy of its own will ask for"


def test_a_withheld_resource_is_a_gap_with_the_reason_of_the_gate() -> None:
    gate = Gate()
    host = resource(VHDS, "h")
    store = store_with(host)
    front = resource(FRONTEND, "f", requires=(need(host),))
    store.apply("datapath", [front])
    agent = StreamClient(store, AGENT_VIEW, gate=gate)
    for type_url in (NODE_CONFIG, IDENTITY, POLICY, BACKENDS, FRONTEND):
        agent.ack_all(agent.on(type_url, "*"))
    (gap,) = gaps(agent.session, gate, store, [front])
    assert gap == Gap(FRONTEND, "f", Missing.WITHHELD, "the Envoy of node node1 is not connected")


def object_of(number: int) -> ObjectId:
    return ObjectId("Pod", "default", f"p{number}")


def test_an_object_has_the_span_of_its_last_change_and_a_forgotten_one_a_later_stamp() -> None:
    found = Barriers()
    assert (found.of(object_of(0)), found.is_published(object_of(0))) == (Span(0, 0), True)
    found.taken([object_of(0)])
    assert not found.is_published(object_of(0))
    found.published(3, 5)
    assert (found.of(object_of(0)), found.is_published(object_of(0))) == (Span(3, 5), True)
    assert found.of(object_of(1)) == Span(0, 0)
    found.taken(object_of(number) for number in range(1, barriers.REMEMBERED_OBJECTS + 1))
    found.published(7, 9)
    assert (found.of(object_of(0)), found.of(object_of(1))) == (Span(5, 5), Span(7, 9))
    found.taken([object_of(-1), object_of(-2)])
    found.published(10, 11)
    assert found.of(object_of(0)) == Span(9, 9), "never a stamp older than its own"


def test_departures_are_remembered_for_the_nodes_of_the_mesh_and_bounded() -> None:
    found = Roster()
    view = View((), "node1", NODE_ENVOY)
    found.entered(view)
    assert (found.kinds, found.left_at(NODE_ENVOY, "node1")) == ({NODE_ENVOY}, None)
    found.left(view, 7.0)
    assert found.left_at(NODE_ENVOY, "node1") == 7.0
    found.entered(view)
    assert found.left_at(NODE_ENVOY, "node1") is None
    for number in range(roster.REMEMBERED_DEPARTURES + 10):
        found.left(View((), f"evil{number}", NODE_ENVOY), 1.0)
        found.left(View((), "", "envoy"), 1.0)
    assert len(found._left) == roster.REMEMBERED_DEPARTURES
