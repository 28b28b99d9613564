"""What a state-of-the-world client refused: rule 55, and what it goes on with."""

from __future__ import annotations

from xds_stream_client import CDS, EDS, LDS, SotwClient, contents, resource, store_with

from xdsbpf.xds.gate import Gate

SCOPE = "node-envoy"


def test_a_bad_resource_does_not_freeze_the_others_of_its_set() -> None:
    """Rule 55: the last accepted version takes its place until it changes."""
    client = SotwClient(store_with(resource(CDS, "bad"), resource(CDS, "good")))
    client.ack_all(client.on(CDS))
    refused = client.changed(client.store.apply("node-envoy", [resource(CDS, "bad", "2"), resource(CDS, "good", "2")]))
    again = client.nack(refused[0], "Error adding/updating cluster(s) bad: no endpoints")
    assert contents(again) == [(CDS, ["bad=1", "good=2"])]
    assert client.ack(again[0]) == ()
    assert set(client.session.subscriptions()[0].nacks) == {"bad"}
    assert contents(client.ack_all(client.put(resource(CDS, "good", "3")))) == [(CDS, ["bad=1", "good=3"])]
    assert contents(client.ack_all(client.put(resource(CDS, "bad", "3")))) == [(CDS, ["bad=3", "good=3"])]
    assert not client.session.subscriptions()[0].nacks


def test_a_resource_that_was_never_good_is_left_out() -> None:
    """Rule 55."""
    client = SotwClient(store_with(resource(CDS, "bad"), resource(CDS, "good")))
    assert contents(client.nack(client.on(CDS)[0], "cluster bad: no")) == [(CDS, ["good=1"])]


def test_several_bad_resources_are_found_one_by_one() -> None:
    """Rule 55: every round blames one more, so it ends."""
    client = SotwClient(store_with(*(resource(EDS, name) for name in ("bad1", "bad2", "good"))))
    first = client.on(EDS, "bad1", "bad2", "good")
    second = client.nack(first[0], "bad1 is wrong")
    assert contents(second) == [(EDS, ["bad2=1", "good=1"])]
    third = client.nack(second[0], "bad2 is wrong")
    assert contents(third) == [(EDS, ["good=1"])]
    assert client.nack(third[0], "whatever") == ()


def test_without_quarantine_a_nack_is_quiet() -> None:
    """Rule 55 is a choice."""
    client = SotwClient(store_with(resource(CDS, "bad"), resource(CDS, "good")), quarantine=False)
    assert client.nack(client.on(CDS)[0], "cluster bad: no") == ()
    assert contents(client.put(resource(CDS, "good", "2"))) == [(CDS, ["bad=1", "good=2"])]


def test_what_came_with_a_refused_resource_opens_the_gate_when_its_second_turn_is_taken() -> None:
    gate = Gate()
    good = resource(LDS, "good")
    client = SotwClient(store_with(resource(LDS, "bad"), good), gate=gate)
    again = client.nack(client.on(LDS)[0], "listener bad: no")
    assert client.ledger is not None
    assert "good" not in client.ledger.accepted.get(LDS, {})
    client.ack_all(again)
    assert client.ledger.accepted[LDS] == {"good": good.version}


def test_a_deletion_goes_on_without_what_was_refused_before_it() -> None:
    """Absence means deletion, and the client has taken nothing of the set."""
    client = SotwClient(store_with(resource(CDS, "old")))
    client.ack_all(client.on(CDS))
    first = client.changed(client.store.apply(SCOPE, [resource(CDS, "bad")], [(CDS, "old")]))
    assert contents(first) == [(CDS, ["bad=1", "old=1"])], "additions come first"
    deletion = client.nack(first[0], "bad: refused")
    assert contents(deletion) == [(CDS, [])]
    assert client.ack(deletion[0]) == ()


def test_a_deletion_goes_again_though_the_client_does_not_say_what_it_refused() -> None:
    client = SotwClient(store_with(resource(CDS, "old")))
    client.ack_all(client.on(CDS))
    both = [resource(CDS, "bad"), resource(CDS, "new")]
    first = client.changed(client.store.apply(SCOPE, both, [(CDS, "old")]))
    deletion = client.nack(first[0], "something is wrong")
    assert contents(deletion) == [(CDS, [])]
    assert client.ack(deletion[0]) == ()
    assert contents(client.put(resource(CDS, "new", "2"))) == [(CDS, ["bad=1", "new=2"])], "it may be good after all"


def test_a_set_from_which_something_was_only_removed_is_not_sent_again_when_it_is_refused() -> None:
    client = SotwClient(store_with(resource(CDS, "old"), resource(CDS, "other")))
    client.ack_all(client.on(CDS))
    deletion = client.remove(CDS, "old")
    assert contents(deletion) == [(CDS, ["other=1"])]
    assert client.nack(deletion[0], "no") == ()
    assert contents(client.put(resource(CDS, "other", "2"))) == [(CDS, ["other=2"])]


def test_what_came_with_a_refused_resource_goes_to_a_client_that_then_asks_for_it_alone() -> None:
    client = SotwClient(store_with(resource(CDS, "bad"), resource(CDS, "good")))
    (first,) = client.on(CDS, "*", "good")
    client.names[CDS] = ("good",)
    assert contents(client.nack(first, "bad: refused")) == [(CDS, ["good=1"])]


def test_a_client_may_refuse_what_it_had_accepted_and_gave_up_before_the_set_arrived() -> None:
    """Then the refusal says nothing of what else the set held."""
    client = SotwClient(store_with(resource(CDS, "bad")))
    (first,) = client.on(CDS, "*", "good")
    client.ack(first)
    (second,) = client.put(resource(CDS, "good"))
    client.on(CDS, "good", nonce=first.nonce)
    assert contents(client.nack(second, "bad: refused")) == [(CDS, ["good=1"])]


def test_what_came_with_a_refused_resource_is_looked_at_anew_when_it_goes_and_comes_back() -> None:
    client = SotwClient(store_with(resource(CDS, "bad"), resource(CDS, "good")))
    (first,) = client.on(CDS)
    client.session.on_changes(client.store.apply(SCOPE, (), [(CDS, "good")]))
    assert client.nack(first, "bad: refused") == ()
    assert contents(client.put(resource(CDS, "good"))) == [(CDS, ["good=1"])]
