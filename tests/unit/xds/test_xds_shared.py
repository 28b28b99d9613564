"""What streams share: pages and messages that are the same for many, and only where they are the same."""

from __future__ import annotations

import itertools
import random

import pytest
from xds_stream_client import CDS, EDS, ENVOY_VIEW, StreamClient, resource, sent, store_with

from xdsbpf.xds import shared
from xdsbpf.xds.response import Response
from xdsbpf.xds.shared import CACHE_BYTES, MIN_NAMES
from xdsbpf.xds.store import Changes, ResourceStore, View


def clients_of(store: ResourceStore, count: int) -> list[StreamClient]:
    """Envoys of different nodes that have everything."""
    numbers = itertools.count(1)
    clients = []
    for number in range(count):
        view = View(("node-envoy", f"node-envoy/{number}"), f"node{number}", ENVOY_VIEW.kind)
        client = StreamClient(store, view, nonces=numbers)
        client.ack_all(client.on(EDS, "a", "b"))
        clients.append(client)
    return clients


def pushed(clients: list[StreamClient], changes: Changes) -> list[Response]:
    """The one response of each."""
    found = []
    for client in clients:
        (response,) = client.changed(changes)
        found.append(response)
    return found


def encoded(client: StreamClient, response: Response) -> bytes:
    return client.session.encode(response)


def test_streams_that_are_owed_the_same_are_sent_the_same_bytes() -> None:
    store = store_with(resource(EDS, "a"), resource(EDS, "b"))
    clients = clients_of(store, 3)
    responses = pushed(clients, store.apply("node-envoy", [resource(EDS, "a", "2")]))
    first, *others = [encoded(client, response) for client, response in zip(clients, responses, strict=True)]
    assert all(message is first for message in others)
    assert [client.ack(response) for client, response in zip(clients, responses, strict=True)] == [()] * 3


def test_a_stream_with_something_of_its_own_is_sent_its_own() -> None:
    store = store_with(resource(EDS, "a"), resource(EDS, "b"))
    store.apply("node-envoy/1", [resource(EDS, "a", "own")])
    clients = clients_of(store, 3)
    changes = store.apply("node-envoy", [resource(EDS, "a", "2"), resource(EDS, "b", "2")])
    first, second, third = pushed(clients, changes)
    assert [item.body for item in first.resources] == [item.body for item in third.resources] == [b"a=2", b"b=2"]
    assert [item.body for item in second.resources] == [b"b=2"]


def test_nonces_of_a_stream_only_grow_whatever_it_shares() -> None:
    """One that has gone past the nonce of a shared message gets the message under another one."""
    rng = random.Random(7)
    store = store_with(resource(EDS, "a"), resource(EDS, "b"))
    clients = clients_of(store, 4)
    seen: list[list[int]] = [[] for _ in clients]
    for round_number in range(200):
        changes = store.apply("node-envoy", [resource(EDS, rng.choice("ab"), str(round_number))])
        order = list(range(len(clients)))
        rng.shuffle(order)
        for index in order:
            queue = list(clients[index].changed(changes))
            if rng.random() < 0.3:
                queue.extend(clients[index].on(EDS, rng.choice("ab")))
            for response in clients[index].ack_all(queue):
                seen[index].append(int(response.nonce))
    for numbers in seen:
        assert len(numbers) > 150
        assert all(one < next_one for one, next_one in itertools.pairwise(numbers))
    assert len({number for numbers in seen for number in numbers}) < sum(map(len, seen)), "nothing was shared"


def test_what_is_on_demand_goes_to_those_who_named_it_and_to_no_wildcard() -> None:
    store = store_with(resource(CDS, "base"), resource(CDS, "spare", on_demand=True))
    named, everything = StreamClient(store), StreamClient(store)
    named.ack_all(named.on(CDS, "spare"))
    everything.ack_all(everything.on(CDS, "*"))
    changes = store.apply("node-envoy", [resource(CDS, "spare", "2", on_demand=True)])
    assert sent(named.changed(changes)) == [(CDS, ["spare"], [])]
    assert sent(everything.changed(changes)) == []


