"""Rules 32 and 38 over a stream per type: a route waits for warm clusters, a cluster that is gone for its routes."""

from __future__ import annotations

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from linked_client import LinkedClient
from test_xds_guard import cluster, listener, resource, route
from xds_stream_client import CDS, EDS, LDS, RDS

from tests.xds import resources as made
from xdsbpf.model.names import SECRET as SDS
from xdsbpf.model.resource import Resource
from xdsbpf.xds.guard import WARM_S
from xdsbpf.xds.response import Response
from xdsbpf.xds.siblings import AWAY_S, ClientKey, Clients
from xdsbpf.xds.warming import COMES_WITHIN_S

MOMENT = 0.01


@pytest.fixture(params=[True, False], ids=["delta", "sotw"])
def is_delta(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def endpoints(name: str, edition: int = 1) -> Resource:
    return resource(made.endpoints(name, edition))


def static(name: str) -> Resource:
    return resource(made.Served(name, Cluster(name=name, type=Cluster.STATIC)))


def types(responses: list[Response]) -> list[str]:
    return [response.type_url for response in responses]


class World:
    """A client that has the cluster `a`, its endpoints, and the route `r` to it, each by a stream of its own."""

    def __init__(self, *more: Resource, is_delta: bool) -> None:
        self.client = LinkedClient(cluster("a"), endpoints("a"), route("r", "a"), *more, is_delta=is_delta)
        self.cds = self.client.connect(CDS)
        (self.eds,) = self.client.fed("a")
        self.rds = self.client.connect(RDS, "r")
        self.client.now = 100.0


@pytest.fixture
def world(is_delta: bool) -> World:
    return World(is_delta=is_delta)


def test_a_route_waits_until_the_endpoints_of_its_new_cluster_are_acknowledged(world: World) -> None:
    assert types(world.client.change(cluster("b"), endpoints("b"), route("r", "b", 2))) == [CDS]
    assert world.cds.ack() == [], "Envoy accepts it while it warms"
    eds, asked = world.client.open(EDS, "b")
    assert types(asked) == [EDS]
    (switched,) = eds.ack()
    assert switched.resources == (route("r", "b", 2),)
    assert not world.rds.subscription.waiting


def test_the_client_may_ask_for_endpoints_before_it_accepts_the_cluster(world: World) -> None:
    world.client.change(cluster("b"), endpoints("b"), route("r", "b", 2))
    eds, _ = world.client.open(EDS, "b")
    assert eds.ack() == []
    assert types(world.cds.ack()) == [RDS]


def test_a_cluster_without_endpoints_of_its_own_is_there_when_it_is_acknowledged(world: World) -> None:
    assert types(world.client.change(static("b"), route("r", "b", 2))) == [CDS]
    assert types(world.cds.ack()) == [RDS]


def test_a_cluster_of_which_nobody_sees_when_it_is_warm_gets_a_moment(world: World) -> None:
    resolved = resource(made.Served("b", Cluster(name="b", type=Cluster.STRICT_DNS)))
    world.client.change(resolved, route("r", "b", 2))
    assert world.cds.ack() == []
    assert world.client.later(COMES_WITHIN_S - MOMENT) == []
    assert types(world.client.later(MOMENT)) == [RDS]


def test_a_route_to_a_cluster_that_only_changed_does_not_wait(world: World) -> None:
    assert types(world.client.change(cluster("a", 2), route("r", "a", 2))) == [CDS, RDS]


def test_a_listener_waits_as_a_route_does(is_delta: bool) -> None:
    world = World(listener("l", "a"), is_delta=is_delta)
    world.client.connect(LDS)
    assert types(world.client.change(cluster("b"), endpoints("b"), listener("l", "b"))) == [CDS]
    assert world.cds.ack() == []
    eds, _ = world.client.open(EDS, "b")
    assert types(eds.ack()) == [LDS]


def test_endpoints_that_nobody_asks_for_are_waited_for_a_moment_only(world: World) -> None:
    """The client has them from elsewhere."""
    world.client.change(cluster("b"), endpoints("b"), route("r", "b", 2))
    world.client.now += 5
    assert world.cds.ack() == []
    assert world.client.later(COMES_WITHIN_S - MOMENT) == []
    assert types(world.client.later(MOMENT)) == [RDS]


def test_endpoints_that_are_never_acknowledged_are_waited_for_as_long_as_it_takes_to_warm(world: World) -> None:
    world.client.change(cluster("b"), endpoints("b"), route("r", "b", 2))
    world.cds.ack()
    world.client.open(EDS, "b")
    assert world.client.later(WARM_S - MOMENT) == []
    assert types(world.client.later(MOMENT)) == [RDS]


def test_a_cluster_that_is_never_acknowledged_is_waited_for_no_longer(world: World) -> None:
    world.client.change(cluster("b"), endpoints("b"), route("r", "b", 2))
    assert world.client.later(WARM_S - MOMENT) == []
    assert types(world.client.later(MOMENT)) == [RDS]


def test_a_cluster_that_changes_while_it_warms_warms_anew(world: World) -> None:
    world.client.change(cluster("b"), endpoints("b"), route("r", "b", 2))
    world.cds.ack()
    first, _ = world.client.open(EDS, "b")
    world.client.change(cluster("b", 2))
    world.cds.ack()
    assert first.end() == [], "with the version that Envoy has given up"
    second, _ = world.client.open(EDS, "b")
    assert types(second.ack()) == [RDS]


def test_a_change_of_endpoints_that_two_clusters_share_does_not_make_the_new_one_warm(world: World) -> None:
    shared = resource(made.cluster("b", service_name="a"))
    assert types(world.client.change(shared, endpoints("a", 2), route("r", "b", 2))) == [CDS, EDS]
    assert world.cds.ack() == world.eds.ack() == []
    eds, _ = world.client.open(EDS, "a")
    assert types(eds.ack()) == [RDS]


def test_a_client_with_one_stream_for_all_endpoints_asks_there(is_delta: bool) -> None:
    world = World(is_delta=is_delta)
    world.client.change(cluster("b"), endpoints("b"), route("r", "b", 2))
    world.cds.ack()
    assert types(world.eds.ask("b")) == [EDS]
    assert types(world.eds.ack()) == [RDS]


def test_a_cluster_warms_until_it_has_its_secret_unless_the_client_has_that_already(is_delta: bool) -> None:
    world = World(resource(made.BUILDERS[SDS]("old")), is_delta=is_delta)
    world.client.connect(SDS, "old")
    world.client.change(resource(made.cluster("b", secret="old")), endpoints("b"), route("r", "b", 2))
    world.cds.ack()
    eds, _ = world.client.open(EDS, "b")
    assert types(eds.ack()) == [RDS]
    world.rds.ack()
    new = resource(made.BUILDERS[SDS]("new"))
    world.client.change(resource(made.cluster("c", secret="new")), new, endpoints("c"), route("r", "c", 3))
    world.cds.ack()
    eds, _ = world.client.open(EDS, "c")
    sds, _ = world.client.open(SDS, "new")
    assert eds.ack() == []
    assert types(sds.ack()) == [RDS]


def test_a_stream_for_endpoints_that_ends_while_a_cluster_warms_may_come_back(world: World) -> None:
    world.client.change(cluster("b"), endpoints("b"), route("r", "b", 2))
    world.cds.ack()
    eds, _ = world.client.open(EDS, "b")
    world.client.now += 5
    assert eds.end() == []
    assert world.client.later(COMES_WITHIN_S / 2) == []
    again, _ = world.client.open(EDS, "b")
    assert world.client.later(COMES_WITHIN_S) == []
    assert types(again.ack()) == [RDS]


def test_a_client_that_takes_no_clusters_here_waits_for_none(is_delta: bool) -> None:
    client = LinkedClient(route("r", "a"), is_delta=is_delta)
    client.connect(RDS, "r")
    client.now = COMES_WITHIN_S
    assert types(client.change(cluster("b"), route("r", "b", 2))) == [RDS]


def test_a_first_route_does_not_wait_for_a_stream_for_clusters(is_delta: bool) -> None:
    client = LinkedClient(cluster("a"), route("r", "a"), is_delta=is_delta)
    assert types(client.open(RDS, "r")[1]) == [RDS]


def test_a_stream_for_clusters_that_breaks_off_is_waited_for(world: World) -> None:
    claims = dict(world.cds.subscription.held)
    assert world.cds.end() == []
    assert world.client.change(cluster("b"), endpoints("b"), route("r", "b", 2)) == []
    cds, sent = world.client.open(CDS, claims=claims)
    assert types(sent) == [CDS]
    assert cds.ack() == []
    eds, _ = world.client.open(EDS, "b")
    assert types(eds.ack()) == [RDS]


def test_a_stream_for_clusters_that_stays_away_is_waited_for_a_moment_only(world: World) -> None:
    world.cds.end()
    world.client.change(cluster("b"), endpoints("b"), route("r", "b", 2))
    assert world.client.later(COMES_WITHIN_S - MOMENT) == []
    assert types(world.client.later(MOMENT)) == [RDS]


def test_of_two_streams_for_clusters_one_may_be_dead(world: World) -> None:
    """A client that is back before its former stream is known to be gone; or a twin that refuses."""
    world.client.change(cluster("x"))  # which the stream that is dead never answers
    newer = world.client.connect(CDS)
    assert types(world.client.change(static("b"), route("r", "b", 2))) == [CDS]
    assert newer.ack() == []
    assert world.client.later(COMES_WITHIN_S - MOMENT) == []
    assert types(world.client.later(MOMENT)) == [RDS]


def test_of_two_processes_with_one_node_id_both_have_the_cluster_before_the_route_goes(world: World) -> None:
    twin = world.client.connect(CDS)
    world.client.change(static("b"), route("r", "b", 2))
    assert twin.ack() == []
    assert types(world.cds.ack()) == [RDS]


def test_a_cluster_leaves_after_the_route_that_left_it_was_acknowledged(world: World) -> None:
    world.client.change(static("b"))
    world.cds.ack()
    assert types(world.client.change(route("r", "b", 2), removes=[(CDS, "a")])) == [RDS]
    assert "a" in world.client.held()
    (last,) = world.rds.ack()
    assert last.type_url == CDS
    assert world.client.held() == {"b"}


def test_a_cluster_stays_until_the_last_of_several_streams_has_left_it(is_delta: bool) -> None:
    world = World(route("q", "a"), static("b"), is_delta=is_delta)
    other = world.client.connect(RDS, "q")
    sent = world.client.change(route("r", "b", 2), route("q", "b", 2), removes=[(CDS, "a")])
    assert types(sent) == [RDS, RDS]
    assert world.rds.ack() == []
    assert types(other.ack()) == [CDS]


def test_a_cluster_stays_while_a_route_that_nobody_changes_names_it(world: World) -> None:
    assert world.client.change(removes=[(CDS, "a")]) == []
    assert world.cds.subscription.kept == {"a": "RouteConfiguration r"}
    assert types(world.client.change(static("b"), route("r", "b", 2))) == [CDS]
    assert types(world.cds.ack()) == [RDS]
    assert types(world.rds.ack()) == [CDS]
    assert world.client.held() == {"b"}


def test_a_route_that_is_changed_and_changed_back_frees_what_waited_for_it(is_delta: bool) -> None:
    world = World(static("b"), is_delta=is_delta)
    for served in (route("r", "b", 2), route("r", "a")):  # before its stream's turn
        changes = world.client.store.apply("node-envoy", [served])
        world.rds.session.on_changes(changes, next(world.client.stamps))
    world.cds.session.on_changes(world.client.store.apply("node-envoy", (), [(CDS, "b")]), next(world.client.stamps))
    assert world.client.drain(world.cds) == []
    assert types(world.client.drain(world.rds)) == [CDS]


def test_a_cluster_stays_while_the_stream_of_its_route_is_away_for_a_moment(is_delta: bool) -> None:
    world = World(static("b"), is_delta=is_delta)
    claims = dict(world.rds.subscription.held)
    world.rds.end()
    assert world.client.change(route("r", "b", 2), removes=[(CDS, "a")]) == []
    assert world.cds.subscription.kept == {"a": "RouteConfiguration r, whose stream is expected back,"}
    world.client.later(COMES_WITHIN_S / 2)
    rds, sent = world.client.open(RDS, "r", claims=claims)
    assert types(sent) == [RDS]
    assert "a" in world.client.held()
    assert types(rds.ack()) == [CDS]
    assert world.client.held() == {"b"}


def test_a_cluster_that_went_while_its_own_stream_was_away_stays_for_its_routes_as_well(is_delta: bool) -> None:
    world = World(static("b"), is_delta=is_delta)
    assert world.cds.last is not None
    claims, version = dict(world.cds.subscription.held), world.cds.last.version
    world.cds.end()
    assert world.client.change(route("r", "b", 2), removes=[(CDS, "a")]) == []
    cds, sent = world.client.open(CDS, claims=claims, version=version)
    assert set(types(sent)) == ({CDS, RDS} if is_delta else {RDS}), "of delta an answer is due"
    if is_delta:
        assert cds.ack() == []
    assert "a" in world.client.held()
    assert types(world.rds.ack()) == [CDS]
    assert world.client.held() == {"b"}


def test_a_cluster_that_went_while_all_streams_were_away_waits_a_moment_for_its_routes() -> None:
    """Only with claims: the state of the world does not tell what the client has."""
    client = LinkedClient(cluster("b"), route("r", "b", 2), is_delta=True)
    cds, first = client.open(CDS, claims={"a": cluster("a").version, "b": cluster("b").version})
    cds.ack()
    assert [response.removed for response in first] == [()]
    assert client.later(COMES_WITHIN_S - MOMENT) == []
    (last,) = client.later(MOMENT)
    assert last.removed == ("a",)


def test_a_cluster_goes_when_the_stream_of_its_route_stays_away(is_delta: bool) -> None:
    world = World(static("b"), is_delta=is_delta)
    world.rds.end()
    assert world.client.change(removes=[(CDS, "a")]) == []
    assert world.client.later(AWAY_S - MOMENT) == []
    assert types(world.client.later(MOMENT)) == [CDS]


def test_a_route_that_was_sent_and_not_answered_before_its_stream_ended_keeps_both_clusters(is_delta: bool) -> None:
    world = World(static("b"), is_delta=is_delta)
    world.client.change(route("r", "b", 2))
    world.rds.end()
    assert world.client.change(removes=[(CDS, "a"), (CDS, "b")]) == []
    assert types(world.client.later(AWAY_S)) == [CDS]


def test_a_client_is_a_node_id_that_one_identity_claims() -> None:
    clients = Clients(lambda: 0.0)
    mine = ClientKey("edge", ("spiffe://t/a",), True, "envoy", "")
    others = [
        ClientKey("edge", ("spiffe://t/b",), True, "envoy", ""),
        ClientKey("edge", (), False, "envoy", ""),
        ClientKey("other", ("spiffe://t/a",), True, "envoy", ""),
    ]
    found = clients.siblings(mine)
    found.join(CDS, World(is_delta=True).cds.session, lambda: None)
    assert clients.siblings(mine) is found
    assert all(clients.siblings(key) is not found for key in others)
