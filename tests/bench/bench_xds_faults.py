"""Faults F9 to F11 of the reliability specification against the running server: what the others notice, what it costs.

Reconnects of a thousand clients at once, clients that read nothing, read a byte a second, are stopped as processes or
vanish, clients that refuse what they are sent. On both transports; each figure stands beside the specification's.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.bench.load.client import Answer, LoadClient
from tests.bench.load.rig import Rig, all_clusters, named, started
from tests.bench.machine import describe

NAMES = 100
OLD, NEW = 100, 1000
OTHERS, FAULTY = 100, 100
SYNCED = 5_000
CHANGES = 10_000
PACED = 40
PACE_S = 0.1
QUIET_S = 5.0
REPEATS = 3
KINDS = ("grpcio", "fast")
OVER_TLS = ("grpcio-tls", "fast-tls")
LONG = {"a_byte_a_second", "vanished"}
"""Faults that are over when the server lets go of the client, which takes most of a minute: once each."""
CUT_S = 90.0
LIMIT_S, RETRY_S = 60.0, 5.0

Figures = dict[str, float]

TARGETS: dict[str, Figures] = {
    "reconnects": {"all_synced_s": 15, "others_p99_ms": 1000},
    "no_reading": {"rss_mb": 25, "others_p99_ratio": 1.2, "streams_lost": 0},
    "no_reading_at_first_sync": {"others_p99_ratio": 1.2},
    "a_byte_a_second": {"rss_mb": 25, "others_p99_ratio": 1.2, "cut_after_s": 75, "others_lost": 0},
    "vanished": {"rss_mb": 25, "others_p99_ratio": 1.2, "cut_after_s": 45, "others_lost": 0},
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
        delays, retry_at = [], opened_at + RETRY_S
        while True:
            waited, at = rig.server.waited_s, changes.make()
            delays.append((changes.until_received(0, OLD, at)[1], rig.server.waited_s - waited))
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
    kind: str, endpoint_sets: int = NAMES, clusters: int = 0, calm_clients: int = OTHERS + FAULTY
) -> Iterator[tuple[Rig, Others]]:
    """A server, and beside it another one whose clients are all well: the others' delays are those of both in turn.

    A neighbour on this machine slows both alike; before and after, one measured a quieter minute than the other.
    """
    with (
        started(kind, endpoint_sets=endpoint_sets, clusters=clusters) as rig,
        started(kind, endpoint_sets=endpoint_sets, clusters=clusters) as calm,
    ):
        for each, clients in ((rig, OTHERS), (calm, calm_clients)):
            each.client.requests([named(NAMES)])
            each.client.open(0, clients)
            each.client.wait(clients * NAMES)
        yield rig, Others(Changes(rig), Changes(calm))


class Others:
    """The delays of clients without a fault, at the server that has faulty ones too and at the calm one."""

    def __init__(self, here: Changes, calm: Changes) -> None:
        self._here, self._calm = here, calm
        self._found: list[tuple[float, float]] = []

    def measure(self) -> None:
        """PACED changes at each, in turn."""
        for _ in range(PACED):
            here, calm = (each.until_received(0, OTHERS, each.make())[1] for each in (self._here, self._calm))
            self._found.append((here, calm))
            time.sleep(0.01)

    def figures(self) -> Figures:
        """The medians of the p99."""
        here, calm = (statistics.median(values) * 1e3 for values in zip(*self._found, strict=True))
        return {"others_p99_ms": here, "calm_p99_ms": calm, "others_p99_ratio": here / calm}


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
        time.sleep(2.0)
        others.measure()
        return {"rss_kb_per_deaf_stream": (rig.server.rss_bytes - rss) / 1024 / FAULTY, **others.figures()}


def a_byte_a_second(kind: str) -> Figures:
    """F10: FAULTY clients are at their first sync (2 MB each), and read about a byte of it a second."""
    with (
        _beside_calm(kind, NAMES, SYNCED, OTHERS) as (rig, others),
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
    with _beside_calm(kind) as (rig, others), rig.more_clients() as gone:
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
        while stopped.stat()["resources"] < received + FAULTY * NAMES:  # every name has changed
            if time.monotonic() - at > 60:
                raise TimeoutError("clients that were stopped did not catch up")
            time.sleep(0.001)
        return {**figures, "caught_up_ms": (time.monotonic() - at) * 1e3, "woken_lost": stopped.stat()["closed"]}


def _while_silent(rig: Rig, others: Others, silence: Callable[[], None]) -> Figures:
    """Memory and the others' latency while FAULTY clients take nothing."""
    rig.ask("changes", 500, NAMES, 10**6)  # what a burst costs the others is not the fault's
    silence()
    others.measure()
    rss = rig.server.rss_bytes
    rig.ask("changes", CHANGES, NAMES, 2 * 10**6)
    time.sleep(0.5)
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
        if time.monotonic() > at + CUT_S:
            raise TimeoutError(f"{rig.ask('streams') - OTHERS} clients are still there after {CUT_S} s")
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


def _settled(clients: LoadClient) -> int:
    """How many messages they have got, once nothing of what was sent before is still on its way."""
    sent, before, deadline = -1, -2, time.monotonic() + 30
    while sent != before:
        if time.monotonic() > deadline:
            raise TimeoutError("clients are sent messages without end")
        before = sent
        time.sleep(1.0)
        sent = clients.stat()["messages"]
    return sent


def _until_streams(rig: Rig, count: int) -> None:
    deadline = time.monotonic() + 30
    while rig.ask("streams") != count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{rig.ask('streams')} streams are open, not {count}")
        time.sleep(0.05)


def _refusing(answer: Answer, text: bytes = b"refused\nby a test") -> Callable[[str], Figures]:
    def measure(kind: str) -> Figures:
        """F11: FAULTY clients, of a process of their own, refuse what they are sent; then nothing changes any more."""
        with started(kind, endpoint_sets=NAMES) as rig, rig.more_clients() as refusing:
            for clients, first, count in ((rig.client, 0, OTHERS), (refusing, OTHERS, FAULTY)):
                clients.requests([named(NAMES)])
                clients.open(first, count)
                clients.wait(count * NAMES)
            changes = Changes(rig)
            before = changes.p99_ms(0, OTHERS)
            refusing.refusal(text)
            refusing.set(OTHERS, FAULTY, answer)
            logged, cpu, started_at = rig.log_lines(), rig.cpu(), time.monotonic()
            after = changes.p99_ms(0, OTHERS)
            sent, rss = _settled(refusing), rig.server.rss_bytes
            time.sleep(QUIET_S)
            seconds = time.monotonic() - started_at
            return {
                "resent_while_quiet": refusing.stat()["messages"] - sent,
                "log_lines_per_s": (rig.log_lines() - logged) / seconds,
                "others_p99_ms": after,
                "others_p99_ratio": after / before,
                "cpu_share": rig.cost_since(cpu).server_s / seconds,
                "rss_mb": rss / 2**20,
                "streams_lost": rig.client.stat()["closed"] + refusing.stat()["closed"],
            }

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
    rows = {}
    for name in FAULTS:
        kinds = KINDS + OVER_TLS if name == "reconnects" else KINDS
        rows[name] = {kind: measure(name, kind, 1 if name in LONG else REPEATS) for kind in kinds}
    return {"machine": describe(), "load_average": os.getloadavg(), "repeats": REPEATS, "rows": rows}
