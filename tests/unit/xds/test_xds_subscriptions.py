"""Rules of one delta stream: subscribing, wildcards, claims, nonces. One test per rule."""

from __future__ import annotations

import itertools

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse
from xds_stream_client import CDS, EDS, LDS, NODE_ID, RDS, VHDS, StreamClient, resource, sent, store_with

from xdsbpf.errors import ProtocolError
from xdsbpf.model import names
from xdsbpf.xds import limits, protocol
from xdsbpf.xds.request import MAX_NAMES, decode_delta, node_of
from xdsbpf.xds.response import encode
from xdsbpf.xds.store import ResourceStore
from xdsbpf.xds.subscription import NAME_COST

A, B, C = (resource(EDS, name) for name in "abc")
MADE_UP = "type.googleapis.com/acme.v1.Widget"


def test_a_later_request_may_omit_the_node_or_repeat_it() -> None:
    """Rule 2."""
    client = StreamClient(store_with(A))
    assert client.on(EDS, "a", node_id=NODE_ID)
    assert client.on(EDS, "a") != ()
    assert client.on(EDS, "a", node_id=NODE_ID) != ()


def test_a_node_id_that_changes_on_a_stream_closes_it() -> None:
    """Rule 2."""
    client = StreamClient(store_with(A))
    client.on(EDS, "a", node_id=NODE_ID)
    with pytest.raises(ProtocolError, match="changed") as error:
        client.on(EDS, "a", node_id="node~10.0.0.2~node2~cluster.local")
    assert error.value.status == "INVALID_ARGUMENT"


@pytest.mark.parametrize("node_id", ["n" * 1025, "node\n1"])
def test_a_first_request_without_a_usable_node_id_is_refused(node_id: str) -> None:
    """Rule 2."""
    request = decode_delta(protocol.encode_request(CDS, node_id=node_id))
    with pytest.raises(ProtocolError, match=r"node\.id"):
        node_of(request.node)
    good = decode_delta(protocol.encode_request(CDS, node_id=NODE_ID))
    assert node_of(good.node) == (NODE_ID, {})


def test_a_request_without_a_type_closes_the_stream() -> None:
    """Rule 1 (ADS)."""
    with pytest.raises(ProtocolError, match="type_url"):
        StreamClient(ResourceStore()).on("")


def test_bytes_that_are_no_request_are_an_invalid_argument() -> None:
    """Rule 6."""
    with pytest.raises(ProtocolError) as error:
        decode_delta(b"\xff\xff\xff")
    assert error.value.status == "INVALID_ARGUMENT"


def test_types_of_one_stream_have_separate_nonces_and_subscriptions() -> None:
    """Rule 3."""
    client = StreamClient(store_with(A, resource(CDS, "a")))
    clusters = client.on(CDS)
    assert sent(clusters) == [(CDS, ["a"], [])]
    endpoints = client.on(EDS, "a", nonce=clusters[0].nonce)
    assert sent(endpoints) == [(EDS, ["a"], [])]
    assert sent(client.put(resource(CDS, "a", "2"))) == [], "the nonce of CDS on EDS has acknowledged nothing"
    assert sent(client.ack(clusters[0]))[0] == (CDS, ["a"], [])


def test_a_nonce_of_a_closed_stream_is_stale_on_a_new_one() -> None:
    """Rule 3."""
    store, nonces = store_with(A), itertools.count(1)
    old = StreamClient(store, nonces=nonces).on(EDS, "a")[0]
    fresh = StreamClient(store, nonces=nonces)
    assert sent(fresh.on(EDS, "a", nonce=old.nonce)) == [(EDS, ["a"], [])]
    fresh.on(EDS, nonce=old.nonce)
    assert sent(fresh.put(resource(EDS, "a", "2"))) == [], "the first response is still unacknowledged"


def test_a_first_request_is_answered_even_if_it_carries_a_nonce_and_an_error() -> None:
    """Rule 4."""
    client = StreamClient(store_with(A))
    assert sent(client.on(EDS, "a", nonce="99", error="left over")) == [(EDS, ["a"], [])]
    assert client.session.subscriptions()[0].nacks == {}


