"""Rule 52, by a clock of the test's own: when a client is told that what it holds is still there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse
from xds_stream_client import CDS, EDS, SotwClient, StreamClient, resource, sent, store_with

from xdsbpf.xds import protocol
from xdsbpf.xds.response import Response
from xdsbpf.xds.store import ResourceStore

Client = StreamClient | SotwClient
BOTH = pytest.mark.parametrize("make", [StreamClient, SotwClient])


def beats(client: Client, at: float) -> list[list[str]]:
    """Names in the heartbeats of that moment, each ACKed."""
    return [[item.name for item in response.heartbeats] for response in client.ack_all(after(client, at))]


def after(client: Client, at: float) -> tuple[Response, ...]:
    client.now = at
    return client._poll() if isinstance(client, SotwClient) else client.session.poll()


@BOTH
def test_a_client_hears_three_times_in_a_life_and_only_of_what_has_one(make: Callable[[ResourceStore], Client]) -> None:
    client = make(store_with(resource(EDS, "mortal", ttl_ms=3000), resource(EDS, "lasting")))
    client.ack_all(client.on(EDS, "mortal", "lasting"))
    assert client.session.wake_at == 1.0
    assert [beats(client, at) for at in (0.9, 1.0, 1.5, 2.0, 3.0)] == [[], [["mortal"]], [], [["mortal"]], [["mortal"]]]


@BOTH
def test_an_update_is_a_sign_of_life_and_what_is_gone_or_lasts_now_has_none(
    make: Callable[[ResourceStore], Client],
) -> None:
    client = make(store_with(*(resource(EDS, name, ttl_ms=3000) for name in ("a", "b", "c"))))
    client.ack_all(client.on(EDS, "a", "b", "c"))
    client.now = 0.5
    client.ack_all(client.put(resource(EDS, "a", "2", ttl_ms=3000), resource(EDS, "b", "2")))
    client.ack_all(client.remove(EDS, "c"))
    assert [beats(client, at) for at in (1.0, 1.5)] == [[], [["a"]]]


@BOTH
def test_a_client_that_does_not_answer_a_heartbeat_gets_no_other(make: Callable[[ResourceStore], Client]) -> None:
    client = make(store_with(resource(EDS, "a", ttl_ms=3000)))
    client.ack_all(client.on(EDS, "a"))
    (beat,) = after(client, 1.0)
    assert after(client, 2.0) == ()
    client.ack(beat)
    assert beats(client, 3.0) == [["a"]]


def test_what_a_client_that_is_back_holds_already_lives_on() -> None:
    held = resource(EDS, "a", ttl_ms=3000)
    client = StreamClient(store_with(held))
    assert client.on(EDS, "a", claims={"a": held.version}) == ()
    assert beats(client, 1.0) == [["a"]]


def test_a_whole_set_comes_with_its_content_under_the_same_version() -> None:
    """A set without content could be read as a set without resources."""
    client = SotwClient(store_with(resource(CDS, "a", ttl_ms=3000), resource(CDS, "b")))
    (first,) = client.on(CDS)
    client.ack(first)
    (again,) = after(client, 1.0)
    assert sent((again,)) == [(CDS, ["a", "b"], [])]
    assert again.version == first.version


def test_a_heartbeat_changes_nothing_that_the_client_is_known_to_hold() -> None:
    client = StreamClient(store_with(resource(EDS, "a", ttl_ms=3000)))
    client.ack_all(client.on(EDS, "a"))
    (subscription,) = client.session.subscriptions()
    before = dict(subscription.held)
    (beat,) = after(client, 1.0)
    assert subscription.oldest_unacked() is None
    client.nack(beat, "no")
    assert subscription.held == before
    assert subscription.nacks == {}


def test_a_time_to_live_is_a_duration_on_the_wire() -> None:
    made = resource(EDS, "a", ttl_ms=1500)
    entry = protocol.heartbeat_entry(made)
    read = DeltaDiscoveryResponse.FromString(entry).resources[0]
    assert (read.name, read.version, read.ttl.ToMilliseconds(), read.HasField("resource")) == (
        "a",
        made.version,
        1500,
        False,
    )
