"""How long changes take to reach clients: paced ones, at one server and in turn at a calm one beside it.

In: a rig with clients. Out: medians of the p99 of many changes. Used by the benchmark of faults. Waits for conditions,
each with a deadline, never for a time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from tests.bench.load.client import Times
from tests.bench.load.rig import Rig

PACED = 40
_PAUSE_S = 0.01
_IDLE_WINDOW_S, _IDLE_SHARE = 0.1, 0.05

Figures = dict[str, float]


class Changes:
    """Single changes, one after the other, each a new content of one of the first `names` endpoints."""

    def __init__(self, rig: Rig, names: int) -> None:
        self._rig = rig
        self._names = names
        self._count = 0

    def make(self) -> float:
        """One change; returns when it was made."""
        self._count += 1
        at: float = self._rig.ask("change", self._count % self._names, 1, self._count)
        return at

    def until_received(self, first: int, count: int, at: float, timeout_s: float = 60.0) -> Times:
        """Until each of these clients has got something since that moment."""
        found = self._rig.client.times(first, count, at)
        deadline = time.monotonic() + timeout_s
        while found.clients < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{count - found.clients} of {count} clients did not get the change")
            time.sleep(0.001)
            found = self._rig.client.times(first, count, at)
        return found

    def p99s(self, first: int, count: int, changes: int = PACED) -> list[float]:
        """The p99 of these clients in seconds, for changes that each wait for the one before."""
        found = []
        for _ in range(changes):
            found.append(self.until_received(first, count, self.make()).p99)
            time.sleep(_PAUSE_S)
        return found


class Others:
    """The delays of clients without a fault, at the server that has faulty ones too and at the calm one."""

    def __init__(self, here: Changes, calm: Changes, clients: int) -> None:
        self._here, self._calm, self._clients = here, calm, clients
        self._found: list[tuple[float, float]] = []

    def measure(self) -> None:
        """PACED changes at each, in turn."""
        for _ in range(PACED):
            here, calm = (each.until_received(0, self._clients, each.make()).p99 for each in (self._here, self._calm))
            self._found.append((here, calm))
            time.sleep(_PAUSE_S)

    def figures(self) -> Figures:
        """The medians of the p99."""
        here, calm = zip(*self._found, strict=True)
        return compared(here, calm)


def compared(here: Sequence[float], calm: Sequence[float]) -> Figures:
    """Medians of both in milliseconds, the first by the second, and the worst of the first."""
    found, beside = statistics.median(here) * 1e3, statistics.median(calm) * 1e3
    return {
        "others_p99_ms": found,
        "calm_p99_ms": beside,
        "others_p99_ratio": found / beside,
        "others_worst_ms": max(here) * 1e3,
    }


def until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Poll a condition until it holds. Raises: TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.01)


def until_unsettled(rig: Rig, streams: int) -> None:
    """Until no more streams than these have something to send, or wait for an answer."""
    until(lambda: rig.ask("unsettled") <= streams, f"only {streams} streams have something to send, or wait for an ACK")


def until_idle(rig: Rig) -> None:
    """Until the server neither runs nor waits for a processor for a while: what was written has left."""

    def is_idle() -> bool:
        before = rig.server.cpu_s + rig.server.waited_s
        time.sleep(_IDLE_WINDOW_S)
        return rig.server.cpu_s + rig.server.waited_s - before < _IDLE_WINDOW_S * _IDLE_SHARE

    until(is_idle, "the server has nothing to do")
