"""The evaluator against Istio's semantics (istio-translation 5.1 to 5.4, 12.5 items 14 and 15)."""

from __future__ import annotations

import pytest

from tests.builders import Mesh, bookinfo, from_source, policy, rule, service, to_operation
from xdsbpf.mesh.authorization import Decision, Source, evaluate, policies_of, source_of_identity
from xdsbpf.mesh.inputs import MeshSettings
from xdsbpf.mesh.policy_groups import group_naming, policy_set, workload_policies
from xdsbpf.model.authorization_policy import AuthorizationPolicy, Condition, PolicyTargetRef, Rule
from xdsbpf.model.scalars import Labels

REVIEWS = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
RATINGS = "spiffe://cluster.local/ns/default/sa/bookinfo-ratings"
SLEEP = "spiffe://cluster.local/ns/legacy/sa/sleep"
PORTAL = "spiffe://other.example/ns/default/sa/portal"
APP: Labels = (("app", "x"),)


def decide(
    *policies: AuthorizationPolicy,
    by: str | None = REVIEWS,
    port: int = 9080,
    labels: Labels = APP,
    settings: MeshSettings | None = None,
    address: str = "10.0.0.9",
    at: str = "10.0.0.1",
) -> Decision:
    """A connection from `address` to a workload at the address `at`."""
    mesh = Mesh(*policies, settings=settings)
    group = group_naming(mesh.db, workload_policies(mesh.db, "default", labels))(at)
    return evaluate(policy_set(mesh.db, group), source_of_identity(by, address), port)


def allowed(
    *policies: AuthorizationPolicy,
    by: str | None = REVIEWS,
    port: int = 9080,
    address: str = "10.0.0.9",
    at: str = "10.0.0.1",
) -> bool:
    return decide(*policies, by=by, port=port, address=address, at=at).verdict == "ALLOW"


def test_without_policies_everything_is_allowed() -> None:
    assert allowed()
    assert allowed(by=None)


def test_an_allow_policy_without_rules_denies_all() -> None:
    assert not allowed(policy("p"))
    assert decide(policy("p")).rule == "default: no ALLOW rule matched (default/p)"


def test_an_allow_policy_with_an_empty_rule_allows_all() -> None:
    assert allowed(policy("p", rule()))
    assert allowed(policy("p", rule()), by=None)


def test_a_deny_policy_without_rules_denies_nothing() -> None:
    assert allowed(policy("p", action="DENY"), by=None)


def test_a_deny_policy_with_an_empty_rule_denies_all() -> None:
    assert not allowed(policy("p", rule(), action="DENY"))


def test_deny_comes_before_allow_and_names_the_rule() -> None:
    allow = policy("a", rule())
    deny = policy("d", rule(to_operation(ports=("1",))), rule(to_operation(ports=("9080",))), action="DENY")
    assert decide(allow, deny) == Decision("DENY", "AuthorizationPolicy/default/d spec.rules[1]")
    assert decide(allow, deny, port=2) == Decision("ALLOW", "AuthorizationPolicy/default/a spec.rules[0]")


def test_with_deny_policies_only_what_they_do_not_match_is_allowed() -> None:
    deny = policy("d", rule(to_operation(ports=("1",))), action="DENY")
    assert decide(deny) == Decision("ALLOW", "default: no DENY rule matched (default/d)")


