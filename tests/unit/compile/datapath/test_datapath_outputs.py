"""Resources of the kernel: frontends on both planes, backends, identities, policies, nodes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import (
    Mesh,
    bookinfo,
    endpoint,
    endpoint_slice,
    from_source,
    header,
    host,
    node,
    policy,
    route,
    rule,
    service,
    to,
    to_operation,
    virtual_service,
    workload,
)
from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2 as pb
from xdsbpf.compile.datapath import names
from xdsbpf.compile.datapath.backends import backends, backends_names
from xdsbpf.compile.datapath.frontends import connect_policy, frontend, frontend_names
from xdsbpf.compile.datapath.identities import identity_names, identity_resource
from xdsbpf.compile.datapath.node_config import node_config, node_config_names
from xdsbpf.compile.datapath.outputs import datapath_generators
from xdsbpf.compile.datapath.policies import policy_names, policy_resource
from xdsbpf.compile.envoy.virtual_hosts import virtual_host
from xdsbpf.incremental import ABSENT
from xdsbpf.mesh.policy_groups import GroupPort
from xdsbpf.mesh.services import service as mesh_service
from xdsbpf.model.kube import ServicePort
from xdsbpf.model.meta import Manifest
from xdsbpf.model.names import LISTENER, ROUTES, VIRTUAL_HOST
from xdsbpf.model.resource import AS_SERVED, Requirement, Resource
from xdsbpf.model.virtual_service import HTTPDirectResponse
from xdsbpf.xds.gate import NEVER_REQUIRED

REVIEWS = host("reviews")
REVIEWS_ID = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
ROUTED = virtual_service("reviews", "reviews", route(to("reviews")))


def decoded(message: Any, found: Any) -> Any:
    assert isinstance(found, Resource)
    message.ParseFromString(found.body)
    return message


def name_of(mesh: Mesh, name: str, port: int) -> str:
    owner = mesh_service(mesh.db, name)
    assert owner is not None
    return names.frontend_name(owner.address, port)


def made(mesh: Mesh, name: str, port: int) -> Any:
    return frontend(mesh.db, name_of(mesh, name, port))


def front(mesh: Mesh, name: str = REVIEWS, port: int = 9080) -> pb.Frontend:
    result: pb.Frontend = decoded(pb.Frontend(), made(mesh, name, port))
    return result


def test_a_service_on_l4_is_balanced_by_the_kernel() -> None:
    mesh = Mesh(*bookinfo())
    message = front(mesh)
    assert message.balance.backends == f"{REVIEWS}:9080"
    assert (message.port, message.protocol, message.service) == (9080, pb.TCP, f"{REVIEWS}:9080")
    owner = mesh_service(mesh.db, REVIEWS)
    assert owner is not None
    assert ".".join(map(str, message.address)) == owner.address


def test_a_service_on_l7_is_redirected_once_the_proxy_has_its_virtual_host() -> None:
    mesh = Mesh(*bookinfo(), ROUTED)
    found = made(mesh, REVIEWS, 9080)
    message = decoded(pb.Frontend(), found)
    assert message.WhichOneof("plane") == "redirect"
    assert (message.redirect.proxy_port, message.redirect.policy) == (15001, "")
    needed = virtual_host(mesh.db, f"9080/{REVIEWS}")
    assert isinstance(needed, Resource)
    assert isinstance(found, Resource)
    assert found.requires == (Requirement(needed.type_url, f"9080/{REVIEWS}", needed.version),)


def database(**fields: Any) -> tuple[Manifest, ...]:
    """A TCP service on the proxy with two versions."""
    members = (endpoint("10.0.0.1", "db-v1"), endpoint("10.0.0.2", "db-v2"))
    return (
        service("db", ServicePort(3306, "tcp"), annotations={"xdsbpf.io/dataplane": "l7"}, **fields),
        workload("db", "v1", "10.0.0.1"),
        workload("db", "v2", "10.0.0.2"),
        endpoint_slice("db", *members, ports=(("tcp", 3306),)),
    )


def test_a_tcp_service_on_l7_is_redirected_once_the_proxy_has_the_listener_as_it_is() -> None:
    found = made(Mesh(*database()), host("db"), 3306)
    message = decoded(pb.Frontend(), found)
    assert (message.redirect.proxy_port, message.redirect.policy) == (15002, "")
    assert isinstance(found, Resource)
    assert found.requires == (Requirement(LISTENER, "out_tcp", AS_SERVED),)


def test_a_redirected_tcp_service_comes_from_its_own_manifests_alone() -> None:
    """The listener that it waits for is made from every guarded service; the frontend is not."""
    others = (*bookinfo(), policy("other", selector={"app": "ratings"}))
    mesh = Mesh(*database(), *others)
    listed = {text.partition(" ")[0] for text in mesh.origins(frontend, name_of(mesh, host("db"), 3306))}
    assert listed <= {"Service/default/db", "Pod/default/db-v1", "Pod/default/db-v2", "EndpointSlice/default/db-1"}


def test_a_tcp_service_is_checked_at_connect_by_the_one_policy_behind_it() -> None:
    guard = policy("guard", rule(from_source(namespaces=("x",))), selector={"app": "db"})
    message = front(Mesh(*database(), guard), host("db"), 3306)
    assert (message.redirect.policy, message.redirect.policy_port) == ("default/guard", 3306)
    of_one = policy("of-one", selector={"version": "v2"})
    assert front(Mesh(*database(), guard, of_one), host("db"), 3306).redirect.policy == ""


def test_a_service_on_l4_requires_nothing_of_the_proxy() -> None:
    found = made(Mesh(*bookinfo()), REVIEWS, 9080)
    assert isinstance(found, Resource)
    assert found.requires == ()


def test_every_tcp_port_has_a_frontend_that_is_found_by_its_name() -> None:
    mesh = Mesh(
        *bookinfo(), service("db", ServicePort(5432, "tcp"), ServicePort(53, "u", protocol="UDP"), address="10.0.0.5")
    )
    listed = frontend_names(mesh.db)
    assert len(listed) == 5
    assert "10.0.0.5:5432/tcp" in listed
    for name in listed:
        found = frontend(mesh.db, name)
        assert isinstance(found, Resource)
        assert found.name == name


@pytest.mark.parametrize(
    "name", ["", "x", "10.9.9.9:80/tcp", "10.0.0.5:5433/tcp", "10.0.0.5:5432/udp", ":/tcp", "a:b/tcp"]
)
def test_a_frontend_that_does_not_exist_is_absent(name: str) -> None:
    mesh = Mesh(service("db", ServicePort(5432, "tcp"), address="10.0.0.5"))
    assert frontend(mesh.db, name) is ABSENT


VIEWER = policy("viewer", rule(from_source(namespaces=("default",))), selector={"app": "reviews"})


def test_the_connect_check_uses_the_one_policy_behind_the_service() -> None:
    mesh = Mesh(*bookinfo(), ROUTED, VIEWER)
    assert connect_policy(mesh.db, REVIEWS, 9080) == GroupPort("default/viewer", 9080)
    message = front(mesh)
    assert (message.redirect.policy, message.redirect.policy_port) == ("default/viewer", 9080)


def test_the_policy_port_is_the_port_of_the_workload() -> None:
    mesh = Mesh(
        service("a", ServicePort(80, "http", target_port=8080)),
        workload("a", "v1", "10.0.0.1"),
        endpoint_slice("a", endpoint("10.0.0.1", "a-v1"), ports=(("http", 8080),)),
        virtual_service("a", "a", route(to("a"))),
        policy("p", rule()),
    )
    message = front(mesh, host("a"), 80)
    assert (message.redirect.policy, message.redirect.policy_port) == ("default/p", 8080)


@pytest.mark.parametrize(
    ("manifests", "why"),
    [
        ((policy("p", rule(), selector={"version": "v1"}),), "some endpoints have no policy"),
        ((VIEWER, policy("p", rule(), selector={"version": "v1"})), "endpoints have different policies"),
        (
            (
                VIEWER,
                virtual_service(
                    "reviews", "reviews", route(to("ratings"), match=(header("a", "b"),)), route(to("reviews"))
                ),
            ),
            "a route leads to a service without policy",
        ),
        (
            (VIEWER, virtual_service("reviews", "reviews", route(direct_response=HTTPDirectResponse(200)))),
            "an answer reaches no workload",
        ),
        ((VIEWER, virtual_service("reviews", "reviews", route(to("ratings")))), "it all goes to another service"),
    ],
)
def test_without_exactly_one_policy_the_proxy_decides(manifests: tuple[Manifest, ...], why: str) -> None:
    message = front(Mesh(*bookinfo(), ROUTED, *manifests))
    assert message.WhichOneof("plane") == "redirect"
    assert message.redirect.policy == "", why


def test_the_policy_of_the_service_that_routes_lead_to_counts() -> None:
    moved = virtual_service("reviews", "reviews", route(to("ratings")))
    guarded = policy("p", rule(), selector={"app": "ratings"})
    assert front(Mesh(*bookinfo(), moved, guarded)).redirect.policy == "default/p"


def test_a_new_endpoint_leaves_the_frontend_alone() -> None:
    mesh = Mesh(*bookinfo(), ROUTED)
    mesh.db.watch(frontend, name_of(mesh, REVIEWS, 9080))
    mesh.db.watch(backends, f"{REVIEWS}:9080")
    mesh.db.drain()
    mesh.put(endpoint_slice("reviews", endpoint("10.10.1.99")))
    revision = mesh.db.drain()
    assert revision is not None
    assert [output.query for output in revision.outputs] == [backends]


def test_a_changed_route_changes_what_the_frontend_requires_and_not_its_bytes() -> None:
    mesh = Mesh(*bookinfo(), ROUTED)
    before = made(mesh, REVIEWS, 9080)
    mesh.put(virtual_service("reviews", "reviews", route(to("reviews"), timeout=1_000_000_000)))
    after = made(mesh, REVIEWS, 9080)
    assert isinstance(before, Resource)
    assert isinstance(after, Resource)
    assert before.version == after.version
    assert before.requires != after.requires


def test_backends_are_the_ready_endpoints() -> None:
    mesh = Mesh(*bookinfo())
    message = decoded(pb.Backends(), backends(mesh.db, f"{REVIEWS}:9080"))
    assert [(bytes(entry.address), entry.port, entry.weight) for entry in message.backends] == [
        (bytes((10, 10, 1, 21)), 9080, 1),
        (bytes((10, 10, 2, 22)), 9080, 1),
        (bytes((10, 10, 2, 23)), 9080, 1),
    ]


def test_a_service_without_endpoints_has_empty_backends_and_an_unknown_one_none() -> None:
    mesh = Mesh(service("a"))
    assert len(decoded(pb.Backends(), backends(mesh.db, f"{host('a')}:9080")).backends) == 0
    assert backends(mesh.db, "nobody:80") is ABSENT
    assert backends(mesh.db, "nobody") is ABSENT


def test_backends_stay_while_the_proxy_carries_the_service() -> None:
    # The frontend of a node whose proxy is not ready yet still balances with them.
    assert f"{REVIEWS}:9080" in backends_names(Mesh(*bookinfo(), ROUTED).db)


def test_identities_have_their_addresses_and_the_proxies_are_always_there() -> None:
    mesh = Mesh(*bookinfo())
    assert identity_names(mesh.db)[-1] == "xdsbpf:node-proxy"
    message = decoded(pb.Identity(), identity_resource(mesh.db, REVIEWS_ID))
    assert [tuple(address) for address in message.addresses] == [(10, 10, 1, 21), (10, 10, 2, 22), (10, 10, 2, 23)]
    proxies = decoded(pb.Identity(), identity_resource(mesh.db, "xdsbpf:node-proxy"))
    assert [tuple(address) for address in proxies.addresses] == [(10, 10, 1, 2), (10, 10, 2, 2)]
    assert identity_resource(mesh.db, "spiffe://cluster.local/ns/default/sa/nobody") is ABSENT
    assert len(decoded(pb.Identity(), identity_resource(Mesh().db, "xdsbpf:node-proxy")).addresses) == 0


def entries(message: pb.Policy) -> list[tuple[str, int, str]]:
    """(source or *, port or 0 for any, verdict)."""
    return [
        (
            entry.identity if entry.WhichOneof("source") == "identity" else "*",
            entry.port if entry.HasField("port") else 0,
            pb.Verdict.Name(entry.verdict),
        )
        for entry in message.entries
    ]


def test_a_policy_holds_its_workloads_its_decisions_and_lets_the_proxies_pass() -> None:
    allow = policy(
        "viewer",
        rule(from_source(principals=("cluster.local/ns/default/sa/bookinfo-reviews",)), to_operation(ports=("9080",))),
        selector={"app": "ratings"},
    )
    mesh = Mesh(*bookinfo(), allow)
    assert policy_names(mesh.db) == ("default/viewer",)
    message = decoded(pb.Policy(), policy_resource(mesh.db, "default/viewer"))
    assert [tuple(address) for address in message.destinations] == [(10, 10, 2, 13)]
    assert entries(message) == [
        ("*", 9080, "DENY"),
        ("*", 0, "DENY"),
        (REVIEWS_ID, 9080, "ALLOW"),
        (REVIEWS_ID, 0, "DENY"),
        ("xdsbpf:node-proxy", 9080, "ALLOW"),
        ("xdsbpf:node-proxy", 0, "ALLOW"),
    ]
    assert message.entries[0].rule == "default: no ALLOW rule matched (default/viewer)"
    assert message.entries[2].rule == "AuthorizationPolicy/default/viewer spec.rules[0]"
    assert {entry.WhichOneof("source") for entry in message.entries} == {"identity", "any_source"}
    assert all(entry.protocol == pb.TCP for entry in message.entries)


def test_a_policy_without_workloads_is_absent() -> None:
    assert policy_resource(Mesh(*bookinfo()).db, "default/viewer") is ABSENT


def test_a_node_has_its_proxy_and_its_workloads() -> None:
    mesh = Mesh(*bookinfo())
    assert node_config_names(mesh.db, "node2") == ("node2",)
    message = decoded(pb.NodeConfig(), node_config(mesh.db, "node2", "node2"))
    assert (message.node, tuple(message.proxy_address), message.trust_domain) == (
        "node2",
        (10, 10, 2, 2),
        "cluster.local",
    )
    assert [entry.name for entry in message.workloads] == [
        "default/ratings-v1",
        "default/reviews-v2",
        "default/reviews-v3",
    ]
    assert node_config_names(mesh.db, "node9") == ()
    assert node_config(mesh.db, "node2", "node1") is ABSENT


def test_an_unknown_proxy_address_is_absent_and_not_zero() -> None:
    message = decoded(pb.NodeConfig(), node_config(Mesh(node("n")).db, "n", "n"))
    assert message.proxy_address == b""


def test_names_are_parsed_as_they_are_made() -> None:
    for address in ("10.0.0.1", "fd00::1"):
        assert names.parse_frontend(names.frontend_name(address, 80)) == (address, 80)
    assert names.parse_backends(names.backends_name(REVIEWS, 9080)) == (REVIEWS, 9080)


def test_every_generator_lists_names_that_it_can_build() -> None:
    mesh = Mesh(*bookinfo(), ROUTED, VIEWER)
    seen = set()
    for generator in datapath_generators(("node1", "node2")):
        for name in generator.names(mesh.db, *generator.args):
            found = generator.build(mesh.db, *generator.args, name)
            assert isinstance(found, Resource)
            assert (found.type_url, found.name) == (generator.type_url, name)
            assert mesh.db.origins(generator.build, *generator.args, name)
            seen.add(generator.scope)
    assert seen == {"datapath", "datapath/node1", "datapath/node2"}


def test_no_requirement_names_a_type_of_which_the_gate_keeps_no_book() -> None:
    """Such a resource would wait for ever."""
    mesh = Mesh(*bookinfo(), ROUTED)
    resources = (
        made(mesh, REVIEWS, 9080),
        virtual_host(mesh.db, f"9080/{REVIEWS}"),
        made(Mesh(*database()), host("db"), 3306),
    )
    required = {need.type_url for found in resources if isinstance(found, Resource) for need in found.requires}
    assert required == {VIRTUAL_HOST, ROUTES, LISTENER}
    assert required.isdisjoint(NEVER_REQUIRED)
