"""Rules on order, warming, pacing, paging and errors of one delta stream."""

from __future__ import annotations

import pytest
from xds_stream_client import AGENT_VIEW, CDS, EDS, LDS, RDS, VHDS, StreamClient, resource, sent, store_with

from xdsbpf.model import names
from xdsbpf.xds import protocol
from xdsbpf.xds.response import encode
from xdsbpf.xds.shared import PAGE_BYTES, PAGE_RESOURCES
from xdsbpf.xds.store import Batch, ResourceStore

NODE_CONFIG, IDENTITY, POLICY, BACKENDS, FRONTEND = names.DATAPATH_TYPES
ENVOY_TYPES = (CDS, EDS, LDS, RDS, VHDS, names.EXTENSION)


def connected(store: ResourceStore, *types: str) -> StreamClient:
    """A client that has everything of these types and has ACKed it."""
    client = StreamClient(store)
    for type_url in reversed(types):
        client.ack_all(client.on(type_url, "*"))
    return client


def test_one_change_set_is_sent_in_push_order() -> None:
    """Rule 32."""
    client = connected(ResourceStore(), *ENVOY_TYPES)
    responses = client.put(*(resource(type_url, "x") for type_url in reversed(ENVOY_TYPES)))
    assert [response.type_url for response in responses] == list(ENVOY_TYPES)


def test_removals_follow_in_reverse_order_after_the_updates() -> None:
    """Rule 32: a cluster leaves only when nothing that was sent and ACKed refers to it."""
    client = connected(store_with(resource(CDS, "old"), resource(EDS, "old"), resource(VHDS, "r/v")), *ENVOY_TYPES)
    changes = client.store.apply_all(
        [Batch("node-envoy", (resource(CDS, "new"), resource(VHDS, "r/v", "2")), ((CDS, "old"), (EDS, "old")))]
    )
    updates = client.changed(changes)
    assert sent(updates) == [(CDS, ["new"], []), (VHDS, ["r/v"], [])]
    assert client.ack(updates[0]) == (), "the virtual host has not been ACKed, so nothing leaves"
    assert sent(client.ack_all(client.ack(updates[1]))) == [(EDS, [], ["old"]), (CDS, [], ["old"])]


def test_a_removal_does_not_wait_for_updates_of_later_changes() -> None:
    """Rule 32: endless churn of one type must not keep the removals of another for ever."""
    client = connected(store_with(resource(CDS, "old"), resource(VHDS, "r/v")), *ENVOY_TYPES)
    cluster = client.put(resource(CDS, "new"))
    client.remove(CDS, "old")
    assert sent(client.put(resource(VHDS, "r/v", "2"))) == [(VHDS, ["r/v"], [])]
    assert sent(client.ack(cluster[0])) == [(CDS, [], ["old"])]


def test_endpoints_follow_a_cluster_update_even_if_unchanged() -> None:
    """Rule 33."""
    client = StreamClient(store_with(resource(CDS, "a"), resource(EDS, "a"), resource(EDS, "b")))
    client.ack_all(client.on(CDS))
    client.ack_all(client.on(EDS, "a", "b"))
    assert sent(client.put(resource(CDS, "a", "2"))) == [(CDS, ["a"], []), (EDS, ["a"], [])]


def test_endpoints_of_an_updated_cluster_do_not_wait_for_any_ack() -> None:
    """Rules 33, 35, 41: the cluster is not ACKed before its endpoints are there."""
    client = StreamClient(store_with(resource(CDS, "a"), resource(EDS, "a"), resource(EDS, "b")))
    client.on(EDS, "a", "b")
    assert sent(client.on(CDS)) == [(CDS, ["a"], []), (EDS, ["a"], [])]


def test_endpoints_that_changed_with_their_cluster_are_sent_once() -> None:
    """Rules 30, 33."""
    client = StreamClient(store_with(resource(CDS, "a"), resource(EDS, "a")))
    client.ack_all((*client.on(CDS), *client.on(EDS, "a")))
    responses = client.put(resource(EDS, "a", "2"), resource(CDS, "a", "2"))
    assert sent(responses) == [(CDS, ["a"], []), (EDS, ["a"], [])]


