"""Traffic from inside a pod: `python -m xdsbpf.lab.client MODE …`, run by `lab exec`, the demo and the tests.

    get URL -n 100 -c 8 [-H 'name: value'] [--keepalive]     N requests, then one JSON summary
    load URL --seconds 10 [--stop-file F]                     the same until told to stop
    probe HOST:PORT -n 100 [--until connect|byte|http]        what becomes of connections, each with its time
    tcp HOST:PORT                                             greeting and echo of a server-first port

The summary is one JSON document on stdout; nothing is retried, so every failure is counted once. SIGTERM ends
`load` and `probe` early. Modes only choose what a worker does; `traffic` does it.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop

from xdsbpf.lab.traffic import Probe, Target, Until, echo, probe, send

STOP_POLL = 0.02


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of the command line; argparse because it starts in no time."""
    parser = argparse.ArgumentParser(prog="xdsbpf.lab.client", description="traffic from inside a pod")
    modes = parser.add_subparsers(dest="mode", required=True)
    for mode in ("get", "load"):
        http = modes.add_parser(mode)
        http.add_argument("url")
        http.add_argument("-H", "--header", action="append", default=[], metavar="NAME: VALUE")
        http.add_argument("-c", "--concurrency", type=int, default=1)
        http.add_argument("--timeout", type=float, default=15.0, help="seconds per request")
        http.add_argument("--keepalive", action=argparse.BooleanOptionalAction, default=False)
        http.add_argument("--close", dest="keepalive", action="store_false", help="a connection per request")
        http.add_argument("--interval-ms", type=float, default=0.0, help="pause of a worker between requests")
        if mode == "get":
            http.add_argument("-n", "--requests", type=int, default=1)
        else:
            _add_duration(http)
    connect = modes.add_parser("probe")
    connect.add_argument("address", metavar="HOST:PORT")
    connect.add_argument("-n", "--count", type=int, default=0, help="0: until told to stop")
    connect.add_argument("--interval-ms", type=float, default=5.0)
    connect.add_argument("--timeout", type=float, default=1.0)
    connect.add_argument("--until", choices=[entry.value for entry in Until], default=Until.CONNECT.value)
    connect.add_argument("--log", type=Path, help="file that gets one JSON line per probe")
    _add_duration(connect)
    tcp = modes.add_parser("tcp")
    tcp.add_argument("address", metavar="HOST:PORT")
    tcp.add_argument("--bytes", type=int, default=1000)
    tcp.add_argument("--timeout", type=float, default=4.0)
    return parser.parse_args(arguments)


def _add_duration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=0.0, help="0: until told to stop")
    parser.add_argument("--stop-file", type=Path, help="stop when this file exists")


async def run(options: argparse.Namespace) -> object:
    """Do what the options say and return the summary."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if options.mode == "tcp":
        return await echo(_address(options.address), options.bytes, options.timeout)
    watcher = None
    if options.mode != "get":
        watcher = asyncio.create_task(_watch(options, stop))
    try:
        if options.mode == "probe":
            plan = Probe(
                _address(options.address),
                options.count,
                options.interval_ms / 1000,
                options.timeout,
                Until(options.until),
            )
            return await probe(plan, stop, options.log)
        target = _target(options)
        count = options.requests if options.mode == "get" else None
        return await send(target, options.concurrency, count, stop)
    finally:
        if watcher is not None:
            watcher.cancel()


async def _watch(options: argparse.Namespace, stop: asyncio.Event) -> None:
    """Set `stop` when the time is over or the stop file is there."""
    deadline = time.monotonic() + options.seconds if options.seconds else None
    while not stop.is_set():
        over = deadline is not None and time.monotonic() >= deadline
        if over or (options.stop_file is not None and options.stop_file.exists()):
            stop.set()
        await asyncio.sleep(STOP_POLL)


def _target(options: argparse.Namespace) -> Target:
    url = urlsplit(options.url if "//" in options.url else f"//{options.url}")
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    headers = []
    for text in options.header:
        name, _, value = text.partition(":")
        headers.append((name.strip().lower(), value.strip()))
    if not any(name == "host" for name, _ in headers):
        headers.insert(0, ("host", url.netloc))
    return Target(
        url.hostname or "",
        url.port or 80,
        path,
        tuple(headers),
        options.timeout,
        options.keepalive,
        options.interval_ms / 1000,
    )


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    """Entry point of the client process."""
    summary = uvloop.run(run(parse(sys.argv[1:])))
    sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")


if __name__ == "__main__":
    main()
