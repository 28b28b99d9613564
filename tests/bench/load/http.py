"""HTTP servers and clients in C, processes of their own, perhaps inside a pod: driven by lines, timed in nanoseconds.

In: where to listen, whom to ask, and the command that enters a pod. Out: what was served, what failed, and when another
server began to answer, on the monotonic clock, which all processes share. Used by the benchmarks with a real Envoy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Self

import msgspec

from tests.bench.load.processes import Lines
from tests.bench.load.programs import built

Enter = Callable[[Sequence[str]], Sequence[str]]
"""The command that runs a command somewhere else."""
BODY_BYTES = 128


def here(command: Sequence[str]) -> Sequence[str]:
    """In this process's own namespaces."""
    return command


class Served(msgspec.Struct, frozen=True):
    """What a burst of requests came to; the percentiles are of requests, or of connects."""

    served: int
    failed: int
    seconds: float
    p50_us: float
    p99_us: float

    @property
    def per_second(self) -> float:
        return self.served / self.seconds


class Watched(msgspec.Struct, frozen=True):
    """What a steady client saw; `not_connected` by errno, `refused` are answers other than 200."""

    served: int
    connected: int
    unanswered: int
    refused: int
    not_connected: dict[str, int]
    answers: tuple[tuple[float, str], ...] = ()
    """(when, who): each time that the answers began to come from somebody else."""

    @property
    def failed(self) -> int:
        """Whatever was asked for and did not come."""
        return self.unanswered + self.refused + sum(self.not_connected.values())


class Server:
    """Answers every request with its name, padded; `port` 0 takes a free one."""

    def __init__(self, address: str, port: int, name: str, enter: Enter = here) -> None:
        command = [str(built("http_server")), address, str(port), name, str(BODY_BYTES)]
        self._lines = Lines(list(enter(command)))
        self.pid = self._lines.pid
        self.port = int(self._lines.hear(10.0, "listening").split()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and with it every connection; idempotent."""
        self._lines.close()


class Client:
    """Asks one address; one thing at a time."""

    def __init__(self, address: str, port: int, host: str, enter: Enter = here) -> None:
        self._lines = Lines(list(enter([str(built("http_load")), address, str(port), host])))
        self.pid = self._lines.pid
        self._heard: list[tuple[float, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def keep(self, connections: int, seconds: float) -> Served:
        """Requests as fast as they are answered, on connections that are kept."""
        return self._burst(f"keep {connections} {seconds * 1e3:.0f}", seconds + 10.0)

    def connects(self, count: int) -> Served:
        """Connect, ask once, reset, one after the other; the percentiles are of connect(2)."""
        return self._burst(f"connect {count}", 30.0)

    def watch(self, *, is_kept: bool, pause_s: float = 0.0005, timeout_s: float = 2.0) -> None:
        """Begin to ask steadily, on one connection that is kept or on one for each request."""
        self._heard = []
        how = "keep" if is_kept else "short"
        self._lines.say(f"watch {how} {pause_s * 1e6:.0f} {timeout_s * 1e3:.0f}")

    def answered_by(self, name: str, since: float, timeout_s: float = 30.0) -> float:
        """When that server first answered after a moment. Raises: TimeoutError if it does not within `timeout_s`."""
        while True:
            when, who = self._next_answer(timeout_s, name)
            if when >= since and who == name:
                return when

    def stop(self) -> Watched:
        """End the watch: what it saw."""
        self._lines.say("stop")
        while True:
            line = self._lines.hear(30.0, "stop")
            if not line.startswith("answer "):
                found: dict[str, Any] = json.loads(line)
                return msgspec.convert({**found, "answers": self._heard}, Watched)
            self._note(line)

    def _burst(self, command: str, timeout_s: float) -> Served:
        return msgspec.json.decode(self._lines.ask(command, timeout_s), type=Served)

    def _next_answer(self, timeout_s: float, what: str) -> tuple[float, str]:
        return self._note(self._lines.hear(timeout_s, f"an answer of {what}"))

    def _note(self, line: str) -> tuple[float, str]:
        _, when, who = line.split(" ", 2)
        found = int(when) / 1e9, who.rstrip(".")
        self._heard.append(found)
        return found
