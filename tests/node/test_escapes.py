"""What a hostile pod can reach around policies, in one lab with real Envoys: nothing (reliability D12).

Every trick is tried from two pods that differ in their service account only: the one that the policy
allows is the control. Policies of the file: details (kernel plane) admits client-allowed; reviews is on L7.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.bookinfo_lab import (
    ATTEMPTS,
    Apply,
    applying,
    bookinfo,
    objects,
    run_attempts,
    running,
    virtual_address,
)
from xdsbpf.lab.lab import Lab
from xdsbpf.lab.measure import wait_until, xdsbpf_json
from xdsbpf.lab.processes import enter_argv

pytestmark = [pytest.mark.root, pytest.mark.envoy, pytest.mark.timeout(180)]

NAME = "xbescape"
NOWHERE = "10.88.1.250"
"""An address of the first node's pods that no pod has."""
DENIED_AT_CONNECT = (
    "plain", "mapped", "fast_open", "fast_open_connect", "mptcp", "marked", "other_user", "nested_cgroup", "bound",
    "reconnected", "foreign_address",
)  # fmt: skip
DENY_REVIEWS = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reviews-not-for-denied}
spec:
  selector: {matchLabels: {app: reviews}}
  action: DENY
  rules:
    - from: [{source: {principals: [cluster.local/ns/default/sa/client-denied]}}]
"""
UNREADABLE = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reviews-v2-unreadable}
spec:
  selector: {matchLabels: {app: reviews, version: v2}}
  action: DENY
  rules:
    - from: [{source: {principals: [cluster.local/ns/default/sa/client-denied]}}]
      to: [{operation: {ports: ["eighty"]}}]
"""
FURTHER = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: details-further}
spec:
  selector: {matchLabels: {app: details}}
  action: DENY
  rules:
    - from: [{source: {principals: [cluster.local/ns/default/sa/nobody]}}]
"""
# Says the same about the two clients as details-policy.yaml, in a table of another shape.
DETAILS_OTHERWISE = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: details-viewers}
spec:
  selector: {matchLabels: {app: details}}
  action: DENY
  rules:
    - from: [{source: {notPrincipals: ["*/client-allowed", "*/bookinfo-productpage"]}}]
"""


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bookinfo(tmp_path_factory.mktemp("manifests"), "details-policy")


@pytest.fixture(scope="module")
def lab(manifests: Path) -> Iterator[Lab]:
    with running(NAME, manifests, replicas=(("details", 2),)) as lab:
        yield lab


@pytest.fixture
def apply(lab: Lab, manifests: Path) -> Iterator[Apply]:
    with applying(lab, manifests) as apply:
        yield apply


def attempt(lab: Lab, pod: str, *tricks: tuple[str, str, str, int, str]) -> dict[str, str]:
    """Outcome of each (name, trick, address, port, host), tried from a pod."""
    return run_attempts(lab.exec_argv(pod, ATTEMPTS), places(lab, lab.pod(pod).address), {"tricks": tricks})


def say(lab: Lab, pod: str, *texts: tuple[str, str], to: str) -> dict[str, str]:
    """Outcome of each (name, request text) over a connection to a service that the pod may reach."""
    said = [(name, text, virtual_address(lab, to), 9080) for name, text in texts]
    return run_attempts(lab.exec_argv(pod, ATTEMPTS), places(lab, lab.pod(pod).address), {"said": said})


def places(lab: Lab, own: str) -> dict[str, str]:
    return {
        "OWN_ADDRESS": own,
        "FOREIGN_ADDRESS": lab.pod("client-allowed").address,
        "OPEN_ADDRESS": virtual_address(lab, "ratings"),
        "OPEN_PORT": "9080",
        "REDIRECTED_ADDRESS": virtual_address(lab, "reviews"),
    }


def lost_requests(lab: Lab, pod: str) -> int:
    """Connection requests (SYN) that the pod's kernel had to send again: the way to see a refusal of a moment."""
    header, values = lab.run(pod, ("cat", "/proc/net/netstat")).stdout.splitlines()[:2]
    return int(dict(zip(header.split(), values.split(), strict=True))["TCPSynRetrans"])


def details_places(lab: Lab) -> tuple[str, ...]:
    """The service's address, a pod of the denied client's own node, one of the other node."""
    pods = sorted(pod.address for pod in lab.plan.pods if pod.app == "details")
    assert len({pod.node for pod in lab.plan.pods if pod.app == "details"}) == 2
    return (virtual_address(lab, "details"), *pods)


