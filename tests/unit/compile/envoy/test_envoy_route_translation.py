"""Routes: pure translation functions, from structs of the manifest to Envoy messages."""

from __future__ import annotations

import pytest

from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.attributes import attributes, guard_alternatives
from xdsbpf.compile.envoy.fault import http_fault
from xdsbpf.compile.envoy.hash_policy import consistent_hash, hash_policy
from xdsbpf.compile.envoy.headers import add_headers
from xdsbpf.compile.envoy.retries import DEFAULT_RETRY_ON, retry_policy
from xdsbpf.compile.envoy.route_action import Mirror, Target, default_route, http_route
from xdsbpf.compile.envoy.route_match import is_catch_all, match_error, route_match
from xdsbpf.compile.envoy.string_match import regex_error
from xdsbpf.diagnostics import Diagnostic, ObjectId, Origin
from xdsbpf.mesh.route_values import SourceGuard
from xdsbpf.model.destination_rule import ConsistentHashLB, LoadBalancerSettings
from xdsbpf.model.matching import StringMatch
from xdsbpf.model.virtual_service import (
    FaultAbort,
    FaultDelay,
    HeaderOperations,
    Headers,
    HTTPBody,
    HTTPDirectResponse,
    HTTPFaultInjection,
    HTTPMatchRequest,
    HTTPRedirect,
    HTTPRetry,
    HTTPRewrite,
    HTTPRoute,
    Percent,
    RegexRewrite,
)

WHERE = Origin(ObjectId("VirtualService", "default", "reviews", "networking.istio.io"), "spec.http[0]")
V1 = Target("outbound|9080|v1|reviews", 90, WHERE)
V2 = Target("outbound|9080|v2|reviews", 10, WHERE)


class Findings(list[Diagnostic]):
    """A report function that keeps what it is told."""

    def __call__(self, finding: Diagnostic) -> None:
        self.append(finding)


def translate(http: HTTPRoute, *targets: Target, findings: Findings | None = None, port: int = 9080):
    report = Findings() if findings is None else findings
    return http_route(http, targets or (V1,), (), port, WHERE, report)


def test_a_route_without_a_match_takes_every_request():
    assert is_catch_all(route_match(None, ()))


def test_header_matchers_are_sorted_by_name_and_pseudo_headers_come_last():
    match = HTTPMatchRequest(
        method=StringMatch(exact="GET"),
        headers=(("b", StringMatch(exact="1")), ("d", StringMatch())),
        without_headers=(("a", StringMatch(prefix="x")), ("c", StringMatch())),
    )
    headers = route_match(match, ()).headers
    assert [header.name for header in headers] == ["a", "b", "c", "d", ":method"]
    assert [header.invert_match for header in headers] == [True, False, True, False, False]
    assert headers[0].treat_missing_header_as_empty
    assert headers[2].present_match
    assert not headers[2].treat_missing_header_as_empty


def test_an_exact_match_on_the_empty_text_is_not_presence():
    match = HTTPMatchRequest(headers=(("a", StringMatch(exact="")),))
    (header,) = route_match(match, ()).headers
    assert header.string_match.HasField("exact")


def test_case_is_ignored_only_where_asked():
    uri = StringMatch(prefix="/a")
    assert route_match(HTTPMatchRequest(uri=uri), ()).case_sensitive.value is True
    ignoring = route_match(HTTPMatchRequest(uri=uri, ignore_uri_case=True), ())
    assert ignoring.HasField("case_sensitive")
    assert ignoring.case_sensitive.value is False


@pytest.mark.parametrize(
    "pattern", ["(", "a(?=b)", "(?<!a)b", r"(a)\1", "a++", "(?>a)", "a{1,2000}", "a{1001}", "(?P=x)", "[a"]
)
def test_a_regex_that_re2_refuses_is_refused(pattern):
    assert regex_error(pattern)


@pytest.mark.parametrize(
    "pattern", ["/item/[0-9]+", r"\d+\.\d+", "[(?=]+", r"\(?=", "(?i)abc", "(?P<a>x)", "a{2,1000}", "[+*]+", "a+?b"]
)
def test_a_regex_that_re2_takes_is_taken(pattern):
    assert regex_error(pattern) == ""


def test_a_match_on_token_claims_is_an_error_and_not_ignored():
    match = HTTPMatchRequest(headers=(("@request.auth.claims.sub", StringMatch(exact="me")),))
    path, reason = match_error(match)
    assert path == "headers[@request.auth.claims.sub]"
    assert "not supported" in reason


