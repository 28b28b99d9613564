"""Rule 44: what is more than a client takes in one message is not sent, and everybody can see that."""

from __future__ import annotations

import pytest
from xds_stream_client import CDS, EDS, SotwClient, StreamClient, contents, resource, sent, store_with

from xdsbpf.xds.filling import GRPC_MAX_MESSAGE, Oversized, max_message_of
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.resource_status import explain
from xdsbpf.xds.shared import MIN_NAMES
from xdsbpf.xds.status import SyncState, node_status
from xdsbpf.xds.store import View

LIMIT = 3000
BIG = "x" * LIMIT


def test_a_large_resource_is_left_out_and_seen() -> None:
    client = StreamClient(store_with(resource(EDS, "a"), resource(EDS, "b")), max_message=LIMIT)
    client.ack_all(client.on(EDS, "a", "b"))
    (only,) = client.put(resource(EDS, "a", BIG), resource(EDS, "b", "2"))
    assert sent([only]) == [(EDS, ["b"], [])]
    client.ack(only)
    (found,) = client.session.oversized
    assert (found.type_url, found.name, found.size > LIMIT) == (EDS, "a", True)
    (row,) = node_status(client.session, Gate(), 0.0).types
    assert row.state is SyncState.PENDING
    assert [entry.name for entry in row.withheld] == ["a"]
    assert "and the client takes 4" in explain(client.session, Gate(), client.store, EDS, "a")
    client.ack_all(client.put(resource(EDS, "a", "small")))
    (row,) = node_status(client.session, Gate(), 0.0).types
    assert (row.state, row.withheld) == (SyncState.SYNCED, ())


def test_a_large_resource_in_a_first_sync_of_shared_pages_is_left_out() -> None:
    names = [f"e{number}" for number in range(MIN_NAMES)]
    huge = resource(EDS, "e0", "x" * (GRPC_MAX_MESSAGE + 1))
    store = store_with(huge, *(resource(EDS, name) for name in names[1:]))
    client = StreamClient(store, max_message=GRPC_MAX_MESSAGE)
    responses = client.ack_all(client.on(EDS, *names))
    assert sorted(item.name for response in responses for item in response.resources) == sorted(names[1:])
    everything = StreamClient(store).on(EDS, *names)
    assert huge in everything[0].resources, "an Envoy takes it"


def test_a_large_resource_that_goes_away_is_forgotten() -> None:
    client = StreamClient(store_with(resource(EDS, "a", BIG)), max_message=LIMIT)
    assert client.on(EDS, "a") == ()
    client.remove(EDS, "a")
    assert not client.session.subscriptions()[0].too_large


def test_a_set_that_is_too_large_leaves_the_last_one_in_force_until_it_fits() -> None:
    client = SotwClient(store_with(resource(CDS, "a")), max_message=LIMIT)
    client.ack_all(client.on(CDS))
    assert client.put(resource(CDS, "b"), resource(CDS, "c", BIG)) == ()
    assert client.session.oversized[0].name == ""
    (row,) = node_status(client.session, Gate(), 0.0).types
    assert [entry.name for entry in row.withheld] == ["(all)"]
    assert "is not sent" in explain(client.session, Gate(), client.store, CDS, "b")
    assert contents(client.remove(CDS, "c")) == [(CDS, ["a=1", "b=1"])], "what came with it is not lost"
    assert not client.session.subscriptions()[0].too_large


def test_a_removal_does_not_send_a_set_that_is_too_large() -> None:
    client = SotwClient(store_with(resource(CDS, "a"), resource(CDS, "b")), max_message=LIMIT)
    client.ack_all(client.on(CDS))
    assert client.put(resource(CDS, "c", BIG)) == ()
    assert client.remove(CDS, "a") == ()
    assert contents(client.ack_all(client.remove(CDS, "c")))[-1] == (CDS, ["b=1"])


@pytest.mark.parametrize(
    ("kind", "agent", "limit"),
    [
        ("grpc", "", GRPC_MAX_MESSAGE),
        ("envoy", "gRPC C-core linux Python", GRPC_MAX_MESSAGE),
        ("envoy", "grpc-go", GRPC_MAX_MESSAGE),
        ("envoy", "envoy", None),
    ],
)
def test_only_grpc_clients_have_a_limit(kind: str, agent: str, limit: int | None) -> None:
    assert max_message_of(View((), "", kind), {"node.user_agent_name": agent}) == limit


def test_the_limit_leaves_room_for_the_rest_of_the_message() -> None:
    body = "x" * (GRPC_MAX_MESSAGE - 40)
    client = StreamClient(store_with(resource(EDS, "a", body)), max_message=GRPC_MAX_MESSAGE)
    assert client.on(EDS, "a") == ()
    assert client.session.oversized == [Oversized(EDS, "a", client.session.oversized[0].size)]
