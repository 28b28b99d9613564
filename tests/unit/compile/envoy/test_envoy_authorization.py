"""Authorisation at the proxy decides exactly what the one evaluator of policies decides."""

from __future__ import annotations

import ipaddress
import itertools
from typing import Any

from envoy.config.rbac.v3.rbac_pb2 import Principal
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBACPerRoute
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiling import Mesh, pod, service, slice_of
from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.attributes import attributes
from xdsbpf.compile.envoy.rbac import Demands, cluster_filters, combine
from xdsbpf.compile.envoy.rbac_principals import principal_of
from xdsbpf.incremental import Database
from xdsbpf.mesh.authorization import PolicySet, Verdict, evaluate, source_of_identity
from xdsbpf.mesh.inputs import put_object
from xdsbpf.mesh.policy_rules import L4Rule, Subject, Term
from xdsbpf.model.kube import Pod, PodSpec, PodStatus
from xdsbpf.model.meta import ObjectMeta
from xdsbpf.model.names import spiffe_id

NAMESPACES = ("aa", "aaa", "prod", "ns")
ACCOUNTS = ("web", "b", "sa")
IDENTITIES = tuple((ns, sa, spiffe_id("cluster.local", ns, sa)) for ns in NAMESPACES for sa in ACCOUNTS)
LABELS = (("app", "x"), ("ns", "prod"), ("sa", "web"))


def matches(principal: Any, state: dict[str, str]) -> bool:
    """Envoy's reading of a principal that looks at filter state and at the connection's address."""
    kind = principal.WhichOneof("identifier")
    if kind == "any":
        return True
    if kind == "not_id":
        return not matches(principal.not_id, state)
    if kind == "and_ids":
        return all(matches(one, state) for one in principal.and_ids.ids)
    if kind == "or_ids":
        return any(matches(one, state) for one in principal.or_ids.ids)
    if kind == "direct_remote_ip":
        block = principal.direct_remote_ip
        where = ipaddress.ip_network((block.address_prefix, block.prefix_len.value))
        return ipaddress.ip_address(state["address"]) in where
    assert kind == "filter_state", kind
    text, match = state[principal.filter_state.key], principal.filter_state.string_match
    how = match.WhichOneof("match_pattern")
    return {
        "exact": lambda: text == match.exact,
        "prefix": lambda: text.startswith(match.prefix),
        "suffix": lambda: text.endswith(match.suffix),
        "contains": lambda: match.contains in text,
    }[how]()


def state_of(namespace: str, account: str, identity: str, address: str = "10.1.0.1") -> dict[str, str]:
    state = {names.PRINCIPAL_KEY: identity, names.ATTRIBUTES_KEY: attributes(namespace, account, LABELS)}
    return state | {"address": address}


def passes(filters: tuple[tuple[str, bytes], ...], state: dict[str, str]) -> bool:
    """What the two slots of the filter chain do with a request from a source."""
    slots = {}
    for name, encoded in filters:
        per_route = RBACPerRoute()
        assert AnyMessage.FromString(encoded).Unpack(per_route)
        slots[name] = per_route.rbac.rules

    def holds(name: str) -> bool:
        return any(matches(one, state) for policy in slots[name].policies.values() for one in policy.principals)

    if names.AUTHZ_DENY in slots and holds(names.AUTHZ_DENY):
        return False
    return names.AUTHZ_ALLOW not in slots or holds(names.AUTHZ_ALLOW)


PRINCIPALS = st.sampled_from(
    (
        "*",
        "cluster.local/ns/aa/sa/web",
        "cluster.local/ns/a*",
        "*/sa/web",
        "*/cluster.local/ns/aa/sa/web",
        "*b",
        "spiffe*",
        "other/ns/aa/sa/web",
    )
)
GLOBS = st.sampled_from(("aa", "aaa", "a*", "*a", "*", "aa*aa", "a*a", "*o*", "prod", "ns", "p*d"))
DOMAINS = st.sampled_from(("cluster.local", "cluster.*", "*.local", "*", "other", "c*l"))
SOURCES = ("10.1.0.1", "10.1.0.200", "10.1.1.1", "10.2.0.1", "192.168.0.1")
BLOCKS = ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.0.1/32", "10.1.0.128/25", "::/0", "fd00::/8")
TERMS = st.one_of(
    st.builds(
        Term, st.just(Subject.SOURCE_IP), st.lists(st.sampled_from(BLOCKS), min_size=1).map(tuple), st.booleans()
    ),
    st.builds(Term, st.just(Subject.PRINCIPAL), st.tuples(PRINCIPALS), st.booleans()),
    st.builds(Term, st.just(Subject.NAMESPACE), st.tuples(GLOBS, GLOBS), st.booleans()),
    st.builds(Term, st.just(Subject.SERVICE_ACCOUNT), st.sampled_from((("aa/web",), ("ns/sa",))), st.booleans()),
    st.builds(Term, st.just(Subject.TRUST_DOMAIN), st.tuples(DOMAINS), st.booleans()),
    st.builds(Term, st.just(Subject.PORT), st.sampled_from((("80",), ("80", "90"))), st.booleans()),
)
PORT_TERMS = st.builds(Term, st.just(Subject.PORT), st.sampled_from((("80",), ("90",))), st.booleans())
ALL_OF = st.lists(TERMS, max_size=3).map(tuple)
RULES = st.builds(
    L4Rule,
    st.sampled_from(("AuthorizationPolicy/default/a spec.rules[0]", "AuthorizationPolicy/default/b spec.rules[1]")),
    st.lists(ALL_OF, max_size=2).map(tuple),
    st.lists(st.lists(PORT_TERMS, max_size=2).map(tuple), max_size=2).map(tuple),
    ALL_OF,
)
POLICIES = st.builds(
    PolicySet,
    st.just("set"),
    st.just(()),
    st.lists(RULES, max_size=2).map(tuple),
    st.lists(RULES, max_size=2).map(tuple),
    st.booleans(),
)