@pytest.mark.parametrize(
    ("fields", "yes", "no"),
    [
        ({"principals": ("cluster.local/ns/default/sa/bookinfo-reviews",)}, [REVIEWS], [RATINGS, SLEEP, None]),
        ({"principals": ("*",)}, [REVIEWS, SLEEP, PORTAL], [None]),
        ({"principals": ("cluster.local/ns/default/*",)}, [REVIEWS, RATINGS], [SLEEP, PORTAL, None]),
        ({"principals": ("*/sa/sleep",)}, [SLEEP], [REVIEWS, None]),
        ({"principals": ("*/ns/default/sa/portal",)}, [PORTAL], [REVIEWS, None]),
        ({"principals": ("cluster.local/ns/default/sa/bookinfo-review",)}, [], [REVIEWS, None]),
        ({"principals": ("other.example/ns/default/sa/portal",)}, [PORTAL], [REVIEWS, None]),
        ({"namespaces": ("default",)}, [REVIEWS, PORTAL], [SLEEP, None]),
        ({"namespaces": ("leg*",)}, [SLEEP], [REVIEWS, None]),
        ({"namespaces": ("*acy",)}, [SLEEP], [REVIEWS, None]),
        ({"namespaces": ("l*c*y",)}, [SLEEP], [REVIEWS, None]),
        ({"namespaces": ("*",)}, [SLEEP, REVIEWS], [None]),
        ({"namespaces": (".*",)}, [], [SLEEP, REVIEWS, None]),
        ({"service_accounts": ("bookinfo-reviews",)}, [REVIEWS], [RATINGS, SLEEP, None]),
        ({"service_accounts": ("legacy/sleep",)}, [SLEEP], [REVIEWS, None]),
        ({"service_accounts": ("default/portal",)}, [PORTAL], [REVIEWS, None]),
        # Fields are ANDed, values of one field ORed.
        ({"principals": ("*",), "namespaces": ("legacy",)}, [SLEEP], [REVIEWS, None]),
        ({"namespaces": ("legacy", "default")}, [SLEEP, REVIEWS], [None]),
        ({"namespaces": ("default",), "not_principals": ("*/bookinfo-ratings",)}, [REVIEWS], [RATINGS, SLEEP, None]),
        ({"not_namespaces": ("legacy",)}, [REVIEWS, PORTAL], [SLEEP, None]),
        ({"not_principals": ("*/sleep",)}, [REVIEWS], [SLEEP, None]),
        ({"not_service_accounts": ("legacy/sleep",)}, [REVIEWS], [SLEEP, None]),
    ],
)
def test_what_an_allow_rule_says_about_the_source(
    fields: dict[str, tuple[str, ...]], yes: list[str], no: list[str | None]
) -> None:
    allow = policy("p", rule(from_source(**fields)))
    assert [by for by in yes if not allowed(allow, by=by)] == []
    assert [by for by in no if allowed(allow, by=by)] == []


@pytest.mark.parametrize(
    ("fields", "denied", "passed"),
    [
        ({"namespaces": ("legacy",)}, [SLEEP], [REVIEWS, None]),
        # Who cannot say who it is, is not known to be the exception either.
        ({"not_namespaces": ("legacy",)}, [REVIEWS, None], [SLEEP]),
        ({"not_principals": ("*",)}, [None], [REVIEWS, SLEEP]),
        ({"not_service_accounts": ("sleep", "legacy/sleep")}, [REVIEWS, None], [SLEEP]),
        ({"namespaces": ("default",), "not_principals": ("*ratings",)}, [REVIEWS], [RATINGS, SLEEP, None]),
    ],
)
def test_what_a_deny_rule_says_about_the_source(
    fields: dict[str, tuple[str, ...]], denied: list[str | None], passed: list[str | None]
) -> None:
    deny = policy("p", rule(from_source(**fields)), action="DENY")
    assert [by for by in denied if allowed(deny, by=by)] == []
    assert [by for by in passed if not allowed(deny, by=by)] == []


@pytest.mark.parametrize(
    ("entries", "yes", "no"),
    [
        ((to_operation(ports=("9080",)),), [9080], [80]),
        ((to_operation(ports=("9080", "80")),), [9080, 80], [81]),
        ((to_operation(not_ports=("9080",)),), [80, 81], [9080]),
        ((to_operation(ports=("80",)), to_operation(ports=("9080",))), [80, 9080], [81]),
        ((Condition("destination.port", ("9080",)),), [9080], [80]),
        ((Condition("destination.port", (), ("9080",)),), [80], [9080]),
        ((to_operation(ports=("80", "81")), Condition("destination.port", (), ("81",))), [80], [81, 82]),
    ],
)
def test_what_a_rule_says_about_the_port(entries: tuple[object, ...], yes: list[int], no: list[int]) -> None:
    for action, expected in (("ALLOW", True), ("DENY", False)):
        chosen = policy("p", rule(*entries), action=action)  # type: ignore[arg-type]
        assert [port for port in yes if allowed(chosen, port=port) is not expected] == []
        assert [port for port in no if allowed(chosen, port=port) is expected] == []


