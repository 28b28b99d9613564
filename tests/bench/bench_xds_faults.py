"""Faults F9 to F11 of the reliability specification against the running server: what the others notice, what it costs.

Reconnects of a thousand clients at once, clients that read nothing or are stopped as processes, clients that refuse
what they are sent. Repeated on both transports; each figure stands beside the specification's.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.bench.load.client import Answer
from tests.bench.load.rig import Rig, all_clusters, named, started
from tests.bench.machine import describe

NAMES = 100
OLD, NEW = 100, 1000
OTHERS, FAULTY = 100, 100
CHANGES = 10_000
PACED = 40
PACE_S = 0.1
QUIET_S = 5.0
REPEATS = 3
KINDS = ("grpcio", "fast")

Figures = dict[str, float]

TARGETS: dict[str, Figures] = {
    "reconnects": {"all_synced_s": 15, "others_p99_ms": 1000},
    "no_reading": {"rss_mb": 25, "others_p99_ratio": 1.2, "streams_lost": 0},
    "no_reading_at_first_sync": {"others_p99_ratio": 1.2},
    "stopped_processes": {"rss_mb": 25, "others_p99_ratio": 1.2, "streams_lost": 0},
    "refusals": {"resent_while_quiet": 0, "log_lines_per_s": 1},
    "refusals_in_turn": {"resent_while_quiet": 0, "log_lines_per_s": 1},
    "refusals_of_a_megabyte": {"resent_while_quiet": 0, "log_lines_per_s": 1},
    "refusals_of_no_response": {"resent_while_quiet": 0, "log_lines_per_s": 1},
}


class Changes:
    """Single changes, one after the other, each a new content of one of the names."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._count = 0

    def make(self) -> float:
        """One change; returns when it was made."""
        self._count += 1
        at: float = self._rig.ask("change", self._count % NAMES, 1, self._count)
        return at

    def until_received(self, first: int, count: int, at: float, timeout_s: float = 60.0) -> Sequence[float]:
        """p50, p99 and max of the seconds until each of these clients had the change of that moment."""
        deadline = time.monotonic() + timeout_s
        while True:
            times = self._rig.client.times(first, count, at)
            if times.clients == count:
                return times.p50, times.p99, times.max
            if time.monotonic() > deadline:
                raise TimeoutError(f"{count - times.clients} of {count} clients did not get the change")
            time.sleep(0.001)

    def p99_ms(self, first: int, count: int) -> float:
        """The p99 of these clients, the median of some changes that each wait for the one before."""
        found = []
        for _ in range(PACED):
            found.append(self.until_received(first, count, self.make())[1])
            time.sleep(0.01)
        return statistics.median(found) * 1e3


def reconnects(kind: str) -> Figures:
    """F9: NEW clients come at once and know nothing; OLD ones, of a process of their own, get changes meanwhile."""
    with started(kind, endpoint_sets=NAMES) as rig, rig.more_clients() as new:
        changes = Changes(rig)
        rig.client.requests([named(NAMES)])
        rig.client.open(0, OLD)
        rig.client.wait(OLD * NAMES)
        before = changes.p99_ms(0, OLD)
        new.requests([named(NAMES)])
        cpu, opened_at = rig.cpu(), time.monotonic()
        new.open(OLD, NEW)
        worst = []
        while True:
            at = changes.make()
            worst.append(changes.until_received(0, OLD, at)[1])
            if time.monotonic() > opened_at + 60:
                raise TimeoutError(f"not all clients got through: {new.stat()}")
            time.sleep(PACE_S)
            times = new.times(OLD, NEW, at)
            if times.clients == NEW:
                break
        return {
            "all_synced_s": at + times.max - opened_at,
            "others_p99_ms": max(worst) * 1e3,
            "others_p99_ms_median": statistics.median(worst) * 1e3,
            "others_p99_ms_before": before,
            "changes_meanwhile": len(worst),
            "cpu_ms_per_stream": rig.cost_since(cpu).server_s * 1e3 / NEW,
            "streams_lost": rig.client.stat()["closed"] + new.stat()["closed"],
        }


def no_reading(kind: str) -> Figures:
    """F10: FAULTY of the clients stop to read; then CHANGES changes."""
    with started(kind, endpoint_sets=NAMES) as rig:
        _connect(rig)
        return _while_silent(rig, lambda: rig.client.set(OTHERS, FAULTY, deaf=True))


def no_reading_at_first_sync(kind: str) -> Figures:
    """F10: FAULTY clients connect, ask for everything (30 MB in pages) and never read a byte of it."""
    resources = 5000
    with started(kind, clusters=resources, endpoint_sets=resources) as rig:
        rig.client.requests([named(NAMES)])
        rig.client.open(0, OTHERS)
        rig.client.wait(OTHERS * NAMES)
        changes = Changes(rig)
        before, rss = changes.p99_ms(0, OTHERS), rig.server.rss_bytes
        rig.client.requests([all_clusters()], follow=True)
        rig.client.open(OTHERS, FAULTY)
        rig.client.set(OTHERS, FAULTY, deaf=True)
        time.sleep(2.0)
        after = changes.p99_ms(0, OTHERS)
        return {
            "rss_kb_per_deaf_stream": (rig.server.rss_bytes - rss) / 1024 / FAULTY,
            "others_p99_ms": after,
            "others_p99_ratio": after / before,
        }


