"""The server process of a benchmark: the product's server over a store of made-up resources, or a floor below it.

`python -m tests.bench.load.subject KIND [DIRECTORY]`: `grpcio` and `fast` are the product with that transport, as
`xdsbpf serve` runs it; `grpcio-asyncio` the first one on Python's own event loop; `grpcio-tls` and `fast-tls` over
mutual TLS, with the files in that directory. `bare-grpcio` and `bare-sockets` send bytes made beforehand through
grpc.aio and through asyncio's sockets, with no engine at all: what is below them no engine can save.
Reads commands as lines of JSON and answers with lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import structlog
import uvloop

from tests.bench.load.floors import BareGrpc, BareSockets
from tests.bench.load.identities import server_files
from xdsbpf.compile.envoy import names as envoy_names
from xdsbpf.model.names import CLUSTER, ENDPOINTS
from xdsbpf.model.resource import Resource, make_resource
from xdsbpf.serve import spare_collector, view_of
from xdsbpf.xds.access import AccessControl
from xdsbpf.xds.peers import PeerRules
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.store import ResourceStore
from xdsbpf.xds.tls import read_material
from xdsbpf.xds.transports import TRANSPORTS

BODY_BYTES = 256
CHANGES_PER_TURN = 20


def cluster(number: int, content: int = 0) -> Resource:
    return _resource(CLUSTER, number, content)


def endpoints(number: int, content: int = 0) -> Resource:
    return _resource(ENDPOINTS, number, content)


def _resource(type_url: str, number: int, content: int) -> Resource:
    """The engine never looks into a body, so any bytes do; the name is as long as Istio's are."""
    name = f"outbound|80||service-{number:05}.default.svc.cluster.local"
    return make_resource(type_url, name, (b"%08d" % content).ljust(BODY_BYTES, b"x"))


class Subject(Protocol):
    """What the commands need of a server."""

    async def start(self) -> str: ...

    def load(self, clusters: int, endpoint_sets: int) -> None: ...

    def change(self, first: int, count: int, content: int) -> None: ...

    def answers(self) -> int: ...

    def streams(self) -> int: ...

    def unsettled(self) -> int: ...


class Product:
    """The engine as it is shipped, with the views of node Envoys."""

    def __init__(self, transport: str, identities: Path | None = None) -> None:
        """`identities`: see `load.identities`; over mutual TLS, with the rules and the limits that `serve` has."""
        self._store = ResourceStore()
        self._identities = identities
        rules = PeerRules()
        self._server = XdsServer(
            self._store,
            lambda node_id, _: view_of(node_id),
            time.monotonic,
            authorize=rules.authorize,
            access=AccessControl(rules, {}, time.monotonic),
            transport=TRANSPORTS[transport],
        )

    async def start(self) -> str:
        local, tls, material = ["127.0.0.1:0"], [], None
        if self._identities is not None:
            local, tls = tls, local
            material = read_material(server_files(self._identities), time.time())
        (address,) = await self._server.start(local, tls, material)
        return address

    def load(self, clusters: int, endpoint_sets: int) -> None:
        made = [*map(cluster, range(clusters)), *map(endpoints, range(endpoint_sets))]
        self._store.apply(envoy_names.MESH_SCOPE, made)

    def change(self, first: int, count: int, content: int) -> None:
        changed = [endpoints(number, content) for number in range(first, first + count)]
        self._server.changed(self._store.apply(envoy_names.MESH_SCOPE, changed))

    def answers(self) -> int:
        events = self._server.telemetry.events
        return sum(number for (event, _), number in events.items() if event in ("acked", "nacked"))

    def streams(self) -> int:
        return len(self._server.streams.sessions())

    def unsettled(self) -> int:
        """Streams that have something to send, or a response that was not answered."""
        sessions = self._server.streams.sessions()
        return sum(each.has_work or any(kept.in_flight for kept in each.subscriptions()) for each in sessions)


SUBJECTS: dict[str, Callable[[Path | None], Subject]] = {
    "grpcio": lambda _: Product("grpcio"),
    "grpcio-asyncio": lambda _: Product("grpcio"),
    "grpcio-tls": lambda identities: Product("grpcio", identities),
    "fast": lambda _: Product("fast"),
    "fast-tls": lambda identities: Product("fast", identities),
    "bare-grpcio": lambda _: BareGrpc(endpoints),
    "bare-sockets": lambda _: BareSockets(endpoints),
}
ON_ASYNCIO = {"grpcio-asyncio"}


async def serve(subject: Subject) -> None:
    """Answer commands until the input ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command, *arguments = json.loads(line)
        answer: Any = None
        match command, arguments:
            case "load", [clusters, endpoint_sets]:
                subject.load(clusters, endpoint_sets)
                spare_collector()
                answer = await subject.start()
            case "change", [first, count, content]:
                answer = time.monotonic()
                subject.change(first, count, content)
            case "changes", [rounds, names, first_content]:  # many, faster than any client can take them
                answer = time.monotonic()
                for number in range(rounds):
                    subject.change(number % names, 1, first_content + number)
                    if number % CHANGES_PER_TURN == 0:
                        await asyncio.sleep(0)
            case "answered", [wanted]:
                while subject.answers() < wanted:
                    await asyncio.sleep(0.0005)
                answer = time.monotonic()
            case "answers", []:
                answer = subject.answers()
            case "streams", []:
                answer = subject.streams()
            case "unsettled", []:
                answer = subject.unsettled()
            case _:
                raise ValueError(f"no such command: {line!r}")
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def main() -> None:
    kind, *directories = sys.argv[1:]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    with asyncio.Runner(loop_factory=None if kind in ON_ASYNCIO else uvloop.new_event_loop) as runner:

        async def run() -> None:
            await serve(SUBJECTS[kind](Path(*directories) if directories else None))
            os._exit(0)  # a thousand streams would only be torn down one by one

        runner.run(run())


if __name__ == "__main__":
    main()
