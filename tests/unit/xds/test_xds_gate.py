"""A frontend that sends traffic to Envoy leaves for the agent only when that node's Envoy is ready for it."""

from __future__ import annotations

from xds_stream_client import AGENT_VIEW, CDS, ENVOY_VIEW, NODE_ID, VHDS, StreamClient, need, resource, sent

from xdsbpf.model import names
from xdsbpf.model.resource import AS_SERVED, Requirement
from xdsbpf.xds import protocol
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.request import decode_delta
from xdsbpf.xds.response import Response, encode
from xdsbpf.xds.status import SyncState, node_status
from xdsbpf.xds.store import AGENT, NODE_ENVOY, Batch, ResourceStore, View

FRONTEND = names.FRONTEND
HOST = resource(VHDS, "r/reviews")
PLAIN = resource(FRONTEND, "reviews", "l4")
GATED = resource(FRONTEND, "reviews", "l7", requires=(need(HOST),))


class TwoPlanes:
    """A store, a gate, the Envoy and the agent of node1; both have ACKed `start`."""

    def __init__(self, *start: Batch) -> None:
        self.store = ResourceStore()
        self.store.apply_all(start)
        self.gate = Gate()
        self.agent = StreamClient(self.store, AGENT_VIEW, gate=self.gate)
        self.envoy = self.connect_envoy()
        self.agent.ack_all(self.agent.on(FRONTEND))

    def connect_envoy(self, claims: dict[str, str] | None = None) -> StreamClient:
        self.envoy = StreamClient(self.store, ENVOY_VIEW, gate=self.gate)
        self.first = self.envoy.on(VHDS, claims=claims)
        return self.envoy

    def disconnect_envoy(self) -> None:
        assert self.envoy.ledger is not None
        self.gate.close(self.envoy.ledger)

    def change(self, *batches: Batch) -> tuple[tuple[Response, ...], tuple[Response, ...]]:
        """What the Envoy and what the agent are sent by it."""
        changes = self.store.apply_all(batches)
        return self.envoy.changed(changes), self.agent.changed(changes)

    def to_agent(self) -> tuple[Response, ...]:
        return self.agent.session.poll()

    def reasons(self) -> tuple[str, ...]:
        (status,) = node_status(self.agent.session, self.gate, 0.0).types
        assert status.state is SyncState.PENDING
        return status.withheld[0].reasons


def l4() -> TwoPlanes:
    planes = TwoPlanes(Batch("datapath", (PLAIN,)))
    planes.envoy.ack_all(planes.first)
    return planes


L7 = (Batch("node-envoy", (HOST,)), Batch("datapath", (GATED,)))


def test_a_frontend_is_withheld_until_envoy_acks_what_it_requires() -> None:
    planes = l4()
    to_envoy, to_agent = planes.change(*L7)
    assert sent(to_envoy) == [(VHDS, ["r/reviews"], [])]
    assert to_agent == (), "the agent keeps what it has"
    assert planes.reasons() == ("Envoy has not acknowledged r/reviews yet",)
    planes.envoy.ack(to_envoy[0])
    assert planes.to_agent()[0].resources == (GATED,)


def test_an_envoy_that_refuses_keeps_the_frontend_withheld() -> None:
    planes = l4()
    to_envoy, _ = planes.change(*L7)
    planes.envoy.nack(to_envoy[0], "bad route in r/reviews")
    assert planes.to_agent() == ()
    assert planes.reasons() == ("Envoy refused r/reviews: bad route in r/reviews",)


def test_a_missing_envoy_keeps_the_frontend_withheld() -> None:
    planes = l4()
    planes.disconnect_envoy()
    assert planes.change(*L7)[1] == ()
    assert planes.reasons() == ("the Envoy of node node1 is not connected",)


def test_an_envoy_that_reconnects_with_the_right_version_opens_the_gate() -> None:
    planes = l4()
    planes.disconnect_envoy()
    planes.change(*L7)
    planes.connect_envoy(claims={HOST.name: HOST.version})
    assert planes.to_agent()[0].resources == (GATED,)


def test_an_envoy_that_reconnects_with_an_old_version_does_not() -> None:
    planes = l4()
    planes.disconnect_envoy()
    planes.change(*L7)
    planes.connect_envoy(claims={HOST.name: "old"})
    assert planes.to_agent() == ()
    planes.envoy.ack(planes.first[0])
    assert planes.to_agent()[0].resources == (GATED,)


def test_a_claim_outside_the_subscription_does_not_open_the_gate() -> None:
    planes = l4()
    planes.disconnect_envoy()
    planes.change(*L7)
    planes.envoy = StreamClient(planes.store, ENVOY_VIEW, gate=planes.gate)
    planes.envoy.on(VHDS, "other", claims={HOST.name: HOST.version})
    assert planes.to_agent() == ()


