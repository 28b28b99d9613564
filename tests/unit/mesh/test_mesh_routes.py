"""HTTP routes: ownership of hosts, order, guards for clients, references to what does not exist."""

from __future__ import annotations

from tests.builders import (
    Mesh,
    bookinfo,
    destination_rule,
    header,
    host,
    route,
    service,
    subset,
    to,
    virtual_service,
)
from xdsbpf.incremental import Database, query
from xdsbpf.mesh.route_values import RouteRule, RuleKind, SourceGuard
from xdsbpf.mesh.routes import covers, http_routes
from xdsbpf.model.kube import ServicePort
from xdsbpf.model.matching import PortSelector, StringMatch
from xdsbpf.model.meta import Manifest
from xdsbpf.model.virtual_service import (
    Delegate,
    Destination,
    HTTPMatchRequest,
    HTTPMirrorPolicy,
    HTTPRedirect,
    Percent,
)

REVIEWS = host("reviews")
SUBSETS = destination_rule("reviews", "reviews", subset("v1"), subset("v2"), subset("v3"))


def mesh_with(*manifests: Manifest) -> Mesh:
    return Mesh(*bookinfo(), SUBSETS, *manifests)


def rules(mesh: Mesh, port: int = 9080, name: str = REVIEWS) -> tuple[RouteRule, ...]:
    return http_routes(mesh.db, name, port)


def shape(rules: tuple[RouteRule, ...]) -> list[str]:
    """Each rule as "kind:subset@namespaces"."""
    found = []
    for rule in rules:
        target = rule.targets[0].subset or "all" if rule.targets else "-"
        guard = ",".join((*rule.guard.namespaces, *(f"{key}={value}" for key, value in rule.guard.labels)))
        found.append(f"{rule.kind}:{target}@{guard}")
    return found


@query
def routes_read(db: Database, host: str, port: int) -> tuple[RouteRule, ...]:
    """Routes as a query reads them: of a service without any nothing is memoised."""
    return http_routes(db, host, port)


def seen_by(mesh: Mesh, namespace: str, labels: tuple[tuple[str, str], ...] = ()) -> list[str]:
    """What a client is offered, in order: kind and subset, up to the first entry that takes everything."""
    found = []
    for rule in rules(mesh):
        if covers(rule.guard, namespace, labels):
            target = rule.targets[0].subset or "all" if rule.targets else "-"
            found.append(f"{rule.kind}:{target}")
            if rule.catch_all:
                break
    return found


def test_a_service_without_routes_has_its_default_route() -> None:
    mesh = mesh_with()
    assert shape(rules(mesh)) == ["default:all@"]


def test_a_host_that_is_no_service_has_no_routes() -> None:
    assert rules(mesh_with(), name=host("nobody")) == ()


def test_there_is_one_rule_per_route_and_match_in_order() -> None:
    mesh = mesh_with(
        virtual_service(
            "reviews",
            "reviews",
            route(to("reviews", "v2"), match=(header("end-user", "jason"), header("end-user", "eve")), name="people"),
            route(to("reviews", "v1")),
        )
    )
    found = rules(mesh)
    assert shape(found) == ["route:v2@", "route:v2@", "route:v1@"]
    assert [rule.match_path for rule in found] == ["spec.http[0].match[0]", "spec.http[0].match[1]", ""]
    assert [rule.catch_all for rule in found] == [False, False, True]
    assert found[0].name == "people"


def test_nothing_follows_a_catch_all() -> None:
    for first in (
        route(to("reviews", "v1")),
        route(to("reviews", "v1"), match=(HTTPMatchRequest(uri=StringMatch(prefix="/")),)),
        route(to("reviews", "v1"), match=(HTTPMatchRequest(uri=StringMatch(regex=".*")),)),
    ):
        mesh = mesh_with(virtual_service("r", "reviews", first, route(to("reviews", "v2"))))
        assert shape(rules(mesh)) == ["route:v1@"]


def test_a_method_or_query_makes_a_match_no_catch_all() -> None:
    for match in (
        HTTPMatchRequest(method=StringMatch(exact="GET")),
        HTTPMatchRequest(query_params=(("a", StringMatch(exact="b")),)),
        HTTPMatchRequest(without_headers=(("a", StringMatch(exact="b")),)),
    ):
        mesh = mesh_with(virtual_service("r", "reviews", route(to("reviews", "v1"), match=(match,))))
        # The owner has routes: what does not match is not found, it does not fall back to the default.
        assert shape(rules(mesh)) == ["route:v1@"]


