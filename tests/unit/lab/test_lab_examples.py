"""The manifests of deploy/examples are valid and make the lab that they promise."""

from __future__ import annotations

from pathlib import Path

from xdsbpf.lab.manifests import read_manifests
from xdsbpf.lab.plan import LabOptions, schedule
from xdsbpf.model.authorization_policy import AuthorizationPolicy
from xdsbpf.model.virtual_service import VirtualService
from xdsbpf.sources.loading import load_once

BOOKINFO = Path(__file__).resolve().parents[3] / "deploy" / "examples" / "bookinfo"
FILES = sorted(BOOKINFO.glob("*.yaml"))
CHANGES = BOOKINFO.parent / "changes"


def test_the_examples_have_no_findings() -> None:
    assert len(FILES) == 6
    assert load_once([str(path) for path in FILES]).diagnostics() == ()


def test_a_typo_in_an_example_is_found(tmp_path: Path) -> None:
    broken = tmp_path / "reviews.yaml"
    broken.write_text((BOOKINFO / "reviews.yaml").read_text().replace("weight:", "wieght:"))
    assert load_once([str(broken)]).diagnostics() != ()


def test_the_roll_out_step_changes_weights_of_the_same_object_and_nothing_else() -> None:
    (before,) = load_once([str(BOOKINFO / "reviews.yaml")]).manifests().values()
    (after,) = load_once([str(CHANGES / "reviews-50-50.yaml")]).manifests().values()
    assert isinstance(before, VirtualService)
    assert isinstance(after, VirtualService)
    assert before.id == after.id
    assert before.spec.http[0] == after.spec.http[0]
    assert [route.weight for route in before.spec.http[1].route] == [90, 10]
    assert [route.weight for route in after.spec.http[1].route] == [50, 50]


def test_the_policy_admits_service_accounts_that_exist() -> None:
    manifests = load_once([str(path) for path in FILES]).manifests().values()
    (policy,) = (m for m in manifests if isinstance(m, AuthorizationPolicy))
    accounts = {
        f"cluster.local/ns/default/sa/{d.spec.template.spec.service_account_name}"
        for d in read_manifests(FILES).deployments
    }
    (rule,) = policy.spec.rules
    (source,) = rule.from_
    assert len(source.source.principals) == 2
    assert set(source.source.principals) <= accounts


def test_bookinfo_makes_eight_pods_over_two_nodes() -> None:
    found = read_manifests(FILES)
    plan = schedule(LabOptions(paths=tuple(FILES)), found.deployments, found.pods, found.services)
    assert len(plan.pods) == 8
    assert {pod.app: [port.number for port in pod.ports] for pod in plan.pods} == {
        "client-allowed": [],
        "client-denied": [],
        **{app: [9080] for app in ("details", "productpage", "ratings", "reviews")},
    }
