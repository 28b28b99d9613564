"""VirtualService: each rule of validation beside a form that passes."""

from __future__ import annotations

import pytest

from tests.manifest_texts import found, only, virtual_service
from xdsbpf.diagnostics import Severity
from xdsbpf.model import codes

TO = "route: [{destination: {host: a}}]"


def errors(text: str) -> list[tuple[str, str]]:
    """(code, path) of what rejects a text, without the note on what happens to the object."""
    return [(item.code, item.path) for item in found(text) if item.severity is Severity.ERROR]


def warnings(text: str) -> list[tuple[str, str]]:
    return [(item.code, item.path) for item in found(text) if item.severity is Severity.WARNING]


def spec(text: str) -> str:
    return f"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec: {{{text}}}\n"


def test_a_virtual_service_that_uses_everything_is_accepted() -> None:
    http = """
  - name: everything
    match:
    - uri: {prefix: ""}
      method: {exact: GET}
      headers: {end-user: {regex: "j.*n(x|[]a-z])?"}, present: {}}
      withoutHeaders: {x: {regex: "*"}}
      queryParams: {q: {exact: "1"}}
      sourceLabels: {app: b}
      sourceNamespace: prod
      port: 80
    route:
    - {destination: {host: a.prod.svc.cluster.local, subset: v1, port: {number: 80}}, weight: 1,
       headers: {request: {set: {x-a: b}}, response: {remove: [server]}}}
    - {destination: {host: b}, weight: 99}
    timeout: 5s
    retries: {attempts: 3, perTryTimeout: 1s, retryOn: "5xx,connect-failure,503"}
    fault: {delay: {fixedDelay: 1ms, percentage: {value: 0.0001}}, abort: {httpStatus: 503, percentage: {value: 0}}}
    rewrite: {uri: /x, authority: b}
    mirrors: [{destination: {host: c}, percentage: {value: 10}}]
    corsPolicy: {allowOrigins: [{exact: "https://a"}], allowMethods: [GET, "*"], maxAge: 24h, allowHeaders: ["*"]}
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new, redirectCode: 308}
  - match: [{uri: {exact: /status}}]
    directResponse: {status: 503, body: {string: sorry}}
  - route: [{destination: {host: a}}]
"""
    assert warnings(virtual_service("a", http)) == []
    assert only(virtual_service("a", http)).name == "a"


FRAME = [
    ("hosts: [a]", [(codes.VS_NO_ROUTES, "spec")]),
    ("http: []", [(codes.VS_HOSTS, "spec.hosts")]),
    (
        f"gateways: [g], tcp: [{{{TO}}}], http: [{{{TO}}}]",
        [(codes.VS_DELEGATE, "spec.gateways"), (codes.VS_DELEGATE, "spec.tcp")],
    ),
    (f"hosts: ['*'], http: [{{{TO}}}]", [(codes.VS_HOSTS, "spec.hosts[0]")]),
    (f"hosts: ['*'], gateways: [g], http: [{{{TO}}}]", []),
    (f"hosts: ['a:80'], http: [{{{TO}}}]", [(codes.BAD_HOST, "spec.hosts[0]")]),
    (f"hosts: ['a.*.b'], http: [{{{TO}}}]", [(codes.BAD_HOST, "spec.hosts[0]")]),
    (f"hosts: ['..'], http: [{{{TO}}}]", [(codes.BAD_HOST, "spec.hosts[0]")]),
    (f"hosts: ['*.'], http: [{{{TO}}}]", [(codes.BAD_HOST, "spec.hosts[0]")]),
    (f"hosts: ['{'a' * 254}'], http: [{{{TO}}}]", [(codes.BAD_HOST, "spec.hosts[0]")]),
    (f"hosts: ['10.0.0.1', '::1', 'A.b.'], http: [{{{TO}}}]", []),
    (f"hosts: [a.x.com, '*.x.com'], http: [{{{TO}}}]", [(codes.VS_HOSTS, "spec.hosts[1]")]),
    (f"hosts: [a], gateways: [a/b/c], http: [{{{TO}}}]", [(codes.VS_GATEWAY, "spec.gateways[0]")]),
    (f"hosts: [a], gateways: [mesh, ns/g, ./g], http: [{{{TO}}}]", []),
    (f"hosts: [a], exportTo: ['*', ns], http: [{{{TO}}}]", [(codes.BAD_EXPORT, "spec.exportTo")]),
    (f"hosts: [a], exportTo: ['.', default], http: [{{{TO}}}]", [(codes.BAD_EXPORT, "spec.exportTo[1]")]),
    (f"hosts: [a], exportTo: ['~'], http: [{{{TO}}}]", [(codes.BAD_EXPORT, "spec.exportTo[0]")]),
    (f"hosts: [a], exportTo: ['.'], http: [{{{TO}}}]", []),
    (f"hosts: [a], tls: [{{{TO}}}]", [(codes.VS_TLS, "spec.tls[0]")]),
    (
        f"hosts: [a.b], tls: [{{match: [{{sniHosts: [c.d]}}], {TO}}}]",
        [(codes.VS_TLS, "spec.tls[0].match[0].sniHosts[0]")],
    ),
    (f"hosts: ['*.b'], tls: [{{match: [{{sniHosts: [a.b], port: 443}}], {TO}}}]", []),
    ("hosts: [a], tcp: [{}]", [(codes.VS_TCP, "spec.tcp[0]")]),
    (
        f"hosts: [a], tcp: [{{match: [{{destinationSubnets: [10.0.0.0/40]}}], {TO}}}]",
        [(codes.BAD_SUBNET, "spec.tcp[0].match[0].destinationSubnets[0]")],
    ),
    (f"hosts: [a], tcp: [{{match: [{{destinationSubnets: [10.0.0.0/8, '::/0'], port: 1}}], {TO}}}]", []),
]