def test_a_match_for_another_port_is_skipped_and_without_any_the_default_is_back() -> None:
    only_80 = route(to("reviews", "v1"), match=(HTTPMatchRequest(port=80),))
    mesh = mesh_with(virtual_service("r", "reviews", only_80))
    assert shape(rules(mesh)) == ["default:all@"]
    mesh.put(virtual_service("r", "reviews", only_80, route(to("reviews", "v2"))))
    assert shape(rules(mesh)) == ["route:v2@"]


def test_gateways_other_than_mesh_are_reported_and_do_not_route_the_mesh() -> None:
    gateway_only = virtual_service("g", "reviews", route(to("reviews", "v1")), gateways=("bookinfo-gateway",))
    mesh = mesh_with(gateway_only)
    assert shape(rules(mesh)) == ["default:all@"]
    assert [found.path for found in mesh.findings("XB2034")] == ["spec.gateways"]
    mesh.put(virtual_service("g", "reviews", route(to("reviews", "v1")), gateways=("bookinfo-gateway", "mesh")))
    assert shape(rules(mesh)) == ["route:v1@"]


def test_with_gateways_in_a_match_its_source_fields_are_not_asked() -> None:
    match = HTTPMatchRequest(gateways=("mesh",), source_namespace="elsewhere")
    mesh = mesh_with(virtual_service("r", "reviews", route(to("reviews", "v1"), match=(match,))))
    assert shape(rules(mesh)) == ["route:v1@"]


def test_the_oldest_virtual_service_owns_a_host_and_the_other_is_shadowed() -> None:
    old = virtual_service("z", "reviews", route(to("reviews", "v1")), created="2020-01-01T00:00:00Z")
    new = virtual_service("a", REVIEWS, route(to("reviews", "v2")), created="2021-01-01T00:00:00Z")
    mesh = mesh_with(new, old)
    assert shape(rules(mesh)) == ["route:v1@"]
    (found,) = mesh.findings("XB2030")
    assert str(found.object) == "VirtualService/default/a"
    assert "SHADOWED-BY VirtualService/default/z" in found.message
    mesh.remove(old.id)
    assert shape(rules(mesh)) == ["route:v2@"]


def test_an_exact_host_beats_wildcards_and_longer_wildcards_beat_shorter_ones() -> None:
    wide = virtual_service("a", "*", route(to(REVIEWS, "v1")), created="2019-01-01T00:00:00Z")
    longer = virtual_service("b", "*.default.svc.cluster.local", route(to("reviews", "v2")))
    exact = virtual_service("c", "reviews", route(to("reviews", "v3")))
    mesh = mesh_with(wide, longer, exact)
    assert shape(rules(mesh)) == ["route:v3@"]
    mesh.remove(exact.id)
    assert shape(rules(mesh)) == ["route:v2@"]
    mesh.remove(longer.id)
    assert shape(rules(mesh)) == ["route:v1@"]
    assert mesh.findings("XB2030") == []


def test_source_conditions_become_guards_and_close_the_list_for_their_clients() -> None:
    match = HTTPMatchRequest(
        headers=(("end-user", StringMatch(exact="jason")),), source_namespace="web", source_labels=(("app", "p"),)
    )
    mesh = mesh_with(virtual_service("r", "reviews", route(to("reviews", "v2"), match=(match,))))
    # Who is meant and does not match gets 404, as with a list of its own; all others the default route.
    assert seen_by(mesh, "web", (("app", "p"),)) == ["route:v2", "not-found:-"]
    assert seen_by(mesh, "web") == ["default:all"]
    assert seen_by(mesh, "default", (("app", "p"),)) == ["default:all"]


def test_a_guarded_catch_all_does_not_end_the_list_for_others() -> None:
    mine = route(to("reviews", "v2"), match=(HTTPMatchRequest(source_namespace="web"),))
    mesh = mesh_with(virtual_service("r", "reviews", mine, route(to("reviews", "v1"))))
    assert seen_by(mesh, "web") == ["route:v2"]
    assert seen_by(mesh, "default") == ["route:v1"]


