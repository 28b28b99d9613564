"""Faults F9 to F11 of the reliability specification against the running server: what the others notice, what it costs.

Reconnects of a thousand clients at once, clients that read nothing, read a byte a second, are stopped as processes or
vanish, clients that refuse what they are sent. On both transports; each figure stands beside the specification's.
What each run took goes to standard error.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.bench.load.client import Answer
from tests.bench.load.delays import Changes, Figures, Others, compared, until, until_idle, until_unsettled
from tests.bench.load.rig import Rig, all_clusters, named, started
from tests.bench.load.short_limits import KEEPALIVE_S, KEEPALIVE_TIMEOUT_S
from tests.bench.machine import describe

NAMES = 100
OLD, NEW = 100, 1000
OTHERS, FAULTY = 100, 100
SYNCED = 5_000
CHANGES = 10_000
PACE_S = 0.1
QUIET_S = 3.0
MOST_RUNS = 3
MARGIN = 0.1
"""A row is run again, up to MOST_RUNS times, while one of its figures is this near its target, or above."""
AGAIN_WITHIN_S = 230.0
"""Nothing is run again later than that, so that all of it takes five minutes at most."""
KINDS = ("grpcio", "fast")
OVER_TLS = ("grpcio-tls", "fast-tls")
LIMIT_S, RETRY_S = 60.0, 5.0
SHORT = "tests.bench.load.short_limits"
SHORTER = {"keepalive_s": KEEPALIVE_S, "keepalive_timeout_s": KEEPALIVE_TIMEOUT_S}
"""By default 30 and 10: the row is about the mechanism, and waits for it. Without it the row fails."""
CUT_WITHIN_S = 15.0
"""With these limits; 45 by default."""

_SLOW: Figures = {"rss_mb": 25, "others_p99_ratio": 1.2}
_REFUSED: Figures = {"resent_while_quiet": 0, "log_lines_per_s": 1, "others_p99_ratio": 1.2, "streams_lost": 0}

TARGETS: dict[str, Figures] = {
    "reconnects": {"all_synced_s": 15, "others_p99_ms": 1000},
    "no_reading": {**_SLOW, "streams_lost": 0},
    "no_reading_at_first_sync": _SLOW,
    "a_byte_a_second": {**_SLOW, "cut_after_s": CUT_WITHIN_S, "others_lost": 0},
    "vanished": {**_SLOW, "cut_after_s": CUT_WITHIN_S, "others_lost": 0},
    "stopped_processes": {**_SLOW, "streams_lost": 0},
    "refusals": _REFUSED,
    "refusals_in_turn": _REFUSED,
    "refusals_of_a_megabyte": _REFUSED,
    "refusals_of_no_response": _REFUSED,
}
LIMITS: dict[str, dict[str, float]] = {"a_byte_a_second": SHORTER, "vanished": SHORTER}
"""Of the server, where they are not the default ones."""


def reconnects(kind: str) -> Figures:
    """F9: NEW clients come at once and know nothing; OLD ones, of a process of their own, get changes meanwhile."""
    with started(kind, endpoint_sets=NAMES) as rig, rig.more_clients() as new:
        changes = Changes(rig, NAMES)
        rig.client.requests([named(NAMES)])
        rig.client.open(0, OLD)
        rig.client.wait(OLD * NAMES)
        before = statistics.median(changes.p99s(0, OLD)) * 1e3
        new.requests([named(NAMES)])
        cpu, opened_at = rig.cpu(), time.monotonic()
        new.open(OLD, NEW)
        delays, retry_at = [], opened_at + RETRY_S
        while True:
            waited, at = rig.server.waited_s, changes.make()
            delays.append((changes.until_received(0, OLD, at).p99, rig.server.waited_s - waited))
            if time.monotonic() > opened_at + LIMIT_S:
                raise TimeoutError(f"not all clients got through: {new.stat()}")
            time.sleep(PACE_S)
            if time.monotonic() > retry_at:
                new.reopen(OLD, NEW)
                retry_at += RETRY_S
            # The new ones are busy with their handshakes: what they say can wait until the server has them all.
            if rig.ask("streams") == OLD + NEW and (times := new.times(OLD, NEW, at)).clients == NEW:
                break
        return {
            "all_synced_s": at + times.max - opened_at,
            "others_p99_ms": max(delays)[0] * 1e3,
            "of_it_server_without_processor_ms": max(delays)[1] * 1e3,
            "others_p99_ms_median": statistics.median(delay for delay, _ in delays) * 1e3,
            "others_p99_ms_before": before,
            "changes_meanwhile": len(delays),
            "cpu_ms_per_stream": rig.cost_since(cpu).server_s * 1e3 / NEW,
            "streams_lost": rig.client.stat()["closed"] + new.stat()["closed"],
        }


@contextmanager
def _beside_calm(
    kind: str,
    endpoint_sets: int = NAMES,
    clusters: int = 0,
    calm_clients: int = OTHERS + FAULTY,
    module: str | None = None,
) -> Iterator[tuple[Rig, Others]]:
    """A server, and beside it another one whose clients are all well: the others' delays are those of both in turn.

    A neighbour on this machine slows both alike; before and after, one measured a quieter minute than the other.
    """
    held: dict[str, Any] = {"endpoint_sets": endpoint_sets, "clusters": clusters}
    with started(kind, **held, **({"module": module} if module else {})) as rig, started(kind, **held) as calm:
        for each, clients in ((rig, OTHERS), (calm, calm_clients)):
            each.client.requests([named(NAMES)])
            each.client.open(0, clients)
            each.client.wait(clients * NAMES)
        yield rig, Others(Changes(rig, NAMES), Changes(calm, NAMES), OTHERS)


def no_reading(kind: str) -> Figures:
    """F10: FAULTY of the clients stop to read; then CHANGES changes."""
    with _beside_calm(kind) as (rig, others):
        rig.client.open(OTHERS, FAULTY)
        rig.client.wait((OTHERS + FAULTY) * NAMES)
        return _while_silent(rig, others, lambda: rig.client.set(OTHERS, FAULTY, deaf=True))


def no_reading_at_first_sync(kind: str) -> Figures:
    """F10: FAULTY clients connect, ask for everything (3 MB in pages) and never read a byte of it."""
    with _beside_calm(kind, SYNCED, SYNCED, OTHERS) as (rig, others):
        rss = rig.server.rss_bytes
        rig.client.requests([all_clusters()], follow=True)
        rig.client.open(OTHERS, FAULTY)
        rig.client.set(OTHERS, FAULTY, deaf=True)
        _until_streams(rig, OTHERS + FAULTY)
        until(lambda: rig.ask("unsettled") == FAULTY, "each of them has a page on its way")
        until_idle(rig)
        others.measure()
        return {"rss_mb": (rig.server.rss_bytes - rss) / 2**20, **others.figures()}


def a_byte_a_second(kind: str) -> Figures:
    """F10: FAULTY clients are at their first sync (2 MB each), and read about a byte of it a second."""
    with (
        _beside_calm(kind, NAMES, SYNCED, OTHERS, SHORT) as (rig, others),
        rig.more_clients() as slow,
        rig.more_clients() as readers,
    ):
        rss = rig.server.rss_bytes
        for each in (readers, slow):
            each.requests([all_clusters()])
        readers.open(OTHERS, FAULTY)
        readers.wait(FAULTY * SYNCED)
        held = rig.server.rss_bytes - rss
        readers.close(OTHERS, FAULTY)
        _until_streams(rig, OTHERS)
        rss = rig.server.rss_bytes
        slow.open(OTHERS, FAULTY)
        slow.set(OTHERS, FAULTY, deaf=True)
        _until_streams(rig, OTHERS + FAULTY)
        figures = _until_cut(rig, others, rss, lambda: slow.sip(OTHERS, FAULTY))
        return {**figures, "rss_mb_of_as_many_that_read": held / 2**20}


def vanished(kind: str) -> Figures:
    """F10: FAULTY clients' machines are gone, without a FIN: nothing is acknowledged any more (half-open TCP)."""
    with _beside_calm(kind, module=SHORT) as (rig, others), rig.more_clients() as gone:
        gone.requests([named(NAMES)])
        gone.open(OTHERS, FAULTY)
        gone.wait(FAULTY * NAMES)
        rss = rig.server.rss_bytes
        gone.vanish(OTHERS, FAULTY)
        return _until_cut(rig, others, rss, lambda: None)


