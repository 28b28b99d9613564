"""Which version of an object is in force: broken, half-written and vanished text must not change it."""

from __future__ import annotations

import pytest

from tests.manifest_texts import (
    deny_policy,
    documents,
    policy_id,
    put,
    put_names,
    read,
    removed_names,
    service,
    service_id,
    services,
    virtual_service,
    virtual_service_id,
)
from xdsbpf.diagnostics import State
from xdsbpf.model import codes
from xdsbpf.model.authorization_policy import AuthorizationPolicy, PolicySelector, Rule
from xdsbpf.model.kube import Service
from xdsbpf.sources.catalog import HOLD_S, Catalog
from xdsbpf.sources.fail_closed import UNINTELLIGIBLE

SPLIT = "[{route: [{destination: {host: a}, weight: 1}, {destination: {host: b}, weight: 2}]}]"


def port_of(catalog: Catalog, name: str) -> int:
    manifest = catalog.get(service_id(name))
    assert isinstance(manifest, Service)
    return manifest.spec.ports[0].port


def state_of(catalog: Catalog, name: str) -> list[State]:
    return [status.state for status in catalog.states() if status.object.name == name]


def codes_of(catalog: Catalog, name: str) -> list[str]:
    states = [status for status in catalog.states() if status.object.name == name]
    return [item.code for status in states for item in status.diagnostics]


def source_states(catalog: Catalog) -> list[str]:
    return [source.state for source in catalog.sources()]


def test_only_what_differs_is_put() -> None:
    catalog = Catalog()
    assert put_names(put(catalog, documents(service("a"), service("b")))) == ["a", "b"]
    delta = put(catalog, documents(service("a"), service("b", 81)))
    assert put_names(delta) == ["b"]
    assert delta.removes == ()


def test_a_comment_moves_positions_and_puts_nothing() -> None:
    catalog = read(documents(service("a"), virtual_service("b")))
    before = catalog.locate(virtual_service_id("b"), "spec.hosts")
    assert not put(catalog, "# one\n# two\n" + documents(service("a"), virtual_service("b")))
    after = catalog.locate(virtual_service_id("b"), "spec.hosts")
    assert before is not None
    assert after is not None
    assert (after.line, after.column) == (before.line + 2, before.column)


@pytest.mark.parametrize(
    ("path", "line", "column"),
    [
        ("", 1, 1),
        ("spec", 5, 1),
        ("spec.http[0].route[1].weight", 7, 89),
        ("spec.http[0].route[9].weight", 7, 11),
        ("spec.nothing.here", 5, 1),
        ("]][[", 1, 1),
    ],
)
def test_a_path_is_located_at_its_nearest_parent_that_exists(path: str, line: int, column: int) -> None:
    location = read(virtual_service("v", SPLIT)).locate(virtual_service_id("v"), path)
    assert location is not None
    assert (location.line, location.column) == (line, column)


def test_an_object_that_nobody_wrote_has_no_place() -> None:
    assert read(service("a")).locate(service_id("b")) is None


def test_the_last_of_two_wins_and_the_earlier_says_who_shadows_it() -> None:
    catalog = Catalog()
    put(catalog, documents(service("a", 1), service("a", 2)), file="x.yaml", index=0)
    put(catalog, service("a", 3), file="w.yaml", index=1)
    assert port_of(catalog, "a") == 3
    states = [status for status in catalog.states() if status.object == service_id("a")]
    assert [status.state for status in states] == [State.APPLIED, State.SHADOWED, State.SHADOWED]
    assert {status.detail for status in states[1:]} == {"w.yaml:1:1"}
    assert codes_of(catalog, "a") == [codes.SHADOWED, codes.SHADOWED]
    assert put_names(catalog.delete_file("w.yaml")) == ["a"]
    assert port_of(catalog, "a") == 2


def test_an_invalid_object_keeps_its_last_good_version_and_only_that_object() -> None:
    catalog = read(documents(service("a", 1), service("b", 1)))
    delta = put(catalog, documents(service("a", 0), service("b", 2)))
    assert put_names(delta) == ["b"]
    assert port_of(catalog, "a") == 1
    assert state_of(catalog, "a") == [State.REJECTED]
    assert codes_of(catalog, "a") == [codes.OUT_OF_RANGE, codes.LAST_GOOD]
    assert put_names(put(catalog, documents(service("a", 3), service("b", 2)))) == ["a"]
    assert state_of(catalog, "a") == [State.APPLIED]