@pytest.mark.parametrize("endpoints_first", [False, True])
def test_on_a_reconnect_endpoints_of_a_changed_cluster_are_sent_though_claimed(endpoints_first: bool) -> None:
    """Rule 34, whichever request is read first."""
    endpoints = {name: resource(EDS, name) for name in "ab"}
    clusters = {name: resource(CDS, name) for name in "ab"}
    client = StreamClient(store_with(*endpoints.values(), *clusters.values()))
    eds_claims = {name: item.version for name, item in endpoints.items()}
    cds_claims = {"a": "old", "b": clusters["b"].version}
    if endpoints_first:
        assert client.on(EDS, "a", "b", claims=eds_claims) == ()
        assert sent(client.on(CDS, claims=cds_claims)) == [(CDS, ["a"], []), (EDS, ["a"], [])]
    else:
        assert sent(client.on(CDS, claims=cds_claims)) == [(CDS, ["a"], [])]
        assert sent(client.on(EDS, "a", "b", claims=eds_claims)) == [(EDS, ["a"], [])]


def test_nothing_of_envoy_waits_for_the_ack_of_clusters() -> None:
    """Rule 35."""
    client = connected(ResourceStore(), *ENVOY_TYPES)
    client.put(resource(CDS, "a"))
    later = client.put(*(resource(type_url, "x") for type_url in ENVOY_TYPES))
    assert [response.type_url for response in later] == list(ENVOY_TYPES[1:])


def test_an_empty_list_of_endpoints_is_sent_as_a_resource() -> None:
    """Rule 37: the body may be empty, the resource is still there."""
    empty = resource(EDS, "a")
    client = StreamClient(store_with(type(empty)(EDS, "a", "v", b"")))
    assert sent(client.on(EDS, "a")) == [(EDS, ["a"], [])]


def test_a_virtual_host_is_not_held_for_a_cluster_that_exists_on_demand() -> None:
    """Rule 38 in a view with on-demand clusters."""
    client = connected(store_with(resource(CDS, "c", on_demand=True)), CDS, VHDS)
    assert sent(client.put(resource(VHDS, "r/v"))) == [(VHDS, ["r/v"], [])]


def test_one_unacked_response_per_type_collects_names_and_the_latest_wins() -> None:
    """Rule 41."""
    client = StreamClient(store_with(resource(EDS, "a", "0"), resource(EDS, "b")))
    client.ack_all(client.on(EDS, "a", "b"))
    out = [client.put(resource(EDS, "a", str(number))) for number in range(1, 1001)]
    assert [bool(responses) for responses in out] == [True, *[False] * 999]
    last = client.ack(out[0][0])
    assert last[0].resources == (resource(EDS, "a", "1000"),)
    assert client.ack(last[0]) == ()


def test_a_version_that_came_and_went_while_waiting_is_not_sent() -> None:
    """Rule 41."""
    client = StreamClient(store_with(resource(EDS, "a"), resource(EDS, "b")))
    client.ack_all(client.on(EDS, "a", "b"))
    first = client.put(resource(EDS, "b", "2"))
    client.put(resource(EDS, "a", "2"))
    client.put(resource(EDS, "a"))
    assert client.ack(first[0]) == ()


def test_answers_to_subscriptions_do_not_wait_for_an_ack() -> None:
    """Rule 41, the exception."""
    client = StreamClient(store_with(resource(EDS, "a"), resource(EDS, "b")))
    first = client.on(EDS, "a")
    second = client.on(EDS, "b", "nosuch")
    assert sent(second) == [(EDS, ["b"], ["nosuch"])]
    assert client.put(resource(EDS, "a", "2")) == ()
    assert client.ack(first[0]) == (), "the second response is still out"
    assert sent(client.ack(second[0])) == [(EDS, ["a"], [])]