def test_an_unknown_type_is_answered_once_and_leaves_the_others_alone() -> None:
    """Rule 5."""
    client = StreamClient(store_with(A))
    assert sent(client.on(MADE_UP, "*")) == [(MADE_UP, [], [])]
    assert sent(client.on(EDS, "a")) == [(EDS, ["a"], [])]


def test_a_named_subscription_of_an_unknown_type_waits_until_the_type_exists() -> None:
    """Rule 5."""
    client = StreamClient(ResourceStore())
    assert client.on(MADE_UP, "x") == ()
    assert sent(client.put(resource(MADE_UP, "x"))) == [(MADE_UP, ["x"], [])]
    assert sent(client.on(MADE_UP, "y")) == [(MADE_UP, [], ["y"])], "now the type is known"


def test_a_subscription_with_a_stale_nonce_is_honoured() -> None:
    """Rule 17."""
    client = StreamClient(store_with(A, B))
    client.on(EDS, "a")
    assert sent(client.on(EDS, "b", nonce="stale")) == [(EDS, ["b"], [])]
    client.on(EDS, unsubscribe=["a"], nonce="stale")
    client.ack_all(client.put(resource(EDS, "a", "2")))
    assert client.session.subscriptions()[0].names == {"b"}


def test_a_stale_nonce_is_neither_an_ack_nor_a_nack() -> None:
    """Rule 17."""
    client = StreamClient(store_with(A))
    first = client.on(EDS, "a")[0]
    client.on(EDS, nonce="stale", error="refused")
    assert client.session.subscriptions()[0].nacks == {}
    assert client.put(resource(EDS, "a", "2")) == ()
    assert sent(client.ack(first)) == [(EDS, ["a"], [])]


def test_a_name_in_both_lists_ends_unsubscribed() -> None:
    """Rule 18."""
    client = StreamClient(store_with(A, B))
    assert client.on(EDS, "a", unsubscribe=["a"]) == ()
    assert client.on(EDS, "b", "a", unsubscribe=["a"])[0].resources == (B,)
    assert client.session.subscriptions()[0].names == {"b"}


def test_every_subscribed_name_is_answered_even_if_current() -> None:
    """Rule 19."""
    client = StreamClient(store_with(A, B))
    client.ack_all(client.on(EDS, "a", "b"))
    assert sent(client.on(EDS, "a")) == [(EDS, ["a"], [])]


def test_subscribing_to_the_wildcard_again_is_answered_with_everything() -> None:
    """Rule 19."""
    client = StreamClient(store_with(resource(CDS, "a"), resource(CDS, "b")))
    client.ack_all(client.on(CDS))
    assert sent(client.on(CDS, "*")) == [(CDS, ["a", "b"], [])]


def test_a_reconnect_with_current_versions_is_quiet_for_names() -> None:
    """Rule 20."""
    client = StreamClient(store_with(A))
    assert client.on(EDS, "a", claims={"a": A.version}) == ()
    assert sent(client.put(resource(EDS, "a", "2"))) == [(EDS, ["a"], [])], "but it is subscribed"


def test_a_reconnect_with_current_versions_gets_one_empty_answer_for_a_wildcard() -> None:
    """Rule 20."""
    cluster = resource(CDS, "a")
    client = StreamClient(store_with(cluster))
    assert sent(client.on(CDS, claims={"a": cluster.version})) == [(CDS, [], [])]


def test_versions_claimed_after_the_first_request_are_ignored() -> None:
    """Rule 20: the exception is for the first request of a type only."""
    client = StreamClient(store_with(A, B))
    client.ack_all(client.on(EDS, "a"))
    assert sent(client.on(EDS, "b", claims={"b": B.version})) == [(EDS, ["b"], [])]


def test_an_unknown_name_is_answered_as_removed_and_sent_when_created() -> None:
    """Rule 21."""
    client = StreamClient(store_with(A))
    assert sent(client.ack_all(client.on(EDS, "b"))) == [(EDS, [], ["b"])]
    assert sent(client.put(B)) == [(EDS, ["b"], [])]


