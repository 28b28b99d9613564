"""Rules 32 and 38: a route waits for its clusters, and a cluster that is gone for its routes, in both variants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from xds_stream_client import CDS, EDS, ENVOY_VIEW, LDS, NODE_ID, RDS, SotwClient, StreamClient, sent

from tests.xds import resources as made
from xdsbpf.model.resource import Resource, make_resource
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.guard import FIRST_S, UNKNOWN_S, WARM_S
from xdsbpf.xds.references import NONE
from xdsbpf.xds.request import DeltaRequest
from xdsbpf.xds.resource_status import explain
from xdsbpf.xds.response import Response
from xdsbpf.xds.status import SyncState, WithheldResource, node_status
from xdsbpf.xds.store import Batch, ResourceStore

Client = StreamClient | SotwClient
MakeClient = Callable[[ResourceStore], Client]
SCOPE = "node-envoy"


def resource(served: made.Served, *, on_demand: bool = False) -> Resource:
    body = served.message.SerializeToString(deterministic=True)
    return make_resource(served.type_url, served.name, body, on_demand=on_demand)


def cluster(name: str, edition: int = 1, *, on_demand: bool = False) -> Resource:
    return resource(made.cluster(name, edition), on_demand=on_demand)


def route(name: str, to: str, edition: int = 1) -> Resource:
    return resource(made.routes(name, edition, to=to))


def listener(name: str, to: str) -> Resource:
    message = Listener(name=name)
    message.filter_chains.add().filters.add(name="tcp").typed_config.Pack(TcpProxy(stat_prefix="x", cluster=to))
    return make_resource(LDS, name, message.SerializeToString(deterministic=True))


def store_with(*resources: Resource) -> ResourceStore:
    store = ResourceStore()
    store.apply(SCOPE, resources)
    return store


def connected(make: MakeClient, *resources: Resource) -> Client:
    """A client that has accepted all clusters and listeners, and the routes `r` and `q`."""
    client = make(store_with(*resources))
    for type_url, names in ((CDS, ()), (LDS, ()), (RDS, ("r", "q"))):
        client.ack_all(client.on(type_url, *names))
    return client


def held(client: Client, type_url: str) -> dict[str, str]:
    return next(entry.held for entry in client.session.subscriptions() if entry.type_url == type_url)


def types(responses: tuple[Response, ...]) -> list[str]:
    return [response.type_url for response in responses]


def later(client: Client, seconds: float) -> tuple[Response, ...]:
    """What comes when the client has done nothing for that long."""
    client.now += seconds
    if isinstance(client, SotwClient):
        return client._poll()
    return client.session.poll()


each = pytest.mark.parametrize("make", [StreamClient, SotwClient], ids=["delta", "sotw"])


@each
def test_a_route_waits_until_its_new_cluster_is_acknowledged(make: MakeClient) -> None:
    client = connected(make, cluster("a"), route("r", "a"))
    (first,) = client.put(route("r", "b", 2), cluster("b"))
    assert first.type_url == CDS
    assert client.session.subscriptions()[-1].waiting.keys() == {"r"}
    (second,) = client.ack(first)
    assert (second.type_url, second.resources) == (RDS, (route("r", "b", 2),))
    assert not client.session.subscriptions()[-1].waiting


@each
def test_a_route_to_a_cluster_that_only_changed_does_not_wait(make: MakeClient) -> None:
    """The client goes on with the cluster that it has."""
    client = connected(make, cluster("a"), route("r", "a"))
    assert types(client.put(cluster("a", 2), route("r", "a", 2))) == [CDS, RDS]


@each
def test_only_the_routes_that_name_the_new_cluster_wait(make: MakeClient) -> None:
    client = connected(make, cluster("a"), route("r", "a"), route("q", "a"))
    first, second = client.put(cluster("b"), route("r", "b", 2), route("q", "a", 2))
    assert (first.type_url, second.resources) == (CDS, (route("q", "a", 2),))


@each
def test_a_route_waits_for_a_cluster_that_has_not_been_sent_for_another_is_unanswered(make: MakeClient) -> None:
    client = connected(make, cluster("a"), route("r", "a"))
    (busy,) = client.put(cluster("x"))
    assert client.put(cluster("b"), route("r", "b", 2)) == ()
    (clusters,) = client.ack(busy)
    assert clusters.type_url == CDS
    assert types(client.ack(clusters)) == [RDS]


@each
def test_a_listener_waits_for_the_new_cluster_of_its_filters_and_the_others_go(make: MakeClient) -> None:
    client = connected(make, cluster("a"), listener("l", "a"), listener("m", "a"))
    before = held(client, LDS)["l"]
    first, second = client.put(cluster("b"), listener("l", "b"), listener("n", "a"))
    assert types((first, second)) == [CDS, LDS]
    assert listener("n", "a") in second.resources
    assert listener("l", "b") not in second.resources
    assert held(client, LDS)["l"] == before
    if isinstance(client, SotwClient):
        assert second.resources == (listener("l", "a"), listener("m", "a"), listener("n", "a"))
    client.ack(second)
    (last,) = client.ack(first)
    assert listener("l", "b") in last.resources


@each
def test_a_new_route_waits_as_well_but_not_long(make: MakeClient) -> None:
    client = make(store_with(cluster("b"), route("r", "b")))
    (clusters,) = client.on(CDS)
    assert client.on(RDS, "r") == ()
    assert client.session.wake_at == FIRST_S
    assert types(later(client, FIRST_S)) == [RDS]
    assert client.ack(clusters) == ()


@each
def test_a_cluster_that_is_never_acknowledged_holds_its_routes_no_longer_than_it_takes_to_warm(
    make: MakeClient,
) -> None:
    client = connected(make, cluster("a"), route("r", "a"))
    client.put(cluster("b"), route("r", "b", 2))
    assert later(client, WARM_S - 1) == ()
    assert client.session.has_work is False
    client.now += 1
    assert client.session.has_work
    assert types(later(client, 0)) == [RDS]


@each
def test_a_route_to_a_cluster_that_the_client_refused_stays_as_it_was(make: MakeClient) -> None:
    client = connected(make, cluster("a"), route("r", "a"))
    (refused,) = client.put(cluster("b"), route("r", "b", 2))
    assert client.nack(refused, "b: is refused") == ()
    assert later(client, 10 * WARM_S) == ()
    assert str(client.session.subscriptions()[-1].waiting["r"].missing[0]) == "cluster b was refused by the client"
    (repaired,) = client.put(cluster("b", 2))
    assert repaired.type_url == CDS
    assert types(client.ack(repaired)) == [RDS]


@each
def test_a_route_to_a_cluster_that_nobody_wrote_waits_a_moment_once(make: MakeClient) -> None:
    client = connected(make, cluster("a"), route("r", "a"))
    assert client.put(route("r", "static", 2)) == ()
    assert later(client, UNKNOWN_S / 2) == ()
    (sent_anyway,) = later(client, UNKNOWN_S / 2)
    assert sent_anyway.resources == (route("r", "static", 2),)
    client.ack(sent_anyway)
    assert types(client.ack_all(client.put(route("r", "a", 3)))) == [RDS]
    assert types(client.put(route("r", "static", 4))) == [RDS], "the name is known to be the client's own"


@each
def test_a_route_whose_cluster_is_created_a_moment_later_waits_for_it(make: MakeClient) -> None:
    client = connected(make, cluster("a"), route("r", "a"))
    assert client.put(route("r", "b", 2)) == ()
    assert later(client, 0.05) == ()
    (clusters,) = client.put(cluster("b"))
    assert later(client, UNKNOWN_S) == (), "it exists now: the wait is for its acknowledgement"
    assert types(client.ack(clusters)) == [RDS]


@each
def test_a_first_route_does_not_wait_for_a_cluster_that_nobody_wrote(make: MakeClient) -> None:
    client = make(store_with(route("r", "static")))
    client.ack_all(client.on(CDS))
    assert types(client.on(RDS, "r")) == [RDS]


@each
def test_a_client_that_asks_for_clusters_by_name_gets_the_routes_first(make: MakeClient) -> None:
    client = make(store_with(cluster("a"), route("r", "a")))
    client.ack_all(client.on(RDS, "r"))
    client.on(CDS, "a")
    assert RDS in types(client.put(cluster("b"), route("r", "b", 2)))


def test_a_cluster_on_demand_is_never_waited_for() -> None:
    client = connected(StreamClient, cluster("a"), route("r", "a"))
    assert types(client.put(cluster("b", on_demand=True), route("r", "b", 2))) == [RDS]


def test_a_reconnecting_client_keeps_its_route_until_it_has_asked_for_clusters() -> None:
    client = StreamClient(store_with(cluster("b"), route("r", "b", 2)))
    claims = {"r": route("r", "a").version}
    assert client.on(RDS, "r", claims=claims) == ()
    (clusters,) = client.on(CDS, claims={})
    assert types(client.ack(clusters)) == [RDS]


def test_a_stream_of_routes_alone_is_not_guarded() -> None:
    store = store_with(cluster("b"), route("r", "b"))
    session = DeltaSession(ENVOY_VIEW, store, node_id=NODE_ID, service_type=RDS)
    session.on_request(DeltaRequest(RDS, ("r",)))
    assert types(session.poll()) == [RDS]


@each
def test_a_route_that_waits_goes_back_to_sleep_when_it_is_taken_back(make: MakeClient) -> None:
    client = connected(make, cluster("a"), route("r", "a"))
    (clusters,) = client.put(cluster("b"), route("r", "b", 2))
    assert client.put(route("r", "a")) == ()
    assert client.ack(clusters) == ()
    assert not client.session.subscriptions()[-1].waiting


@each
def test_the_old_cluster_stays_while_the_route_that_leaves_it_waits(make: MakeClient) -> None:
    client = connected(make, cluster("old"), route("r", "old"))
    changes = client.store.apply_all([Batch(SCOPE, (cluster("new"), route("r", "new", 2)), ((CDS, "old"),))])
    (added,) = client.changed(changes)
    assert added.removed == ()
    (switched,) = client.ack(added)
    assert switched.type_url == RDS
    (last,) = client.ack(switched)
    assert (last.type_url, held(client, CDS).keys()) == (CDS, {"new"})


@each
def test_a_cluster_that_is_gone_stays_while_an_accepted_route_names_it(make: MakeClient) -> None:
    client = connected(make, cluster("a"), cluster("b"), route("r", "a"))
    assert client.remove(CDS, "a") == ()
    assert client.session.subscriptions()[0].kept == {"a": "RouteConfiguration r"}
    (moved,) = client.put(route("r", "b", 2))
    assert moved.type_url == RDS
    assert types(client.ack(moved)) == [CDS]
    assert held(client, CDS).keys() == {"b"}


@each
def test_a_cluster_stays_while_the_client_refuses_the_route_that_leaves_it(make: MakeClient) -> None:
    client = connected(make, cluster("a"), cluster("b"), route("r", "a"))
    changes = client.store.apply_all([Batch(SCOPE, (route("r", "b", 2),), ((CDS, "a"),))])
    (moved,) = client.changed(changes)
    assert client.nack(moved, "r: is refused") == ()
    assert held(client, CDS).keys() == {"a", "b"}
    (repaired,) = client.put(route("r", "b", 3))
    assert types(client.ack(repaired)) == [CDS]


@each
def test_a_cluster_goes_with_the_route_that_the_client_gives_up(make: MakeClient) -> None:
    client = connected(make, cluster("a"), route("r", "a"))
    assert client.remove(CDS, "a") == ()
    gone = client.on(RDS, unsubscribe=("r",)) if isinstance(client, StreamClient) else client.on(RDS, "q")
    assert CDS in types(gone)


@pytest.mark.parametrize("asked", [(), ("*", "a")], ids=["wildcard", "by_name_too"])
@each
def test_clusters_stay_while_nobody_knows_what_a_route_of_an_older_stream_names(
    make: MakeClient, asked: tuple[str, ...]
) -> None:
    """The client is back with a version that is not there any more: each cluster that goes may be its own."""
    client = make(store_with(cluster("a"), cluster("b"), route("r", "b", 2)))
    client.ack_all(client.on(CDS, *asked))
    (busy,) = client.put(cluster("x"))
    assert client.remove(CDS, "a") == ()
    older = route("r", "a").version
    (update,) = client.on(RDS, "r", claims={"r": older}) if isinstance(client, StreamClient) else back(client, RDS, "r")
    assert client.ack(busy) == ()
    assert client.session.subscriptions()[0].kept == {"a": "perhaps RouteConfiguration r of an older stream"}
    assert client.nack(update, "r: refused") == ()
    (repaired,) = client.put(route("r", "b", 3))
    assert types(client.ack(repaired)) == [CDS]


def test_a_cluster_that_went_while_the_client_was_away_leaves_behind_the_route_that_leaves_it() -> None:
    client = StreamClient(store_with(cluster("b"), route("r", "b", 2)))
    (added,) = client.on(CDS, claims={"a": cluster("a").version})
    assert sent([added]) == [(CDS, ["b"], [])]
    assert client.on(RDS, "r", claims={"r": route("r", "a").version}) == ()
    (moved,) = client.ack(added)
    assert sent([moved]) == [(RDS, ["r"], [])]
    assert sent(client.ack(moved)) == [(CDS, [], ["a"])]


def back(client: SotwClient, type_url: str, *asked: str) -> tuple[Response, ...]:
    """The first request of a client that has something of an older stream."""
    return client.on(type_url, *asked, version="older")


def test_a_route_of_an_older_stream_is_known_again_when_its_version_is_back() -> None:
    client = StreamClient(store_with(cluster("a"), cluster("b"), route("r", "new", 2)))
    client.ack_all(client.on(CDS))
    assert client.on(RDS, "r", claims={"r": route("r", "a").version}) == (), "`new` is not there yet"
    assert client.put(route("r", "a")) == ()
    assert sent(client.remove(CDS, "b")) == [(CDS, [], ["b"])]
    assert client.remove(CDS, "a") == ()


def test_listeners_of_an_older_stream_keep_clusters_until_a_set_is_accepted() -> None:
    client = SotwClient(store_with(cluster("a"), cluster("b"), listener("l", "b")))
    client.ack_all(client.on(CDS))
    (busy,) = client.put(cluster("x"))
    assert client.remove(CDS, "a") == ()
    (update,) = back(client, LDS)
    assert client.ack(busy) == ()
    assert types(client.ack(update)) == [CDS]


def test_a_route_that_is_asked_for_again_does_not_lose_its_place_before_a_removal() -> None:
    client = connected(StreamClient, cluster("x"), route("r", "a"), route("q", "x"))
    client.ack_all(client.on(CDS, "a"))
    client.ack_all(client.put(cluster("a")))
    (busy,) = client.put(route("q", "x", 2))
    changes = client.store.apply_all([Batch(SCOPE, (route("r", "gone", 2),), ((CDS, "a"),))])
    assert client.changed(changes) == ()
    assert client.on(RDS, "r") == (), "the cluster that it names is not there"
    assert client.ack(busy) == (), "`a` is still in use"
    assert sent(later(client, UNKNOWN_S))[:1] == [(RDS, ["r"], [])]


def test_a_cluster_that_was_asked_for_by_name_goes_at_once() -> None:
    client = connected(StreamClient, cluster("a", on_demand=True), route("r", "a"))
    client.ack_all(client.on(CDS, "a"))
    assert sent(client.remove(CDS, "a")) == [(CDS, [], ["a"])]


def test_a_cluster_and_the_route_to_it_leave_together() -> None:
    client = connected(StreamClient, cluster("a"), route("r", "a"))
    changes = client.store.apply_all([Batch(SCOPE, (), ((CDS, "a"), (RDS, "r")))])
    assert sent(client.changed(changes)) == [(RDS, [], ["r"]), (CDS, [], ["a"])]


def test_what_waits_costs_nothing_while_nothing_happens_to_clusters() -> None:
    """A push of endpoints must not look at it."""
    endpoints = resource(made.endpoints("a"))
    client = connected(StreamClient, cluster("a"), route("r", "a"), endpoints)
    client.ack_all(client.on(EDS, "a"))
    client.put(cluster("b"), route("r", "b", 2))
    looked = []
    client.store.references = lambda item: looked.append(item) or NONE  # type: ignore[method-assign,func-returns-value]
    assert types(client.put(resource(made.endpoints("a", 2)))) == [EDS]
    assert not [item for item in looked if item.type_url == RDS]


def test_status_and_whynot_say_what_a_route_and_a_cluster_wait_for() -> None:
    client = connected(StreamClient, cluster("a"), cluster("c"), route("r", "a"), route("q", "c"))
    client.put(cluster("b"), route("r", "b", 2))
    client.remove(CDS, "c")
    gate, store = Gate(), client.store
    reason = "cluster b is not acknowledged yet"
    rows = {entry.type_url: entry for entry in node_status(client.session, gate, 0.0).types}
    assert rows[RDS].withheld == (WithheldResource("r", (reason,)),)
    assert rows[RDS].state is SyncState.PENDING
    assert explain(client.session, gate, store, RDS, "r") == f"it waits for what it names: {reason}"
    (clusters,) = client.session.subscriptions()[0].in_flight
    client.ack_all(client.on(CDS, nonce=clusters))
    keeper = "RouteConfiguration q that"
    assert explain(client.session, gate, store, CDS, "c").startswith(f"it is gone, but the client keeps it: {keeper}")
    rows = {entry.type_url: entry for entry in node_status(client.session, gate, 0.0).types}
    assert rows[CDS].withheld == (WithheldResource("c", (f"it is gone, and {keeper} the client has still names it",)),)


def test_whynot_says_that_a_route_names_a_cluster_that_is_nowhere() -> None:
    client = connected(StreamClient, cluster("a"), route("r", "nowhere"))
    text = explain(client.session, Gate(), client.store, RDS, "r")
    assert text.endswith("it names clusters that are not in the client's view: nowhere")