def test_a_guard_of_several_namespaces_becomes_a_route_for_each():
    alternatives = guard_alternatives(SourceGuard(("a", "b"), (("app", "x"),)))
    texts = [[(m.string_match.prefix, m.string_match.contains) for m in matchers] for matchers in alternatives]
    assert texts == [[(";ns=a;", ""), ("", ";app=x;")], [(";ns=b;", ""), ("", ";app=x;")]]


def test_no_label_can_be_mistaken_for_a_namespace_or_an_account():
    text = attributes("dev", "web", (("app", "x"), ("ns", "prod"), ("sa", "root")))
    assert text == ";ns=dev;sa=web;app=x;.ns=prod;.sa=root;"
    ((matcher,),) = guard_alternatives(SourceGuard((), (("ns", "prod"),)))
    assert matcher.string_match.contains in text
    assert ";ns=prod;" not in text


def test_weights_are_kept_and_a_zero_weight_is_left_out():
    none = Target("outbound|9080|v3|reviews", 0, WHERE)
    route = translate(HTTPRoute(), V1, none, V2)
    clusters = route.route.weighted_clusters.clusters
    assert [(entry.name, entry.weight.value) for entry in clusters] == [(V1.cluster, 90), (V2.cluster, 10)]


def test_a_route_without_any_weight_is_reported_and_not_compiled():
    findings = Findings()
    zero = Target("a", 0, WHERE)
    assert translate(HTTPRoute(), zero, zero, findings=findings) is None
    assert [finding.path for finding in findings] == ["spec.http[0].route"]


def test_without_a_timeout_the_callers_grpc_deadline_counts_and_with_one_only_the_timeout():
    free = translate(HTTPRoute()).route
    assert free.HasField("timeout")
    assert free.max_stream_duration.HasField("grpc_timeout_header_max")
    limited = translate(HTTPRoute(timeout=1_500_000_000)).route
    assert (limited.timeout.seconds, limited.timeout.nanos) == (1, 500_000_000)
    assert not limited.HasField("max_stream_duration")


def test_the_default_retry_policy_and_its_exceptions():
    assert default_route(V1).route.retry_policy.retry_on == DEFAULT_RETRY_ON
    assert retry_policy(HTTPRetry(attempts=0), consistent_hash=False) is None
    hashed = retry_policy(None, consistent_hash=True)
    assert not hashed.retry_host_predicate
    forced = retry_policy(HTTPRetry(attempts=1, retry_ignore_previous_hosts=True), consistent_hash=True)
    assert forced.retry_host_predicate


def test_status_codes_in_retry_on_become_numbers():
    policy = retry_policy(HTTPRetry(attempts=1, retry_on="gateway-error, 503,999"), consistent_hash=False)
    assert policy.retry_on == "gateway-error,999,retriable-status-codes"
    assert list(policy.retriable_status_codes) == [503]


def test_the_authority_is_rewritten_and_never_a_header():
    headers = Headers(request=HeaderOperations(set=(("Host", "a.example"), ("x", "1"))))
    route = translate(HTTPRoute(headers=headers))
    assert route.route.host_rewrite_literal == "a.example"
    assert [entry.header.key for entry in route.request_headers_to_add] == ["x"]
    rewritten = translate(HTTPRoute(headers=headers, rewrite=HTTPRewrite(authority="b.example")))
    assert rewritten.route.host_rewrite_literal == "b.example"


@pytest.mark.parametrize(("name", "value"), [("x", "100%"), ("x", "%NOPE%"), ("x y", "1"), ("x", "a\nb")])
def test_a_header_that_envoy_would_refuse_is_reported_and_left_out(name, value):
    findings = Findings()
    route = translate(HTTPRoute())
    operations = HeaderOperations(set=((name, value), ("good", "%REQ(x-id)% 5%%")))
    add_headers(route, Headers(request=operations), WHERE, findings)
    assert [entry.header.key for entry in route.request_headers_to_add] == ["good"]
    assert [finding.code for finding in findings] == ["XB3006"]


def test_a_regex_rewrite_wins_over_a_prefix_rewrite():
    rewrite = HTTPRewrite(uri="/x", uri_regex_rewrite=RegexRewrite("^/a/(.*)$", r"/\1"))
    action = translate(HTTPRoute(rewrite=rewrite)).route
    assert (action.regex_rewrite.substitution, action.prefix_rewrite) == (r"/\1", "")


