"""Policy and plane changes where both planes meet: one lab, real Envoys, Bookinfo of the examples.

Every denial stands beside the same request from an allowed pod, and is taken away once to show that
it was the policy.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node.bookinfo_lab import HALF_V2, Apply, applying, bookinfo, objects, running
from xdsbpf.lab.lab import Lab
from xdsbpf.lab.measure import balanced_over, envoy_connections, wait_until, xdsbpf_json
from xdsbpf.unix_http import UnixConnection

pytestmark = [pytest.mark.root, pytest.mark.envoy, pytest.mark.timeout(180)]

NAME = f"xbplanes{os.getpid()}"
REVIEWS = "http://reviews:9080/reviews/0"
DETAILS = "http://details:9080/details/0"

DENY_V2 = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reviews-v2-not-for-denied}
spec:
  selector: {matchLabels: {app: reviews, version: v2}}
  action: DENY
  rules:
    - from: [{source: {principals: [cluster.local/ns/default/sa/client-denied]}}]
"""
DENY_REVIEWS = DENY_V2.replace("reviews-v2-not-for-denied", "reviews-not-for-denied").replace(", version: v2", "")
DENY_NAMESPACE = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ratings-not-for-default}
spec:
  selector: {matchLabels: {app: ratings}}
  action: DENY
  rules:
    - from: [{source: {namespaces: [default], notPrincipals: [cluster.local/ns/default/sa/client-allowed]}}]
      to: [{operation: {ports: ["9080"]}}]
"""
DENY_BOTH = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: both-not-for-denied}
spec:
  selector: {matchLabels: {app: APP}}
  action: DENY
  rules:
    - from: [{source: {principals: [cluster.local/ns/default/sa/client-denied]}}]
"""
MORE = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: APP-more}
spec:
  selector: {matchLabels: {app: SELECTED}}
  action: DENY
  rules:
    - from: [{source: {principals: [cluster.local/ns/default/sa/nobody]}}]
"""
DETAILS_L7 = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: details}
spec:
  hosts: [details]
  http:
    - route: [{destination: {host: details}}]
"""


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bookinfo(tmp_path_factory.mktemp("manifests"), "ratings-delay")


@pytest.fixture(scope="module")
def lab(manifests: Path) -> Iterator[Lab]:
    with running(NAME, manifests, replicas=(("details", 2),)) as lab:
        yield lab


@pytest.fixture
def apply(lab: Lab, manifests: Path) -> Iterator[Apply]:
    with applying(lab, manifests) as apply:
        yield apply