def test_a_private_virtual_service_owns_the_host_for_its_namespace_only() -> None:
    private = virtual_service(
        "p", REVIEWS, route(to(REVIEWS, "v2"), match=(header("x", "y"),)), namespace="web", export_to=(".",)
    )
    public = virtual_service("q", "reviews", route(to("reviews", "v1")), created="2019-01-01T00:00:00Z")
    mesh = mesh_with(private, public)
    assert seen_by(mesh, "web") == ["route:v2", "not-found:-"]
    assert seen_by(mesh, "default") == ["route:v1"]
    assert mesh.findings("XB2030") == []
    mesh.remove(public.id)
    assert seen_by(mesh, "web") == ["route:v2", "not-found:-"]
    assert seen_by(mesh, "default") == ["default:all"]


def test_private_comes_before_exported_by_name_before_public() -> None:
    public = virtual_service("a", REVIEWS, route(to(REVIEWS, "v1")), created="2018-01-01T00:00:00Z")
    named = virtual_service(
        "b", REVIEWS, route(to(REVIEWS, "v2")), export_to=("web", "shop"), created="2019-01-01T00:00:00Z"
    )
    private = virtual_service("c", REVIEWS, route(to(REVIEWS, "v3")), namespace="web", export_to=("web",))
    mesh = mesh_with(public, named, private)
    assert seen_by(mesh, "web") == ["route:v3"]
    assert seen_by(mesh, "shop") == ["route:v2"]
    assert seen_by(mesh, "default") == ["route:v1"]


def test_who_is_exported_to_nobody_owns_nothing() -> None:
    mesh = mesh_with(virtual_service("r", "reviews", route(to("reviews", "v1")), export_to=("~",)))
    assert shape(rules(mesh)) == ["default:all@"]


def test_a_private_owner_without_routes_for_the_port_leaves_the_default_to_its_clients() -> None:
    private = virtual_service(
        "p",
        REVIEWS,
        route(to(REVIEWS, "v2"), match=(HTTPMatchRequest(port=1),)),
        namespace="web",
        export_to=(".",),
    )
    mesh = mesh_with(private, virtual_service("q", "reviews", route(to("reviews", "v1"))))
    assert seen_by(mesh, "web") == ["default:all"]
    assert seen_by(mesh, "default") == ["route:v1"]


def test_an_unknown_subset_is_reported_with_its_path_and_a_suggestion() -> None:
    mesh = mesh_with(
        virtual_service("r", "reviews", route(to("reviews", "v1", weight=50), to("reviews", "v22", weight=50)))
    )
    (rule,) = rules(mesh)
    assert [target.is_known for target in rule.targets] == [True, False]
    (found,) = mesh.findings("XB2032")
    assert found.path == "spec.http[0].route[1].destination.subset"
    assert found.hint == 'did you mean "v2"?'


def test_an_unknown_host_is_reported_and_its_requests_do_not_go_elsewhere() -> None:
    mesh = mesh_with(virtual_service("r", "reviews", route(to("reviws"))))
    (rule,) = rules(mesh)
    assert [(target.host, target.is_known) for target in rule.targets] == [(host("reviws"), False)]
    (found,) = mesh.findings("XB2031")
    assert found.path == "spec.http[0].route[0].destination.host"
    assert found.hint == f'did you mean "{REVIEWS}"?'


def test_the_port_of_a_destination_is_named_or_the_only_one_or_the_one_asked_for() -> None:
    two = service("two", ServicePort(80, "http"), ServicePort(81, "http-b"))
    mesh = mesh_with(two)
    for written, expected in ((to("ratings"), 9080), (to("two", port=81), 81)):
        mesh.put(virtual_service("r", "reviews", route(written)))
        (rule,) = rules(mesh)
        assert [(target.port, target.is_known) for target in rule.targets] == [(expected, True)]
    mesh.put(virtual_service("t", "two", route(to("two"))))
    assert [rule.targets[0].port for rule in rules(mesh, 81, host("two"))] == [81]
    assert mesh.findings("XB2033") == []