def stopped_processes(kind: str) -> Figures:
    """F10: the process of FAULTY clients is stopped, and goes on after CHANGES changes."""
    with started(kind, endpoint_sets=NAMES) as rig:
        rig.client.requests([named(NAMES)])
        rig.client.open(0, OTHERS)
        rig.client.wait(OTHERS * NAMES)
        with rig.more_clients() as stopped:
            stopped.requests([named(NAMES)])
            stopped.open(0, FAULTY)
            stopped.wait(FAULTY * NAMES)
            received = 0

            def stop() -> None:
                nonlocal received
                received = stopped.stat()["resources"]
                os.kill(stopped.pid, signal.SIGSTOP)

            figures = _while_silent(rig, stop)
            at = time.monotonic()
            os.kill(stopped.pid, signal.SIGCONT)
            while stopped.stat()["resources"] < received + FAULTY * NAMES:  # every name has changed
                if time.monotonic() - at > 60:
                    raise TimeoutError("clients that were stopped did not catch up")
                time.sleep(0.001)
            return {**figures, "caught_up_ms": (time.monotonic() - at) * 1e3, "woken_lost": stopped.stat()["closed"]}


def _while_silent(rig: Rig, silence: Callable[[], None]) -> Figures:
    """Memory and the others' latency while FAULTY clients take nothing."""
    changes = Changes(rig)
    before = changes.p99_ms(0, OTHERS)
    rig.ask("changes", 500, NAMES, 10**6)  # what a burst costs the others is not the fault's
    silence()
    changes.p99_ms(0, OTHERS)
    rss = rig.server.rss_bytes
    rig.ask("changes", CHANGES, NAMES, 2 * 10**6)
    time.sleep(0.5)
    after_burst = rig.server.rss_bytes
    after = changes.p99_ms(0, OTHERS)
    return {
        "rss_mb": (after_burst - rss) / 2**20,
        "others_p99_ms": after,
        "others_p99_ratio": after / before,
        "streams_lost": rig.client.stat()["closed"],
    }


def _refusing(answer: Answer, text: bytes = b"refused\nby a test") -> Callable[[str], Figures]:
    def measure(kind: str) -> Figures:
        with started(kind, endpoint_sets=NAMES) as rig:
            _connect(rig)
            changes = Changes(rig)
            before = changes.p99_ms(0, OTHERS)
            rig.client.refusal(text)
            rig.client.set(OTHERS, FAULTY, answer)
            logged, cpu, started_at = rig.log_lines(), rig.cpu(), time.monotonic()
            after = changes.p99_ms(0, OTHERS)
            time.sleep(1.0)
            sent, rss = rig.client.stat()["messages"], rig.server.rss_bytes
            time.sleep(QUIET_S)
            seconds = time.monotonic() - started_at
            return {
                "resent_while_quiet": rig.client.stat()["messages"] - sent,
                "log_lines_per_s": (rig.log_lines() - logged) / seconds,
                "others_p99_ms": after,
                "others_p99_ratio": after / before,
                "cpu_share": rig.cost_since(cpu).server_s / seconds,
                "rss_mb": rss / 2**20,
                "streams_lost": rig.client.stat()["closed"],
            }

    return measure


def _connect(rig: Rig) -> None:
    rig.client.requests([named(NAMES)])
    rig.client.open(0, OTHERS + FAULTY)
    rig.client.wait((OTHERS + FAULTY) * NAMES)


FAULTS: dict[str, Callable[[str], Figures]] = {
    "reconnects": reconnects,
    "no_reading": no_reading,
    "no_reading_at_first_sync": no_reading_at_first_sync,
    "stopped_processes": stopped_processes,
    "refusals": _refusing(Answer.NACK),
    "refusals_in_turn": _refusing(Answer.FLIP),
    "refusals_of_a_megabyte": _refusing(Answer.NACK, b"x" * (1 << 20)),
    "refusals_of_no_response": _refusing(Answer.STALE),
}


def measure(name: str, kind: str, repeats: int) -> dict[str, Any]:
    """One fault on one transport: the median of each figure, every run, and what the specification asks for."""
    runs = [FAULTS[name](kind) for _ in range(repeats)]
    row: dict[str, Any] = {}
    for key in runs[0]:
        values = [float(f"{figures[key]:.3g}") for figures in runs]
        row[key] = {"value": statistics.median(values), "runs": values}
        if key in TARGETS[name]:
            row[key]["target"] = TARGETS[name][key]
    return row


def run() -> dict[str, Any]:
    """The figures as one JSON-able value."""
    rows = {name: {kind: measure(name, kind, REPEATS) for kind in KINDS} for name in FAULTS}
    return {"machine": describe(), "load_average": os.getloadavg(), "repeats": REPEATS, "rows": rows}
