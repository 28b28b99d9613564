"""Rules of one state-of-the-world stream. One test per rule; what both variants share is tested with delta."""

from __future__ import annotations

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from xds_stream_client import CDS, EDS, LDS, NODE_ID, RDS, VHDS, SotwClient, contents, resource, store_with

from xdsbpf.errors import ProtocolError
from xdsbpf.model import names
from xdsbpf.model.resource import Resource
from xdsbpf.xds import protocol
from xdsbpf.xds.request import SotwRequest
from xdsbpf.xds.shared import PAGE_RESOURCES
from xdsbpf.xds.store import Batch, ResourceStore

MADE_UP = "type.googleapis.com/acme.v1.Widget"


def test_the_bytes_are_a_discovery_response() -> None:
    client = SotwClient(store_with(resource(CDS, "a"), Resource(CDS, "empty", "1", b"")))
    (response,) = client.on(CDS)
    message = DiscoveryResponse.FromString(client.session.encode(response))
    assert (message.version_info, message.nonce, message.type_url) == (response.version, response.nonce, CDS)
    assert [(item.type_url, item.value) for item in message.resources] == [(CDS, b"a=1"), (CDS, b"")]


def test_an_ads_request_needs_a_type_and_one_node() -> None:
    """Rules 1, 2."""
    client = SotwClient(ResourceStore())
    with pytest.raises(ProtocolError, match="type_url"):
        client.on("")

    class Other:
        id = "somebody else"

    with pytest.raises(ProtocolError, match=NODE_ID):
        client.session.on_request(SotwRequest(CDS, node=Other()))


def test_a_leaked_nonce_and_version_do_not_suppress_the_first_answer() -> None:
    """Rules 3, 4."""
    client = SotwClient(store_with(resource(EDS, "a"), resource(CDS, "c")))
    assert contents(client.on(EDS, "a", nonce="99", version="whatever")) == [(EDS, ["a=1"])]
    assert contents(client.on(CDS, nonce="99", version="whatever")) == [(CDS, ["c=1"])]


@pytest.mark.parametrize("type_url", [MADE_UP, VHDS])
def test_a_type_without_a_state_is_quiet_and_does_not_disturb_others(type_url: str) -> None:
    """Rules 1, 5."""
    client = SotwClient(store_with(resource(CDS, "c"), resource(VHDS, "v")))
    assert client.on(type_url, "x") == ()
    assert contents(client.on(CDS)) == [(CDS, ["c=1"])]


def test_an_unknown_type_is_served_once_it_exists() -> None:
    """Rule 5."""
    client = SotwClient(ResourceStore())
    assert client.on(MADE_UP, "x") == ()
    assert contents(client.put(resource(MADE_UP, "x"))) == [(MADE_UP, ["x=1"])]


def test_of_pipelined_requests_the_last_is_answered_in_full() -> None:
    """Rule 7."""
    client = SotwClient(store_with(*(resource(EDS, name) for name in "abc")))
    for asked in (("a",), ("a", "b"), ("a", "b", "c")):
        client.session.on_request(SotwRequest(EDS, asked))
    assert contents(client.session.poll()) == [(EDS, ["a=1", "b=1", "c=1"])]


def test_a_stale_nonce_is_ignored_names_and_all() -> None:
    """Rule 8: the client repeats its names with the answer to the newest response."""
    client = SotwClient(store_with(resource(EDS, "a"), resource(EDS, "b")))
    first = client.on(EDS, "a")[0]
    client.ack(first)
    second = client.put(resource(EDS, "a", "2"))[0]
    assert client.on(EDS, "a", "b", nonce=first.nonce) == ()
    assert contents(client.on(EDS, "a", "b", nonce=second.nonce)) == [(EDS, ["b=1"])]


def test_a_nack_is_an_error_and_not_an_old_version() -> None:
    """Rule 9."""
    client = SotwClient(store_with(resource(CDS, "a")))
    first = client.on(CDS)[0]
    client.on(CDS, nonce=first.nonce, version="an old one")
    assert client.session.subscriptions()[0].last_error == ""
    again = client.put(resource(CDS, "a", "2"))[0]
    client.nack(again, "no good")
    assert client.session.subscriptions()[0].last_error == "no good"


