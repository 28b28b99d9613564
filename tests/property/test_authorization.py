"""The compiled policy, looked up as the kernel does, decides what the evaluator decides."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import Mesh, from_source, pod, policy, rule, to_operation
from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2 as pb
from xdsbpf.compile.datapath.policies import policy_resource
from xdsbpf.mesh.authorization import evaluate, source_of_identity
from xdsbpf.mesh.identities import NODE_PROXY
from xdsbpf.mesh.policy_groups import policy_groups, policy_set, workload_policies
from xdsbpf.model.authorization_policy import AuthorizationPolicy, Condition, Rule
from xdsbpf.model.resource import Resource

LABELS = {"app": "x"}
PODS = (
    pod("server", "10.0.0.1", labels=LABELS, account="server"),
    pod("a", "10.0.0.2", account="a"),
    pod("b", "10.0.0.3", account="b"),
    pod("c", "10.0.1.1", account="a", namespace="other"),
    pod("d", "10.0.1.2", account="data", namespace="other"),
)
RUNNING = tuple(f"spiffe://cluster.local/ns/{one.namespace}/sa/{one.service_account}" for one in PODS)
PORTS = (80, 443, 9080)
ASKED_PORTS = (*PORTS, 1, 65535)

principals = st.sampled_from(
    (
        "*",
        "cluster.local/ns/default/sa/a",
        "cluster.local/ns/default/*",
        "*/sa/a",
        "cluster.local/ns/other/sa/gone",
        "cluster.local/ns/other/sa/data",
        "foreign.example/ns/default/sa/a",
    )
)
namespaces = st.sampled_from(("default", "other", "o*", "*r", "*", "none"))
accounts = st.sampled_from(("a", "other/a", "other/data", "gone"))
ports = st.sampled_from(tuple(map(str, PORTS)))


def some(values: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(values, max_size=2).map(tuple)


sources = st.builds(
    lambda fields: from_source(**fields),
    st.fixed_dictionaries(
        {},
        optional={
            "principals": some(principals),
            "not_principals": some(principals),
            "namespaces": some(namespaces),
            "not_namespaces": some(namespaces),
            "service_accounts": some(accounts),
            "not_service_accounts": some(accounts),
            "request_principals": st.just(("*",)),
        },
    ),
)
operations = st.builds(
    lambda fields: to_operation(**fields),
    st.fixed_dictionaries({}, optional={"ports": some(ports), "not_ports": some(ports), "methods": st.just(("GET",))}),
)
conditions = st.one_of(
    st.builds(Condition, st.just("source.namespace"), some(namespaces), some(namespaces)),
    st.builds(Condition, st.just("source.principal"), some(principals), some(principals)),
    st.builds(Condition, st.just("destination.port"), some(ports), some(ports)),
    st.builds(Condition, st.just("source.trustDomain"), st.just(("cluster.*",))),
)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    return rule(
        *draw(st.lists(sources, max_size=2)),
        *draw(st.lists(operations, max_size=2)),
        *draw(st.lists(conditions, max_size=1)),
    )


@st.composite
def policies(draw: st.DrawFn) -> tuple[AuthorizationPolicy, ...]:
    found = []
    for number in range(draw(st.integers(1, 3))):
        annotations = draw(st.sampled_from(({}, {}, {}, {"xdsbpf.io/unenforced": "allow"})))
        found.append(
            policy(
                f"p{number}",
                *draw(st.lists(rules(), max_size=3)),
                namespace=draw(st.sampled_from(("default", "istio-system"))),
                action=draw(st.sampled_from(("ALLOW", "DENY", "CUSTOM"))),
                annotations=annotations,
            )
        )
    return tuple(found)


def kernel_verdict(message: Any, source: str | None, port: int) -> str:
    """The kernel's rule: (source, port), (source, any), (any, port), (any, any); the first entry decides."""
    table: dict[tuple[str | None, int | None], str] = {}
    for entry in message.entries:
        name = entry.identity if entry.WhichOneof("source") == "identity" else None
        key = (name, entry.port if entry.HasField("port") else None)
        assert key not in table
        table[key] = pb.Verdict.Name(entry.verdict)
    for key in ((source, port), (source, None), (None, port), (None, None)):
        if key in table:
            return table[key]
    raise AssertionError("the table has no (any, any) entry")


def compiled(mesh: Mesh, group: str) -> Any:
    resource = policy_resource(mesh.db, group)
    assert isinstance(resource, Resource)
    message = pb.Policy()
    message.ParseFromString(resource.body)
    return message


@given(policies())
@settings(max_examples=300, deadline=None)
def test_the_kernels_lookup_equals_the_evaluator(chosen: tuple[AuthorizationPolicy, ...]) -> None:
    mesh = Mesh(*PODS, *chosen)
    group = workload_policies(mesh.db, "default", tuple(LABELS.items()))
    if not group:
        assert "10.0.0.1" not in str(policy_groups(mesh.db))
        return
    message = compiled(mesh, group)
    meaning = policy_set(mesh.db, group)
    for name in (*RUNNING, None):
        for port in ASKED_PORTS:
            expected = evaluate(meaning, source_of_identity(name), port)
            assert kernel_verdict(message, name, port) == expected.verdict
    for port in ASKED_PORTS:
        assert kernel_verdict(message, NODE_PROXY, port) == "ALLOW"


@given(policies(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_compiled_policy_does_not_depend_on_the_order_of_arrival(
    chosen: tuple[AuthorizationPolicy, ...], shuffle: Any
) -> None:
    objects = [*PODS, *chosen]
    first = Mesh(*objects)
    shuffle.shuffle(objects)
    second = Mesh()
    for manifest in objects:
        second.put(manifest)
        policy_groups(second.db)
    assert policy_groups(second.db) == policy_groups(first.db)
    for group in policy_groups(first.db):
        assert policy_resource(second.db, group) == policy_resource(first.db, group)


@given(policies())
@settings(max_examples=100, deadline=None)
def test_what_cannot_be_enforced_never_opens_anything(chosen: tuple[AuthorizationPolicy, ...]) -> None:
    """Without the annotation, leaving the inexpressible fields out by hand opens at least as much."""
    strict = tuple(policy(one.name, *one.spec.rules, namespace=one.namespace, action=one.spec.action) for one in chosen)
    mesh = Mesh(*PODS, *strict)
    group = workload_policies(mesh.db, "default", tuple(LABELS.items()))
    if not group:
        return
    meaning = policy_set(mesh.db, group)
    # An ALLOW rule survives only whole: each surviving one is a rule without inexpressible fields.
    plain = {
        f"AuthorizationPolicy/{one.namespace}/{one.name} spec.rules[{position}]"
        for one in strict
        for position, entry in enumerate(one.spec.rules)
        if not any(source.source.request_principals for source in entry.from_)
        and not any(operation.operation.methods for operation in entry.to)
    }
    assert {survivor.origin for survivor in meaning.allow} <= plain
    # A DENY rule never disappears.
    wanted = sum(len(one.spec.rules) for one in strict if one.spec.action != "ALLOW")
    assert len(meaning.deny) == wanted
