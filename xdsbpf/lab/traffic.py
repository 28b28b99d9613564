"""What the lab's client does: HTTP requests, connection probes, an echo; and the counts it returns.

Input: a target and how much of it. Output: summaries for JSON. Called by `client` inside a pod. Times are
CLOCK_MONOTONIC seconds, which all processes of the machine share: they compare with the time of a fault.
"""

from __future__ import annotations

import asyncio
import enum
import math
import socket
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from xdsbpf.lab.exchange import Closed, Connection, dial, failure_name, resolve
from xdsbpf.lab.http1 import BadMessage, Message

MAX_EVENTS = 200


class Target(msgspec.Struct, frozen=True):
    """An HTTP request to repeat; `timeout` and `interval` in seconds."""

    host: str
    port: int
    path: str
    headers: tuple[tuple[str, str], ...]
    timeout: float = 15.0
    keep_alive: bool = False
    interval: float = 0.0


class Until(enum.StrEnum):
    """How far a probe must come to count as connected: the handshake, a byte from the server, an HTTP 2xx."""

    CONNECT = "connect"
    BYTE = "byte"
    HTTP = "http"


class Probe(msgspec.Struct, frozen=True):
    """Connections to open, one every `interval` seconds whatever became of the last; 0 is no limit."""

    address: tuple[str, int]
    count: int = 0
    interval: float = 0.005
    timeout: float = 1.0
    until: Until = Until.CONNECT