def test_known_and_unknown_names_are_answered_in_one_response() -> None:
    """Rules 19, 21."""
    client = StreamClient(store_with(A))
    assert sent(client.on(EDS, "a", "nosuch")) == [(EDS, ["a"], ["nosuch"])]


@pytest.mark.parametrize("subscribe", [("a",), ("*",)])
def test_a_deleted_resource_is_removed_exactly_once(subscribe: tuple[str, ...]) -> None:
    """Rule 22."""
    client = StreamClient(store_with(resource(CDS, "a"), resource(CDS, "b")))
    client.ack_all(client.on(CDS, *subscribe))
    assert sent(client.ack_all(client.remove(CDS, "a"))) == [(CDS, [], ["a"])]
    assert client.remove(CDS, "a") == ()
    assert client.put(resource(CDS, "c"), scope="elsewhere") == ()


def test_a_resource_that_was_never_sent_is_not_removed() -> None:
    """Rule 22."""
    client = StreamClient(store_with(resource(CDS, "a")))
    first = client.on(CDS)[0]
    client.put(resource(CDS, "b"))
    client.remove(CDS, "b")
    assert client.ack(first) == ()


def test_unsubscribing_needs_no_answer_and_ends_the_updates() -> None:
    """Rule 23."""
    client = StreamClient(store_with(A, B))
    client.ack_all(client.on(EDS, "a", "b"))
    assert client.on(EDS, unsubscribe=["a", "nosuch"]) == ()
    assert sent(client.put(resource(EDS, "a", "2"), resource(EDS, "b", "2"))) == [(EDS, ["b"], [])]


def test_a_name_dropped_and_asked_for_again_is_sent_again() -> None:
    """Rules 19, 23."""
    client = StreamClient(store_with(A))
    client.ack_all(client.on(EDS, "a"))
    client.on(EDS, unsubscribe=["a"])
    assert sent(client.on(EDS, "a")) == [(EDS, ["a"], [])]


def test_a_name_dropped_under_a_wildcard_is_answered_with_what_the_wildcard_covers() -> None:
    """Rule 23."""
    base, extra = resource(CDS, "base"), resource(CDS, "extra", on_demand=True)
    client = StreamClient(store_with(base, extra))
    client.ack_all(client.on(CDS, "*", "base", "extra"))
    assert sent(client.ack_all(client.on(CDS, unsubscribe=["base"]))) == [(CDS, ["base"], [])]
    assert sent(client.ack_all(client.on(CDS, unsubscribe=["extra"]))) == [(CDS, [], ["extra"])]


@pytest.mark.parametrize("type_url", [LDS, CDS, VHDS, *names.DATAPATH_TYPES])
def test_an_empty_first_request_is_the_wildcard(type_url: str) -> None:
    """Rule 24 and the decision on VHDS and our own types."""
    client = StreamClient(store_with(resource(type_url, "a")))
    assert sent(client.on(type_url)) == [(type_url, ["a"], [])]
    assert StreamClient(ResourceStore()).on(type_url)[0].resources == (), "answered even if empty"


def test_a_legacy_wildcard_stays_when_names_are_added() -> None:
    """Rule 24."""
    client = StreamClient(store_with(resource(CDS, "a"), resource(CDS, "x", on_demand=True)))
    client.ack_all(client.on(CDS))
    assert sent(client.ack_all(client.on(CDS, "x"))) == [(CDS, ["x"], [])]
    assert sent(client.put(resource(CDS, "b"))) == [(CDS, ["b"], [])]


def test_a_wildcard_ends_only_by_unsubscribing_the_star() -> None:
    """Rule 24."""
    client = StreamClient(store_with(resource(CDS, "a"), resource(CDS, "b")))
    client.ack_all(client.on(CDS, "*", "a"))
    assert client.on(CDS, unsubscribe=["*"]) == ()
    assert sent(client.put(resource(CDS, "a", "2"), resource(CDS, "b", "2"))) == [(CDS, ["a"], [])]