@pytest.mark.parametrize(("text", "expected"), FRAME)
def test_the_frame_is_checked(text: str, expected: list[tuple[str, str]]) -> None:
    assert errors(spec(text)) == expected


R = "spec.http[0]"
HTTP = [
    ("{}", [(codes.VS_ACTION, R)]),
    (f"{{{TO}, redirect: {{uri: /}}}}", [(codes.VS_ACTION, R)]),
    (f"{{{TO}}}", []),
    ("{redirect: {uri: /}, fault: {delay: {fixedDelay: 1s}}}", [(codes.VS_ACTION, f"{R}.fault")]),
    ("{redirect: {}}", [(codes.VS_REDIRECT, f"{R}.redirect")]),
    ("{redirect: {scheme: ftp}}", [(codes.VS_REDIRECT, f"{R}.redirect.scheme")]),
    ("{redirect: {scheme: https, redirectCode: 200}}", [(codes.VS_REDIRECT, f"{R}.redirect.redirectCode")]),
    ("{redirect: {authority: b, port: 99999}}", [(codes.BAD_PORT, f"{R}.redirect.port")]),
    ("{redirect: {scheme: https, port: 443}}", []),
    ("{directResponse: {status: 600}}", [(codes.VS_DIRECT_RESPONSE, f"{R}.directResponse.status")]),
    ("{directResponse: {status: 404}}", []),
    ("{delegate: {name: b, namespace: ns}}", []),
    ("{delegate: {name: b}, rewrite: {uri: /}}", [(codes.VS_DELEGATE, f"{R}.rewrite")]),
    (f"{{{TO}, rewrite: {{}}}}", [(codes.VS_REWRITE, f"{R}.rewrite")]),
    (
        f"{{{TO}, rewrite: {{uriRegexRewrite: {{match: '(', rewrite: x}}}}}}",
        [(codes.BAD_REGEX, f"{R}.rewrite.uriRegexRewrite.match")],
    ),
    ("{route: [{destination: {host: '*.a'}}]}", [(codes.VS_DESTINATION, f"{R}.route[0].destination.host")]),
    ("{route: [{destination: {host: a, subset: V.1}}]}", [(codes.VS_DESTINATION, f"{R}.route[0].destination.subset")]),
    ("{route: [{destination: {host: a}}, {destination: {host: b}}]}", [(codes.VS_WEIGHT, f"{R}.route")]),
    ("{route: [{destination: {host: a}, weight: 300}, {destination: {host: b}}]}", []),
    ("{route: [{destination: {host: a}, weight: -1}]}", [(codes.OUT_OF_RANGE, f"{R}.route[0].weight")]),
    (f"{{{TO}, timeout: 0s}}", [(codes.BAD_TIME, f"{R}.timeout")]),
    (f"{{{TO}, timeout: -1s}}", [(codes.BAD_TIME, f"{R}.timeout")]),
    (f"{{{TO}, timeout: 1500us}}", [(codes.BAD_TIME, f"{R}.timeout")]),
    (f"{{{TO}, timeout: 1e309s}}", [(codes.BAD_FORMAT, f"{R}.timeout")]),
    (f"{{{TO}, timeout: 1.5h}}", []),
    (f"{{{TO}, retries: {{attempts: 0, retryOn: 5xx}}}}", [(codes.VS_RETRIES, f"{R}.retries.retryOn")]),
    (f"{{{TO}, retries: {{attempts: 1, retryOn: '5xx, reset'}}}}", [(codes.VS_RETRIES, f"{R}.retries.retryOn")]),
    (f"{{{TO}, retries: {{attempts: 0}}}}", []),
    (f"{{{TO}, fault: {{}}}}", [(codes.VS_FAULT, f"{R}.fault")]),
    (f"{{{TO}, fault: {{delay: {{exponentialDelay: 1s}}}}}}", [(codes.VS_FAULT, f"{R}.fault.delay.exponentialDelay")]),
    (f"{{{TO}, fault: {{abort: {{httpStatus: 199}}}}}}", [(codes.VS_FAULT, f"{R}.fault.abort.httpStatus")]),
    (f"{{{TO}, fault: {{abort: {{grpcStatus: SAD}}}}}}", [(codes.VS_FAULT, f"{R}.fault.abort.grpcStatus")]),
    (
        f"{{{TO}, fault: {{abort: {{grpcStatus: UNAVAILABLE, percentage: {{value: 100.1}}}}}}}}",
        [(codes.BAD_PERCENT, f"{R}.fault.abort.percentage.value")],
    ),
    (f"{{{TO}, mirror: {{host: b}}, mirrors: [{{destination: {{host: c}}}}]}}", [(codes.VS_MIRROR, f"{R}.mirrors")]),
    (
        f"{{{TO}, corsPolicy: {{allowMethods: [FETCH], maxAge: 1500ms}}}}",
        [(codes.VS_CORS, f"{R}.corsPolicy.allowMethods[0]"), (codes.VS_CORS, f"{R}.corsPolicy.maxAge")],
    ),
    (
        f"{{{TO}, headers: {{request: {{set: {{':path': x}}}}}}}}",
        [(codes.VS_HEADERS, f"{R}.headers.request.set[:path]")],
    ),
    (f"{{{TO}, headers: {{request: {{set: {{':authority': x}}}}}}}}", []),
    (f"{{{TO}, headers: {{response: {{add: {{'a b': x}}}}}}}}", [(codes.BAD_HEADER, f"{R}.headers.response.add[a b]")]),
    (f"{{{TO}, rewrite: {{authority: x}}, headers: {{request: {{set: {{host: z}}}}}}}}", [(codes.VS_HEADERS, R)]),
    (f"{{match: [{{uri: {{exact: a, prefix: b}}}}], {TO}}}", [(codes.VS_MATCH, f"{R}.match[0].uri")]),
    (f"{{match: [{{method: {{prefix: ''}}}}], {TO}}}", [(codes.VS_MATCH, f"{R}.match[0].method")]),
    (f"{{match: [{{headers: {{x: null}}}}], {TO}}}", [(codes.NULL_ENTRY, f"{R}.match[0].headers.x")]),
    (f"{{match: [{{headers: {{'a b': {{exact: x}}}}}}], {TO}}}", [(codes.BAD_HEADER, f"{R}.match[0].headers[a b]")]),
    (
        f"{{match: [{{headers: {{'@request.auth.claims.g': {{exact: x}}}}}}], {TO}}}",
        [(codes.VS_MATCH, f"{R}.match[0].headers[@request.auth.claims.g]")],
    ),
    (f"{{match: [{{uri: {{regex: '{'a' * 1025}'}}}}], {TO}}}", [(codes.BAD_REGEX, f"{R}.match[0].uri.regex")]),
    (f"{{match: [{{port: 0}}], {TO}}}", [(codes.BAD_PORT, f"{R}.match[0].port")]),
    (f"{{match: [{{sourceNamespace: A}}], {TO}}}", [(codes.BAD_NAMESPACE, f"{R}.match[0].sourceNamespace")]),
    (f"{{match: [{{sourceLabels: {{'-a': b}}}}], {TO}}}", [(codes.BAD_LABEL, f"{R}.match[0].sourceLabels[-a]")]),
]


