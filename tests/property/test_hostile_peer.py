"""What any peer may send to the xDS server: it ends at most the peer's own stream, and costs a bounded amount."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec
import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdsbpf.errors import ProtocolError
from xdsbpf.model import names
from xdsbpf.model.resource import make_resource
from xdsbpf.xds import protocol
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.limits import MAX_TYPES, MAX_UNANSWERED
from xdsbpf.xds.request import MAX_NAMES, DeltaRequest, decode_delta, decode_sotw, node_of
from xdsbpf.xds.response import encode
from xdsbpf.xds.store import NODE_ENVOY, ResourceStore, View

NODE_ID = "node~10.0.0.1~node1~cluster.local"
VIEW = View(("node-envoy",), "node1", NODE_ENVOY)
TYPES = (names.CLUSTER, names.ENDPOINTS, names.VIRTUAL_HOST, "type.googleapis.com/none", "", "\0\n")
NAMES = ("a", "b", "*", "", "x" * 300, "80/\x1b[2J", "\U0001f600")

texts = st.sampled_from(NAMES) | st.text(max_size=20)
requests = st.builds(
    lambda type_url, subscribe, unsubscribe, claims, nonce, error, node: protocol.encode_request(
        type_url,
        subscribe=subscribe,
        unsubscribe=unsubscribe,
        initial_versions=claims,
        nonce=nonce,
        error=error,
        node_id=node,
    ),
    st.sampled_from(TYPES) | st.text(max_size=20),
    st.lists(texts, max_size=5),
    st.lists(texts, max_size=5),
    st.dictionaries(texts, texts, max_size=5),
    st.sampled_from(("", "1", "2", "3", "999999")) | st.text(max_size=5),
    st.text(max_size=50),
    st.sampled_from(("", NODE_ID, "other")),
)


def store() -> ResourceStore:
    found = ResourceStore()
    found.apply("node-envoy", [make_resource(names.CLUSTER, name, name.encode()) for name in ("a", "b", "c")])
    return found


def session(held: ResourceStore, gate: Gate) -> DeltaSession:
    return DeltaSession(VIEW, held, node_id=NODE_ID, gate=gate, ledger=gate.open(VIEW, held))


@settings(max_examples=400, deadline=None)
@given(st.lists(requests | st.binary(max_size=200), max_size=12))
def test_no_request_does_more_than_end_its_own_stream(sent: list[bytes]) -> None:
    held, gate = store(), Gate()
    hostile, bystander = session(held, gate), session(held, gate)
    bystander.on_request(decode_delta(protocol.encode_request(names.CLUSTER)))
    assert [resource.name for response in bystander.poll() for resource in response.resources] == ["a", "b", "c"]
    try:
        for data in sent:
            hostile.on_request(decode_delta(data))
            for response in hostile.poll():
                protocol.decode_response(encode(response, held))
    except ProtocolError:
        pass  # the stream ends with a status, as the server does it
    changes = held.apply("node-envoy", [make_resource(names.CLUSTER, "d", b"d")])
    bystander.on_request(decode_delta(protocol.encode_request(names.CLUSTER, nonce="1")))
    bystander.on_changes(changes)
    assert [resource.name for response in bystander.poll() for resource in response.resources] == ["d"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_are_a_first_request_or_refused(data: bytes) -> None:
    try:
        node_id, _ = node_of(decode_delta(data).node)
    except ProtocolError:
        return
    assert node_id.isprintable()


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_metadata_that_is_no_json_is_refused(number: float) -> None:
    request = DeltaDiscoveryRequest()
    request.node.id = NODE_ID
    request.node.metadata["number"] = number
    with pytest.raises(ProtocolError, match="metadata"):
        node_of(decode_delta(request.SerializeToString()).node)


def test_metadata_that_is_deep_is_refused_by_the_parser() -> None:
    deep = b""
    for _ in range(2_000):
        entry = b"\x0a\x01k\x12" + _length(b"\x2a" + _length(deep))
        deep = b"\x0a" + _length(entry)
    node = b"\x0a" + _length(NODE_ID.encode()) + b"\x1a" + _length(deep)
    with pytest.raises(ProtocolError):
        node_of(decode_delta(b"\x0a" + _length(node)).node)


def _length(data: bytes) -> bytes:
    size, out = len(data), bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((*out, size)) + data


def many_names(hostile: DeltaSession) -> None:
    decode_delta(protocol.encode_request("t", subscribe=[str(number) for number in range(MAX_NAMES + 1)]))


def many_names_in_requests(hostile: DeltaSession) -> None:
    half = MAX_NAMES // 2 + 1
    hostile.on_request(DeltaRequest("t", tuple(str(number) for number in range(half))))
    hostile.on_request(DeltaRequest("t", tuple(str(number) for number in range(half, 2 * half))))


def many_claims(hostile: DeltaSession) -> None:
    claims = {str(number): "1" for number in range(MAX_NAMES + 1)}
    decode_delta(protocol.encode_request(names.CLUSTER, initial_versions=claims))


def many_sotw_names(hostile: DeltaSession) -> None:
    decode_sotw(DiscoveryRequest(resource_names=map(str, range(MAX_NAMES + 1))).SerializeToString())


def many_types(hostile: DeltaSession) -> None:
    for number in range(MAX_TYPES + 1):
        hostile.on_request(DeltaRequest(str(number)))


def many_unanswered(hostile: DeltaSession) -> None:
    for _ in range(MAX_UNANSWERED + 2):
        hostile.on_request(DeltaRequest(names.CLUSTER, ("a",)))
        hostile.poll()


ATTACKS = [many_names, many_names_in_requests, many_claims, many_sotw_names, many_types, many_unanswered]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_grows_with_requests_has_a_limit(attack: Callable[[DeltaSession], None]) -> None:
    with pytest.raises(ProtocolError, match="more than"):
        attack(session(store(), Gate()))


def test_a_huge_error_text_costs_no_more_than_a_long_one() -> None:
    """The event loop serves the other streams meanwhile; a thousandth of what an unbounded one would take."""
    began = time.perf_counter()
    assert len(protocol.readable_error("\n" * (32 << 20))) == protocol.MAX_ERROR_BYTES
    assert time.perf_counter() - began < 1.0


def test_the_gate_keeps_nothing_of_nodes_that_are_gone() -> None:
    held, gate = store(), Gate()
    agent_saw = gate.revision("n1")
    for number in range(100):
        ledger = gate.open(msgspec.structs.replace(VIEW, node=f"n{number}"), held)
        assert gate.revision(f"n{number}") != agent_saw
        gate.close(ledger)
    assert (gate._streams, gate._revisions) == ({}, {})