def test_a_content_that_the_client_has_already_is_not_sent_with_another_one() -> None:
    store = store_with(resource(EDS, "a"), resource(EDS, "b"))
    (client,) = clients_of(store, 1)
    out = client.put(resource(EDS, "a", "2"))
    client.put(resource(EDS, "a", "3"), resource(EDS, "b", "3"))
    client.put(resource(EDS, "a", "2"))
    assert [item.body for item in client.ack(out[0])[0].resources] == [b"b=3"]


def names_of(count: int) -> list[str]:
    return [f"e{number}" for number in range(count)]


def test_a_client_that_is_back_with_everything_as_it_is_is_owed_nothing() -> None:
    """Rule 20; the claims of many names are taken as a whole, with the same outcome as one by one."""
    asked = names_of(2 * MIN_NAMES)
    store = store_with(*(resource(EDS, name) for name in asked), *(resource(CDS, name) for name in asked))
    claims = {name: resource(EDS, name).version for name in asked}
    client = StreamClient(store)
    assert client.on(EDS, *asked, claims=claims) == ()
    assert sent(client.on(CDS, "*", claims={name: resource(CDS, name).version for name in asked})) == [(CDS, [], [])]
    (subscription,) = (item for item in client.session.subscriptions() if item.type_url == EDS)
    assert (subscription.names, subscription.held) == (set(asked), claims)
    assert sent(client.put(resource(EDS, "e7", "2"))) == [(EDS, ["e7"], [])]


@pytest.mark.parametrize(
    ("asked", "claimed", "owed", "gone"),
    [
        (names_of(40), {**dict.fromkeys(names_of(40)), "e3": "old"}, ["e3"], []),
        (names_of(40), dict.fromkeys(names_of(39)), ["e39"], []),
        ([*names_of(40), "new"], dict.fromkeys(names_of(40)), [], ["new"]),
        ([*names_of(40), "gone"], {**dict.fromkeys(names_of(40)), "gone": "1"}, [], ["gone"]),
        (names_of(39), dict.fromkeys(names_of(40)), [], []),
    ],
    ids=["one is old", "one is not held", "one does not exist", "one is gone", "one is not asked for"],
)
def test_claims_that_differ_in_one_name_are_answered_for_that_name(
    asked: list[str], claimed: dict[str, str | None], owed: list[str], gone: list[str]
) -> None:
    store = store_with(*(resource(EDS, name) for name in names_of(40)))
    versions = {name: version or resource(EDS, name).version for name, version in claimed.items()}
    expected = [(EDS, owed, gone)] if owed or gone else []
    assert sent(StreamClient(store).on(EDS, *asked, claims=versions)) == expected


@pytest.mark.parametrize("endpoints_first", [True, False])
def test_endpoints_of_a_changed_cluster_follow_it_though_all_are_claimed(endpoints_first: bool) -> None:
    """Rule 34."""
    asked = names_of(2 * MIN_NAMES)
    store = store_with(*(resource(EDS, name) for name in asked), *(resource(CDS, name) for name in asked))
    endpoints = {name: resource(EDS, name).version for name in asked}
    clusters = {name: resource(CDS, name).version for name in asked} | {"e5": "old"}
    client = StreamClient(store)
    steps = [lambda: client.on(EDS, *asked, claims=endpoints), lambda: client.on(CDS, "*", claims=clusters)]
    got = [response for step in (steps if endpoints_first else reversed(steps)) for response in step()]
    assert sent(got) == [(CDS, ["e5"], []), (EDS, ["e5"], [])]


def test_long_questions_of_strangers_are_not_kept() -> None:
    """A peer may ask for a megabyte of names each time, and never for the same."""
    store = ResourceStore()
    cache = store.shared
    for number in range(200):
        asked = tuple(f"{number}-{index}".ljust(200_000, "x") for index in range(MIN_NAMES))
        assert shared.plain_names(asked) == frozenset(asked)
        cache.pages(("s",), EDS, asked)
    assert not cache._layouts
    kept = sum(len(name) for page in cache._pages.values() for name in page.names)
    assert 0 < kept <= CACHE_BYTES
    assert shared.weight_of(asked) > shared.KEPT_NAMES
    few = tuple(f"n{index}" for index in range(MIN_NAMES))
    assert cache.pages(("s",), EDS, few) is cache.pages(("s",), EDS, few)