def test_an_invalid_object_that_was_never_good_is_not_there() -> None:
    catalog = read(documents(service("a", 0), service("b")))
    assert set(catalog.manifests()) == {service_id("b")}
    assert state_of(catalog, "a") == [State.REJECTED]


def test_an_invalid_later_document_leaves_what_an_earlier_one_applied() -> None:
    catalog = read(documents(service("a", 1), service("a", 0)))
    assert port_of(catalog, "a") == 1
    assert state_of(catalog, "a") == [State.APPLIED, State.REJECTED]


def test_broken_text_changes_nothing_but_the_state_of_its_file() -> None:
    catalog = read(documents(service("a"), service("b")))
    before = catalog.manifests()
    assert not put(catalog, documents(service("a", 99), "kind: [\n"))
    assert catalog.manifests() == before
    assert source_states(catalog) == ["broken"]
    assert state_of(catalog, "b") == [State.APPLIED]
    assert put_names(put(catalog, documents(service("a", 99), service("b")))) == ["a"]
    assert source_states(catalog) == ["ok"]


def test_an_object_that_vanished_is_removed_after_its_time_and_not_before() -> None:
    catalog = read(documents(service("a"), service("b"), service("c")))
    assert not put(catalog, documents(service("a", 7), service("c")).replace("port: 7", "port: 9080"), at=10.0)
    assert state_of(catalog, "b") == [State.PENDING]
    assert catalog.next_deadline() == 10.0 + HOLD_S
    assert not catalog.tick(10.0 + HOLD_S - 0.001)
    assert removed_names(catalog.tick(10.0 + HOLD_S)) == ["b"]
    assert catalog.next_deadline() is None
    assert state_of(catalog, "b") == []


def test_an_object_that_comes_back_in_time_was_never_gone() -> None:
    catalog = read(documents(service("a"), service("b")))
    assert not put(catalog, service("b"), at=1.0)
    assert not put(catalog, documents(service("a"), service("b")), at=2.0)
    assert not catalog.tick(100.0)


def test_an_object_that_moves_to_another_file_is_taken_from_there_at_once() -> None:
    catalog = Catalog()
    put(catalog, documents(service("a", 1), service("b")), file="z.yaml", index=1)
    put(catalog, service("c"), file="a.yaml", index=0)
    put(catalog, service("b"), file="z.yaml", index=1)
    delta = put(catalog, documents(service("c"), service("a", 2)), file="a.yaml", index=0)
    assert put_names(delta) == ["a"]
    assert port_of(catalog, "a") == 2
    assert not catalog.tick(100.0)


def test_a_cut_off_file_is_held_and_taken_when_it_stays_so() -> None:
    text = documents(service("a"), service("b"))
    catalog = read(text)
    assert not put(catalog, service("a"), at=5.0)
    assert source_states(catalog) == ["suspect"]
    assert state_of(catalog, "b") == [State.APPLIED]
    assert removed_names(catalog.tick(5.0 + HOLD_S)) == ["b"]
    assert source_states(catalog) == ["ok"]


def test_a_file_that_lost_its_last_newline_is_held() -> None:
    catalog = read(service("a"))
    assert not put(catalog, service("a", 90)[:-1], at=0.0)
    assert source_states(catalog) == ["suspect"]
    assert not put(catalog, service("a", 9080), at=0.1)
    assert not catalog.tick(100.0)
    assert port_of(catalog, "a") == 9080


def test_an_emptied_file_is_held_until_it_is_confirmed() -> None:
    catalog = read(documents(deny_policy("p"), service("a")))
    assert not put(catalog, "# nothing\n")
    assert not catalog.tick(1000.0)
    assert source_states(catalog) == ["held"]
    assert codes_of(catalog, "p") == [codes.MASS_REMOVAL]
    assert removed_names(catalog.confirm(1000.0)) == ["p", "a"]
    assert source_states(catalog) == ["ok"]


def test_a_truncated_file_of_no_bytes_is_held_too() -> None:
    catalog = read(service("a"))
    assert not put(catalog, b"")
    assert not catalog.tick(1000.0)
    assert source_states(catalog) == ["held"]


@pytest.mark.parametrize(("left", "held"), [(4, True), (5, False)])
def test_losing_more_than_half_of_ten_objects_needs_a_confirmation(left: int, held: bool) -> None:
    catalog = read(services(10))
    put(catalog, services(left, start=10 - left))
    delta = catalog.tick(HOLD_S)
    assert len(delta.removes) == (0 if held else 10 - left)
    assert source_states(catalog) == ["held" if held else "ok"]


