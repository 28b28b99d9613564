"""AuthorizationPolicy: each rule of validation beside a form that passes."""

from __future__ import annotations

import pytest

from tests.manifest_texts import deny_policy, found, only
from xdsbpf.diagnostics import Severity
from xdsbpf.model import codes


def told(text: str, severity: Severity) -> list[tuple[str, str]]:
    """Findings of a text, without the note on what a rejected policy does."""
    return [
        (item.code, item.path) for item in found(text) if item.severity is severity and item.code != codes.FAIL_CLOSED
    ]


def test_a_policy_that_uses_everything_is_accepted() -> None:
    text = deny_policy(
        "p",
        """
  selector: {matchLabels: {app: ratings}}
  action: ALLOW
  rules:
  - from:
    - source: {principals: [cluster.local/ns/a/sa/b, "*", "*/sa/x", "td/*"], notNamespaces: [b*], ipBlocks: [10.0.0.1]}
    - source: {serviceAccounts: [ns/a, b], remoteIpBlocks: ["2001:db8::/32"], trustDomains: [td]}
    to:
    - operation: {hosts: ["a:*", "*.x"], methods: [GET], ports: ["80"], paths: ["/a/*", "/b/{*}/c", "/d/{**}"]}
    when:
    - {key: "request.headers[x-user]", values: [a]}
    - {key: "request.auth.claims[a][b]", notValues: [c]}
    - {key: destination.port, values: ["1"]}
    - {key: "experimental.envoy.filters.a.b[c]", values: ["[v]"]}
  - {}
""",
    )
    assert told(text, Severity.WARNING) == []
    assert only(text).name == "p"


R = "spec.rules[0]"
S = f"{R}.from[0].source"
O = f"{R}.to[0].operation"  # noqa: E741
SPECS = [
    ("{action: DENY}", [(codes.AP_ACTION, "spec.rules")]),
    ("{action: DENY, rules: []}", [(codes.AP_ACTION, "spec.rules")]),
    ("{action: ALLOW}", []),
    ("{}", []),
    ("{action: CUSTOM, rules: [{}]}", [(codes.AP_ACTION, "spec.provider")]),
    ("{provider: {name: x}}", [(codes.AP_ACTION, "spec.provider")]),
    (
        "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Gateway, name: g, group: gateway.networking.k8s.io}]}",
        [(codes.BAD_SELECTOR, "spec.selector")],
    ),
    ("{targetRef: {kind: Pod, name: g}}", [(codes.BAD_TARGET, "spec.targetRef.kind")]),
    ("{targetRefs: [{kind: Service, name: g, namespace: x}]}", [(codes.BAD_TARGET, "spec.targetRefs[0].namespace")]),
    ("{targetRefs: [{kind: Service, name: g}]}", []),
    ("{rules: [{from: []}]}", [(codes.EMPTY_LIST, f"{R}.from")]),
    ("{rules: [null]}", [(codes.NULL_ENTRY, R)]),
    ("{rules: [{from: [{}]}]}", [(codes.AP_RULE, S)]),
    ("{rules: [{to: [{operation: {}}]}]}", [(codes.AP_RULE, O)]),
    ("{rules: [{from: [{source: {principals: ['']}}]}]}", [(codes.AP_VALUE, f"{S}.principals[0]")]),
    ("{rules: [{from: [{source: {principals: ['a*b']}}]}]}", [(codes.AP_VALUE, f"{S}.principals[0]")]),
    ("{rules: [{from: [{source: {principals: ['**']}}]}]}", [(codes.AP_VALUE, f"{S}.principals[0]")]),
    (
        "{rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]}",
        [(codes.AP_RULE, f"{S}.serviceAccounts")],
    ),
    ("{rules: [{from: [{source: {serviceAccounts: ['a/*']}}]}]}", [(codes.AP_VALUE, f"{S}.serviceAccounts[0]")]),
    ("{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}", [(codes.AP_VALUE, f"{S}.ipBlocks[0]")]),
    ("{rules: [{from: [{source: {ipBlocks: ['fe80::1%eth0']}}]}]}", [(codes.AP_VALUE, f"{S}.ipBlocks[0]")]),
    ("{rules: [{to: [{operation: {ports: ['http']}}]}]}", [(codes.AP_VALUE, f"{O}.ports[0]")]),
    ("{rules: [{to: [{operation: {ports: ['65536']}}]}]}", [(codes.AP_VALUE, f"{O}.ports[0]")]),
    ("{rules: [{to: [{operation: {paths: ['/a{*}']}}]}]}", [(codes.AP_VALUE, f"{O}.paths[0]")]),
    ("{rules: [{to: [{operation: {paths: ['/{**}/{*}']}}]}]}", [(codes.AP_VALUE, f"{O}.paths[0]")]),
    ("{rules: [{to: [{operation: {paths: ['/{*}/a*']}}]}]}", [(codes.AP_VALUE, f"{O}.paths[0]")]),
    ("{rules: [{when: [{key: source.port, values: ['1']}]}]}", [(codes.AP_CONDITION, f"{R}.when[0].key")]),
    ("{rules: [{when: [{key: 'request.headers[]', values: ['1']}]}]}", [(codes.AP_CONDITION, f"{R}.when[0].key")]),
    ("{rules: [{when: [{key: source.ip}]}]}", [(codes.AP_CONDITION, f"{R}.when[0]")]),
    ("{rules: [{when: [{key: source.ip, values: [x]}]}]}", [(codes.AP_VALUE, f"{R}.when[0].values[0]")]),
    (
        "{action: CUSTOM, provider: {name: x}, rules: [{from: [{source: {principals: [a]}}]}]}",
        [(codes.AP_CUSTOM, f"{S}.principals")],
    ),
    (
        "{action: CUSTOM, provider: {name: x}, rules: [{when: [{key: request.auth.principal, values: [a]}]}]}",
        [(codes.AP_CUSTOM, f"{R}.when[0].key")],
    ),
]