def mesh_of_identities() -> Database:
    db = Database()
    with db.change() as change:
        for number, (namespace, account, _) in enumerate(IDENTITIES):
            manifest = Pod(
                metadata=ObjectMeta(name=f"p{number}", namespace=namespace, labels=LABELS),
                spec=PodSpec(node_name="node1", service_account_name=account),
                status=PodStatus(phase="Running", pod_ip=f"10.1.0.{number + 1}"),
            )
            put_object(change, manifest.id, manifest)
    return db


DB = mesh_of_identities()


def demands_of(policies: PolicySet, port: int) -> Demands:
    def encoded(rules: tuple[L4Rule, ...]) -> tuple[tuple[str, bytes], ...]:
        found = ((rule.origin, principal_of(DB, rule, port)) for rule in rules)
        return tuple((name, one.SerializeToString()) for name, one in found if one is not None)

    return Demands(encoded(policies.deny), encoded(policies.allow) if policies.has_allow else None)


@settings(max_examples=150, deadline=None)
@given(st.lists(POLICIES, min_size=1, max_size=3), st.sampled_from((80, 90, 100)))
def test_the_proxy_admits_exactly_whom_every_policy_set_admits(sets: list[PolicySet], port: int):
    filters = combine(tuple(demands_of(policies, port) for policies in sets))
    for (namespace, account, identity), address in itertools.product(IDENTITIES, SOURCES):
        source = source_of_identity(identity, address)
        wanted = all(evaluate(policies, source, port).verdict is Verdict.ALLOW for policies in sets)
        assert passes(filters, state_of(namespace, account, identity, address)) is wanted, (identity, address)


def test_no_principal_is_a_regular_expression():
    terms = (Term(Subject.NAMESPACE, ("aa*aa", "a.*", "(x)")), Term(Subject.TRUST_DOMAIN, ("c*l",)))
    principal = principal_of(DB, L4Rule("x", (terms,)), 80)
    assert "regex" not in str(principal)


def guarded(*policies: str) -> Mesh:
    return Mesh(
        service("reviews", "80/http/9080")
        + pod("r1", "10.1.0.1", app="reviews")
        + pod("r2", "10.1.0.2", app="reviews", version="v2")
        + slice_of("reviews", ("r1", "10.1.0.1"), ("r2", "10.1.0.2"))
        + "\n---\n".join(policies)
    )


POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %s, namespace: default}
spec: %s
"""
HOST = "reviews.default.svc.cluster.local"


def filters_of(mesh: Mesh) -> dict[str, Any]:
    found = {}
    for name, encoded in cluster_filters(mesh.db, HOST, 80, ""):
        found[name] = RBACPerRoute()
        AnyMessage.FromString(encoded).Unpack(found[name])
    return found


def test_a_cluster_without_policies_has_no_settings():
    assert filters_of(guarded()) == {}


def test_an_allow_policy_without_rules_denies_everybody():
    mesh = guarded(POLICY % ("nothing", "{rules: []}"))
    slot = filters_of(mesh)[names.AUTHZ_ALLOW].rbac
    assert slot.HasField("rules")
    assert not slot.rules.policies


def test_policies_carry_istios_names_and_ports_are_decided_when_compiling():
    rules = "{rules: [{to: [{operation: {ports: ['80']}}]}, {to: [{operation: {ports: ['9080']}}]}]}"
    mesh = guarded(POLICY % ("ports", rules))
    assert list(filters_of(mesh)[names.AUTHZ_ALLOW].rbac.rules.policies) == ["ns[default]-policy[ports]-rule[1]"]


def test_endpoints_under_different_policies_are_reported():
    selector = "{selector: {matchLabels: {version: v2}}, rules: [{}]}"
    one = guarded(POLICY % ("only-v2", selector))
    assert "XB3032" not in one.codes()
    both = guarded(POLICY % ("only-v2", selector), POLICY % ("all", "{rules: [{from: [{source: {namespaces: [x]}}]}]}"))
    assert "XB3032" in both.codes()


def test_the_interpreter_of_this_test_can_tell_a_wrong_principal():
    everyone = combine((Demands((), (("a", Principal(any=True).SerializeToString()),)),))
    nobody = combine((Demands((("a", Principal(any=True).SerializeToString()),), None),))
    state = state_of(*IDENTITIES[0])
    assert passes(everyone, state)
    assert not passes(nobody, state)
