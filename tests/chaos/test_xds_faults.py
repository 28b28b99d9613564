"""Faults F9 to F11 in small: what must hold while many clients come, read nothing, are stopped, or refuse.

The server and its clients are real processes on loopback, those of the benchmarks, which measure what this does not.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.bench.load.client import Answer, LoadClient
from tests.bench.load.rig import Rig, named, started

NAMES = 20
OTHERS, FAULTY = 20, 20
CHANGES = 1000
REFUSING, MEGABYTE = 100, 1 << 20
KEPT_MB = {"grpcio": 60, "fast": 50}
"""A server that keeps the requests has 110 to 125 and 100. gRPC's connections keep 7 to 25 while they last, however
many heaps the C library has; nearly all of it goes when they are closed. `fast` keeps nothing."""
KEEPING = "tests.chaos.keeping_server"


@pytest.fixture(params=["grpcio", "fast"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A server whose clients 0 to OTHERS are connected and have everything."""
    with started(request.param, endpoint_sets=NAMES) as found:
        found.client.requests([named(NAMES)])
        found.client.open(0, OTHERS)
        found.client.wait(OTHERS * NAMES)
        yield found


def change_reaches(rig: Rig, content: int, first: int = 0, count: int = OTHERS) -> None:
    """One change, and all these clients get it."""
    at = rig.ask("change", 0, 1, content)
    deadline = time.monotonic() + 20
    while rig.client.times(first, count, at).clients < count:
        assert time.monotonic() < deadline, "a change did not reach every client"
        time.sleep(0.002)


def settled(rig: Rig) -> dict[str, int]:
    """The clients' counters, once nothing more comes."""
    before: dict[str, int] = {}
    while (now := rig.client.stat()) != before:
        before = now
        time.sleep(0.2)
    return now


def test_many_clients_at_once_get_everything_and_the_others_get_changes_meanwhile(rig: Rig) -> None:
    """F9."""
    rig.client.open(OTHERS, 300)
    for content in range(1, 6):
        change_reaches(rig, content)
    change_reaches(rig, 6, 0, OTHERS + 300)
    stat = settled(rig)
    assert stat["closed"] == 0
    assert stat["resources"] >= (OTHERS + 300) * NAMES


def test_clients_that_read_nothing_cost_no_memory_and_delay_nobody(rig: Rig) -> None:
    """F10: what changes while a client reads nothing is remembered by name, once."""
    rig.client.open(OTHERS, FAULTY)
    rig.client.wait((OTHERS + FAULTY) * NAMES)
    rig.client.set(OTHERS, FAULTY, deaf=True)
    rig.ask("changes", CHANGES, NAMES, 1)
    before = rig.server.rss_bytes
    for burst in range(1, 4):
        rig.ask("changes", CHANGES, NAMES, burst * CHANGES)
        change_reaches(rig, burst)
    assert rig.server.rss_bytes - before < 10 << 20
    settled(rig)
    messages = rig.client.stat()["messages"]
    rig.client.set(OTHERS, FAULTY)
    change_reaches(rig, 9, OTHERS, FAULTY)
    # What waited in the socket, what had changed meanwhile, and the last change.
    assert 2 * FAULTY <= settled(rig)["messages"] - messages - OTHERS <= 4 * FAULTY


def test_clients_whose_machine_is_gone_cost_no_memory_and_delay_nobody(rig: Rig) -> None:
    """F10: half-open TCP; their connections stay until nobody answers a PING, which the benchmark waits for."""
    rig.client.open(OTHERS, FAULTY)
    rig.client.wait((OTHERS + FAULTY) * NAMES)
    change_reaches(rig, 1, 0, OTHERS + FAULTY)
    rig.client.vanish(OTHERS, FAULTY)
    before = rig.server.rss_bytes
    gone_at = time.monotonic()
    for burst in range(1, 4):
        rig.ask("changes", CHANGES, NAMES, burst * CHANGES)
        change_reaches(rig, burst)
    assert rig.server.rss_bytes - before < 10 << 20
    assert rig.client.times(OTHERS, FAULTY, gone_at).clients == 0


