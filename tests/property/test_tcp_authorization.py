"""The matcher of the listener for TCP lets in whom the evaluator lets in at every endpoint, and nobody else."""

from __future__ import annotations

import ipaddress
import itertools
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given, settings
from hypothesis import strategies as st
from test_authorization import PODS, RUNNING, policies
from xds.type.matcher.v3.ip_pb2 import IPMatcher

from tests.builders import Mesh, endpoint, endpoint_slice, from_source, pod, policy, rule, service
from xdsbpf.compile.envoy.tcp_listener import tcp_decision, tcp_guards
from xdsbpf.mesh.authorization import Verdict, evaluate, source_of_identity
from xdsbpf.mesh.policy_groups import policy_set, workload_policies
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
        if tree.HasField("custom_match"):
            found = inside(tree.custom_match, answers[tree.input.name]) or found.matcher.on_no_match
            continue
        cases = dict(tree.exact_match_map.map)
        text = answers[tree.input.name]
        found = cases.get(text, found.matcher.on_no_match)
    value = StringValue()
    assert found.action.typed_config.Unpack(value)
    return str(value.value)


def inside(custom: Any, address: str) -> Any:
    """The case of the narrowest range around an address, or None."""
    ranges = IPMatcher()
    assert custom.typed_config.Unpack(ranges)
    found = None
    for one in ranges.range_matchers:
        for block in one.ranges:
            network = ipaddress.ip_network((block.address_prefix, block.prefix_len.value))
            if ipaddress.ip_address(address) in network and (found is None or network.prefixlen > found[0]):
                found = network.prefixlen, one.on_match
    return found and found[1]


BLOCKS = ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.1.0/25", "10.0.1.2", "::/0")
blocked = st.builds(
    lambda name, action, blocks, not_blocks, who: policy(
        name,
        rule(from_source(ip_blocks=blocks, not_ip_blocks=not_blocks, principals=who)),
        namespace="default",
        action=action,
        selector={"app": "db"},
    ),
    st.sampled_from(("b1", "b2")),
    st.sampled_from(("ALLOW", "DENY")),
    st.lists(st.sampled_from(BLOCKS), max_size=2).map(tuple),
    st.lists(st.sampled_from(BLOCKS), max_size=2).map(tuple),
    st.sampled_from(((), ("*/sa/a",))),
)


@given(st.lists(blocked, min_size=1, max_size=2), policies())
@settings(max_examples=100, deadline=None)
def test_the_listeners_matcher_knows_where_a_source_is(
    first: list[AuthorizationPolicy], second: tuple[AuthorizationPolicy, ...]
) -> None:
    """With one set of policies for all endpoints, and another one for a part of them."""
    of_one = tuple(selecting(found, position) for position, found in enumerate((*second, *first)))
    mesh = Mesh(*PODS, *SERVERS, *SERVICES, *first, *of_one[: len(of_one) // 2])
    decision = tcp_decision(tcp_guards(mesh.db))
    sets = [policy_set(mesh.db, workload_policies(mesh.db, "default", tuple(labels.items()))) for labels in LABELS]
    for name, source in itertools.product(RUNNING, ("10.0.0.2", "10.0.1.1", "10.0.1.2", "10.9.9.9", "172.16.0.1")):
        verdicts = {evaluate(one, source_of_identity(name, source), 9080).verdict for one in sets}
        expected = "tcp" if verdicts == {Verdict.ALLOW} else "closed"
        found = {"address": ADDRESS, "port": "80", "xb.principal": name, "source": source}
        assert chain(decision, found) == expected, (name, source)


@given(policies(), policies())
@settings(max_examples=150, deadline=None)
def test_the_listeners_matcher_equals_the_evaluator(
    first: tuple[AuthorizationPolicy, ...], second: tuple[AuthorizationPolicy, ...]
) -> None:
    of_one = tuple(selecting(found, position) for position, found in enumerate(second))
    mesh = Mesh(*PODS, *SERVERS, *SERVICES, *first, *of_one)
    decision = tcp_decision(tcp_guards(mesh.db))
    sets = [policy_set(mesh.db, workload_policies(mesh.db, "default", tuple(labels.items()))) for labels in LABELS]
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