def test_an_empty_list_after_a_named_subscription_means_nothing() -> None:
    """Rule 24."""
    client = StreamClient(store_with(resource(CDS, "a"), resource(CDS, "b")))
    client.ack_all(client.on(CDS, "a"))
    assert client.on(CDS) == ()
    client.on(CDS, unsubscribe=["a"])
    assert client.on(CDS) == ()
    assert client.put(resource(CDS, "b", "2")) == ()


@pytest.mark.parametrize("type_url", [EDS, RDS, names.SECRET, names.EXTENSION])
def test_an_empty_first_request_of_a_named_type_subscribes_to_nothing(type_url: str) -> None:
    """Rule 25."""
    client = StreamClient(store_with(resource(type_url, "a")))
    assert client.on(type_url) == ()
    assert sent(client.on(type_url, "a")) == [(type_url, ["a"], [])]


def test_the_star_subscribes_to_all_of_a_named_type() -> None:
    """Rule 24, explicit form."""
    assert sent(StreamClient(store_with(A, B)).on(EDS, "*")) == [(EDS, ["a", "b"], [])]


def test_a_wildcard_leaves_out_what_is_on_demand() -> None:
    """ODCDS: on-demand clusters through the wildcard would lose the saving."""
    extra = resource(CDS, "extra", on_demand=True)
    client = StreamClient(store_with(resource(CDS, "base"), extra))
    assert sent(client.ack_all(client.on(CDS))) == [(CDS, ["base"], [])]
    assert sent(client.ack_all(client.on(CDS, "extra"))) == [(CDS, ["extra"], [])]
    assert client.put(resource(CDS, "other", on_demand=True)) == ()


def test_star_and_on_demand_names_of_a_reconnect_are_one_subscription() -> None:
    """ODCDS reconnect: every unknown name is answered as removed, in the answer to the wildcard."""
    store = store_with(resource(CDS, "base"), resource(CDS, "extra", on_demand=True))
    client = StreamClient(store)
    responses = client.on(CDS, "*", "extra", "nosuch")
    assert sent(responses) == [(CDS, ["extra", "base"], ["nosuch"])]


def test_an_on_demand_cluster_that_is_created_again_is_pushed() -> None:
    """ODCDS: Envoy stays subscribed after a removal and does not ask again."""
    client = StreamClient(store_with(resource(CDS, "x", on_demand=True)))
    client.ack_all(client.on(CDS))
    client.ack_all(client.on(CDS, "x"))
    assert sent(client.ack_all(client.remove(CDS, "x"))) == [(CDS, [], ["x"])]
    assert sent(client.put(resource(CDS, "x", on_demand=True))) == [(CDS, ["x"], [])]


def test_a_resource_that_becomes_on_demand_leaves_the_wildcard() -> None:
    client = StreamClient(store_with(resource(CDS, "x")))
    client.ack_all(client.on(CDS))
    assert sent(client.put(resource(CDS, "x", on_demand=True))) == [(CDS, [], ["x"])]


def test_an_unknown_host_asked_for_by_name_is_answered_without_a_body() -> None:
    """Rule 31."""
    store = store_with(resource(VHDS, "web/a"))
    client = StreamClient(store)
    client.ack_all(client.on(VHDS))
    (response,) = client.on(VHDS, "web/b.test")
    assert (response.resources, response.removed, response.missing) == ((), (), ("web/b.test",))
    (item,) = DeltaDiscoveryResponse.FromString(encode(response, store)).resources
    assert (item.name, list(item.aliases), item.HasField("resource")) == ("web/b.test", ["web/b.test"], False)
    client.ack(response)
    assert sent(client.ack_all(client.put(resource(VHDS, "web/b.test")))) == [(VHDS, ["web/b.test"], [])]
    assert sent(client.remove(VHDS, "web/b.test")) == [(VHDS, [], ["web/b.test"])], "it had existed"


def test_claims_are_compared_skipped_updated_or_removed() -> None:
    """Rule 27."""
    client = StreamClient(store_with(A, B))
    claims = {"a": A.version, "b": "old", "c": C.version}
    assert sent(client.on(EDS, "a", "b", "c", claims=claims)) == [(EDS, ["b"], ["c"])]