def test_clients_that_read_a_byte_at_a_time_delay_nobody_and_get_what_is_sent(rig: Rig) -> None:
    """F10."""
    rig.client.open(OTHERS, FAULTY)
    rig.client.wait((OTHERS + FAULTY) * NAMES)
    rig.client.set(OTHERS, FAULTY, deaf=True)
    at = rig.ask("change", 0, 1, 1)
    change_reaches(rig, 2)
    assert rig.client.times(OTHERS, FAULTY, at).clients == 0
    deadline = time.monotonic() + 20
    while rig.client.times(OTHERS, FAULTY, at).clients < FAULTY:
        assert time.monotonic() < deadline, "a byte at a time never made a message"
        rig.client.sip(OTHERS, FAULTY)


def test_a_stopped_process_delays_nobody_and_has_the_newest_when_it_goes_on(rig: Rig) -> None:
    """F10."""
    with LoadClient(rig.address) as stopped:
        stopped.requests([named(NAMES)])
        stopped.open(0, FAULTY)
        stopped.wait(FAULTY * NAMES)
        os.kill(stopped.pid, signal.SIGSTOP)
        try:
            rig.ask("changes", CHANGES, NAMES, 1)
            change_reaches(rig, 1)
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
        stopped.wait(2 * FAULTY * NAMES)
        stat = stopped.stat()
        assert stat["closed"] == 0
        assert stat["messages"] <= 5 * FAULTY


@pytest.mark.parametrize("answer", [Answer.NACK, Answer.FLIP, Answer.STALE])
def test_what_was_refused_is_not_sent_again_and_the_others_are_served(rig: Rig, answer: Answer) -> None:
    """F11: each content once, however it is refused; a long reason is not kept."""
    rig.client.refusal(b"x" * (1 << 20) if answer is Answer.NACK else b"no")
    rig.client.open(OTHERS, FAULTY)
    rig.client.wait((OTHERS + FAULTY) * NAMES)
    rig.client.set(OTHERS, FAULTY, answer)
    messages = settled(rig)["messages"]
    for content in range(1, 6):
        # Who refuses by a nonce that never was has one response open, and is sent nothing more of the type.
        change_reaches(rig, content, 0, OTHERS if answer is Answer.STALE and content > 1 else OTHERS + FAULTY)
    stat = settled(rig)
    expected = OTHERS * 5 + FAULTY * (1 if answer is Answer.STALE else 5)
    assert (stat["messages"] - messages, stat["closed"]) == (expected, 0)
    assert rig.log_lines() < 60


@pytest.mark.parametrize("kind", ["grpcio", "fast"])
@pytest.mark.parametrize("module", [None, KEEPING])
def test_refusals_of_a_megabyte_are_not_kept(kind: str, module: str | None) -> None:
    """F11, I8: neither by the server nor as freed memory that its process holds. One that keeps them shows in this."""
    with started(kind, endpoint_sets=NAMES, **({"module": module} if module else {})) as rig:
        rig.client.requests([named(NAMES)])
        rig.client.open(0, REFUSING)
        rig.client.wait(REFUSING * NAMES)
        rig.client.set(0, REFUSING, Answer.NACK)
        change_reaches(rig, 1, 0, REFUSING)
        before = rig.server.rss_bytes
        rig.client.refusal(b"x" * MEGABYTE)
        answered = rig.ask("answers")
        for content in range(2, 4):
            change_reaches(rig, content, 0, REFUSING)
        rig.ask("answered", answered + 2 * REFUSING)
        allowed = before + KEPT_MB[kind] * MEGABYTE
        deadline = time.monotonic() + 8  # freed memory is given back a little later
        while rig.server.rss_bytes > allowed and time.monotonic() < deadline:
            time.sleep(0.05)
        grown = rig.server.rss_bytes - before
        assert (before + grown <= allowed) == (module is None), f"{grown >> 20} MB"