@pytest.mark.parametrize(("route", "expected"), HTTP)
def test_an_http_route_is_checked(route: str, expected: list[tuple[str, str]]) -> None:
    assert errors(virtual_service("a", f"[{route}]")) == expected


WARNED = [
    (f"[{{{TO}}}, {{{TO}}}]", [(codes.VS_UNREACHABLE, "spec.http[1]")]),
    (f"[{{match: [{{uri: {{prefix: /}}}}], {TO}}}, {{{TO}}}]", [(codes.VS_UNREACHABLE, "spec.http[1]")]),
    (
        f"[{{match: [{{uri: {{prefix: /a}}}}], {TO}}}, {{match: [{{name: second, uri: {{prefix: /a}}}}], {TO}}}]",
        [(codes.VS_UNREACHABLE, "spec.http[1].match[0]")],
    ),
    (f"[{{match: [{{uri: {{prefix: /}}, port: 80}}], {TO}}}, {{{TO}}}]", []),
    (f"[{{{TO}, mirror: {{host: b}}, mirrorPercent: 5}}]", [(codes.DEPRECATED, "spec.http[0].mirrorPercent")]),
    (f"[{{{TO}, fault: {{abort: {{}}}}}}]", [(codes.VS_FAULT, "spec.http[0].fault.abort")]),
    ("[{redirect: {uri: /, redirectCode: 305}}]", [(codes.VS_REDIRECT, "spec.http[0].redirect.redirectCode")]),
]


@pytest.mark.parametrize(("http", "expected"), WARNED)
def test_what_is_probably_not_meant_is_a_warning(http: str, expected: list[tuple[str, str]]) -> None:
    text = virtual_service("a", http)
    assert warnings(text) == expected
    assert errors(text) == []