def test_only_the_newest_version_counts() -> None:
    planes = l4()
    to_envoy, _ = planes.change(*L7)
    newer = resource(VHDS, HOST.name, "2")
    gated = resource(FRONTEND, "reviews", "l7", requires=(need(newer),))
    planes.change(Batch("node-envoy", (newer,)), Batch("datapath", (gated,)))
    following = planes.envoy.ack(to_envoy[0])
    assert planes.to_agent() == (), "the ACK of the superseded version opens nothing"
    planes.envoy.ack(following[0])
    assert planes.to_agent()[0].resources == (gated,)


def test_a_frontend_that_no_longer_needs_envoy_goes_at_once() -> None:
    planes = l4()
    planes.change(*L7)
    back = resource(FRONTEND, "reviews", "l4, other backends")
    assert planes.change(Batch("datapath", (back,)))[1][0].resources == (back,)
    assert planes.to_agent() == ()


def test_a_withheld_frontend_that_is_deleted_is_removed_at_once() -> None:
    planes = l4()
    planes.change(*L7)
    _, to_agent = planes.change(Batch("datapath", (), ((FRONTEND, "reviews"),)))
    assert sent(to_agent) == [(FRONTEND, [], ["reviews"])]


def test_what_the_agent_already_has_is_not_taken_away_when_envoy_leaves() -> None:
    planes = l4()
    to_envoy, _ = planes.change(*L7)
    planes.envoy.ack(to_envoy[0])
    planes.agent.ack_all(planes.to_agent())
    planes.disconnect_envoy()
    assert planes.to_agent() == ()
    again = StreamClient(planes.store, AGENT_VIEW, gate=planes.gate)
    assert sent(again.on(FRONTEND, claims={"reviews": GATED.version})) == [(FRONTEND, [], [])]


def test_an_agent_that_connects_while_the_gate_is_shut_gets_the_rest_and_no_removal() -> None:
    planes = l4()
    planes.change(*L7, Batch("datapath", (resource(FRONTEND, "other"),)))
    fresh = StreamClient(planes.store, AGENT_VIEW, gate=planes.gate)
    assert sent(fresh.on(FRONTEND, claims={"reviews": PLAIN.version})) == [(FRONTEND, ["other"], [])]
    alone = StreamClient(planes.store, AGENT_VIEW, gate=planes.gate)
    (bare,) = alone.on(FRONTEND, "reviews")
    assert sent([bare]) == [(FRONTEND, [], [])], "withheld is neither sent nor removed"
    assert bare.withheld == ("reviews",)


def test_an_agent_that_starts_with_nothing_is_told_which_frontends_exist_and_gets_them_later() -> None:
    planes = l4()
    to_envoy, _ = planes.change(*L7, Batch("datapath", (resource(FRONTEND, "other"),)))
    fresh = StreamClient(planes.store, AGENT_VIEW, gate=planes.gate)
    (first,) = fresh.on(FRONTEND)
    assert sent([first]) == [(FRONTEND, ["other"], [])]
    assert first.withheld == ("reviews",)
    decoded = protocol.decode_response(encode(first, planes.store))
    (entry,) = (item for item in decoded.resources if item.name == "reviews")
    assert (entry.version, entry.body) == ("", None)
    assert fresh.ack(first) == ()
    planes.envoy.ack(to_envoy[0])
    (later,) = fresh.session.poll()
    assert (later.resources, later.withheld) == ((GATED,), ())


def test_a_frontend_that_was_only_announced_is_removed_when_it_goes() -> None:
    planes = l4()
    planes.change(*L7)
    fresh = StreamClient(planes.store, AGENT_VIEW, gate=planes.gate)
    (first,) = fresh.on(FRONTEND)
    assert first.withheld == ("reviews",)
    fresh.ack(first)
    assert sent(fresh.remove(FRONTEND, "reviews", "never", scope="datapath")) == [(FRONTEND, [], ["reviews"])]


def test_a_new_frontend_is_not_announced_to_an_agent_that_has_its_first_answer() -> None:
    planes = l4()
    gated = resource(FRONTEND, "new", "l7", requires=(need(HOST),))
    assert planes.change(Batch("node-envoy", (HOST,)), Batch("datapath", (gated,)))[1] == ()