def statuses(answer: dict[str, Any]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for entry in answer["by"]:
        counts[entry["status"]] += entry["count"]
    return counts


def assert_all_answered(loads: Iterable[subprocess.Popen[str]]) -> None:
    """Loads that have ended, or are about to, failed no request, and made some."""
    for load in loads:
        answer = json.loads(load.communicate(timeout=30)[0])
        assert answer["errors"] == {}
        assert set(statuses(answer)) == {200}
        assert answer["requests"] > 200


def versions(answer: dict[str, Any]) -> set[str]:
    return {entry["version"] for entry in answer["by"] if entry["status"] == 200}


def probe(lab: Lab, pod: str, target: str, count: int = 20) -> dict[str, int]:
    outcomes: dict[str, int] = lab.client(pod, "probe", target, "-n", str(count))["outcomes"]
    return outcomes


def envoy_stats(lab: Lab, node: str, pattern: str) -> dict[str, int]:
    connection = UnixConnection(str(lab.envoy_admin(node)), 5.0)
    try:
        connection.request("GET", f"/stats?filter={pattern}")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    pairs = (line.partition(": ") for line in lines)
    return {name: int(value) for name, _, value in pairs if value.isdigit()}


def test_envoy_accepts_everything_and_finds_nothing_deprecated(lab: Lab) -> None:
    lab.client("client-allowed", "get", "http://productpage:9080/productpage", "-n", "5")
    lab.client("client-allowed", "get", REVIEWS, "-n", "50")
    for node in lab.node_names:
        updates = envoy_stats(lab, node, "update_success|update_rejected")
        accepted = {name: count for name, count in updates.items() if name.endswith("update_success") and count}
        assert {"listener_manager.lds.update_success", "http.out_9080.rds.9080.update_success"} <= set(accepted)
        assert {name: count for name, count in updates.items() if name.endswith("update_rejected") and count} == {}
        assert set(envoy_stats(lab, node, "^runtime.deprecated_feature_use$").values()) == {0}
    clients = xdsbpf_json(lab, "ps")["items"]
    assert len(clients) == 2 * len(lab.node_names)
    assert [entry["nacked"] for item in clients for entry in item["types"] if entry["nacked"]] == []


def test_envoy_refuses_what_only_some_endpoints_deny(lab: Lab, apply: Apply) -> None:
    """The kernel cannot know which subset the route will choose; RBAC sits on the destination cluster."""
    apply("reviews-v2-not-for-denied.yaml", DENY_V2)

    def get(pod: str) -> dict[str, Any]:
        answer: dict[str, Any] = lab.client(pod, "get", REVIEWS, "-n", "200", "-c", "4")
        return answer

    wait_until(lambda: statuses(get("client-denied"))[403] > 0, 20, "Envoy's RBAC")
    denied, allowed = get("client-denied"), get("client-allowed")
    assert versions(denied) == {"v1"}
    assert set(statuses(denied)) == {200, 403}
    assert 50 < statuses(denied)[403] < 150
    assert statuses(allowed) == {200: 200}
    assert versions(allowed) == {"v1", "v2"}


def test_a_guarded_pod_cannot_be_reached_around_the_proxy(lab: Lab, apply: Apply) -> None:
    v2 = f"{lab.pod('reviews-v2').address}:9080"
    v1 = f"{lab.pod('reviews-v1').address}:9080"
    assert probe(lab, "client-denied", v2) == {"connected": 20}
    apply("reviews-v2-not-for-denied.yaml", DENY_V2)
    wait_until(lambda: probe(lab, "client-denied", v2) == {"EPERM": 20}, 20, "the kernel's policy")
    assert probe(lab, "client-allowed", v2, 200) == {"connected": 200}
    assert probe(lab, "client-denied", v1, 200) == {"connected": 200}


def test_a_redirected_service_is_refused_at_connect_when_every_endpoint_denies(lab: Lab, apply: Apply) -> None:
    assert probe(lab, "client-denied", "reviews:9080") == {"connected": 20}
    apply("reviews-not-for-denied.yaml", DENY_REVIEWS)
    wait_until(lambda: probe(lab, "client-denied", "reviews:9080") == {"EPERM": 20}, 20, "the kernel's policy")
    assert probe(lab, "client-allowed", "reviews:9080", 200) == {"connected": 200}


def test_what_wait_says_is_true_of_the_very_next_connection(lab: Lab, manifests: Path) -> None:
    """No polling: the first connection after `wait` is refused, the first one after `wait --for delete` is not."""
    policy = manifests / "reviews-not-for-denied.yaml"
    try:
        for _ in range(5):
            assert probe(lab, "client-denied", "reviews:9080") == {"connected": 20}
            policy.write_text(DENY_REVIEWS)
            done = xdsbpf_json(lab, "wait", "-f", str(policy))
            assert probe(lab, "client-denied", "reviews:9080") == {"EPERM": 20}
            assert probe(lab, "client-allowed", "reviews:9080") == {"connected": 20}
            assert (done["verdict"], len(done["clients"])) == ("done", 2 * len(lab.node_names))
            copy = manifests.parent / "removed.yaml"
            policy.rename(copy)
            assert xdsbpf_json(lab, "wait", "--for", "delete", "-f", str(copy))["verdict"] == "done"
    finally:
        policy.unlink(missing_ok=True)


def test_a_namespace_can_be_denied_with_an_exception(lab: Lab, apply: Apply) -> None:
    apply("ratings-not-for-default.yaml", DENY_NAMESPACE)
    wait_until(lambda: probe(lab, "client-denied", "ratings:9080") == {"EPERM": 20}, 20, "the kernel's policy")
    assert probe(lab, "client-allowed", "ratings:9080", 200) == {"connected": 200}


def test_a_service_changes_plane_and_back_without_a_failed_request(
    lab: Lab, apply: Apply, manifests: Path, tmp_path: Path
) -> None:
    """details: kernel, Envoy, kernel again, under short and keep-alive connections."""

    def plane() -> str:
        items = xdsbpf_json(lab, "bpf", "frontends")["items"]
        planes = {item["plane"] for item in items if item["service"].startswith("details.")}
        return planes.pop() if len(planes) == 1 else "mixed"

    assert plane() == "L4"
    stop = tmp_path / "stop"
    until = ["--seconds", "90", "--stop-file", str(stop)]
    loads = [
        lab.start_client("client-allowed", "load", DETAILS, "-c", "2", "--close", *until),
        lab.start_client("client-allowed", "load", DETAILS, "-c", "2", "--keepalive", *until),
    ]
    try:
        for _ in range(3):
            (manifests / "details.yaml").write_text(DETAILS_L7)
            wait_until(lambda: plane() == "L7", 20, "details in Envoy")
            before = envoy_connections(lab)
            through = lab.client("client-allowed", "get", DETAILS, "-n", "50", "--close")
            assert envoy_connections(lab) >= before + 50
            assert len(balanced_over(through)) == 2
            (manifests / "details.yaml").unlink()
            wait_until(lambda: plane() == "L4", 20, "details in the kernel")
            lab.client("client-allowed", "get", DETAILS, "-n", "50", "--close")
    finally:
        stop.touch()
    assert_all_answered(loads)


def test_twelve_changes_of_the_set_of_policies_fail_no_request_and_let_nobody_in(
    lab: Lab, apply: Apply, tmp_path: Path
) -> None:
    """Six times on each plane a second policy selects the service, or does not; client-denied is always denied."""
    planes = {"reviews": REVIEWS, "details": DETAILS}
    for app in planes:
        apply(f"{app}-not-for-denied.yaml", DENY_BOTH.replace("both", app).replace("APP", app))

    def guards() -> dict[str, set[str]]:
        rows = xdsbpf_json(lab, "bpf", "identities")["items"]
        found: dict[str, set[str]] = {}
        for app in planes:
            pods = {pod.address for pod in lab.plan.pods if pod.app == app}
            found[app] = {row["policy"] for row in rows if row["address"] in pods}
        return found

    alone = {app: {f"default/{app}-not-for-denied"} for app in planes}
    together = {app: {f"default/{app}-more+default/{app}-not-for-denied"} for app in planes}
    wait_until(lambda: guards() == alone, 20, "the first policies in the kernel")
    wait_until(lambda: probe(lab, "client-denied", "reviews:9080") == {"EPERM": 20}, 20, "the first policy of reviews")
    stop = tmp_path / "stop"
    until = ["--seconds", "90", "--stop-file", str(stop)]
    loads = [lab.start_client("client-allowed", "load", url, "-c", "2", "--close", *until) for url in planes.values()]
    probes = [lab.start_client("client-denied", "probe", f"{app}:9080", "--interval-ms", "5", *until) for app in planes]
    try:
        for wanted in (together, alone) * 3:
            for app in planes:
                apply(
                    f"{app}-more.yaml",
                    MORE.replace("APP", app).replace("SELECTED", app if wanted is together else "none"),
                )
            wait_until(lambda wanted=wanted: guards() == wanted, 20, "the other set of policies")
            lab.client("client-allowed", "get", REVIEWS, "-n", "20", "--close")
    finally:
        stop.touch()
    assert_all_answered(loads)
    for denied in probes:
        outcomes = json.loads(denied.communicate(timeout=30)[0])["outcomes"]
        assert set(outcomes) == {"EPERM"}
        assert outcomes["EPERM"] > 200


def test_an_invalid_edit_changes_nothing_and_says_where(lab: Lab, manifests: Path) -> None:
    path = manifests / "reviews.yaml"
    path.write_text(HALF_V2.replace("weight: 50}\n        - ", "weihgt: 50}\n        - ", 1))
    try:
        wait_until(
            lambda: any(row["name"] == "reviews" and row["state"] == "REJECTED" for row in objects(lab)), 20, "REJECTED"
        )
        row = next(row for row in objects(lab) if row["name"] == "reviews" and row["state"] == "REJECTED")
        found = row["diagnostics"][0]
        assert found["location"].startswith(f"{path}:9:")
        assert found["path"] == "spec.http[0].route[0].weihgt"
        assert "weight" in found["hint"]
        answer = lab.client("client-allowed", "get", REVIEWS, "-n", "100")
        assert statuses(answer) == {200: 100}
        assert versions(answer) == {"v1", "v2"}
    finally:
        path.write_text(HALF_V2)
    wait_until(lambda: not any(row["state"] == "REJECTED" for row in objects(lab)), 20, "the repaired file")


def test_with_envoy_stopped_the_kernel_refuses_and_never_bypasses(lab: Lab) -> None:
    """A stopped process holds its listeners, so the client waits; a dead one is refused; neither is served."""
    node = lab.pod("client-allowed").node
    pid = lab.kill(f"envoy/{node}", signal.SIGSTOP)
    try:
        answer = lab.client("client-allowed", "get", REVIEWS, "-n", "3", "--timeout", "1")
        assert statuses(answer)[200] == 0
        assert statuses(lab.client("client-allowed", "get", DETAILS, "-n", "200")) == {200: 200}
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(
        lambda: statuses(lab.client("client-allowed", "get", REVIEWS, "-n", "20")) == {200: 20}, 20, "Envoy again"
    )