def test_an_unknown_or_missing_port_is_reported() -> None:
    two = service("two", ServicePort(80, "http"), ServicePort(81, "http-b"))
    mesh = mesh_with(two, virtual_service("r", "reviews", route(to("ratings", port=1))))
    assert [found.path for found in mesh.findings("XB2033")] == ["spec.http[0].route[0].destination.port.number"]
    mesh.put(virtual_service("r", "reviews", route(to("two"))))
    assert [found.path for found in mesh.findings("XB2033")] == ["spec.http[0].route[0].destination"]


def test_weights_of_zero_are_left_out_and_a_lone_destination_gets_everything() -> None:
    mesh = mesh_with(
        virtual_service("r", "reviews", route(to("reviews", "v1", weight=100), to("reviews", "v2", weight=0)))
    )
    assert [(target.subset, target.weight) for target in rules(mesh)[0].targets] == [("v1", 100)]
    mesh.put(virtual_service("r", "reviews", route(to("reviews", "v1", weight=0))))
    assert [(target.subset, target.weight) for target in rules(mesh)[0].targets] == [("v1", 1)]
    mesh.put(virtual_service("r", "reviews", route(to("reviews", "v1"), to("reviews", "v2"))))
    assert rules(mesh)[0].targets == ()
    assert len(mesh.findings("XB2043")) == 1


def test_mirrors_are_resolved_and_default_to_all_requests() -> None:
    http = route(
        to("reviews", "v1"),
        mirror=Destination("reviews", "v2"),
        mirrors=(
            HTTPMirrorPolicy(Destination("reviews", "v3", PortSelector(9080)), Percent(250_000)),
            HTTPMirrorPolicy(Destination("reviews", "v3"), Percent(0)),
        ),
    )
    (rule,) = rules(mesh_with(virtual_service("r", "reviews", http)))
    assert [(mirror.target.subset, mirror.percentage) for mirror in rule.mirrors] == [
        ("v3", 250_000),
        ("v2", 1_000_000),
    ]


def test_delegation_is_reported_and_requests_go_on_to_the_next_route() -> None:
    mesh = mesh_with(virtual_service("r", "reviews", route(delegate=Delegate("d")), route(to("reviews", "v1"))))
    assert shape(rules(mesh)) == ["route:v1@"]
    assert [found.path for found in mesh.findings("XB2035")] == ["spec.http[0].delegate"]


def test_a_redirect_has_no_targets() -> None:
    mesh = mesh_with(virtual_service("r", "reviews", route(redirect=HTTPRedirect(uri="/x"))))
    (rule,) = rules(mesh)
    assert (rule.kind, rule.targets, rule.catch_all) == (RuleKind.ROUTE, (), True)


def test_a_virtual_service_for_an_unknown_host_is_reported() -> None:
    mesh = mesh_with(virtual_service("r", ("reviews", "revews", "*.example.com"), route(to("reviews", "v1"))))
    assert [found.path for found in mesh.findings("XB2036")] == ["spec.hosts[1]", "spec.hosts[2]"]


def test_the_origins_of_routes_are_the_routes_and_matches_used() -> None:
    mesh = mesh_with(
        virtual_service(
            "r", "reviews", route(to("reviews", "v2"), match=(header("a", "b"),)), route(to("reviews", "v1"))
        )
    )
    found = mesh.origins(routes_read, REVIEWS, 9080)
    assert "VirtualService/default/r spec.http[0].match[0]" in found
    assert "VirtualService/default/r spec.http[1]" in found


def test_a_change_of_another_hosts_routes_recomputes_nothing_here() -> None:
    mesh = mesh_with(virtual_service("r", "reviews", route(to("reviews", "v1"))))
    mesh.db.watch(routes_read, REVIEWS, 9080)
    mesh.db.drain()
    before = mesh.db.runs
    mesh.put(virtual_service("s", "ratings", route(to("ratings"))))
    assert mesh.db.drain() is None
    assert mesh.db.runs == before


def test_an_open_guard_is_for_everyone() -> None:
    assert SourceGuard().is_open
    assert not SourceGuard(("a",)).is_open
    assert covers(SourceGuard(("a",), (("x", "y"),)), "a", (("w", "v"), ("x", "y")))
    assert not covers(SourceGuard(("a",), (("x", "y"),)), "b", (("x", "y"),))
