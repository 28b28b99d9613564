"""Core kinds and metadata: what would make our output wrong is refused."""

from __future__ import annotations

import pytest

from tests.manifest_texts import found
from xdsbpf.diagnostics import Severity
from xdsbpf.model import codes
from xdsbpf.model.checks import covers
from xdsbpf.model.regex import regex_problem

SERVICE = ("v1", "Service")
SLICE = ("discovery.k8s.io/v1", "EndpointSlice")
POD = ("v1", "Pod")
DEPLOYMENT = ("apps/v1", "Deployment")
NODE = ("v1", "Node")
OWNED = "metadata: {name: a, labels: {kubernetes.io/service-name: s}}"


def told(kind: tuple[str, str], text: str, severity: Severity = Severity.ERROR) -> list[str]:
    head = "" if text.startswith("metadata:") else "metadata: {name: a}, "
    items = found(f"{{apiVersion: {kind[0]}, kind: {kind[1]}, {head}{text}}}\n")
    return [item.path for item in items if item.severity is severity]


CASES = [
    (SERVICE, "spec: {ports: [{port: 80}, {port: 81}]}", ["spec.ports"]),
    (SERVICE, "spec: {ports: [{port: 80, name: a}, {port: 80, name: b}]}", ["spec.ports"]),
    (SERVICE, "spec: {ports: [{port: 53, name: a}, {port: 53, name: b, protocol: UDP}]}", []),
    (SERVICE, "spec: {ports: [{port: 65536}]}", ["spec.ports[0].port"]),
    (SERVICE, "spec: {ports: [{port: 80, targetPort: http}]}", []),
    (SERVICE, "spec: {ports: [{port: 80, targetPort: 0}]}", ["spec.ports[0].targetPort"]),
    (SERVICE, "spec: {ports: [{port: 80}], clusterIP: 10.0.0.300}", ["spec.clusterIP"]),
    (SERVICE, "spec: {ports: [{port: 80}], clusterIP: 127.0.0.1}", ["spec.clusterIP"]),
    (SERVICE, "spec: {ports: [{port: 80}], clusterIP: None}", []),
    (SERVICE, "spec: {type: ExternalName, externalName: localhost}", ["spec.externalName"]),
    (SERVICE, "spec: {type: ExternalName, externalName: example.com}", []),
    (SERVICE, "metadata: {name: 'a.b'}, spec: {ports: [{port: 80}]}", ["metadata.name"]),
    (SERVICE, "metadata: {name: 'a[b]|c'}, spec: {ports: [{port: 80}]}", ["metadata.name"]),
    (SERVICE, "metadata: {name: a, namespace: A_B}, spec: {ports: [{port: 80}]}", ["metadata.namespace"]),
    (
        SERVICE,
        "metadata: {name: a, annotations: {xdsbpf.io/dataplane: L7}}, spec: {ports: [{port: 80}]}",
        ["metadata.annotations[xdsbpf.io/dataplane]"],
    ),
    (SERVICE, "metadata: {name: a, annotations: {xdsbpf.io/dataplane: l7}}, spec: {ports: [{port: 80}]}", []),
    (SLICE, f"{OWNED}, endpoints: [{{addresses: [10.0.0.1]}}], ports: [{{port: 80}}]", []),
    (SLICE, f"{OWNED}, endpoints: [{{addresses: [127.0.0.1]}}]", ["endpoints[0].addresses[0]"]),
    (SLICE, f"{OWNED}, endpoints: [{{addresses: [169.254.169.254]}}]", ["endpoints[0].addresses[0]"]),
    (SLICE, f"{OWNED}, endpoints: [{{addresses: [0.0.0.0]}}]", ["endpoints[0].addresses[0]"]),
    (SLICE, f"{OWNED}, endpoints: [{{addresses: [224.0.0.1]}}]", ["endpoints[0].addresses[0]"]),
    (SLICE, f"{OWNED}, endpoints: [{{addresses: ['::1']}}]", ["endpoints[0].addresses[0]"]),
    (
        SLICE,
        f"{OWNED}, addressType: IPv6, endpoints: [{{addresses: ['::ffff:127.0.0.1']}}]",
        ["endpoints[0].addresses[0]"],
    ),
    (SLICE, f"{OWNED}, addressType: IPv6, endpoints: [{{addresses: ['2001:db8::1']}}]", []),
    (SLICE, f"{OWNED}, endpoints: [{{addresses: []}}]", ["endpoints[0].addresses"]),
    (POD, "status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}]}", []),
    (POD, "status: {podIP: here}", ["status.podIP"]),
    (POD, "spec: {serviceAccountName: reviews.v1}", []),
    (POD, "spec: {serviceAccountName: x/admin}", ["spec.serviceAccountName"]),
    (POD, "spec: {serviceAccountName: 'admin;app=db'}", ["spec.serviceAccountName"]),
    (POD, "metadata: {name: a, labels: {app: 'a;ns=prod'}}", ["metadata.labels[app]"]),
    (POD, "metadata: {name: a, labels: {'app=x;role': a}}", ["metadata.labels[app=x;role]"]),
    (POD, "metadata: {name: a, namespace: 'a;sa=b'}", ["metadata.namespace"]),
    (
        DEPLOYMENT,
        "spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}}}",
        ["spec.selector.matchLabels"],
    ),
    (DEPLOYMENT, "spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b, c: d}}}}", []),
    (
        NODE,
        "metadata: {name: node1, annotations: {xdsbpf.io/proxy-address: here}}",
        ["metadata.annotations[xdsbpf.io/proxy-address]"],
    ),
    (NODE, "metadata: {name: node1, annotations: {xdsbpf.io/proxy-address: 10.0.0.2}}", []),
]


@pytest.mark.parametrize(("kind", "text", "expected"), CASES)
def test_a_core_kind_is_checked(kind: tuple[str, str], text: str, expected: list[str]) -> None:
    assert told(kind, text) == expected


def test_a_slice_of_no_service_is_a_warning() -> None:
    assert told(SLICE, "endpoints: []", Severity.WARNING) == ["metadata.labels"]
    assert told(SLICE, f"{OWNED}, endpoints: []", Severity.WARNING) == []


@pytest.mark.parametrize(
    "pattern",
    [
        "", "a", "^/a/[^/]+$", "(a|b)*", "[]a]", "[^]a]", "\\(*", "(?i)x", "(?P<n>x)+", "a{2,3}", "[[:alpha:]]+", "a|b",
        "\\d+\\.\\d+", "x\\\\", "[\\]]", "a**", ".*?",
    ],
)  # fmt: skip
def test_a_regular_expression_passes(pattern: str) -> None:
    assert regex_problem(pattern) == ""


@pytest.mark.parametrize(
    "pattern", ["(", "a)", "[a", "*a", "(*a)", "a|*", "a\\", "(a)\\1", "(?=a)", "(?<!a)b", "[", "[^", "[]", "+"]
)
def test_a_regular_expression_is_refused(pattern: str) -> None:
    assert regex_problem(pattern) != ""


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("*", "a", True),
        ("*.b.c", "a.b.c", True),
        ("*.b.c", "*.a.b.c", True),
        ("*.b.c", "b.c", False),
        ("a.b", "A.B", True),
        ("*.a.b.c", "*.b.c", False),
    ],
)
def test_a_wildcard_covers_hosts(pattern: str, host: str, expected: bool) -> None:
    assert covers(pattern, host) is expected


def test_codes_are_the_ones_of_the_table() -> None:
    assert all(code.startswith("XB1") and len(code) == 6 for code in codes.TITLES)
    assert len(set(codes.TITLES.values())) == len(codes.TITLES)