def test_no_way_to_open_a_connection_escapes_the_kernels_policy(lab: Lab, manifests: Path) -> None:
    """Also Envoy's user id, a cgroup named proxy, marks, Fast Open, multipath TCP, IPv4 in IPv6."""
    tricks = [
        (f"{trick} {place}", trick, place, 9080, "details")
        for place in details_places(lab)
        for trick in DENIED_AT_CONNECT
    ]
    control = attempt(lab, "client-allowed", *tricks)
    assert {name: found for name, found in control.items() if found != "served details"} == {}
    assert {name: found for name, found in attempt(lab, "client-denied", *tricks).items() if found != "EPERM"} == {}
    policy = (manifests / "details-policy.yaml").read_text()
    (manifests / "details-policy.yaml").unlink()
    try:  # without the policy every one of them works, so it was the policy
        wait_until(
            lambda: attempt(lab, "client-denied", tricks[0]) == {tricks[0][0]: "served details"}, 20, "no policy"
        )
        opened = attempt(lab, "client-denied", *tricks)
        foreign = {opened.pop(f"foreign_address {place}") for place in details_places(lab)}
        assert set(opened.values()) == {"served details"}
        assert foreign == {"ENETUNREACH"}  # the address is another pod's, policy or not
    finally:
        (manifests / "details-policy.yaml").write_text(policy)
    wait_until(lambda: attempt(lab, "client-denied", tricks[0]) == {tricks[0][0]: "EPERM"}, 20, "the policy again")


def test_a_packet_made_by_hand_is_judged_at_its_destination(lab: Lab) -> None:
    """connect() is not asked; the ingress of the destination is the authority."""
    tricks = [(place, "raw_syn", place, 9080, "") for place in details_places(lab)[1:]]
    assert set(attempt(lab, "client-allowed", *tricks).values()) == {"answered"}
    assert set(attempt(lab, "client-denied", *tricks).values()) == {"timeout"}


def test_udp_and_addresses_of_nobody_lead_to_no_server(lab: Lab) -> None:
    vip, near, _ = details_places(lab)
    tricks = [
        ("udp service", "datagram", vip, 9080, "details"),
        ("udp pod", "datagram", near, 9080, "details"),
        ("any address", "plain", "0.0.0.0", 9080, "details"),
        ("broadcast", "plain", "255.255.255.255", 9080, "details"),
        ("loopback", "plain", "127.0.0.1", 15001, "details"),
    ]
    control = ("control", "plain", vip, 9080, "details")
    assert attempt(lab, "client-allowed", control)["control"] == "served details"
    found = attempt(lab, "client-denied", *tricks)
    assert [name for name, outcome in found.items() if outcome.startswith(("served", "http", "answered"))] == []


def test_a_proxy_that_is_dialled_directly_answers_nobody(lab: Lab) -> None:
    """Neither the own node's nor the other's, by whatever address, nor with the port of a redirected connection."""
    places = {address for node in lab.plan.nodes for address in (node.proxy_address, node.address)} | {"169.254.1.1"}
    tricks = [
        (f"{trick} {place} {host}", trick, place, 15001, host)
        for place in sorted(places)
        for trick in ("plain", "reused_port")
        for host in ("reviews", "details")
    ]
    for pod in ("client-allowed", "client-denied"):
        found = attempt(lab, pod, *tricks)
        assert {name: outcome for name, outcome in found.items() if outcome not in ("closed", "ECONNRESET")} == {}
        control = attempt(lab, pod, ("control", "plain", virtual_address(lab, "reviews"), 9080, "reviews"))
        assert control["control"] == "served reviews"


def test_a_network_namespace_of_its_own_does_not_hide_who_a_pod_is(lab: Lab, apply: Apply) -> None:
    """The kernel knows namespaces of pods; from an unknown one the packet's address still says who it is."""
    direct = ("direct", "nested_netns", lab.pod("reviews-v1").address, 9080, "reviews")
    through_envoy = ("envoy", "nested_netns", virtual_address(lab, "reviews"), 9080, "reviews")

    def nested(pod: str) -> list[str]:
        return [attempt(lab, pod, trick)[trick[0]] for trick in (direct, through_envoy)]

    assert nested("client-denied") == ["served reviews", "served reviews"]
    apply("reviews-not-for-denied.yaml", DENY_REVIEWS)
    plain = ("plain", "plain", virtual_address(lab, "reviews"), 9080, "reviews")
    wait_until(lambda: attempt(lab, "client-denied", plain)["plain"] == "EPERM", 20, "the policy")
    assert nested("client-denied") == ["timeout", "http 403"]
    assert nested("client-allowed") == ["served reviews", "served reviews"]