def test_a_stalled_stream_holds_names_and_no_bytes() -> None:
    """Rule 42: what is not sent is not built."""
    client = StreamClient(store_with(resource(CDS, "a")))
    client.on(CDS)
    for number in range(200):
        client.put(resource(CDS, f"c{number % 10}", "x" * 1000 + str(number)))
    subscription = client.session.subscriptions()[0]
    assert len(subscription.dirty) == 10
    assert len(subscription.in_flight) == 1


def test_a_wildcard_is_paged_and_the_next_page_waits_for_the_ack() -> None:
    """Rules 44, 45."""
    resources = [resource(CDS, f"c{number:05}") for number in range(2 * PAGE_RESOURCES + 1)]
    client = StreamClient(store_with(*resources))
    pages = [client.on(CDS)]
    while following := client.ack(pages[-1][0]):
        pages.append(following)
    assert [[len(page.resources) for page in responses] for responses in pages] == [
        [PAGE_RESOURCES],
        [PAGE_RESOURCES],
        [1],
    ]
    assert [item for page in pages for item in page[0].resources] == resources


def test_pages_are_limited_in_bytes() -> None:
    """Rule 44; a resource larger than a page travels alone."""
    sizes = {"a": PAGE_BYTES // 3, "b": PAGE_BYTES // 3, "c": PAGE_BYTES // 3, "d": 2 * PAGE_BYTES, "e": 10}
    store = store_with(*(resource(EDS, name, "x" * size) for name, size in sizes.items()))
    responses = StreamClient(store).on(EDS, *sizes)
    assert [names_ for _, names_, _ in sent(responses)] == [["a", "b"], ["c"], ["d"], ["e"]]
    assert all(
        len(encode(response, store)) <= PAGE_BYTES + 200 for response in responses if len(response.resources) > 1
    )


def test_answers_of_missing_names_are_paged_too() -> None:
    """Rule 44."""
    responses = StreamClient(ResourceStore()).on(EDS, *(str(number) for number in range(PAGE_RESOURCES + 5)))
    assert [len(response.removed) for response in responses] == [PAGE_RESOURCES, 5]


def test_removals_are_paged() -> None:
    """Rule 44."""
    resources = [resource(CDS, str(number)) for number in range(PAGE_RESOURCES + 5)]
    client = connected(store_with(*resources), CDS)
    first = client.remove(CDS, *(item.name for item in resources))
    assert len(first[0].removed) == PAGE_RESOURCES
    assert len(client.ack(first[0])[0].removed) == 5


def test_a_nacked_content_is_not_sent_again_until_it_changes() -> None:
    """Rules 9, 10."""
    client = StreamClient(store_with(resource(CDS, "a")))
    assert client.nack(client.on(CDS)[0], "bad a") == ()
    assert client.put(resource(CDS, "a")) == ()
    assert sent(client.put(resource(CDS, "a", "2"))) == [(CDS, ["a"], [])]


def test_a_nack_frees_the_type_for_the_next_push() -> None:
    """Rule 41."""
    client = StreamClient(store_with(resource(CDS, "a")))
    first = client.on(CDS)[0]
    assert client.put(resource(CDS, "b")) == ()
    assert sent(client.nack(first, "bad a")) == [(CDS, ["b"], [])]


def test_going_back_to_the_good_content_after_a_nack_is_sent() -> None:
    """Rule 10: the server cannot know that the client kept the old content."""
    client = StreamClient(store_with(resource(CDS, "a")))
    client.ack_all(client.on(CDS))
    client.nack(client.put(resource(CDS, "a", "2"))[0], "bad")
    assert sent(client.put(resource(CDS, "a"))) == [(CDS, ["a"], [])]


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        ("Error adding/updating cluster(s) bad2: malformed IP address", {"bad2"}),
        ("Error adding/updating cluster(s) bad: no, bad2: no", {"bad", "bad2"}),
        ("'outbound|80||x.y' is wrong.", {"outbound|80||x.y"}),
        ("wrong: bad.", {"bad"}),
        ("Proto constraint validation failed", {"bad", "bad2", "outbound|80||x.y"}),
    ],
)
def test_a_nack_is_put_on_the_resources_that_it_names(text: str, blamed: set[str]) -> None:
    """Rule 54: no name in the text blames the whole response."""
    clusters = [resource(CDS, name) for name in ("bad", "bad2", "outbound|80||x.y")]
    client = StreamClient(store_with(*clusters))
    client.nack(client.on(CDS)[0], text)
    assert set(client.session.subscriptions()[0].nacks) == blamed


