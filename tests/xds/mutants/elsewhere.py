"""Rules that are tested outside of this directory, broken; `breaking` runs their tests with that in force."""

from __future__ import annotations

import msgspec

from tests.xds.mutation import Edit, Value
from xdsbpf.compile.raw import grpc_endpoints, resources
from xdsbpf.web import rest
from xdsbpf.xds import delta, token_bucket


class Broken(msgspec.Struct, frozen=True):
    """A rule broken by an edit, seen by the test at `place` with those arguments (`case`), with these words."""

    rule: int
    breaks: str
    edit: Edit | Value
    place: str
    says: str
    case: str = ""


BROKEN: tuple[Broken, ...] = (
    Broken(
        49,
        "a storm comes in all at once",
        Edit(token_bucket.TokenBucket, "take", "self._level -= cost", "pass"),
        "tests/unit/xds/test_xds_admission.py::test_a_storm_begins_with_a_burst_and_goes_on_at_the_rate",
        "assert [0.0",
    ),
    Broken(
        40,
        "a listener of gRPC clients goes to every Envoy that asks for all",
        Value(resources, "is_api_listener", lambda _: False),
        "tests/unit/serve/test_serve_grpc_raw.py::test_no_envoy_that_asks_for_all_listeners_gets_one_for_grpc_clients",
        "assert ['app'] == []",
    ),
    Broken(
        51,
        "a change is put together for each stream",
        Edit(delta.DeltaSession, "_shared_change", "if not dirty or", "if dirty or"),
        "tests/unit/xds/test_xds_streams.py::test_what_is_rendered_does_not_grow_with_the_streams",
        "assert [64] == [64, 1]",
        "[60]",
    ),
    Broken(
        53,
        "a poll is answered once, whatever changes",
        Value(rest, "_version", lambda _: "1"),
        "tests/unit/web/test_web_rest.py::test_a_poll_gets_everything_once_and_then_only_what_changed",
        "assert 304 == 200",
    ),
    Broken(
        57,
        "priorities with gaps go to gRPC clients",
        Value(grpc_endpoints, "_without_gaps", lambda _: ()),
        "tests/unit/compile/raw/test_grpc_endpoints.py::test_priorities_are_counted_from_zero_without_gaps",
        "assert [5, 2] == [1, 0]",
    ),
)
