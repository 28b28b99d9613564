"""The matcher of the listener for TCP lets in whom the evaluator lets in at every endpoint, and nobody else."""

from __future__ import annotations

from typing import Any

from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given, settings
from test_authorization import PODS, RUNNING, policies

from tests.builders import Mesh, endpoint, endpoint_slice, pod, policy, service
from xdsbpf.compile.envoy.tcp_listener import tcp_decision, tcp_guards
from xdsbpf.mesh.authorization import Verdict, evaluate, source_of_identity
from xdsbpf.mesh.policy_groups import policy_set, workload_group
from xdsbpf.model.authorization_policy import AuthorizationPolicy
from xdsbpf.model.kube import ServicePort

ADDRESS = "10.96.0.10"
LABELS = ({"app": "db", "version": "v1"}, {"app": "db", "version": "v2"})
SERVERS = tuple(pod(f"db-{i}", f"10.0.9.{i}", labels=labels, account="db") for i, labels in enumerate(LABELS))
SERVICES = (
    service("db", ServicePort(80, "tcp"), ServicePort(443, "tcp"), address=ADDRESS),
    endpoint_slice("db", *(endpoint(f"10.0.9.{i}", f"db-{i}") for i in range(2)), ports=(("tcp", 9080),)),
)


def chain(found: Any, answers: dict[str, str]) -> str:
    """The name of the chain that a decision comes to, with the input's texts given by their names."""
    while found.WhichOneof("on_match") == "matcher":
        tree = found.matcher.matcher_tree
        cases = dict(tree.exact_match_map.map)
        text = answers[tree.input.name]
        found = cases.get(text, found.matcher.on_no_match)
    value = StringValue()
    assert found.action.typed_config.Unpack(value)
    return str(value.value)


@given(policies(), policies())
@settings(max_examples=150, deadline=None)
def test_the_listeners_matcher_equals_the_evaluator(
    first: tuple[AuthorizationPolicy, ...], second: tuple[AuthorizationPolicy, ...]
) -> None:
    of_one = tuple(selecting(found, position) for position, found in enumerate(second))
    mesh = Mesh(*PODS, *SERVERS, *SERVICES, *first, *of_one)
    decision = tcp_decision(tcp_guards(mesh.db))
    sets = [policy_set(mesh.db, workload_group(mesh.db, "default", tuple(labels.items()))) for labels in LABELS]
    for name in RUNNING:
        verdicts = {evaluate(one, source_of_identity(name), 9080).verdict for one in sets}
        expected = "tcp" if verdicts == {Verdict.ALLOW} else "closed"
        assert chain(decision, {"address": ADDRESS, "port": "80", "xb.principal": name}) == expected
        assert chain(decision, {"address": "10.96.0.99", "port": "80", "xb.principal": name}) == "tcp"


def selecting(found: AuthorizationPolicy, position: int) -> AuthorizationPolicy:
    """The same policy under another name, for the second version alone."""
    return policy(
        f"of-v2-{position}",
        *found.spec.rules,
        namespace="default",
        action=found.spec.action,
        annotations=dict(found.metadata.annotations),
        selector={"version": "v2"},
    )