@pytest.mark.parametrize("rewrite", [r"/\2", r"/\x", "/\\"])
def test_a_substitution_that_re2_refuses_fails_the_route_visibly(rewrite):
    findings = Findings()
    http = HTTPRoute(rewrite=HTTPRewrite(uri_regex_rewrite=RegexRewrite("^/a/(.*)$", rewrite)))
    assert translate(http, findings=findings) is None
    assert [finding.path for finding in findings] == ["spec.http[0].rewrite.uriRegexRewrite"]


def test_a_redirect_leaves_out_the_port_that_its_scheme_implies():
    given = HTTPRedirect(uri="/x", scheme="https", port=443)
    assert translate(HTTPRoute(redirect=given)).redirect.port_redirect == 0
    derived = HTTPRedirect(authority="a", derive_port="FROM_REQUEST_PORT")
    assert translate(HTTPRoute(redirect=derived)).redirect.port_redirect == 9080
    assert translate(HTTPRoute(redirect=derived), port=80).redirect.port_redirect == 0


def test_a_redirect_of_nothing_but_the_authority_keeps_path_and_scheme():
    redirect = translate(HTTPRoute(redirect=HTTPRedirect(authority="a"))).redirect
    assert redirect.WhichOneof("path_rewrite_specifier") is None
    assert redirect.WhichOneof("scheme_rewrite_specifier") is None


def test_a_direct_response_carries_text_or_bytes():
    text = HTTPDirectResponse(status=200, body=HTTPBody(string="hi"))
    assert translate(HTTPRoute(direct_response=text)).direct_response.body.inline_string == "hi"
    data = HTTPDirectResponse(status=200, body=HTTPBody(bytes="aGk="))
    assert translate(HTTPRoute(direct_response=data)).direct_response.body.inline_bytes == b"hi"
    bad = HTTPDirectResponse(status=200, body=HTTPBody(bytes="###"))
    assert translate(HTTPRoute(direct_response=bad)) is None


def test_a_fault_percentage_is_in_millionths():
    fault = HTTPFaultInjection(FaultDelay(fixed_delay=7_000_000_000, percentage=Percent(105_000)), None)
    percentage = http_fault(fault, WHERE, Findings()).delay.percentage
    assert (percentage.numerator, percentage.denominator) == (105_000, percentage.MILLION)


def test_a_fault_without_a_percentage_injects_nothing_and_says_so():
    findings = Findings()
    fault = HTTPFaultInjection(FaultDelay(fixed_delay=1), FaultAbort(http_status=500))
    compiled = http_fault(fault, WHERE, findings)
    assert compiled.delay.percentage.numerator == 0
    assert not compiled.abort.HasField("percentage")
    assert [finding.code for finding in findings] == ["XB3008", "XB3008"]


def test_a_grpc_abort_is_a_code():
    abort = FaultAbort(grpc_status="UNAVAILABLE", percentage=Percent(1_000_000))
    assert http_fault(HTTPFaultInjection(None, abort), WHERE, Findings()).abort.grpc_status == 14
    findings = Findings()
    assert http_fault(HTTPFaultInjection(None, FaultAbort(grpc_status="NOPE")), WHERE, findings) is None
    assert [finding.code for finding in findings] == ["XB3007"]


def test_a_mirror_copies_a_share_and_keeps_the_authority():
    route = http_route(HTTPRoute(), (V1,), (Mirror("other", 250_000),), 80, WHERE, Findings())
    (mirror,) = route.route.request_mirror_policies
    assert mirror.runtime_fraction.default_value.numerator == 250_000
    assert mirror.disable_shadow_host_suffix_append


def test_a_simple_policy_wins_over_a_consistent_hash():
    hashing = ConsistentHashLB(use_source_ip=True)
    assert consistent_hash(LoadBalancerSettings(consistent_hash=hashing)) is hashing
    assert consistent_hash(LoadBalancerSettings(simple="RANDOM", consistent_hash=hashing)) is None
    assert hash_policy(hashing).connection_properties.source_ip
    assert hash_policy(ConsistentHashLB()) is None


def test_names_of_clusters_and_virtual_hosts_have_one_spelling():
    assert names.parse_cluster("outbound|80|v1|a.b") == names.ClusterKey(80, "v1", "a.b")
    assert str(names.ClusterKey(80, "", "a.b")) == "outbound|80||a.b"
    for name in ("outbound|080||a", "outbound|x||a", "inbound|80||a", "outbound|80|a", "outbound|70000||a", "a"):
        assert names.parse_cluster(name) is None
    assert names.parse_virtual_host("80/a.b") == (80, "a.b")
    assert names.parse_virtual_host("a.b") is None
