"""Reading text: every mistake is found at its place, and values mean what kubectl makes of them."""

from __future__ import annotations

import time

import pytest

from tests.manifest_texts import deny_policy, documents, found, only, places, read, service, virtual_service
from xdsbpf.diagnostics import State
from xdsbpf.model import codes
from xdsbpf.model.authorization_policy import AuthorizationPolicy
from xdsbpf.model.destination_rule import DestinationRule
from xdsbpf.model.kube import EndpointSlice, Pod, Service
from xdsbpf.model.virtual_service import VirtualService
from xdsbpf.sources.yaml_nodes import resolve_plain

MISTAKES = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
  labels:
    version: 1.0
    mesh: yes
spec:
  hosts: [reviews]
  htpp: []
  hosts: [ratings]
  http:
  - timeout: 3
    route:
    - destination:
        hots: reviews
      weight: "90"
  - null
"""


def test_all_mistakes_of_an_object_are_found_at_once_each_at_its_place() -> None:
    assert places(MISTAKES) == [
        (codes.WRONG_TYPE, 6, 14, "metadata.labels.version"),
        (codes.WRONG_TYPE, 7, 11, "metadata.labels.mesh"),
        (codes.UNKNOWN_FIELD, 10, 3, "spec.htpp"),
        (codes.DUPLICATE_KEY, 11, 3, "spec.hosts"),
        (codes.BAD_FORMAT, 13, 14, "spec.http[0].timeout"),
        (codes.UNKNOWN_FIELD, 16, 9, "spec.http[0].route[0].destination.hots"),
        (codes.MISSING_FIELD, 16, 9, "spec.http[0].route[0].destination.host"),
        (codes.WRONG_TYPE, 17, 15, "spec.http[0].route[0].weight"),
        (codes.NULL_ENTRY, 18, 5, "spec.http[1]"),
    ]


def test_hints_say_what_to_write_instead() -> None:
    hints = {item.path: item.hint for item in found(MISTAKES)}
    assert hints["spec.htpp"] == "did you mean http?"
    assert hints["spec.http[0].route[0].destination.hots"] == "did you mean host?"
    assert hints["metadata.labels.version"] == 'quote it: "1.0"'
    assert hints["metadata.labels.mesh"] == 'quote it: "yes"'
    assert hints["spec.http[0].route[0].weight"] == "remove the quotes"
    assert "10s" in hints["spec.http[0].timeout"]


def test_the_place_is_right_in_a_later_document_of_the_file() -> None:
    text = documents("# a comment\n" + service("a"), MISTAKES)
    first = 1 + service("a").count("\n") + 1
    assert places(text)[0] == (codes.WRONG_TYPE, first + 6, 14, "metadata.labels.version")


def test_core_kinds_ignore_fields_that_are_not_read_and_strict_kinds_do_not() -> None:
    extra = "spec:\n  allocateLoadBalancerNodePorts: false\n"
    assert isinstance(only(service("a").replace("spec:\n", extra)), Service)
    strict = virtual_service("a").replace("spec:\n", "spec:\n  allocateLoadBalancerNodePorts: false\n")
    assert [code for code, *_ in places(strict)] == [codes.UNKNOWN_FIELD]


def test_strict_kinds_may_carry_status_and_standard_metadata() -> None:
    text = virtual_service("a").replace(
        "metadata:\n",
        "status: {conditions: [{type: Reconciled}]}\n"
        "metadata:\n  generation: 3\n  resourceVersion: '5'\n  managedFields: [{manager: kubectl}]\n"
        "  uid: u\n  creationTimestamp: 2024-05-01T12:00:00+02:00\n",
    )
    manifest = only(text)
    assert manifest.metadata.uid == "u"
    assert manifest.metadata.creation_timestamp == "2024-05-01T10:00:00Z"


def test_values_are_converted_to_the_conventions_of_the_model() -> None:
    http = """
  - match: [{headers: {z: {exact: "1"}, a: {prefix: b}}}]
    fault: {delay: {fixedDelay: 1m30.5s, percentage: {value: 12.5}}}
    timeout: 250ms
    route: [{destination: {host: reviews, port: {number: 9080}}, weight: 90}]
"""
    manifest = only(virtual_service("reviews", http))
    assert isinstance(manifest, VirtualService)
    (route,) = manifest.spec.http
    assert route.timeout == 250_000_000
    assert route.fault is not None
    assert route.fault.delay is not None
    assert route.fault.delay.fixed_delay == 90_500_000_000
    assert route.fault.delay.percentage is not None
    assert route.fault.delay.percentage.value == 125_000
    assert [name for name, _ in route.match[0].headers] == ["a", "z"]
    assert isinstance(route.match, tuple)
    assert isinstance(hash(manifest), int)


def test_numbers_with_a_fraction_are_kept_as_millionths() -> None:
    manifest = only(
        """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a}