def test_a_name_given_up_and_taken_back_before_a_response_arrives_is_sent_again() -> None:
    """Rule 12: its requests have a stale nonce, but the client has forgotten what it gave up."""
    client = SotwClient(store_with(resource(EDS, "a"), resource(EDS, "b"), resource(EDS, "c")))
    (first,) = client.on(EDS, "a", "b", "c")
    client.ack(first)
    (second,) = client.put(resource(EDS, "a", "2"))
    assert client.on(EDS, "c", nonce=first.nonce) == ()
    assert client.on(EDS, "a", "b", "c", nonce=first.nonce) == ()
    assert contents(client.ack(second)) == [(EDS, ["b=1"])], "`a` came with the response"


def test_a_wildcard_given_up_and_taken_back_before_a_set_arrives_needs_nothing_more() -> None:
    client = SotwClient(store_with(resource(CDS, "a"), resource(CDS, "b")))
    (first,) = client.on(CDS, "*")
    client.ack(first)
    (second,) = client.put(resource(CDS, "a", "2"))
    assert client.on(CDS, nonce=first.nonce) == ()
    assert client.on(CDS, "*", nonce=first.nonce) == ()
    assert client.ack(second) == ()


def test_a_wildcard_given_up_and_taken_back_before_a_set_is_refused_is_sent_again() -> None:
    client = SotwClient(store_with(resource(CDS, "a"), resource(CDS, "b")))
    (first,) = client.on(CDS, "*")
    client.ack(first)
    (second,) = client.put(resource(CDS, "a", "2"))
    for asked in ((), ("*",)):
        assert client.on(CDS, *asked, nonce=first.nonce) == ()
    assert contents(client.nack(second, "a: refused")) == [(CDS, ["a=2", "b=1"])]


def test_an_empty_list_means_nothing_once_names_were_sent_with_a_stale_nonce() -> None:
    """Rule 24."""
    client = SotwClient(store_with(resource(CDS, "a")))
    (first,) = client.on(CDS)
    client.ack(first)
    (second,) = client.put(resource(CDS, "a", "2"))
    assert client.on(CDS, "a", nonce=first.nonce) == ()
    client.on(CDS, nonce=second.nonce)
    assert client.put(resource(CDS, "b")) == ()


@pytest.mark.parametrize("type_url", [CDS, EDS])
def test_refused_content_is_not_sent_again_until_something_changes(type_url: str) -> None:
    """Rule 10."""
    client = SotwClient(store_with(resource(type_url, "a"), resource(type_url, "b")))
    assert client.nack(client.on(type_url, "a", "b")[0], "no good") == ()
    assert client.on(type_url, "a", "b") == (), "the same request once more"
    assert len(client.put(resource(type_url, "a", "2"))) == 1


def test_versions_are_of_the_content() -> None:
    """Rule 11: equal over replicas and restarts, and back to the old one with the old content."""
    items = [resource(CDS, name) for name in "abc"]
    client, replica = SotwClient(store_with(*items)), SotwClient(store_with(*reversed(items)))
    first = client.on(CDS)[0]
    assert first.version == replica.on(CDS)[0].version
    client.ack(first)
    second = client.put(resource(CDS, "a", "2"))[0]
    assert second.version != first.version
    client.ack(second)
    assert client.put(items[0])[0].version == first.version


def test_an_explicit_version_is_served_as_it_is() -> None:
    client = SotwClient(store_with(Resource(CDS, "a", "7", b"1"), Resource(CDS, "b", "7", b"2")))
    assert client.on(CDS)[0].version == "7"


def test_a_reconnect_with_the_current_version_gets_no_wildcard_again() -> None:
    """Rule 11; changes after it are seen."""
    store = store_with(resource(CDS, "a"), resource(EDS, "a"))
    version = SotwClient(store).on(CDS)[0].version
    client = SotwClient(store)
    assert client.on(CDS, version=version, nonce="old") == ()
    assert contents(client.put(resource(CDS, "b"))) == [(CDS, ["a=1", "b=1"])]


def test_a_version_never_suppresses_names_that_were_not_sent_on_this_stream() -> None:
    """Rule 11."""
    store = store_with(resource(CDS, "a"), resource(EDS, "a"))
    for type_url in (CDS, EDS):
        version = SotwClient(store).on(type_url, "a")[0].version
        assert SotwClient(store).on(type_url, "a", version=version) != ()


