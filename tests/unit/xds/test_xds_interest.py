"""The index of who listens to what: a change costs those who asked for it, and what the index itself takes."""

from __future__ import annotations

import asyncio
import time
import tracemalloc

import pytest
from test_xds_streams import ScriptedCall
from xds_stream_client import CDS, EDS, resource, store_with

from xdsbpf.xds import protocol
from xdsbpf.xds.interest import Interest, Listening
from xdsbpf.xds.session import Session
from xdsbpf.xds.store import ENVOY, Changes, ResourceStore, View
from xdsbpf.xds.streams import Streams

STREAMS = 20


async def opened(store: ResourceStore) -> tuple[Streams, list[asyncio.Task[None]]]:
    """Each of the streams asks for all clusters, for the endpoints `all`, and for endpoints that no other one asks for;
    each has a scope of its own."""
    streams = Streams(store, lambda node_id, _: View(("mesh", f"node/{node_id}"), "", ENVOY), time.monotonic)
    tasks = []
    for number in range(STREAMS):
        call = ScriptedCall(takes_at_once=True)
        tasks.append(asyncio.create_task(streams.serve(call)))
        call.to_server.put_nowait(protocol.encode_request(CDS, node_id=str(number)))
        call.to_server.put_nowait(protocol.encode_request(EDS, subscribe=("all", f"one/{number}")))
        while len(streams.sessions()) <= number or not call.to_server.empty():
            await asyncio.sleep(0)
    return streams, tasks


@pytest.mark.parametrize(
    ("scope", "type_url", "name", "told"),
    [
        ("mesh", EDS, "one/7", 1),
        ("mesh", EDS, "all", STREAMS),
        ("mesh", EDS, "nobody's", 0),
        ("mesh", CDS, "a", STREAMS),
        ("node/7", CDS, "a", 1),
        ("node/7", EDS, "all", 1),
        ("node/7", EDS, "one/8", 0),
        ("another", CDS, "a", 0),
    ],
)
async def test_a_change_asks_only_the_sessions_that_listen_to_it(
    scope: str, type_url: str, name: str, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Session] = []
    on_changes = Session.on_changes

    def counted(session: Session, changes: Changes, stamp: int | None = None) -> bool:
        asked.append(session)
        return on_changes(session, changes, stamp)

    monkeypatch.setattr(Session, "on_changes", counted)
    store = store_with()
    streams, tasks = await opened(store)
    streams.changed(store.apply(scope, (resource(type_url, name),)))
    assert len(asked) == told
    streams.stop()
    await asyncio.gather(*tasks, return_exceptions=True)
    streams.changed(store.apply(scope, (resource(type_url, name, b"again"),)))
    assert len(asked) == told, "who is gone hears of nothing"


def bytes_per_stream(names_of: dict[int, frozenset[str]], changed: str = "") -> float:
    """What the index takes for streams that ask for these names; with `changed` each asks for one more, and has a set
    of its own from then on, which is not counted."""
    own = {number: set(names) for number, names in names_of.items()}
    scopes = ("mesh", "blue")
    tracemalloc.start()
    try:
        index = Interest[int]()
        kept = []
        for member, names in names_of.items():
            kept.append(Listening(index, index.enter(member, scopes), EDS))
            kept[-1].share(names, names)
        for member, listening in enumerate(kept):
            if changed:
                listening.add(changed, own[member])
        return tracemalloc.get_traced_memory()[0] / len(names_of)
    finally:
        tracemalloc.stop()


def test_streams_with_the_same_names_cost_nothing_per_name() -> None:
    few, many = (frozenset(f"cluster-{number}" for number in range(count)) for count in (10, 1000))
    for changed in ("", "one more"):
        assert bytes_per_stream(dict.fromkeys(range(500), few), changed) < 500
        assert bytes_per_stream(dict.fromkeys(range(500), many), changed) < 650


def test_streams_that_share_some_names_cost_a_few_bytes_for_each() -> None:
    """100 of 2,000 names each; a name that nobody else asks for is an entry of a dict."""
    everything = [f"cluster-{number}" for number in range(2000)]
    overlapping = {number: frozenset(everything[number * 4 : number * 4 + 100]) for number in range(400)}
    assert bytes_per_stream(overlapping) < 500 + 1500
    distinct = {number: frozenset(f"cluster-{number}-{each}" for each in range(100)) for number in range(400)}
    assert bytes_per_stream(distinct) < 500 + 100 * 50