spec:
  host: a
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 10s, minimumPercent: 12.5, aggression: 1.5}}
"""
    )
    assert isinstance(manifest, DestinationRule)
    assert manifest.spec.traffic_policy is not None
    balancer = manifest.spec.traffic_policy.load_balancer
    assert balancer is not None
    assert balancer.warmup is not None
    assert balancer.warmup.minimum_percent == 125_000
    assert balancer.warmup.aggression == 1_500_000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", True),
        ("No", False),
        ("y", True),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-7", -7),
        ("0x1F", 31),
        ("010", 8),
        ("0o10", 8),
        ("1_000", 1000),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("yesterday", "yesterday"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_plain_scalars_mean_what_they_mean_to_kubectl(text: str, value: object) -> None:
    resolved = resolve_plain(text)
    assert resolved == value
    assert type(resolved) is type(value)


@pytest.mark.parametrize("name", ["Service", "VirtualService"])
def test_a_namespace_that_is_missing_is_default(name: str) -> None:
    text = service("a").replace("  namespace: default\n", "") if name == "Service" else virtual_service("a")
    assert only(text).namespace == "default"


def test_a_cluster_scoped_object_has_no_namespace() -> None:
    text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: prod, namespace: ignored}\n"
    assert only(text).namespace == ""


def test_a_list_is_taken_apart_and_its_entries_keep_their_places() -> None:
    text = """\
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: a}
  spec: {ports: [{port: 80}]}
- apiVersion: v1
  kind: Service
  metadata: {name: b}
  spec: {ports: [{port: 0}]}
"""
    catalog = read(text)
    assert [(status.object.name, status.state) for status in catalog.states()] == [
        ("a", State.APPLIED),
        ("b", State.REJECTED),
    ]
    assert places(text) == [(codes.OUT_OF_RANGE, 11, 25, "spec.ports[0].port")]
    location = catalog.locate(catalog.states()[0].object, "spec.ports[0].port")
    assert location is not None
    assert (location.line, location.column) == (7, 25)


def test_a_typed_list_gives_its_kind_to_entries_that_have_none() -> None:
    text = "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n  spec: {ports: [{port: 80}]}\n"
    assert isinstance(only(text), Service)


def test_json_is_read_as_yaml() -> None:
    text = '{"apiVersion":"v1","kind":"Service","metadata":{"name":"j"},"spec":{"ports":[{"port":80}]}}'
    assert only(text).name == "j"


def test_utf_16_and_a_byte_order_mark_are_read() -> None:
    assert len(read(service("a").encode("utf-16")).manifests()) == 1
    assert len(read(service("a").encode("utf-8-sig")).manifests()) == 1


def test_empty_documents_and_comments_are_nothing() -> None:
    catalog = read(documents("# only a comment\n", "\n", service("a"), "", "# end\n"))
    assert [item.name for item in catalog.manifests()] == ["a"]
    assert catalog.diagnostics() == ()


def test_anchors_and_merge_keys_are_followed() -> None:
    text = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: a, labels: &labels {app: a}}
spec:
  selector: {matchLabels: *labels}
  template:
    metadata:
      labels: {<<: *labels, version: v1}
"""
    manifest = only(text)
    assert manifest.spec.template.metadata.labels == (("app", "a"), ("version", "v1"))  # type: ignore[attr-defined]


def test_an_unknown_kind_and_an_unsupported_one_are_warnings_that_say_so() -> None:
    text = documents(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n",
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {servers: []}\n",
        service("a"),
    )
    catalog = read(text)
    states = {status.object.kind: status.state for status in catalog.states()}
    assert states == {"ConfigMap": State.NOT_ENFORCED, "Gateway": State.NOT_ENFORCED, "Service": State.APPLIED}
    assert {(item.code, item.severity.value) for item in catalog.diagnostics()} == {
        (codes.UNKNOWN_KIND, "warning"),
        (codes.UNSUPPORTED_KIND, "warning"),
    }


@pytest.mark.parametrize("kind", ["PeerAuthentication", "AuthorizationPolcy"])
def test_a_security_kind_that_has_no_effect_is_an_error(kind: str) -> None:
    (item,) = found(f"apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p}}\n")
    assert item.severity == "error"


def test_an_unsupported_version_of_a_known_kind_rejects_it() -> None:
    text = virtual_service("a").replace("networking.istio.io/v1", "networking.istio.io/v9")
    assert [code for code, *_ in places(text)] == [codes.UNSUPPORTED_VERSION]