def test_claims_under_a_wildcard_are_compared_too() -> None:
    """Rule 27; a cluster leaves behind the routes that may name it (rule 32)."""
    a, b, n = (resource(CDS, name) for name in "abn")
    client = StreamClient(store_with(a, b, n))
    claims = {"a": a.version, "b": "old", "c": "gone"}
    assert sent(client.ack_all(client.on(CDS, claims=claims))) == [(CDS, ["b", "n"], []), (CDS, [], ["c"])]
    claims = {"l": "gone"}
    assert sent(client.on(LDS, claims=claims)) == [(LDS, [], ["l"])]


def test_claims_outside_the_subscription_get_nothing() -> None:
    """Rule 27."""
    client = StreamClient(store_with(A))
    assert sent(client.on(EDS, "a", claims={"c": "1"})) == [(EDS, ["a"], [])]


def test_a_fail_over_to_an_equal_replica_sends_no_resource() -> None:
    """Rule 28."""
    resources = [resource(CDS, str(number)) for number in range(50)]
    claims = {item.name: item.version for item in StreamClient(store_with(*resources)).on(CDS)[0].resources}
    replica = store_with(*reversed(resources))
    assert len(claims) == 50
    assert sent(StreamClient(replica).on(CDS, claims=claims)) == [(CDS, [], [])]


def test_an_update_that_changes_no_byte_is_quiet() -> None:
    """Rule 29."""
    client = StreamClient(store_with(A))
    client.ack_all(client.on(EDS, "a"))
    assert client.put(resource(EDS, "a")) == ()


def test_a_name_removed_and_added_while_waiting_is_in_one_list_once() -> None:
    """Rule 30."""
    client = StreamClient(store_with(resource(CDS, "a")))
    first = client.on(CDS)[0]
    client.remove(CDS, "a")
    client.put(resource(CDS, "a", "2"))
    client.remove(CDS, "a")
    client.put(resource(CDS, "a", "3"))
    assert sent(client.ack(first)) == [(CDS, ["a"], [])]


def test_a_subscribed_name_that_also_changed_is_sent_once() -> None:
    """Rule 30: the answer and the push are one."""
    client = StreamClient(store_with(A))
    client.ack_all(client.on(EDS, "a"))
    request = decode_delta(protocol.encode_request(EDS, subscribe=["a"]))
    client.session.on_request(request)
    assert sent(client.put(resource(EDS, "a", "2"))) == [(EDS, ["a"], [])]


def test_too_many_names_close_the_stream() -> None:
    """Limits: memory per stream is bounded."""
    client = StreamClient(ResourceStore())
    with pytest.raises(ProtocolError) as error:
        client.on(EDS, *(str(number) for number in range(MAX_NAMES + 1)))
    assert error.value.status == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("types", [(EDS,), (EDS, CDS)], ids=["one type", "two types"])
def test_names_that_are_too_long_together_close_the_stream(
    monkeypatch: pytest.MonkeyPatch, types: tuple[str, ...]
) -> None:
    """Limits: a peer chooses how long its names are. What it gives up makes room, and a name counts once."""
    monkeypatch.setattr(limits, "MAX_NAME_BYTES", 4 * (1000 + NAME_COST))
    client = StreamClient(store_with(A))
    for number in (0, 1, 2, 0, 1, 2):
        client.ack_all(client.on(types[0], "a" * 999 + str(number)))
    client.on(types[-1], "b" * 1000)
    client.on(types[-1], unsubscribe=("b" * 1000,))
    client.on(types[-1], "c" * 1000)
    with pytest.raises(ProtocolError, match="on one stream") as error:
        client.on(types[-1], "d")
    assert error.value.status == "RESOURCE_EXHAUSTED"


def test_claims_that_are_too_long_close_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is back may hold a great deal, with a version each."""
    monkeypatch.setattr(limits, "MAX_NAME_BYTES", 10_000)
    StreamClient(store_with(A)).on(CDS, claims={"a": "1", "b": "1"})
    with pytest.raises(ProtocolError, match="on one stream"):
        StreamClient(store_with(A)).on(CDS, claims={"a": "1", "b": "1" * 10_000})