def test_a_process_of_the_node_is_not_its_proxy(lab: Lab) -> None:
    """Bound to the proxy's address, in the node's namespace and cgroup: an unknown source, as anybody."""
    node = next(node for node in lab.plan.nodes if node.name == lab.pod("client-denied").node)

    def as_node(cgroup: Path, place: str) -> str:
        argv = enter_argv(ATTEMPTS, cgroup=cgroup, netns=lab.layout.netns(node.netns))
        plan = {"tricks": [("bound", "bound_anywhere", place, 9080, "details")]}
        return run_attempts(list(argv), places(lab, node.proxy_address), plan)["bound"]

    for place in details_places(lab):
        assert as_node(lab.layout.node_cgroup(node.name), place) == "EPERM"
    # The control: in the proxy's own cgroup the same process is the proxy.
    assert as_node(lab.layout.role_cgroup(f"envoy/{node.name}"), details_places(lab)[1]) == "served details"


HOSTS = (
    "details", "DETAILS", "details:9080", "details.default", "details.default.svc.cluster.local",
    "details.default.svc.cluster.local.", "Details.Default.Svc.Cluster.Local:9080",
)  # fmt: skip


def get(host: str, *lines: str, target: str = "/details/0") -> str:
    return "\r\n".join((f"GET {target} HTTP/1.1", f"Host: {host}", "Connection: close", *lines)) + "\r\n\r\n"


def test_a_host_header_does_not_lead_around_the_policy_of_another_host(lab: Lab) -> None:
    """details is in the kernel plane; over a connection to reviews its virtual host is there, guarded."""
    texts = [(host, get(host)) for host in HOSTS]
    texts.append(("absolute form", get("reviews", target="http://details:9080/details/0")))
    texts.append(("address", get(virtual_address(lab, "details"))))
    control = say(lab, "client-allowed", *texts, to="reviews")
    assert {name: found for name, found in control.items() if found != "served details"} == {}
    denied = say(lab, "client-denied", *texts, to="reviews")
    assert {name: found for name, found in denied.items() if found != "http 403"} == {}


def test_no_forged_header_leads_to_a_denied_host(lab: Lab) -> None:
    allowed = lab.pod("client-allowed").address
    pod = f"{details_places(lab)[1]}:9080"
    lines = {
        "forwarded for": (f"X-Forwarded-For: {allowed}",),
        "client certificate": ("X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/default/sa/client-allowed",),
        "original destination": (f"X-Envoy-Original-Dst-Host: {pod}",),
        "original path": ("X-Envoy-Original-Path: /reviews/0",),
        "internal": ("X-Envoy-Internal: true", f"X-Envoy-External-Address: {allowed}"),
        "state by name": (
            "xb.principal: spiffe://cluster.local/ns/default/sa/client-allowed",
            "xb.attrs: ;ns=default;",
        ),
        "forwarded host": ("X-Forwarded-Host: reviews", "X-Host: reviews"),
    }
    texts = [(name, get("details", *extra)) for name, extra in lines.items()]
    texts.append(("control", get("reviews")))
    texts.append(("dots", get("reviews", target="/../details/0")))
    found = say(lab, "client-denied", *texts, to="reviews")
    assert found.pop("control") == "served reviews"
    assert found.pop("dots") == "served reviews"
    assert {name: outcome for name, outcome in found.items() if outcome != "http 403"} == {}
    control = say(lab, "client-allowed", *((name, text) for name, text in texts if name in lines), to="reviews")
    assert set(control.values()) == {"served details"}