@pytest.mark.parametrize("type_url", [CDS, EDS])
def test_a_name_dropped_and_asked_for_again_is_sent_again(type_url: str) -> None:
    """Rules 12, 16: dropping is quiet."""
    client = SotwClient(store_with(resource(type_url, "a"), resource(type_url, "b")))
    client.ack_all(client.on(type_url, "a", "b"))
    assert client.on(type_url, "b") == ()
    assert len(client.ack_all(client.on(type_url, "a", "b"))) == 1
    assert client.on(type_url) == ()
    assert len(client.on(type_url, "a")) == 1


def test_new_names_are_answered_at_an_unchanged_version() -> None:
    """Rule 12."""
    client = SotwClient(store_with(resource(RDS, "a"), resource(RDS, "b")))
    client.ack_all(client.on(RDS, "a"))
    assert contents(client.on(RDS, "a", "b")) == [(RDS, ["b=1"])]


@pytest.mark.parametrize("type_url", [LDS, CDS, protocol.SCOPED_ROUTES])
def test_responses_of_whole_sets_hold_all(type_url: str) -> None:
    """Rule 13: absence means deletion."""
    client = SotwClient(store_with(*(resource(type_url, name) for name in "abc")))
    client.ack_all(client.on(type_url))
    assert contents(client.ack_all(client.put(resource(type_url, "b", "2")))) == [(type_url, ["a=1", "b=2", "c=1"])]
    assert contents(client.ack_all(client.remove(type_url, "a"))) == [(type_url, ["b=2", "c=1"])]


@pytest.mark.parametrize("type_url", [EDS, RDS, names.SECRET, names.EXTENSION, protocol.RUNTIME])
def test_responses_of_named_types_hold_what_changed(type_url: str) -> None:
    """Rule 13: there is no deletion."""
    client = SotwClient(store_with(*(resource(type_url, name) for name in "abc")))
    client.ack_all(client.on(type_url, "a", "b", "c"))
    assert contents(client.ack_all(client.put(resource(type_url, "b", "2")))) == [(type_url, ["b=2"])]
    assert client.remove(type_url, "a") == ()
    assert contents(client.put(resource(type_url, "a"))) == [(type_url, ["a=1"])], "it is new again"


@pytest.mark.parametrize("type_url", [CDS, EDS])
def test_missing_names_hold_nothing_back_and_are_remembered(type_url: str) -> None:
    """Rule 14."""
    client = SotwClient(store_with(resource(type_url, "a")))
    assert contents(client.ack_all(client.on(type_url, "a", "nosuch"))) == [(type_url, ["a=1"])]
    assert contents(client.put(resource(type_url, "nosuch")))[0][1][-1] == "nosuch=1"


def test_missing_names_of_a_whole_set_are_answered_without_them() -> None:
    """Rule 14: the client's timer starts with its request, but an empty set is said at once."""
    assert contents(SotwClient(ResourceStore()).on(LDS, "nosuch")) == [(LDS, [])]
    assert SotwClient(ResourceStore()).on(EDS, "nosuch") == ()


def test_the_wildcard_has_three_states() -> None:
    """Rule 24."""
    client = SotwClient(store_with(resource(CDS, "a"), resource(CDS, "b"), resource(CDS, "x", on_demand=True)))
    assert contents(client.ack_all(client.on(CDS))) == [(CDS, ["a=1", "b=1"])]
    assert client.on(CDS) == (), "still the wildcard"
    assert contents(client.ack_all(client.on(CDS, "*", "x"))) == [(CDS, ["a=1", "b=1", "x=1"])]
    assert client.on(CDS, "x") == ()
    assert client.put(resource(CDS, "a", "2")) == (), "the wildcard has ended"
    assert client.on(CDS) == ()
    assert client.put(resource(CDS, "a", "3")) == (), "an empty list after names means nothing"
    assert contents(client.on(CDS, "*")) == [(CDS, ["a=3", "b=1"])]