@pytest.mark.parametrize(
    ("condition", "yes", "no"),
    [
        (Condition("source.principal", ("cluster.local/ns/legacy/sa/sleep",)), [SLEEP], [REVIEWS, None]),
        (Condition("source.namespace", ("default",)), [REVIEWS], [SLEEP, None]),
        (Condition("source.serviceAccount", ("legacy/sleep",)), [SLEEP], [REVIEWS, None]),
        (Condition("source.trustDomain", ("cluster.local",)), [SLEEP, REVIEWS], [PORTAL, None]),
        (Condition("source.namespace", ("*",), ("legacy",)), [REVIEWS], [SLEEP, None]),
    ],
)
def test_conditions_on_the_source(condition: Condition, yes: list[str], no: list[str | None]) -> None:
    allow = policy("p", rule(condition))
    assert [by for by in yes if not allowed(allow, by=by)] == []
    assert [by for by in no if allowed(allow, by=by)] == []


def test_from_to_and_when_are_all_required_and_each_list_needs_one() -> None:
    chosen = policy(
        "p",
        rule(
            from_source(namespaces=("legacy",)),
            from_source(principals=("*/bookinfo-reviews",)),
            to_operation(ports=("80",)),
            to_operation(ports=("9080",)),
            Condition("source.trustDomain", ("cluster.local",)),
        ),
    )
    assert allowed(chosen, by=SLEEP, port=80)
    assert allowed(chosen, by=REVIEWS)
    assert not allowed(chosen, by=RATINGS)
    assert not allowed(chosen, by=REVIEWS, port=81)
    assert not allowed(chosen, by="spiffe://other.example/ns/legacy/sa/sleep", port=80)


INSIDE, OUTSIDE = "10.1.2.3", "10.2.2.3"
BLOCK_RULES = [
    (rule(from_source(ip_blocks=("10.1.0.0/16",))), True),
    (rule(from_source(not_ip_blocks=("10.1.0.0/16",))), False),
    (rule(from_source(remote_ip_blocks=("10.1.0.0/16",))), True),
    (rule(from_source(not_remote_ip_blocks=("10.1.0.0/16",))), False),
    (rule(Condition("source.ip", ("10.1.2.3",))), True),
    (rule(Condition("source.ip", (), ("10.1.2.3/24",))), False),
    (rule(Condition("remote.ip", ("10.9.0.0/16", "10.1.0.0/16"))), True),
    (rule(Condition("remote.ip", (), ("10.1.0.0/16",))), False),
    (rule(from_source(ip_blocks=("::ffff:10.1.0.0/112",))), True),
]


@pytest.mark.parametrize(("entry", "holds_inside"), BLOCK_RULES)
@pytest.mark.parametrize("by", [REVIEWS, None])
def test_a_block_of_sources_is_where_a_connection_comes_from_whoever_it_is(
    entry: Rule, holds_inside: bool, by: str | None
) -> None:
    for address, holds in ((INSIDE, holds_inside), (OUTSIDE, not holds_inside)):
        assert allowed(policy("p", entry), by=by, address=address) is holds
        assert allowed(policy("p", entry, action="DENY"), by=by, address=address) is not holds
    assert {found.severity for found in Mesh(policy("p", entry)).findings()} <= {"info"}


def test_no_ipv4_address_is_in_an_ipv6_block() -> None:
    everywhere = policy("p", rule(from_source(ip_blocks=("::/0",))))
    assert not allowed(everywhere, address=INSIDE)
    assert allowed(everywhere, address="fd00::1")
    assert allowed(policy("p", rule(from_source(ip_blocks=("0.0.0.0/0",)))), address=INSIDE)


def test_a_narrow_block_may_be_taken_out_of_a_wide_one() -> None:
    chosen = policy("p", rule(from_source(ip_blocks=("10.0.0.0/8",), not_ip_blocks=("10.1.0.0/16", "10.2.2.3"))))
    assert not allowed(chosen, address=INSIDE)
    assert not allowed(chosen, address=OUTSIDE)
    assert allowed(chosen, address="10.2.2.4")
    assert not allowed(chosen, address="192.168.0.1")


def test_who_and_where_must_both_hold() -> None:
    chosen = policy("p", rule(from_source(namespaces=("legacy",), ip_blocks=("10.1.0.0/16",))))
    assert allowed(chosen, by=SLEEP, address=INSIDE)
    assert not allowed(chosen, by=SLEEP, address=OUTSIDE)
    assert not allowed(chosen, by=REVIEWS, address=INSIDE)
    assert not allowed(chosen, by=None, address=INSIDE)