def test_an_envoy_never_gets_a_bare_name() -> None:
    planes = l4()
    gated = resource(VHDS, "r/gated", requires=(need(resource(CDS, "absent")),))
    planes.store.apply("node-envoy", [HOST, gated])
    planes.store.apply("datapath", [resource(FRONTEND, "reviews", "l7", requires=(need(HOST),))])
    for kind, bare in ((NODE_ENVOY, set()), (AGENT, {"reviews"})):
        view = View(("node-envoy", "datapath"), "node1", kind)
        session = DeltaSession(view, planes.store, node_id=NODE_ID, gate=planes.gate)
        for type_url in (VHDS, FRONTEND):
            session.on_request(decode_delta(protocol.encode_request(type_url)))
        assert {name for response in session.poll() for name in response.withheld} == bare


def test_the_envoy_of_another_node_does_not_open_the_gate() -> None:
    planes = l4()
    other_view = View(("datapath", "datapath/node2"), "node2", AGENT)
    other = StreamClient(planes.store, other_view, gate=planes.gate)
    other.ack_all(other.on(FRONTEND))
    to_envoy, _ = planes.change(*L7)
    other.session.on_changes(planes.store.apply("datapath", [resource(FRONTEND, "unrelated")]))
    planes.envoy.ack(to_envoy[0])
    assert sent(other.session.poll()) == [(FRONTEND, ["unrelated"], [])]


def test_all_requirements_must_be_met() -> None:
    planes = l4()
    second = resource(VHDS, "r/second")
    gated = resource(FRONTEND, "reviews", "l7", requires=(need(HOST), need(second)))
    to_envoy, _ = planes.change(Batch("node-envoy", (HOST,)), Batch("datapath", (gated,)))
    planes.envoy.ack(to_envoy[0])
    assert planes.to_agent() == ()
    to_envoy, _ = planes.change(Batch("node-envoy", (second,)))
    planes.envoy.ack(to_envoy[0])
    assert planes.to_agent()[0].resources == (gated,)


def test_an_ack_of_a_name_removed_since_does_not_open_the_gate() -> None:
    store, gate = ResourceStore(), Gate()
    envoy = StreamClient(store, ENVOY_VIEW, gate=gate)
    cluster = resource(CDS, "c", on_demand=True)
    store.apply("node-envoy", [cluster])
    first = envoy.on(CDS, "c")
    store.apply("node-envoy", (), [(CDS, "c")])
    assert sent(envoy.on(CDS, "c")) == [(CDS, [], ["c"])]
    envoy.ack(first[0])
    frontend = resource(FRONTEND, "f", requires=(need(cluster),))
    assert gate.unmet("node1", frontend) == (need(cluster),)


def test_the_newest_stream_of_a_node_decides() -> None:
    planes = l4()
    to_envoy, _ = planes.change(*L7)
    old = planes.envoy
    fresh = planes.connect_envoy()
    old.ack(to_envoy[0])
    assert planes.to_agent() == (), "the old stream may be a dead connection"
    fresh.ack(planes.first[0])
    assert planes.to_agent()[0].resources == (GATED,)


LISTENERS = names.LISTENER
BY_LISTENER = resource(FRONTEND, "db", "l7", requires=(Requirement(LISTENERS, "out_tcp", AS_SERVED),))


def test_a_requirement_of_what_is_served_is_met_by_the_present_version_alone() -> None:
    planes = l4()
    first, second = resource(LISTENERS, "out_tcp", "1"), resource(LISTENERS, "out_tcp", "2")
    planes.store.apply("node-envoy", [first])
    planes.envoy.ack_all(planes.envoy.on(LISTENERS))
    to_envoy, to_agent = planes.change(Batch("node-envoy", (second,)), Batch("datapath", (BY_LISTENER,)))
    assert to_agent == (), "Envoy has a listener, but not the one that goes with the frontend"
    (reason,) = planes.reasons()
    assert reason == "Envoy has not acknowledged out_tcp yet"
    planes.envoy.ack(to_envoy[0])
    assert planes.to_agent()[0].resources == (BY_LISTENER,)


def test_a_requirement_of_what_is_not_served_is_never_met() -> None:
    planes = l4()
    assert planes.change(Batch("datapath", (BY_LISTENER,)))[1] == ()
    assert planes.reasons() == ("Envoy has not acknowledged out_tcp yet",)


def test_a_version_that_comes_back_counts_only_after_what_was_sent_since_is_answered() -> None:
    planes = l4()
    newer = resource(VHDS, HOST.name, "2")
    (first,), _ = planes.change(Batch("node-envoy", (HOST,)))
    planes.envoy.ack(first)
    (second,), _ = planes.change(Batch("node-envoy", (newer,)))
    _, to_agent = planes.change(*L7)
    assert to_agent == (), "Envoy may have put the newer one in force, and its ACK is on its way"
    (third,) = planes.envoy.ack(second)
    assert third.resources == (HOST,)
    planes.envoy.ack(third)
    assert planes.to_agent()[0].resources == (GATED,)