def test_objects_without_a_name_are_not_taken_for_one_another() -> None:
    text = documents("apiVersion: v1\nkind: Service\nmetadata: {}\n", "apiVersion: v1\nkind: Service\nmetadata: {}\n")
    assert len({status.object for status in read(text).states()}) == 2


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a", codes.SYNTAX),
        ("\tkind: Service\n", codes.SYNTAX),
        ("kind: Service\0\n", codes.SYNTAX),
        ("kind: Service\nmetadata: {name: a}\n", codes.NOT_AN_OBJECT),
        ("- a\n- b\n", codes.NOT_AN_OBJECT),
        ("just text\n", codes.NOT_AN_OBJECT),
        ("[" * 100_000, codes.SYNTAX),
        ("&a [*a]\n", codes.NOT_AN_OBJECT),
    ],
)
def test_text_that_is_no_manifest_takes_the_whole_file_with_it(text: str, code: str) -> None:
    catalog = read(documents(service("a"), text))
    assert catalog.manifests() == {}
    (item,) = catalog.diagnostics()
    assert item.code == code
    assert item.location is not None
    assert item.location.line > service("a").count("\n")


def test_bytes_that_are_no_text_are_one_diagnostic() -> None:
    (item,) = found(b"kind: \xff\xfe\n")
    assert item.code == codes.SYNTAX


def test_a_tag_that_would_build_a_python_object_is_refused() -> None:
    text = service("a").replace("name: a\n  namespace", "name: !!python/object/apply:os.getcwd []\n  namespace")
    assert codes.WRONG_TYPE in [code for code, *_ in places(text)]
    tagged = service("a").replace("port: 9080", "port: !!python/int 9080")
    assert codes.BAD_TAG in [code for code, *_ in places(tagged)]


def test_an_alias_bomb_ends_soon() -> None:
    matches = "[&m {uri: {exact: /}}" + ", *m" * 2000 + "]"
    text = virtual_service(
        "a", f"[&r {{match: {matches}, route: [{{destination: {{host: a}}}}]}}" + ", *r" * 2000 + "]"
    )
    began = time.process_time()
    assert codes.LIMIT in [code for code, *_ in places(text)]
    assert time.process_time() - began < 1


def test_depth_size_and_length_have_limits() -> None:
    deep = virtual_service("a", "[" * 33 + "]" * 33)
    assert {code for code, *_ in places(deep)} <= {codes.LIMIT, codes.WRONG_TYPE}
    long = virtual_service("a").replace("[a]", "[" + "a.b, " * 10_001 + "c]")
    assert codes.LIMIT in [code for code, *_ in places(long)]
    large = virtual_service("a") + "# \n" + "  exportTo: ['" + "x" * (1 << 20) + "']\n"
    assert codes.LIMIT in [code for code, *_ in places(large)]


def test_findings_of_one_object_are_bounded() -> None:
    fields = "".join(f"  field{index}: 1\n" for index in range(1000))
    assert 100 <= len(found(virtual_service("a") + fields)) <= 102


def test_the_same_text_gives_the_same_objects_whatever_was_read_before() -> None:
    text = documents(service("a"), virtual_service("b"), deny_policy("c"))
    catalog = read(text)
    assert catalog.manifests() == read(text).manifests()
    assert isinstance(next(iter(catalog.manifests().values())), AuthorizationPolicy)


def test_what_many_objects_say_alike_is_kept_once() -> None:
    pods = [
        f"""apiVersion: v1
kind: Pod
metadata: {{name: a-{number}, namespace: shop, labels: {{app: a, version: v1}}}}
spec: {{nodeName: node-7, serviceAccountName: till}}
status: {{phase: Running, podIP: 10.0.0.{number}}}
"""
        for number in (1, 2)
    ]
    slice_ = """apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a, namespace: shop}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], nodeName: node-7, targetRef: {kind: Pod, name: a-1, namespace: shop}}
"""
    taken = sorted(read(documents(*pods, slice_)).manifests().items())
    (_, endpoints), (one_id, one), (other_id, other) = taken
    assert isinstance(one, Pod)
    assert isinstance(other, Pod)
    assert isinstance(endpoints, EndpointSlice)
    assert one.metadata.labels == (("app", "a"), ("version", "v1"))
    assert one.metadata.labels is other.metadata.labels
    assert one_id.namespace is other_id.namespace is one.metadata.namespace is other.metadata.namespace
    assert one.spec.node_name is other.spec.node_name is endpoints.endpoints[0].node_name
    assert one.spec.service_account_name is other.spec.service_account_name
    assert one.status.phase is other.status.phase
    assert one.metadata.name is not other.metadata.name
