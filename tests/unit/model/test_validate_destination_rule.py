"""DestinationRule: each rule of validation beside a form that passes."""

from __future__ import annotations

import pytest

from tests.manifest_texts import found, only
from xdsbpf.diagnostics import Severity
from xdsbpf.model import codes
from xdsbpf.model.validate_load_balancing import is_prime


def rule(text: str) -> str:
    return f"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a}}\nspec: {{{text}}}\n"


def told(text: str, severity: Severity) -> list[tuple[str, str]]:
    return [(item.code, item.path) for item in found(text) if item.severity is severity]


P = "spec.trafficPolicy"


def test_a_rule_that_uses_everything_is_accepted() -> None:
    text = rule(
        """host: "*.prod.svc.cluster.local", exportTo: ["."], workloadSelector: {matchLabels: {app: a}},
  trafficPolicy: {
    connectionPool: {tcp: {maxConnections: 1, connectTimeout: 1s, tcpKeepalive: {time: 1s, interval: 1s}},
                     http: {http2MaxRequests: 1, idleTimeout: 1s, h2UpgradePolicy: UPGRADE}},
    loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 0s}, maglev: {tableSize: 65537}},
      localityLbSetting: {distribute: [{from: a/b/*, to: {a/b/*: 80, c/*: 20}}]}},
    outlierDetection: {consecutive5xxErrors: 5, interval: 1s, maxEjectionPercent: 100},
    tls: {mode: MUTUAL, clientCertificate: a, privateKey: b, caCertificates: c},
    portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}],
    retryBudget: {percent: 20, minRetryConcurrency: 3}},
  subsets: [{name: v1, labels: {version: v1}}, {name: v2-mysql, labels: {version: v2}}]"""
    )
    assert told(text, Severity.WARNING) == []
    assert only(text).name == "a"


RULES = [
    ("host: a b", [(codes.BAD_HOST, "spec.host")]),
    ("subsets: []", [(codes.MISSING_FIELD, "spec.host")]),
    ("host: a, trafficPolicy: {}", [(codes.DR_POLICY, P)]),
    (
        "host: a, subsets: [{name: v1, labels: {v: '1'}}, {name: v1, labels: {v: '2'}}]",
        [(codes.DR_SUBSET, "spec.subsets[0].name"), (codes.DR_SUBSET, "spec.subsets[1].name")],
    ),
    ("host: a, subsets: [{name: V1, labels: {v: '1'}}]", [(codes.DR_SUBSET, "spec.subsets[0].name")]),
    ("host: a, subsets: [{name: v1, labels: {v: '*'}}]", [(codes.BAD_LABEL, "spec.subsets[0].labels[v]")]),
    ("host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: ['*']", [(codes.DR_SELECTOR, "spec.exportTo")]),
]

