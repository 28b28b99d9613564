"""The store and the wire: overlays, real changes only, bytes that protobuf reads back."""

from __future__ import annotations

import random

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from xds_stream_client import CDS, EDS, resource

from xdsbpf.model.resource import Resource
from xdsbpf.xds import protocol
from xdsbpf.xds.response import Response, encode
from xdsbpf.xds.store import Batch, ResourceStore, View

SHARED = View(("node-envoy",), "", "test")
NODE = View(("node-envoy", "node-envoy/node1"), "node1", "test")


def test_a_later_scope_overlays_an_earlier_one() -> None:
    store = ResourceStore()
    common, own, other = resource(CDS, "a", "common"), resource(CDS, "a", "own"), resource(CDS, "b")
    store.apply("node-envoy", [common, other])
    store.apply("node-envoy/node1", [own])
    assert store.get(SHARED, CDS, "a") == common
    assert store.get(NODE, CDS, "a") == own
    assert store.wildcard(NODE, CDS) == (own, other)
    store.apply("node-envoy/node1", (), [(CDS, "a")])
    assert store.get(NODE, CDS, "a") == common
    assert store.wildcard(NODE, CDS) == (common, other)


def test_a_wildcard_leaves_out_what_is_on_demand_and_a_name_does_not() -> None:
    store = ResourceStore()
    base, extra = resource(CDS, "base"), resource(CDS, "extra", on_demand=True)
    store.apply("node-envoy", [base, extra])
    assert store.wildcard(NODE, CDS) == (base,)
    assert store.get(NODE, CDS, "extra") == extra


def test_only_real_changes_count() -> None:
    store = ResourceStore()
    assert store.apply("s", [resource(CDS, "a")])
    assert not store.apply("s", [resource(CDS, "a")])
    assert not store.apply("s", (), [(CDS, "nosuch")])
    assert not store.apply_all([Batch("s", (resource(CDS, "a"),), ((CDS, "a"),))]), "removed and put back"
    assert store.revision == 1


def test_several_scopes_change_in_one_revision() -> None:
    store = ResourceStore()
    changes = store.apply_all([Batch("s", (resource(CDS, "a"),)), Batch("t", (resource(CDS, "b"),))])
    assert changes.revision == 1
    assert dict(changes.by_scope) == {"s": ((CDS, "a"),), "t": ((CDS, "b"),)}


def test_a_requirement_alone_is_a_change() -> None:
    store = ResourceStore()
    store.apply("s", [resource(CDS, "a")])
    assert store.apply("s", [resource(CDS, "a", on_demand=True)])


def test_protobuf_reads_back_what_is_joined_from_headers_and_bodies() -> None:
    store = ResourceStore()
    resources = (
        resource(EDS, "plain"),
        Resource(EDS, "empty", "v", b""),
        Resource(EDS, "name-é-" + "n" * 300, "0123456789abcdef", b"\x00\xff" * 70_000),
    )
    raw = encode(Response(EDS, "17", resources, ("gone", "é"), 42), store)
    parsed = DeltaDiscoveryResponse.FromString(raw)
    assert (parsed.type_url, parsed.nonce, parsed.system_version_info) == (EDS, "17", "42")
    assert list(parsed.removed_resources) == ["gone", "é"]
    got = [(item.name, item.version, item.resource.type_url, item.resource.value) for item in parsed.resources]
    assert got == [(item.name, item.version, EDS, item.body) for item in resources]
    assert len(raw) == parsed.ByteSize(), "nothing but what protobuf would have written"


def test_the_client_side_reads_what_the_server_side_writes() -> None:
    raw = encode(Response(EDS, "1", (resource(EDS, "a"),), ("b",), 1), ResourceStore())
    received = protocol.decode_response(raw)
    assert (received.type_url, received.nonce, received.removed) == (EDS, "1", ("b",))
    item = resource(EDS, "a")
    assert received.resources == (protocol.ReceivedResource("a", item.version, EDS, item.body),)


def test_a_client_request_carries_node_lists_claims_and_errors() -> None:
    raw = protocol.encode_request(
        CDS,
        node_id="agent~10.0.0.1~node1~x",
        user_agent="xdsbpf-agent",
        subscribe=["a"],
        unsubscribe=["b"],
        initial_versions={"a": "1"},
        nonce="7",
        error="no" * 5000,
    )
    request = DeltaDiscoveryRequest.FromString(raw)
    assert (request.node.id, request.node.user_agent_name) == ("agent~10.0.0.1~node1~x", "xdsbpf-agent")
    assert (list(request.resource_names_subscribe), list(request.resource_names_unsubscribe)) == (
        ["a"],
        ["b"],
    )
    assert (dict(request.initial_resource_versions), request.response_nonce) == ({"a": "1"}, "7")
    assert len(request.error_detail.message) == protocol.MAX_ERROR_BYTES


def test_headers_of_replaced_resources_are_not_kept() -> None:
    store = ResourceStore()
    for number in range(100):
        store.apply("s", [resource(CDS, "a", str(number))])
        store.header(resource(CDS, "a", str(number)))
    store.apply("s", (), [(CDS, "a")])
    assert len(store._headers) == 0


def test_views_that_differ_in_a_scope_without_the_type_share_its_pages() -> None:
    """Every node has a scope of its own: were it part of the question, nothing would be shared."""
    store = ResourceStore()
    store.apply("node-envoy", [resource(CDS, name) for name in "abc"])
    store.apply("node-envoy/node1", [resource(EDS, "own")])
    views = [View(("node-envoy", f"node-envoy/node{number}"), f"node{number}", "test") for number in (1, 2, 3)]
    first, second, third = (store.wildcard_pages(view, CDS) for view in views)
    assert first[0] is second[0] is third[0]
    store.apply("node-envoy/node1", [resource(CDS, "b", "own")])
    own, common = (store.wildcard_pages(view, CDS)[0] for view in views[:2])
    assert [item.body for item in own.resources] == [b"a=1", b"b=own", b"c=1"]
    assert [item.body for item in common.resources] == [b"a=1", b"b=1", b"c=1"]
    assert store.shared.current(views[0].scopes, first[0]) is own
    assert store.shared.current(views[1].scopes, first[0]) is common


def test_what_a_wildcard_covers_is_right_after_any_change_and_kept_where_nothing_changed() -> None:
    draw = random.Random(7)
    store, written = ResourceStore(), dict[tuple[str, str, str], Resource]()
    views = [View(tuple(sorted(draw.sample("abcd", draw.randint(1, 4)))), "", "e") for _ in range(6)]
    for step in range(400):
        scope, type_url, name = draw.choice("abcd"), draw.choice((CDS, EDS)), draw.choice("xyz")
        before = {(view, kind): store.wildcard(view, kind) for view in views for kind in (CDS, EDS)}
        if draw.random() < 0.6:
            written[scope, type_url, name] = resource(type_url, name, str(step))
            store.apply(scope, [written[scope, type_url, name]])
        else:
            written.pop((scope, type_url, name), None)
            store.apply(scope, (), [(type_url, name)])
        for (view, kind), old in before.items():
            seen = {n: r for s in view.scopes for (where, t, n), r in written.items() if (where, t) == (s, kind)}
            assert store.wildcard(view, kind) == tuple(seen[name] for name in sorted(seen))
            if kind != type_url and old:
                assert store.wildcard(view, kind) is old