@pytest.mark.parametrize(("values", "not_values", "holds"), [(("10.1.0.0/16",), (), True), ((), ("10.1.2.3",), False)])
def test_the_address_of_the_destination_is_the_workloads_own(
    values: tuple[str, ...], not_values: tuple[str, ...], holds: bool
) -> None:
    entry = rule(Condition("destination.ip", values, not_values))
    assert allowed(policy("p", entry), at=INSIDE) is holds
    assert allowed(policy("p", entry), at=OUTSIDE) is not holds
    assert allowed(policy("p", entry, action="DENY"), at=INSIDE) is not holds


def test_the_remote_address_is_that_of_the_connection_and_the_report_says_so() -> None:
    chosen = policy("p", rule(from_source(remote_ip_blocks=("10.0.0.0/8",)), Condition("remote.ip", ("10.0.0.0/8",))))
    found = Mesh(chosen).findings("XB2057")
    assert [one.path for one in found] == [
        "spec.rules[0].from[0].source.remoteIpBlocks",
        "spec.rules[0].when[0].values",
    ]
    assert Mesh(policy("p", rule(from_source(ip_blocks=("10.0.0.0/8",))))).findings() == []


L7_RULES = [
    (rule(to_operation(methods=("GET",))), "to[0].operation.methods"),
    (rule(to_operation(not_methods=("GET",))), "to[0].operation.notMethods"),
    (rule(to_operation(paths=("/x",))), "to[0].operation.paths"),
    (rule(to_operation(hosts=("x",))), "to[0].operation.hosts"),
    (rule(from_source(request_principals=("*",))), "from[0].source.requestPrincipals"),
    (rule(Condition("request.headers[x]", ("y",))), "when[0].values"),
    (rule(Condition("request.auth.claims[iss]", (), ("y",))), "when[0].notValues"),
    (rule(Condition("connection.sni", ("x",))), "when[0].values"),
    (rule(to_operation(ports=("http",))), "to[0].operation.ports"),
]


@pytest.mark.parametrize(("entry", "path"), L7_RULES)
def test_an_allow_rule_that_cannot_be_enforced_allows_nothing(entry: Rule, path: str) -> None:
    chosen = policy("p", entry)
    assert not allowed(chosen)
    (found,) = Mesh(chosen).findings("XB2050")
    assert found.path == f"spec.rules[0].{path}"
    assert found.message.startswith("NOT-ENFORCED")


@pytest.mark.parametrize(("entry", "path"), L7_RULES)
def test_a_deny_rule_that_cannot_be_enforced_denies_what_remains_of_it(entry: Rule, path: str) -> None:
    chosen = policy("p", entry, action="DENY")
    assert not allowed(chosen)
    assert [found.path for found in Mesh(chosen).findings("XB2051")] == [f"spec.rules[0].{path}"]


def test_the_other_fields_of_a_widened_deny_still_count() -> None:
    narrow = rule(from_source(namespaces=("legacy",)), to_operation(methods=("DELETE",), ports=("9000",)))
    chosen = policy("p", narrow, action="DENY")
    assert not allowed(chosen, by=SLEEP, port=9000)
    assert allowed(chosen, by=SLEEP, port=9001)
    assert allowed(chosen, by=REVIEWS, port=9000)


def test_an_allow_rule_beside_one_that_cannot_be_enforced_still_allows() -> None:
    chosen = policy("p", rule(to_operation(methods=("GET",))), rule(from_source(namespaces=("default",))))
    assert allowed(chosen, by=REVIEWS)
    assert not allowed(chosen, by=SLEEP)


def test_traffic_is_left_open_only_where_the_annotation_asks_for_it() -> None:
    open_ = {"xdsbpf.io/unenforced": "allow"}
    limited = rule(from_source(namespaces=("legacy",)), to_operation(methods=("GET",)))
    allow = policy("p", limited, annotations=open_)
    assert allowed(allow, by=SLEEP)
    assert not allowed(allow, by=REVIEWS)
    assert allowed(policy("p", limited, action="DENY", annotations=open_), by=SLEEP)
    assert allowed(policy("p", rule(), action="CUSTOM", annotations=open_))
    assert [found.code for found in Mesh(allow).findings()] == ["XB2056"]


def test_another_value_of_the_annotation_is_reported_and_opens_nothing() -> None:
    chosen = policy("p", rule(to_operation(methods=("GET",))), annotations={"xdsbpf.io/unenforced": "true"})
    assert not allowed(chosen)
    assert len(Mesh(chosen).findings("XB2040")) == 1