POLICIES = [
    ("connectionPool: {}", [(codes.DR_POOL, f"{P}.connectionPool")]),
    ("connectionPool: {tcp: {connectTimeout: 0s}}", [(codes.BAD_TIME, f"{P}.connectionPool.tcp.connectTimeout")]),
    ("connectionPool: {tcp: {maxConnections: -1}}", [(codes.OUT_OF_RANGE, f"{P}.connectionPool.tcp.maxConnections")]),
    (
        "connectionPool: {http: {useClientProtocol: true, h2UpgradePolicy: UPGRADE}}",
        [(codes.DR_POOL, f"{P}.connectionPool.http.useClientProtocol")],
    ),
    ("loadBalancer: {simple: FASTEST}", [(codes.BAD_CHOICE, f"{P}.loadBalancer.simple")]),
    ("loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}", [(codes.DR_HASH, f"{P}.loadBalancer")]),
    ("loadBalancer: {consistentHash: {}}", [(codes.DR_HASH, f"{P}.loadBalancer.consistentHash")]),
    (
        "loadBalancer: {consistentHash: {useSourceIp: true, httpHeaderName: x}}",
        [(codes.DR_HASH, f"{P}.loadBalancer.consistentHash")],
    ),
    (
        "loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 100}}}",
        [(codes.DR_HASH, f"{P}.loadBalancer.consistentHash.maglev.tableSize")],
    ),
    (
        "loadBalancer: {localityLbSetting: {distribute: [{from: a/*, to: {a/*: 50}}]}}",
        [(codes.DR_LOCALITY, f"{P}.loadBalancer.localityLbSetting.distribute[0].to")],
    ),
    (
        "loadBalancer: {localityLbSetting: {distribute: [{from: '*/a', to: {a: 100}}]}}",
        [(codes.DR_LOCALITY, f"{P}.loadBalancer.localityLbSetting.distribute[0].from")],
    ),
    (
        "loadBalancer: {localityLbSetting: {failover: [{from: a, to: a}]}}, outlierDetection: {}",
        [(codes.DR_LOCALITY, f"{P}.loadBalancer.localityLbSetting.failover[0]")],
    ),
    ("loadBalancer: {warmup: {duration: 0s}}", [(codes.BAD_TIME, f"{P}.loadBalancer.warmup.duration")]),
    (
        "loadBalancer: {warmup: {duration: 1s, minimumPercent: 101}}",
        [(codes.BAD_PERCENT, f"{P}.loadBalancer.warmup.minimumPercent")],
    ),
    (
        "loadBalancer: {warmup: {duration: 1s, aggression: 0}}",
        [(codes.DR_WARMUP, f"{P}.loadBalancer.warmup.aggression")],
    ),
    ("outlierDetection: {maxEjectionPercent: 101}", [(codes.BAD_PERCENT, f"{P}.outlierDetection.maxEjectionPercent")]),
    (
        "outlierDetection: {consecutiveLocalOriginFailures: 3}",
        [(codes.DR_OUTLIER, f"{P}.outlierDetection.consecutiveLocalOriginFailures")],
    ),
    ("outlierDetection: {interval: 0s}", [(codes.BAD_TIME, f"{P}.outlierDetection.interval")]),
    (
        "tls: {mode: MUTUAL, caCertificates: c}",
        [(codes.DR_TLS, f"{P}.tls.clientCertificate"), (codes.DR_TLS, f"{P}.tls.privateKey")],
    ),
    (
        "tls: {mode: SIMPLE, insecureSkipVerify: true, caCertificates: c}",
        [(codes.DR_TLS, f"{P}.tls.insecureSkipVerify")],
    ),
    ("tls: {mode: SIMPLE, credentialName: c, caCertificates: c}", [(codes.DR_TLS, f"{P}.tls.credentialName")]),
    ("tls: {mode: ISTIO_MUTUAL}", []),
    (
        "tunnel: {protocol: GET, targetHost: a, targetPort: 0}",
        [(codes.DR_TUNNEL, f"{P}.tunnel.protocol"), (codes.BAD_PORT, f"{P}.tunnel.targetPort")],
    ),
    ("tunnel: {targetHost: a, targetPort: 1}, proxyProtocol: {}", [(codes.DR_TUNNEL, f"{P}.tunnel")]),
    ("portLevelSettings: [{loadBalancer: {simple: RANDOM}}]", [(codes.DR_PORT_LEVEL, f"{P}.portLevelSettings[0]")]),
]


@pytest.mark.parametrize(
    ("text", "expected"), [*RULES, *((f"host: a, trafficPolicy: {{{text}}}", e) for text, e in POLICIES)]
)
def test_a_rule_is_checked(text: str, expected: list[tuple[str, str]]) -> None:
    assert told(rule(text), Severity.ERROR) == expected


WARNED = [
    ("host: a, subsets: [{name: v1}]", [(codes.DR_SUBSET, "spec.subsets[0]")]),
    (
        "host: a, trafficPolicy: {outlierDetection: {consecutiveErrors: 1}}",
        [(codes.DEPRECATED, f"{P}.outlierDetection.consecutiveErrors")],
    ),
    ("host: a, trafficPolicy: {tls: {mode: SIMPLE}}", [(codes.DR_TLS, f"{P}.tls")]),
    (
        "host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}}",
        [(codes.DR_LOCALITY, f"{P}.loadBalancer.localityLbSetting")],
    ),
    ("host: a, workloadSelector: {}", [(codes.BAD_SELECTOR, "spec.workloadSelector")]),
]


@pytest.mark.parametrize(("text", "expected"), WARNED)
def test_what_is_probably_not_meant_is_a_warning(text: str, expected: list[tuple[str, str]]) -> None:
    assert told(rule(text), Severity.WARNING) == expected
    assert told(rule(text), Severity.ERROR) == []


def test_primes_are_told_from_other_numbers() -> None:
    assert [number for number in range(30) if is_prime(number)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]
    assert is_prime(5_000_011)
    assert not is_prime(5_000_009)
