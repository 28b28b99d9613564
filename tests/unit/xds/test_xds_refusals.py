"""A long reason of a refusal is cut before it is parsed; everything else of a request is as it came."""

from __future__ import annotations

import random

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest
from google.protobuf.message import DecodeError

from xdsbpf.xds.protocol import MAX_ERROR_BYTES, readable_error
from xdsbpf.xds.refusals import WORTH_CUTTING, with_short_reason
from xdsbpf.xds.request import decode_delta, decode_sotw

DELTA_TAG, SOTW_TAG = 0x3A, 0x32
LONG = "cluster é refused: " + "x€" * 300_000


def delta(reason: str, names: int = 3) -> DeltaDiscoveryRequest:
    request = DeltaDiscoveryRequest(type_url="a/b.C", response_nonce="7")
    request.resource_names_subscribe.extend(f"name-{number}" for number in range(names))
    request.node.id = "node"
    request.error_detail.code = 13
    request.error_detail.message = reason
    request.error_detail.details.add(type_url="x/y", value=b"z" * 50_000)
    return request


def test_only_the_end_of_a_long_reason_and_the_details_are_gone() -> None:
    request = delta(LONG)
    data = request.SerializeToString()
    cut = with_short_reason(data, DELTA_TAG)
    assert len(cut) < len(data) // 50
    found = DeltaDiscoveryRequest.FromString(cut)
    kept = found.error_detail.message
    assert LONG.startswith(kept)
    assert MAX_ERROR_BYTES < len(kept.encode()) <= MAX_ERROR_BYTES + 4
    assert found.error_detail.code == 13
    found.ClearField("error_detail")
    request.ClearField("error_detail")
    assert found == request


def test_what_is_shown_of_a_long_reason_is_the_same_as_without_the_cut() -> None:
    for request, decode in ((delta(LONG), decode_delta), (_sotw(LONG), decode_sotw)):
        error = decode(request.SerializeToString()).error
        assert error is not None
        assert len(error.encode()) <= MAX_ERROR_BYTES + 4
        assert readable_error(error) == readable_error(LONG)


def test_a_reason_behind_many_names_is_cut_and_the_names_stay() -> None:
    decoded = decode_sotw(_sotw(LONG, names=1000).SerializeToString())
    assert len(decoded.names) == 1000
    assert decoded.error is not None
    assert len(decoded.error) < 2 * MAX_ERROR_BYTES


@pytest.mark.parametrize("reason", ["", "short", "x" * MAX_ERROR_BYTES])
def test_a_short_reason_stays_whole(reason: str) -> None:
    request = delta(reason, names=WORTH_CUTTING // 10)
    request.error_detail.ClearField("details")
    data = request.SerializeToString()
    assert len(data) > WORTH_CUTTING
    assert with_short_reason(data, DELTA_TAG) == data


def test_a_request_without_a_refusal_and_one_of_too_many_fields_are_left_alone() -> None:
    plain = delta("", names=WORTH_CUTTING // 4)
    plain.ClearField("error_detail")
    many = delta(LONG, names=3_000)
    for request in (plain, many):
        data = request.SerializeToString()
        assert with_short_reason(data, DELTA_TAG) == data


def test_broken_bytes_give_the_same_verdict_as_without_the_cut() -> None:
    """Whatever is broken outside of the reason is still refused, and nothing breaks the cut itself."""
    random.seed(1)
    data = delta(LONG[:40_000]).SerializeToString()
    for _ in range(2_000):
        broken = bytearray(data)
        for _ in range(random.randint(1, 4)):
            broken[random.choice((random.randrange(60), random.randrange(len(broken))))] = random.randrange(256)
        broken = broken[: random.choice((len(broken), random.randrange(len(broken))))]
        cut = with_short_reason(bytes(broken), DELTA_TAG)
        if _parses(bytes(broken)):
            assert _parses(cut)


def _parses(data: bytes) -> bool:
    try:
        DeltaDiscoveryRequest.FromString(data)
    except DecodeError:
        return False
    return True


def _sotw(reason: str, names: int = 3) -> DiscoveryRequest:
    request = DiscoveryRequest(version_info="1", type_url="a/b.C", response_nonce="7")
    request.resource_names.extend(f"name-{number}" for number in range(names))
    request.error_detail.message = reason
    return request