def test_error_texts_are_escaped_and_capped() -> None:
    """Rule 54."""
    assert protocol.readable_error("a\nb\x1b[0m") == "a\\nb\\x1b[0m"
    assert len(protocol.readable_error("é\n" * 5000).encode()) <= 4096
    client = StreamClient(store_with(resource(CDS, "a")))
    client.nack(client.on(CDS)[0], "line 1\nline 2")
    assert client.session.subscriptions()[0].last_error == "line 1\\nline 2"


def test_datapath_types_are_sent_in_the_order_of_their_references() -> None:
    """Push order of our own types: make before break."""
    client = StreamClient(ResourceStore(), AGENT_VIEW)
    for type_url in reversed(names.DATAPATH_TYPES):
        client.ack_all(client.on(type_url))
    responses = client.put(*(resource(type_url, "x") for type_url in (FRONTEND, BACKENDS, IDENTITY)), scope="datapath")
    assert [response.type_url for response in responses] == [IDENTITY, BACKENDS, FRONTEND]


def test_a_frontend_waits_for_backends_that_are_not_sent_yet() -> None:
    """Push order of our own types holds across a pending ACK."""
    client = StreamClient(ResourceStore(), AGENT_VIEW)
    for type_url in names.DATAPATH_TYPES:
        client.ack_all(client.on(type_url))
    first = client.put(resource(BACKENDS, "old"), scope="datapath")
    assert client.put(resource(FRONTEND, "f"), resource(BACKENDS, "new"), scope="datapath") == ()
    assert sent(client.ack(first[0])) == [(BACKENDS, ["new"], []), (FRONTEND, ["f"], [])]


def test_backends_leave_after_the_frontend_that_used_them_was_acked() -> None:
    """Removal order of our own types."""
    store = store_with(resource(BACKENDS, "b"), resource(FRONTEND, "f"), scope="datapath")
    client = StreamClient(store, AGENT_VIEW)
    for type_url in names.DATAPATH_TYPES:
        client.ack_all(client.on(type_url))
    changes = store.apply("datapath", [resource(FRONTEND, "f", "2")], [(BACKENDS, "b")])
    update = client.changed(changes)
    assert sent(update) == [(FRONTEND, ["f"], [])]
    assert sent(client.ack(update[0])) == [(BACKENDS, [], ["b"])]


@pytest.mark.parametrize(("type_url", "pages"), [(POLICY, 1), (BACKENDS, 2)])
def test_policies_come_in_one_response_however_many(type_url: str, pages: int) -> None:
    """An address that passes from one policy to another would be guarded by none between two pages."""
    store = ResourceStore()
    client = StreamClient(store, AGENT_VIEW)
    client.ack_all(client.on(type_url, "*"))
    many = [resource(type_url, f"p{number}") for number in range(PAGE_RESOURCES + 1)]
    responses = client.ack_all(client.put(*many, scope="datapath"))
    assert sum(len(response.resources) for response in responses) == len(many)
    assert len(responses) == pages


def test_a_policy_leaves_with_what_takes_its_place() -> None:
    """Between two responses its addresses would be claimed by both, and admit nobody."""
    store = store_with(resource(POLICY, "a"), resource(BACKENDS, "a"), scope="datapath")
    client = StreamClient(store, AGENT_VIEW)
    client.ack_all((*client.on(POLICY, "*"), *client.on(BACKENDS, "*")))
    gone = ((POLICY, "a"), (BACKENDS, "a"))
    changes = store.apply("datapath", (resource(POLICY, "a+b"), resource(BACKENDS, "b")), gone)
    responses = client.ack_all(client.changed(changes))
    assert sent(responses) == [(POLICY, ["a+b"], ["a"]), (BACKENDS, ["b"], []), (BACKENDS, [], ["a"])]