def test_a_name_beside_the_wildcard_that_is_dropped_leaves_with_the_next_set() -> None:
    """Rules 13, 24."""
    client = SotwClient(store_with(resource(CDS, "a"), resource(CDS, "x", on_demand=True)))
    client.ack_all(client.on(CDS, "*", "a", "x"))
    assert client.on(CDS, "*", "x") == ()
    assert contents(client.on(CDS, "*")) == [(CDS, ["a=1"])]


@pytest.mark.parametrize("type_url", [EDS, RDS, names.SECRET, names.EXTENSION])
def test_an_empty_first_request_of_a_named_type_subscribes_to_nothing(type_url: str) -> None:
    """Rule 25."""
    client = SotwClient(store_with(resource(type_url, "a")))
    assert client.on(type_url) == ()
    assert client.put(resource(type_url, "a", "2")) == ()
    assert len(client.on(type_url, "a")) == 1


def test_a_glob_collection_is_subscribed_by_its_path() -> None:
    """Rule 26."""
    path = "xdstp://authority/envoy.config.endpoint.v3.ClusterLoadAssignment/"
    client = SotwClient(store_with(resource(EDS, path + "foo/a"), resource(EDS, path + "bar/b")))
    assert contents(client.ack_all(client.on(EDS, path + "foo/*"))) == [(EDS, [path + "foo/a=1"])]
    assert contents(client.put(resource(EDS, path + "foo/c"), resource(EDS, path + "bar/d"))) == [
        (EDS, [path + "foo/c=1"])
    ]


def test_removals_wait_for_what_may_still_refer_to_them() -> None:
    """Rule 32: the old cluster stays in the set until the route that left it has been ACKed."""
    client = SotwClient(store_with(resource(CDS, "old"), resource(RDS, "r")))
    client.ack_all((*client.on(CDS), *client.on(RDS, "r")))
    updates = client.changed(
        client.store.apply_all([Batch("node-envoy", (resource(CDS, "new"), resource(RDS, "r", "2")), ((CDS, "old"),))])
    )
    assert contents(updates) == [(CDS, ["new=1", "old=1"]), (RDS, ["r=2"])]
    assert client.ack(updates[0]) == ()
    assert contents(client.ack(updates[1])) == [(CDS, ["new=1"])]


def test_endpoints_follow_an_updated_cluster_and_no_other() -> None:
    """Rule 33."""
    client = SotwClient(store_with(*(resource(type_url, name) for type_url in (CDS, EDS) for name in "ab")))
    client.ack_all((*client.on(CDS), *client.on(EDS, "a", "b")))
    assert contents(client.put(resource(CDS, "a", "2"))) == [(CDS, ["a=2", "b=1"]), (EDS, ["a=1"])]


def test_one_response_of_a_type_is_out_and_the_latest_wins() -> None:
    """Rule 41."""
    client = SotwClient(store_with(resource(EDS, "a", "0")))
    client.ack_all(client.on(EDS, "a"))
    out = [client.put(resource(EDS, "a", str(number))) for number in range(1, 1001)]
    assert [len(responses) for responses in out] == [1, *[0] * 999]
    assert contents(client.ack_all(client.ack(out[0][0]))) == [(EDS, ["a=1000"])]


def test_named_types_are_paged_and_whole_sets_are_not() -> None:
    """Rule 44."""
    store = store_with(
        *(resource(type_url, f"{number:04}") for type_url in (CDS, EDS) for number in range(PAGE_RESOURCES + 1))
    )
    client = SotwClient(store)
    assert [len(page.resources) for page in client.ack_all(client.on(CDS))] == [PAGE_RESOURCES + 1]
    pages = client.ack_all(client.on(EDS, *store.names("node-envoy", EDS)))
    assert [len(page.resources) for page in pages] == [PAGE_RESOURCES, 1]


def test_what_a_state_of_the_world_envoy_acks_is_known_to_the_gate() -> None:
    """The gate between the planes needs it whichever variant the node's Envoy speaks."""
    from xdsbpf.xds.gate import Gate

    item = resource(RDS, "r")
    client = SotwClient(store_with(item), gate=Gate())
    assert client.ledger is not None
    response = client.on(RDS, "r")[0]
    assert client.ledger.accepted == {}
    client.ack(response)
    assert client.ledger.accepted == {RDS: {"r": item.version}}
