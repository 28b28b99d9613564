"""What a resource refers to: clusters it sends traffic to, endpoints and secrets it waits for."""

from __future__ import annotations

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.health_check_pb2 import HealthCheck
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from google.protobuf.message import Message

from tests.xds.resources import CDS, EDS, LDS, RDS, VHDS, cluster, endpoints, routes
from xdsbpf.model.resource import Resource, make_resource
from xdsbpf.xds.references import NONE, References, merged, references_of
from xdsbpf.xds.store import ResourceStore


def resource(type_url: str, name: str, message: Message) -> Resource:
    return make_resource(type_url, name, message.SerializeToString(deterministic=True))


def test_a_cluster_waits_for_endpoints_of_its_service_name_and_for_its_secrets() -> None:
    named = cluster("a", service_name="s", secret="key")
    assert references_of(resource(CDS, "a", named.message)) == References(
        endpoints=frozenset({"s"}), secrets=frozenset({"key"})
    )
    assert references_of(resource(CDS, "b", Cluster(name="b", type=Cluster.EDS))).endpoints == {"b"}
    assert references_of(resource(CDS, "c", Cluster(name="c", type=Cluster.STATIC))) == NONE


def test_a_cluster_that_resolves_names_or_checks_health_warms_unseen() -> None:
    resolved = Cluster(name="b", type=Cluster.STRICT_DNS)
    checked = Cluster(name="c", type=Cluster.EDS, health_checks=[HealthCheck()])
    assert references_of(resource(CDS, "b", resolved)) == References(warms_unseen=True)
    assert references_of(resource(CDS, "c", checked)) == References(endpoints=frozenset("c"), warms_unseen=True)


def test_a_route_refers_to_every_cluster_that_may_get_its_traffic() -> None:
    host = VirtualHost(name="h")
    host.request_mirror_policies.add(cluster="mirror-of-host")
    host.routes.add().route.cluster = "one"
    weighted = host.routes.add().route
    weighted.weighted_clusters.clusters.add(name="two")
    weighted.request_mirror_policies.add(cluster="mirror-of-route")
    host.routes.add().direct_response.status = 200
    host.routes.add().route.cluster_header = "x-cluster"
    wanted = {"mirror-of-host", "one", "two", "mirror-of-route"}
    assert references_of(resource(VHDS, "h", host)).clusters == wanted
    whole = RouteConfiguration(name="r", virtual_hosts=[host])
    whole.request_mirror_policies.add(cluster="mirror-of-all")
    assert references_of(resource(RDS, "r", whole)).clusters == wanted | {"mirror-of-all"}


def test_a_listener_refers_to_the_clusters_of_its_filters() -> None:
    message = Listener(name="l")
    message.filter_chains.add().filters.add(name="tcp").typed_config.Pack(TcpProxy(stat_prefix="x", cluster="c"))
    assert references_of(resource(LDS, "l", message)).clusters == {"c"}


def test_what_refers_to_nothing_and_what_cannot_be_read_have_no_references() -> None:
    assert references_of(resource(RDS, "r", routes("r").message)) is NONE
    assert references_of(resource(EDS, "e", endpoints("e").message)) is NONE
    assert references_of(make_resource(RDS, "r", b"\xff")) is NONE
    assert references_of(make_resource(CDS, "c", b"\xff")).endpoints == {"c"}


def test_the_references_of_a_page_are_those_of_its_resources() -> None:
    both = merged([NONE, References(clusters=frozenset("a")), References(clusters=frozenset("b"))])
    assert both.clusters == {"a", "b"}
    assert merged([NONE, NONE]) is NONE


def test_the_store_finds_the_references_of_a_content_once_and_forgets_them_with_it() -> None:
    store = ResourceStore()
    first = resource(RDS, "r", routes("r", to="a").message)
    store.apply("s", [first])
    found = store.references(first)
    assert found.clusters == {"a"}
    assert store.references(resource(RDS, "r", routes("r", to="a").message)) is found
    store.apply("s", [resource(RDS, "r", routes("r", 2, to="b").message)])
    assert store.references(first) is not found