def stopped_processes(kind: str) -> Figures:
    """F10: the process of FAULTY clients is stopped, and goes on after CHANGES changes."""
    with _beside_calm(kind) as (rig, others), rig.more_clients() as stopped:
        stopped.requests([named(NAMES)])
        stopped.open(OTHERS, FAULTY)
        stopped.wait(FAULTY * NAMES)
        received = 0

        def stop() -> None:
            nonlocal received
            received = stopped.stat()["resources"]
            os.kill(stopped.pid, signal.SIGSTOP)

        figures = _while_silent(rig, others, stop)
        at = time.monotonic()
        os.kill(stopped.pid, signal.SIGCONT)
        # Every name has changed.
        until(lambda: stopped.stat()["resources"] >= received + FAULTY * NAMES, "who was stopped catches up")
        return {**figures, "caught_up_ms": (time.monotonic() - at) * 1e3, "woken_lost": stopped.stat()["closed"]}


def _while_silent(rig: Rig, others: Others, silence: Callable[[], None]) -> Figures:
    """Memory and the others' latency while FAULTY clients take nothing."""
    rig.ask("changes", 500, NAMES, 10**6)  # what a burst costs the others is not the fault's
    silence()
    others.measure()
    rss = rig.server.rss_bytes
    rig.ask("changes", CHANGES, NAMES, 2 * 10**6)
    until_unsettled(rig, FAULTY)
    until_idle(rig)
    after_burst = rig.server.rss_bytes
    others.measure()
    return {
        "rss_mb": (after_burst - rss) / 2**20,
        **others.figures(),
        "streams_lost": rig.client.stat()["closed"],
    }