def test_losing_more_than_half_of_nine_objects_does_not() -> None:
    catalog = read(services(9))
    put(catalog, services(1, start=8))
    assert len(catalog.tick(HOLD_S).removes) == 8


def test_a_mass_removal_is_not_let_through_by_the_next_edit() -> None:
    catalog = read(services(20))
    put(catalog, services(3, start=17))
    put(catalog, services(2, start=18), at=10.0)
    assert not catalog.tick(1000.0)
    assert len(catalog.manifests()) == 20
    put(catalog, services(20), at=20.0)
    assert source_states(catalog) == ["ok"]


def test_deleting_the_file_removes_what_it_held() -> None:
    catalog = read(services(20))
    put(catalog, "# nothing\n")
    assert len(catalog.delete_file("a.yaml").removes) == 20
    assert catalog.sources() == ()


def test_a_lost_source_keeps_its_objects_and_says_so() -> None:
    catalog = read(service("a"))
    catalog.source_lost("dir", "the directory is gone")
    assert "lost" in source_states(catalog)
    assert service_id("a") in catalog.manifests()
    assert catalog.diagnostics()[0].code == codes.SOURCE_LOST
    catalog.source_found("dir")
    assert source_states(catalog) == ["ok"]


def placeholder(text: str) -> AuthorizationPolicy:
    manifest = read(text).get(policy_id("p"))
    assert isinstance(manifest, AuthorizationPolicy)
    assert manifest.metadata.annotations == ((UNINTELLIGIBLE, "true"),)
    assert manifest.spec.action == "DENY"
    assert manifest.spec.rules == (Rule(),)
    return manifest


def test_a_policy_that_was_never_understood_denies_what_it_selects() -> None:
    text = deny_policy("p", "{selector: {matchLabels: {app: ratings}}, acton: ALLOW, rules: [{}]}")
    assert placeholder(text).spec.selector == PolicySelector((("app", "ratings"),))


@pytest.mark.parametrize(
    "spec",
    [
        "{selector: {matchLabels: {app: yes}}, action: ALLOW}",
        "{selector: {matchLabels: {app: 'a b'}}, action: ALLOW}",
        "{selector: {matchLabel: {app: ratings}}, action: ALLOW}",
        "{selektor: {matchLabels: {app: ratings}}}",
        "[]",
        "{action: DENY}",
    ],
)
def test_a_policy_whose_selector_cannot_be_read_denies_its_namespace(spec: str) -> None:
    assert placeholder(deny_policy("p", spec)).spec.selector is None


def test_a_policy_of_an_unknown_version_denies_what_it_selects() -> None:
    text = deny_policy("p").replace("security.istio.io/v1", "security.istio.io/v7")
    assert placeholder(text).spec.selector == PolicySelector((("app", "ratings"),))


def test_a_policy_that_becomes_unintelligible_keeps_its_last_good_version() -> None:
    good = deny_policy("p", "{action: DENY, rules: [{to: [{operation: {ports: ['1']}}]}]}")
    catalog = read(good)
    before = catalog.get(policy_id("p"))
    assert not put(catalog, good.replace("'1'", "1"))
    assert catalog.get(policy_id("p")) == before
    assert codes_of(catalog, "p") == [codes.WRONG_TYPE, codes.LAST_GOOD]


def test_a_repaired_policy_takes_the_place_of_its_placeholder() -> None:
    catalog = read(deny_policy("p", "{action: deny, rules: [{}]}"))
    assert codes_of(catalog, "p")[-1] == codes.FAIL_CLOSED
    assert put_names(put(catalog, deny_policy("p", "{action: ALLOW, rules: [{}]}"))) == ["p"]
    manifest = catalog.get(policy_id("p"))
    assert isinstance(manifest, AuthorizationPolicy)
    assert manifest.spec.action == "ALLOW"
    assert manifest.metadata.annotations == ()


def test_a_placeholder_goes_with_its_file() -> None:
    catalog = read(deny_policy("p", "{action: deny}"))
    assert removed_names(catalog.delete_file("a.yaml")) == ["p"]


def test_a_warning_does_not_reject() -> None:
    catalog = read(virtual_service("a", "[{route: [{destination: {host: a}}]}, {route: [{destination: {host: b}}]}]"))
    assert state_of(catalog, "a") == [State.APPLIED]
    assert codes_of(catalog, "a") == [codes.VS_UNREACHABLE]