def test_custom_denies_what_it_selects() -> None:
    chosen = policy("p", rule(to_operation(ports=("9080",))), action="CUSTOM")
    assert not allowed(chosen, port=9080)
    assert allowed(chosen, port=80)
    assert [found.path for found in Mesh(chosen).findings("XB2052")] == ["spec.action"]


def test_audit_and_dry_run_change_nothing_and_say_so() -> None:
    for chosen in (
        policy("p", rule(), action="AUDIT"),
        policy("p", rule(), action="DENY", annotations={"istio.io/dry-run": "true"}),
        policy("p", action="ALLOW", annotations={"istio.io/dry-run": "true"}),
    ):
        assert allowed(chosen, by=None)
        assert len(Mesh(chosen).findings("XB2053")) == 1


def test_a_policy_that_could_not_be_read_denies_what_it_selects() -> None:
    chosen = policy("p", rule(), selector={"app": "x"}, annotations={"xdsbpf.io/unintelligible": "true"})
    assert decide(chosen) == Decision("DENY", "AuthorizationPolicy/default/p could not be read")
    assert decide(chosen, labels=(("app", "y"),)).verdict == "ALLOW"
    assert len(Mesh(chosen).findings("XB2055")) == 1


def test_both_names_of_the_meshs_trust_domain_are_understood() -> None:
    settings = MeshSettings(trust_domain="corp.example")
    mine = "spiffe://corp.example/ns/default/sa/a"
    for written in ("cluster.local/ns/default/sa/a", "corp.example/ns/default/sa/a"):
        chosen = policy("p", rule(from_source(principals=(written,))))
        assert decide(chosen, by=mine, settings=settings).verdict == "ALLOW"
    foreign = policy("p", rule(from_source(principals=("elsewhere.example/ns/default/sa/a",))))
    assert decide(foreign, by=mine, settings=settings).verdict == "DENY"


def selected(mesh: Mesh, namespace: str = "default", **labels: str) -> list[str]:
    return [f"{id.namespace}/{id.name}" for id in policies_of(mesh.db, namespace, tuple(sorted(labels.items())))]


def test_policies_of_the_root_and_the_own_namespace_apply_by_their_selector() -> None:
    mesh = Mesh(
        policy("all", rule()),
        policy("x", rule(), selector={"app": "x"}),
        policy("xv", rule(), selector={"app": "x", "version": "v1"}),
        policy("root", rule(), namespace="istio-system"),
        policy("root-y", rule(), namespace="istio-system", selector={"app": "y"}),
        policy("foreign", rule(), namespace="other"),
    )
    assert selected(mesh, app="x") == ["istio-system/root", "default/all", "default/x"]
    assert selected(mesh, app="y") == ["istio-system/root", "istio-system/root-y", "default/all"]
    assert selected(mesh, "third", app="x") == ["istio-system/root"]
    assert selected(mesh, "istio-system", app="z") == ["istio-system/root"]


def test_a_policy_for_a_service_guards_the_services_workloads() -> None:
    ref = PolicyTargetRef("Service", "reviews")
    mesh = Mesh(*bookinfo(), policy("p", target_refs=(ref,)))
    assert selected(mesh, app="reviews") == ["default/p"]
    assert selected(mesh, app="ratings") == []
    assert [found.severity for found in mesh.findings("XB2054")] == ["info"]


def test_a_service_without_a_selector_has_no_workloads_to_guard() -> None:
    mesh = Mesh(service("bare", selector=()), policy("p", target_refs=(PolicyTargetRef("Service", "bare"),)))
    assert selected(mesh, app="bare") == []


def test_a_policy_for_a_gateway_guards_no_workload_and_is_reported() -> None:
    ref = PolicyTargetRef("Gateway", "gw", "gateway.networking.k8s.io")
    mesh = Mesh(*bookinfo(), policy("p", target_refs=(ref,)))
    assert selected(mesh, app="reviews") == []
    assert [found.path for found in mesh.findings("XB2054")] == ["spec.targetRefs"]


def test_the_namespace_of_a_source_comes_from_its_identity() -> None:
    assert source_of_identity(SLEEP) == Source(SLEEP, "legacy")
    assert source_of_identity("spiffe://x/workload/1") == Source("spiffe://x/workload/1", None)