def _until_cut(rig: Rig, others: Others, rss: int, every_second: Callable[[], None]) -> Figures:
    """The others' latency and the memory until the server has let go of the FAULTY ones."""
    at, most = time.monotonic(), rss
    while rig.ask("streams") > OTHERS:
        if time.monotonic() > at + 2 * CUT_WITHIN_S:
            raise TimeoutError(f"{rig.ask('streams') - OTHERS} clients are still there after {2 * CUT_WITHIN_S} s")
        others.measure()
        most = max(most, rig.server.rss_bytes)
        every_second()
    cut_after_s = time.monotonic() - at
    return {
        "rss_mb": (most - rss) / 2**20,
        **others.figures(),
        "cut_after_s": cut_after_s,
        "others_lost": rig.client.stat()["closed"],
    }


def _until_streams(rig: Rig, count: int) -> None:
    until(lambda: bool(rig.ask("streams") == count), f"{count} streams are open")


def _refusing(answer: Answer, text: bytes = b"refused\nby a test") -> Callable[[str], Figures]:
    def measure(kind: str) -> Figures:
        """F11: FAULTY clients, of a process of their own, refuse what they are sent; then nothing changes any more.

        What is calm is the same clients before and after: a server beside this one would share its processor.
        """
        with started(kind, endpoint_sets=NAMES) as rig, rig.more_clients() as refusing:
            for clients, first, count in ((rig.client, 0, OTHERS), (refusing, OTHERS, FAULTY)):
                clients.requests([named(NAMES)])
                clients.open(first, count)
                clients.wait(count * NAMES)
            changes = Changes(rig, NAMES)
            calm = changes.p99s(0, OTHERS)
            refusing.refusal(text)
            refusing.set(OTHERS, FAULTY, answer)
            logged, cpu, started_at = rig.log_lines(), rig.cpu(), time.monotonic()
            here = changes.p99s(0, OTHERS)
            cpu_share = rig.cost_since(cpu).server_s / (time.monotonic() - started_at)
            most = rig.server.rss_bytes
            # Who refuses a response that never was keeps the server waiting for the answer to the last one.
            until_unsettled(rig, FAULTY if answer is Answer.STALE else 0)
            sent = refusing.stat()["messages"]
            time.sleep(QUIET_S)  # not for something to happen: nothing must
            figures = {
                "resent_while_quiet": refusing.stat()["messages"] - sent,
                "log_lines_per_s": (rig.log_lines() - logged) / (time.monotonic() - started_at),
                "cpu_share": cpu_share,
                "rss_mb": most / 2**20,
                "rss_mb_when_quiet": rig.server.rss_bytes / 2**20,
            }
            if answer is not Answer.STALE:
                refusing.set(OTHERS, FAULTY, Answer.ACK)
                calm += changes.p99s(0, OTHERS)
            lost = rig.client.stat()["closed"] + refusing.stat()["closed"]
            return {**figures, **compared(here, calm), "streams_lost": lost}

    return measure


FAULTS: dict[str, Callable[[str], Figures]] = {
    "reconnects": reconnects,
    "no_reading": no_reading,
    "no_reading_at_first_sync": no_reading_at_first_sync,
    "a_byte_a_second": a_byte_a_second,
    "vanished": vanished,
    "stopped_processes": stopped_processes,
    "refusals": _refusing(Answer.NACK),
    "refusals_in_turn": _refusing(Answer.FLIP),
    "refusals_of_a_megabyte": _refusing(Answer.NACK, b"x" * (1 << 20)),
    "refusals_of_no_response": _refusing(Answer.STALE),
}


def measure(name: str, kind: str, again_until: float) -> dict[str, Any]:
    """One fault on one transport: the median of each figure, every run, and what the specification asks for.

    One run is enough where every figure is clear of its target: see MARGIN.
    """
    runs: list[Figures] = []
    while not runs or (len(runs) < MOST_RUNS and not _is_clear(name, runs) and time.monotonic() < again_until):
        began = time.monotonic()
        runs.append(FAULTS[name](kind))
        sys.stderr.write(f"xds_faults: {name} {kind} {time.monotonic() - began:.1f} s\n")
    row: dict[str, Any] = {"limits": LIMITS[name]} if name in LIMITS else {}
    for key in runs[0]:
        values = [float(f"{figures[key]:.3g}") for figures in runs]
        row[key] = {"value": statistics.median(values), "runs": values}
        if key in TARGETS[name]:
            row[key]["target"] = TARGETS[name][key]
    return row


def _is_clear(name: str, runs: list[Figures]) -> bool:
    """Whether no run has a figure at its target, or near it."""
    return all(run[key] <= target * (1 - MARGIN) for run in runs for key, target in TARGETS[name].items())


def run() -> dict[str, Any]:
    """The figures as one JSON-able value."""
    began, load, rows = time.monotonic(), os.getloadavg(), {}
    for name in FAULTS:
        kinds = KINDS + OVER_TLS if name == "reconnects" else KINDS
        rows[name] = {kind: measure(name, kind, began + AGAIN_WITHIN_S) for kind in kinds}
    took_s = round(time.monotonic() - began)
    return {"machine": describe(), "load_average": load, "took_s": took_s, "most_runs": MOST_RUNS, "rows": rows}