def test_an_ambiguous_request_reaches_no_denied_host(lab: Lab) -> None:
    """Two hosts, CONNECT, a request hidden behind another: whatever is answered, it is not details."""
    hidden = get("details")
    texts = [
        ("two hosts", get("reviews", "Host: details")),
        ("two hosts, other order", get("details", "Host: reviews")),
        ("list of hosts", get("reviews, details")),
        ("user info", get("reviews@details")),
        ("connect", "CONNECT details:9080 HTTP/1.1\r\nHost: details:9080\r\n\r\n"),
        ("no host", "GET /details/0 HTTP/1.0\r\n\r\n"),
        ("hidden by length", get("reviews", f"Content-Length: {len(hidden)}", "Transfer-Encoding: chunked") + hidden),
        ("pipelined", get("reviews").replace("Connection: close\r\n", "") + hidden),
        ("h2c", get("reviews", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__").replace("close", "Upgrade")),
    ]
    denied = say(lab, "client-denied", *texts, to="reviews")
    assert {name: found for name, found in denied.items() if "served details" in found} == {}
    assert say(lab, "client-denied", ("control", get("reviews")), to="reviews") == {"control": "served reviews"}
    assert say(lab, "client-allowed", ("control", hidden), to="reviews") == {"control": "served details"}


def test_a_policy_that_cannot_be_read_denies_on_both_planes_and_says_so(lab: Lab, apply: Apply) -> None:
    """Even the client that its rule does not name: nobody knows what was meant."""
    v2, v1 = (f"{lab.pod(name).address}:9080" for name in ("reviews-v2", "reviews-v1"))

    def probe(target: str) -> dict[str, int]:
        found: dict[str, int] = lab.client("client-allowed", "probe", target, "-n", "10")["outcomes"]
        return found

    def through_envoy() -> set[tuple[int, str]]:
        answer = lab.client("client-allowed", "get", "http://reviews:9080/reviews/0", "-n", "60", "-c", "4")
        return {(entry["status"], entry["version"] if entry["status"] == 200 else "") for entry in answer["by"]}

    assert probe(v2) == {"connected": 10}
    assert through_envoy() == {(200, "v1"), (200, "v2")}
    apply("reviews-v2-unreadable.yaml", UNREADABLE)
    wait_until(lambda: probe(v2) == {"EPERM": 10}, 20, "the kernel to deny")
    wait_until(lambda: through_envoy() == {(200, "v1"), (403, "")}, 20, "Envoy to deny")
    assert probe(v1) == {"connected": 10}
    (row,) = [row for row in objects(lab) if row["object"].endswith("/reviews-v2-unreadable")]
    assert row["state"] == "REJECTED"
    assert {"spec.rules[0].to[0].operation.ports[0]", "spec"} <= {found["path"] for found in row["diagnostics"]}


def test_a_further_policy_for_the_same_workload_disturbs_nobody_it_does_not_name(
    lab: Lab, apply: Apply, manifests: Path, tmp_path: Path
) -> None:
    """The workloads pass from one set of policies to another; between the two they are neither open nor shut."""
    stop = tmp_path / "stop"
    until = ["--timeout", "5", "--interval-ms", "1", "--seconds", "60", "--stop-file", str(stop)]
    before = [lost_requests(lab, pod) for pod in ("client-allowed", "client-denied")]
    clients = [lab.start_client(pod, "probe", "details:9080", *until) for pod in ("client-allowed", "client-denied")]

    def policies() -> set[str]:
        return {row["policy"] for row in xdsbpf_json(lab, "bpf", "policies")["items"]}

    try:
        for _ in range(3):
            apply("details-further.yaml", FURTHER)
            wait_until(lambda: policies() == {"default/details-further+default/details-viewers"}, 20, "both policies")
            (manifests / "details-further.yaml").unlink()
            wait_until(lambda: policies() == {"default/details-viewers"}, 20, "the first policy alone")
    finally:
        stop.touch()
    allowed, denied = (json.loads(client.communicate(timeout=30)[0])["outcomes"] for client in clients)
    assert set(allowed) == {"connected"}
    assert set(denied) == {"EPERM"}
    assert min(sum(allowed.values()), sum(denied.values())) > 200
    assert [lost_requests(lab, pod) for pod in ("client-allowed", "client-denied")] == before
    lab.client("client-allowed", "probe", f"{NOWHERE}:9080", "-n", "1", "--timeout", "2.5")
    assert lost_requests(lab, "client-allowed") > before[0], "a request that is lost is seen"


def test_an_agent_killed_while_it_rewrites_a_policy_opens_nothing(lab: Lab, manifests: Path, tmp_path: Path) -> None:
    """Between any two map writes the denied stay denied and the allowed allowed (D1, D2)."""
    path, stop = manifests / "details-policy.yaml", tmp_path / "stop"
    first = path.read_text()
    until = ["--interval-ms", "2", "--seconds", "60", "--stop-file", str(stop)]
    clients = [lab.start_client(pod, "probe", "details:9080", *until) for pod in ("client-allowed", "client-denied")]

    def table() -> set[tuple[str, ...]]:
        rows = xdsbpf_json(lab, "bpf", "policies")["items"]
        return {(row["node"], row["source"], str(row["port"]), row["verdict"]) for row in rows}

    def rewrite(text: str) -> None:
        before = table()
        path.write_text(text)
        wait_until(lambda: table() != before, 20, "the first of the writes")

    try:
        for turn, text in enumerate((DETAILS_OTHERWISE, first)):
            rewrite(text)
            victim = f"agent/{lab.node_names[turn % 2]}"
            lab.kill(victim, signal.SIGKILL)
            lab.restart(victim)
    finally:
        stop.touch()
        path.write_text(first)
    allowed, denied = (json.loads(client.communicate(timeout=30)[0])["outcomes"] for client in clients)
    assert set(allowed) == {"connected"}
    assert set(denied) == {"EPERM"}
    assert min(sum(allowed.values()), sum(denied.values())) > 200
