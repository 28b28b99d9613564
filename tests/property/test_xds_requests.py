"""The short cuts in reading requests see what protobuf sees."""

from __future__ import annotations

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from xdsbpf.errors import ProtocolError
from xdsbpf.xds import protocol
from xdsbpf.xds.request import DeltaRequest, SotwRequest, decode_delta, decode_sotw

TYPE = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from([TYPE, '"\x0ftype.googleapis.com/*\x01a', "", "*"]))
LONG = "outbound|80||a-long-name-of-some-service.default.svc.cluster.local"


NAMES = b"".join(protocol.field(b"\x1a", f"{LONG}{number}".encode()) for number in range(10))
FIELDS = st.builds(
    lambda number, value: protocol.field(bytes((number << 3 | 2,)), value.encode()),
    st.integers(1, 7),
    st.sampled_from([TYPE, "", "*", '"\x0ftype.googleapis.com/*\x01a']),
)
TYPE_FIELD, NAME_FIELD, NONCE_FIELD = (
    protocol.field(tag, value.encode()) for tag, value in ((b"\x22", TYPE), (b"\x1a", TYPE), (b"\x2a", "7"))
)
ENDS = st.one_of(
    st.just(TYPE_FIELD + NONCE_FIELD),
    st.lists(st.sampled_from([TYPE_FIELD, NAME_FIELD, NONCE_FIELD]), max_size=3).map(b"".join),
    FIELDS.map(lambda field: TYPE_FIELD + field),
    FIELDS.map(lambda field: TYPE_FIELD + NONCE_FIELD + field),
)


@st.composite
def sotw_requests(draw: st.DrawFn) -> bytes:
    """Fields in any order, most of them where an ACK has them; some requests have a byte changed."""
    start = b"".join(draw(st.lists(FIELDS, max_size=2)))
    data = start + NAMES + b"".join(draw(st.lists(FIELDS, max_size=2))) + draw(ENDS)
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.binary(max_size=2)) + data[at + 1 :]
    return data


def read_plainly(data: bytes) -> SotwRequest | None:
    message = DiscoveryRequest()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return None
    return SotwRequest(
        message.type_url,
        (*message.resource_names, *(locator.name for locator in message.resource_locators)),
        message.version_info,
        message.response_nonce,
        message.error_detail.message if message.HasField("error_detail") else None,
        message.node if message.HasField("node") else None,
    )


@settings(max_examples=1000)
@given(sotw_requests())
def test_a_state_of_the_world_request_reads_as_protobuf_reads_it(data: bytes) -> None:
    try:
        found = decode_sotw(data)
    except ProtocolError:
        assert read_plainly(data) is None
    else:
        assert found == read_plainly(data)


def test_the_names_of_a_repeated_request_are_one_tuple() -> None:
    """Else the short cut is not taken at all."""
    requests = [
        DiscoveryRequest(
            type_url=TYPE, resource_names=[f"{LONG}{number}" for number in range(30)], response_nonce=nonce
        )
        for nonce in ("1", "2")
    ]
    first, second = (decode_sotw(request.SerializeToString()) for request in requests)
    assert first.names is second.names
    assert (first.nonce, second.nonce) == ("1", "2")


@given(TEXTS, TEXTS, st.booleans(), st.binary(max_size=3))
def test_a_delta_ack_reads_as_protobuf_reads_it(type_url: str, nonce: str, is_nack: bool, more: bytes) -> None:
    request = DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce)
    if is_nack:
        request.error_detail.message = "no"
    data = request.SerializeToString() + more
    message = DeltaDiscoveryRequest()
    try:
        found = decode_delta(data)
    except ProtocolError:
        try:
            message.ParseFromString(data)
        except DecodeError:
            return
        raise
    message.ParseFromString(data)
    error = message.error_detail.message if message.HasField("error_detail") else None
    node = message.node if message.HasField("node") else None
    subscribe = (*message.resource_names_subscribe, *(item.name for item in message.resource_locators_subscribe))
    assert found == DeltaRequest(
        message.type_url, subscribe, found.unsubscribe, found.claims, message.response_nonce, error, node
    )