class _Counts:
    """Tally of a run: answers by who gave them, failures by name, and their times."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[int, str, str, str]] = Counter()
        self.errors: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.failures: list[dict[str, Any]] = []
        self.connections = 0

    def fail(self, name: str) -> None:
        self.errors[name] += 1
        if len(self.failures) < MAX_EVENTS:
            self.failures.append({"at": time.monotonic(), "what": name})

    def answer(self, message: Message, seconds: float) -> None:
        self.latencies.append(seconds)
        self.answers[_who(message)] += 1
        if message.status >= 400 and len(self.failures) < MAX_EVENTS:
            self.failures.append({"at": time.monotonic(), "what": str(message.status)})

    def summary(self) -> dict[str, Any]:
        keys = ("status", "service", "version", "pod")
        return {
            "requests": self.answers.total() + self.errors.total(),
            "connections": self.connections,
            "by": [dict(zip(keys, who, strict=True)) | {"count": n} for who, n in sorted(self.answers.items())],
            "errors": dict(sorted(self.errors.items())),
            "failures": self.failures,
            "latency_ms": _percentiles(self.latencies),
        }


async def send(target: Target, concurrency: int, total: int | None, stop: asyncio.Event) -> dict[str, Any]:
    """Send `total` requests (None: until `stop`) from `concurrency` workers.

    Returns: requests, connections, by [{status, service, version, pod, count}], errors by name, failures
    [{at, what}] (the first 200 errors and statuses from 400), latency_ms {p50, p99, max} of answers.
    Raises: OSError when the name is unknown.
    """
    counts, address = _Counts(), await resolve(target.host, target.port)
    tickets = iter(range(total)) if total is not None else count()
    workers = (_work(target, address, tickets, stop, counts) for _ in range(max(concurrency, 1)))
    await asyncio.gather(*workers)
    return counts.summary()


async def _work(target: Target, address: tuple[str, int], tickets: Any, stop: asyncio.Event, counts: _Counts) -> None:
    """One worker: a request per ticket, on a new connection unless the last one can be kept."""
    connection: Connection | None = None
    headers = target.headers if target.keep_alive else (*target.headers, ("connection", "close"))
    while not stop.is_set() and next(tickets, None) is not None:
        begun, keep = time.monotonic(), False
        try:
            async with asyncio.timeout(target.timeout):
                if connection is None:
                    connection = await Connection.open(address)
                    counts.connections += 1
                message = await connection.request("GET", target.path, headers)
        except (OSError, Closed, BadMessage) as error:
            counts.fail(failure_name(error))
        else:
            counts.answer(message, time.monotonic() - begun)
            keep = target.keep_alive and message.keep_alive
        if connection is not None and not keep:
            connection.close()
            connection = None
        if target.interval:
            await asyncio.sleep(target.interval)
    if connection is not None:
        connection.close()


async def probe(plan: Probe, stop: asyncio.Event, log: Path | None = None) -> dict[str, Any]:
    """Open connections at a steady pace: `connected`, an errno name, TIMEOUT, CLOSED or HTTP_<status>.

    Returns: probes, outcomes by name, latency_ms, changes [{at, outcome}] whenever the outcome differs from
    that of the probe begun before it. `log` gets {"at", "ms", "outcome"} per probe, in the order they ended.
    """
    address = await resolve(*plan.address)
    results: list[tuple[float, float, str]] = []
    running: set[asyncio.Task[None]] = set()
    numbers = iter(range(plan.count)) if plan.count else count()
    due = time.monotonic()
    with (log or Path("/dev/null")).open("a", buffering=1) as file:

        async def one() -> None:
            begun = time.monotonic()
            outcome = await _try(address, plan)
            result = (begun, (time.monotonic() - begun) * 1000, outcome)
            results.append(result)
            record = dict(zip(("at", "ms", "outcome"), result, strict=True))
            file.write(msgspec.json.encode(record).decode() + "\n")

        while not stop.is_set() and next(numbers, None) is not None:
            task = asyncio.create_task(one())
            running.add(task)
            task.add_done_callback(running.discard)
            due += plan.interval
            await asyncio.sleep(max(due - time.monotonic(), 0))
        await asyncio.gather(*running)
    results.sort()
    changes = [
        {"at": at, "outcome": outcome}
        for index, (at, _, outcome) in enumerate(results)
        if index == 0 or results[index - 1][2] != outcome
    ]
    return {
        "probes": len(results),
        "outcomes": dict(sorted(Counter(outcome for _, _, outcome in results).items())),
        "latency_ms": _percentiles([ms / 1000 for _, ms, _ in results]),
        "changes": changes[:MAX_EVENTS],
    }


async def _try(address: tuple[str, int], plan: Probe) -> str:
    sock: socket.socket | None = None
    try:
        async with asyncio.timeout(plan.timeout):
            sock = await dial(address)
            if plan.until is Until.BYTE:
                return "connected" if await asyncio.get_running_loop().sock_recv(sock, 1) else "CLOSED"
            if plan.until is Until.HTTP:
                host = f"{plan.address[0]}:{plan.address[1]}"
                answer = await Connection(sock).request("GET", "/", (("host", host),))
                return "connected" if 200 <= answer.status < 300 else f"HTTP_{answer.status}"
            return "connected"
    except (OSError, Closed, BadMessage) as error:
        return failure_name(error)
    finally:
        if sock is not None:
            sock.close()


async def echo(address: tuple[str, int], size: int, timeout: float) -> dict[str, Any]:
    """Connect, read the greeting, send `size` bytes and read them back.

    Returns: greeting, echoed (bytes), error (a name, or ""), peer; what was received before an error counts.
    """
    received, outcome, peer = bytearray(), "", ""
    loop = asyncio.get_running_loop()
    sock: socket.socket | None = None
    try:
        async with asyncio.timeout(timeout):
            sock = await dial(await resolve(*address))
            peer = "{}:{}".format(*sock.getpeername()[:2])
            while b"\n" not in received:
                received += await _some(sock, loop, len(received))
            await loop.sock_sendall(sock, b"x" * size)
            while len(received) - received.index(b"\n") - 1 < size:
                received += await _some(sock, loop, len(received))
    except (OSError, Closed) as error:
        outcome = failure_name(error)
    finally:
        if sock is not None:
            sock.close()
    greeting, newline, rest = bytes(received).partition(b"\n")
    return {
        "greeting": greeting.decode("utf-8", "replace"),
        "echoed": len(rest) if newline else 0,
        "error": outcome,
        "peer": peer,
    }


async def _some(sock: socket.socket, loop: asyncio.AbstractEventLoop, received: int) -> bytes:
    data = await loop.sock_recv(sock, 65536)
    if not data:
        raise Closed(received)
    return data


def _who(message: Message) -> tuple[int, str, str, str]:
    """(status, service, version, pod) of an answer; empty names when a proxy answered."""
    try:
        document = msgspec.json.decode(message.body)
    except msgspec.DecodeError:
        document = None
    if not isinstance(document, dict):
        return message.status, "", "", ""
    service, version, pod = (str(document.get(key, "")) for key in ("service", "version", "pod"))
    return message.status, service, version, pod


def _percentiles(seconds: list[float]) -> dict[str, float]:
    """p50, p99 and max in milliseconds (nearest rank); zeros when there is nothing."""
    ranked = sorted(seconds)
    if not ranked:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}

    def rank(share: float) -> float:
        return round(ranked[max(math.ceil(share * len(ranked)) - 1, 0)] * 1000, 3)

    return {"p50": rank(0.5), "p99": rank(0.99), "max": rank(1.0)}