@pytest.mark.parametrize(("spec", "expected"), SPECS)
def test_a_policy_is_checked(spec: str, expected: list[tuple[str, str]]) -> None:
    assert told(deny_policy("p", spec), Severity.ERROR) == expected


WARNED = [
    ("{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}", [(codes.AP_HTTP_ONLY_DENY, R)]),
    ("{action: DENY, rules: [{to: [{operation: {methods: [DELETE], ports: ['80']}}]}]}", []),
    ("{action: DENY, rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}", [(codes.AP_HTTP_ONLY_DENY, R)]),
    ("{action: DENY, rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]}]}", []),
    ("{action: DENY, rules: [{}]}", []),
    ("{action: ALLOW, rules: [{to: [{operation: {methods: [DELETE]}}]}]}", []),
    ("{selector: {}, action: ALLOW, rules: [{}]}", [(codes.BAD_SELECTOR, "spec.selector")]),
]


@pytest.mark.parametrize(("spec", "expected"), WARNED)
def test_what_is_probably_not_meant_is_a_warning(spec: str, expected: list[tuple[str, str]]) -> None:
    text = deny_policy("p", spec)
    assert told(text, Severity.WARNING) == expected
    assert told(text, Severity.ERROR) == []


@pytest.mark.parametrize(
    ("action", "value", "good"), [("DENY", "true", True), ("DENY", "maybe", False), ("AUDIT", "true", False)]
)
def test_a_dry_run_is_a_truth_value_on_allow_or_deny(action: str, value: str, good: bool) -> None:
    text = deny_policy("p", f"{{action: {action}, rules: [{{}}]}}").replace(
        "metadata:\n", f"metadata:\n  annotations: {{istio.io/dry-run: '{value}'}}\n"
    )
    assert (told(text, Severity.ERROR) == []) is good
