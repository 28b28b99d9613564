"""Who may connect to a TCP port through the proxy: whom every endpoint behind it admits."""

from __future__ import annotations

from tests.builders import (
    Mesh,
    destination_rule,
    endpoint,
    endpoint_slice,
    from_source,
    host,
    policy,
    rule,
    service,
    subset,
    tcp_route,
    tcp_to,
    virtual_service,
    workload,
)
from xdsbpf.mesh.authorization import Verdict
from xdsbpf.mesh.policy_groups import GroupPort
from xdsbpf.mesh.policy_tables import Admission
from xdsbpf.mesh.tcp_admission import conjunction, tcp_admission, tcp_groups
from xdsbpf.model.authorization_policy import AuthorizationPolicy
from xdsbpf.model.kube import ServicePort
from xdsbpf.model.meta import Manifest

DB = host("db")
ALLOW, DENY = Verdict.ALLOW, Verdict.DENY


def database() -> tuple[Manifest, ...]:
    return (
        service("db", ServicePort(3306, "tcp")),
        workload("db", "v1", "10.0.0.1"),
        workload("db", "v2", "10.0.0.2"),
        endpoint_slice("db", endpoint("10.0.0.1", "db-v1"), endpoint("10.0.0.2", "db-v2"), ports=(("tcp", 3306),)),
        destination_rule("db", "db", subset("v1"), subset("v2")),
    )


def guard(name: str, version: str, account: str, action: str = "DENY") -> AuthorizationPolicy:
    return policy(name, rule(from_source(service_accounts=(account,))), selector={"version": version}, action=action)


def account(name: str) -> str:
    return f"spiffe://cluster.local/ns/default/sa/{name}"


def test_a_port_without_policies_admits_everybody() -> None:
    assert tcp_admission(Mesh(*database()).db, DB, 3306) == Admission(ALLOW, ())


def test_who_one_endpoint_denies_is_denied() -> None:
    mesh = Mesh(*database(), guard("one", "v1", "a"), guard("two", "v2", "b"))
    assert tcp_admission(mesh.db, DB, 3306) == Admission(ALLOW, (account("a"), account("b")))


def test_with_allow_policies_a_client_must_be_named_by_all_of_them() -> None:
    mesh = Mesh(*database(), guard("one", "v1", "a", "ALLOW"), guard("two", "v2", "b", "ALLOW"))
    assert tcp_admission(mesh.db, DB, 3306) == Admission(DENY, ())
    mesh.put(guard("two", "v2", "a", "ALLOW"))
    assert tcp_admission(mesh.db, DB, 3306) == Admission(DENY, (account("a"),))


def test_it_is_the_route_that_says_which_endpoints_count() -> None:
    only = virtual_service("db", "db", tcp=(tcp_route(tcp_to("db", "v2")),))
    mesh = Mesh(*database(), guard("one", "v1", "a"), guard("two", "v2", "b"), only)
    assert tcp_groups(mesh.db, DB, 3306) == (GroupPort("default/two", 3306),)
    assert tcp_admission(mesh.db, DB, 3306) == Admission(ALLOW, (account("b"),))


def test_all_must_admit() -> None:
    everybody, nobody = Admission(ALLOW, ()), Admission(DENY, ())
    assert conjunction(()) == everybody
    assert conjunction((everybody, nobody)) == nobody
    assert conjunction((Admission(DENY, ("a", "b")), Admission(DENY, ("b", "c")))) == Admission(DENY, ("b",))
    assert conjunction((Admission(ALLOW, ("a",)), Admission(DENY, ("a", "b")))) == Admission(DENY, ("b",))
