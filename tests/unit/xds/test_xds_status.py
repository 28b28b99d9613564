"""Every type of every client is in exactly one state."""

from __future__ import annotations

from xds_stream_client import CDS, EDS, NODE_ID, StreamClient, resource, store_with

from xdsbpf.xds.gate import Gate
from xdsbpf.xds.lifetimes import PATIENCE
from xdsbpf.xds.status import SyncState, TypeStatus, node_status, node_statuses
from xdsbpf.xds.store import ResourceStore


def status(client: StreamClient, now: float = 0.0) -> TypeStatus:
    (only,) = node_status(client.session, Gate(), now).types
    return only


def test_a_response_without_an_ack_is_pending_then_stale_then_synced() -> None:
    client = StreamClient(store_with(resource(CDS, "a")))
    client.now = 100.0
    first = client.on(CDS)[0]
    assert status(client, 100.0).state is SyncState.PENDING
    assert status(client, 100.0 + PATIENCE.stale_s - 1).state is SyncState.PENDING
    assert status(client, 100.0 + PATIENCE.stale_s).state is SyncState.STALE
    client.ack(first)
    row = status(client, 1e6)
    assert row.state is SyncState.SYNCED
    assert (row.wildcard, row.subscribed, row.held, row.nonce, row.revision) == (True, 0, 1, first.nonce, 1)


def test_what_was_claimed_and_is_current_is_synced() -> None:
    item = resource(EDS, "a")
    client = StreamClient(store_with(item))
    client.on(EDS, "a", claims={"a": item.version})
    assert status(client).state is SyncState.SYNCED


def test_a_subscription_to_nothing_is_not_sent() -> None:
    client = StreamClient(ResourceStore())
    client.on(EDS)
    assert status(client).state is SyncState.NOT_SENT


def test_a_nack_shows_its_text_at_its_resource_until_the_resource_is_acked() -> None:
    client = StreamClient(store_with(resource(CDS, "good"), resource(CDS, "bad")))
    again = client.nack(client.on(CDS)[0], "cluster bad: malformed IP\naddress")
    row = status(client)
    assert row.state is SyncState.NACKED
    client.ack_all(again)
    row = status(client)
    assert row.state is SyncState.NACKED, "what came with it was taken, itself not"
    assert row.nacked[0].text == "cluster bad: malformed IP\\naddress"
    assert [item.name for item in row.nacked] == ["bad"]
    client.ack_all(client.put(resource(CDS, "good", "2")))
    assert status(client).state is SyncState.NACKED, "the bad one is still refused"
    client.ack_all(client.put(resource(CDS, "bad", "2")))
    row = status(client)
    assert (row.state, row.nacked, row.error) == (SyncState.SYNCED, (), "")


def test_a_refused_resource_that_is_deleted_is_no_longer_nacked() -> None:
    client = StreamClient(store_with(resource(CDS, "bad")))
    client.nack(client.on(CDS)[0], "bad")
    client.ack_all(client.remove(CDS, "bad"))
    assert status(client).state is SyncState.SYNCED


def test_a_change_behind_an_unacked_response_is_pending() -> None:
    client = StreamClient(store_with(resource(CDS, "a")))
    client.on(CDS)
    client.put(resource(CDS, "b"))
    assert status(client).state is SyncState.PENDING


def test_rows_are_sorted_by_node_id() -> None:
    store = ResourceStore()
    sessions = [StreamClient(store).session for _ in range(3)]
    for session, node_id in zip(sessions, ("c", "a", "b"), strict=True):
        session.node_id = node_id
    rows = node_statuses(sessions, Gate(), 0.0)
    assert [row.node_id for row in rows] == ["a", "b", "c"]
    assert NODE_ID not in [row.node_id for row in rows]


def test_versions_ages_and_what_was_accepted_are_told() -> None:
    client = StreamClient(store_with(resource(CDS, "a"), resource(CDS, "b")))
    client.now = 10.0
    first = client.on(CDS)[0]
    row = status(client, 12.0)
    assert (row.version, row.acked_version) == (str(first.revision), "")
    assert (row.sent_age_s, row.acked_age_s, row.waits_s, row.accepted) == (2.0, None, 2.0, 0)
    client.now = 13.0
    client.ack(first)
    row = status(client, 20.0)
    assert (row.acked_version, row.sent_age_s, row.acked_age_s, row.waits_s) == (str(first.revision), 10.0, 7.0, None)
    assert (row.held, row.accepted) == (2, 2)
    client.now = 30.0
    client.nack(client.put(resource(CDS, "b", "2"))[0], "b is wrong")
    row = status(client, 31.0)
    assert (row.acked_version, row.nacked_age_s, row.accepted) == (str(first.revision), 1.0, 1)
    assert row.version == str(client.store.revision)


def test_a_stream_tells_its_variant_and_for_how_long_it_is_open() -> None:
    delta = StreamClient(ResourceStore())
    assert node_status(delta.session, Gate(), 5.0).variant == "delta"
    assert node_status(delta.session, Gate(), 5.0).age_s == 5.0
