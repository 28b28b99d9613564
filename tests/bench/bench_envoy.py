"""What a real Envoy makes of changes: from a change to the first answer that shows it, warming, 20,000 clusters.

`python -m tests.bench envoy`. Loopback only, no root. The control plane is `xdsbpf serve` in this process for changes
of endpoints, and the server over a store of made-up resources for the rest; servers and client are C, and every request
is counted. Control plane, Envoy, servers and client share the machine's processors.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import structlog
from google.protobuf import json_format

from tests.bench.load.http import Client, Server
from tests.bench.load.processes import cpu_s_of
from tests.bench.machine import describe
from tests.compiling import MESSAGES
from tests.envoy import load_rig
from tests.envoy.node_mesh import free_port
from tests.envoy.real_envoy import RealEnvoy
from tests.envoy.web_resources import Web, endpoints
from tests.unit.serve import serve_rig
from tests.xds.wire import Variant
from xdsbpf.envoy_binary import find_binary
from xdsbpf.model.envoy_resource import make_envoy_resource, resource_id
from xdsbpf.model.names import ENDPOINTS
from xdsbpf.model.resource import Resource, make_resource
from xdsbpf.sources.catalog import CatalogDelta
from xdsbpf.sources.settling import SETTLE_S
from xdsbpf.xds import shared
from xdsbpf.xds.status import SyncState, TypeStatus

SWITCHES, FILE_SWITCHES = 60, 15
ROUNDS, RECONNECTS = 15, 4
FLEET, MANY = 100, 20_000
PAGED, UNPAGED = "paged", "one_message"
RUNS_OF_MANY = (PAGED, UNPAGED, PAGED)
PAUSE_S = 0.0002
"""Between two requests of the client: an answer is seen this late at most."""
FETCH_TIMEOUT = "15s"
"""What Envoy waits for endpoints unless it is told otherwise."""

Figures = dict[str, float]

TARGETS: dict[str, Figures] = {
    "endpoint_change": {"p50_ms": 5, "failed_requests": 0},
    "endpoint_file_edit": {"failed_requests": 0},
    "cluster_change": {"max_ms": 1000, "stalls": 0},
    "cluster_change_while_away": {"max_ms": 1000, "stalls": 0},
    "many_clusters": {"init_timeouts": 0, "switch_p50_ms": 5, "failed_requests": 0},
}


async def endpoint_changes(transport: str, directory: Path) -> dict[str, Figures]:
    """A service moves to and fro between two servers: told to the control plane itself, then by editing its file."""
    web = Web(free_port(), Variant.DELTA_ADS)
    async with AsyncExitStack() as stack:
        ports = {name: stack.enter_context(Server("127.0.0.1", 0, name)).port for name in ("one", "two")}
        content = {name: endpoints("a", port) for name, port in ports.items()}
        files = {
            "web.yaml": written(web.listener(), web.routes({"web": "a"}), web.cluster("a")),
            "endpoints.yaml": written(content["one"]),
        }
        socket = directory / "xds.sock"
        running = serve_rig.running(directory / "m", {}, socket, raw=files, transport=transport)
        rig = await stack.enter_async_context(running)
        envoy = RealEnvoy(str(find_binary(None)), directory, socket, "edge-1")
        stack.push_async_callback(envoy.stop)
        await envoy.start()
        client = stack.enter_context(Client("127.0.0.1", web.port, "web.test"))

        def tell(name: str) -> None:
            body = content[name].body
            put = resource_id(ENDPOINTS, "a", ()), make_envoy_resource(ENDPOINTS, "a", body)
            rig.plane.take(CatalogDelta(puts=(put,)))

        def edit(name: str) -> None:
            new = directory / "new"
            new.write_text(written(content[name]))
            new.replace(directory / "m-raw" / "endpoints.yaml")

        return {
            "endpoint_change": await switches(client, tell, SWITCHES),
            "endpoint_file_edit": {"settling_ms": SETTLE_S * 1e3, **await switches(client, edit, FILE_SWITCHES)},
        }


async def switches(client: Client, switch: Callable[[str], None], count: int) -> Figures:
    """Turn to the one server and to the other under load: until an answer comes from there, and what failed."""
    client.watch(is_kept=True, pause_s=PAUSE_S)
    await asyncio.to_thread(client.answered_by, "one", 0.0)
    seconds = []
    for number in range(count):
        await asyncio.sleep(0.02 + number % 7 * 0.003)
        name = ("two", "one")[number % 2]
        at = time.monotonic()
        switch(name)
        seconds.append(await asyncio.to_thread(client.answered_by, name, at) - at)
    if count % 2:
        switch("one")
        await asyncio.to_thread(client.answered_by, "one", time.monotonic())
    seen = client.stop()
    return {**spread(seconds), "requests": seen.served, "failed_requests": seen.failed}


async def cluster_changes(variant: Variant, directory: Path) -> dict[str, Figures]:
    """A cluster changes and its endpoints do not: until Envoy has ACKed it, which it does when it is warm."""
    async with load_rig.running(directory, str(find_binary(None)), variant, fleet=FLEET) as rig:
        stalls = await rig.stalls()
        seconds = []
        for edition in range(2, 2 + ROUNDS):
            at = time.monotonic()
            rig.put(rig.web.cluster("a", edition))
            await all_accepted(rig, FLEET + 2)
            seconds.append(time.monotonic() - at)
            await rig.synced()  # and nothing warms
        connected = {**spread(seconds), "stalls": await rig.stalls() - stalls}
        seconds, (replica,) = [], rig.replicas
        for edition in range(ROUNDS + 2, ROUNDS + 2 + RECONNECTS):
            await replica.stop()
            rig.put(rig.web.cluster("a", edition))
            await rig.start(replica)
            await rig.until_true(replica.types)  # Envoy comes back in its own time
            at = time.monotonic()
            await rig.synced()
            seconds.append(time.monotonic() - at)
        away = {**spread(seconds), "stalls": await rig.stalls() - stalls}
        return {"cluster_change": connected, "cluster_change_while_away": away}


async def all_accepted(rig: load_rig.Rig, clusters: int) -> None:
    """Until the Envoy has ACKed everything, the endpoints of so many clusters too; looks more often than a test."""

    def is_missing(item: TypeStatus) -> bool:
        return item.state is not SyncState.SYNCED or (item.type_url == ENDPOINTS and item.subscribed < clusters)

    while not (types := rig.replicas[0].types()) or any(map(is_missing, types)):
        await asyncio.sleep(0.0005 if clusters < MANY else 0.1)


async def many_clusters(directory: Path) -> Figures:
    """MANY clusters and endpoints to an Envoy that starts; then a service moves to and fro among them."""
    rig = load_rig.Rig(directory, str(find_binary(None)), Variant.DELTA_ADS, 1)
    rig.web = Web(rig.web.port, Variant.DELTA_ADS, FETCH_TIMEOUT)
    (replica,) = rig.replicas
    async with AsyncExitStack() as stack:
        ports = {name: stack.enter_context(Server("127.0.0.1", 0, name)).port for name in ("one", "two")}
        fleet = [*copies(rig.web.cluster("fleet-00000")), *copies(endpoints("fleet-00000", ports["one"]))]
        rig.put(*fleet, rig.web.cluster("a"), endpoints("a", ports["one"]))
        rig.put(rig.web.listener(), rig.web.routes({"web": "a"}))
        await rig.start(replica)
        stack.push_async_callback(replica.stop)
        stack.push_async_callback(rig.envoy.stop)
        at = time.monotonic()
        await rig.envoy.start(ready_s=120.0)
        live_s = time.monotonic() - at
        async with asyncio.timeout(120.0):
            await all_accepted(rig, clusters=MANY + 1)
        everything_s, cpu_s = time.monotonic() - at, cpu_s_of(rig.envoy.pid)
        timeouts = await rig.stalls()
        client = stack.enter_context(Client("127.0.0.1", rig.web.port, "web.test"))
        moved = await switches(client, lambda name: rig.put(endpoints("a", ports[name])), SWITCHES // 2)
        os.kill(rig.envoy.pid, signal.SIGKILL)  # to let go of so many clusters would take it seconds
        return {
            "live_s": live_s,
            "everything_warm_s": everything_s,
            "envoy_cpu_s": cpu_s,
            "init_timeouts": timeouts,
            "switch_p50_ms": moved["p50_ms"],
            "failed_requests": moved["failed_requests"],
        }


def copies(first: Resource) -> list[Resource]:
    """MANY resources like this one, whose name has five digits."""
    zero = first.name[-5:].encode()

    def copy(number: int) -> Resource:
        digits = f"{number:05}"
        body = first.body.replace(b"fleet-" + zero, b"fleet-" + digits.encode())
        return make_resource(first.type_url, f"fleet-{digits}", body)

    return [copy(number) for number in range(MANY)]


@contextmanager
def unpaged() -> Iterator[None]:
    """One response for all there is."""
    with mock.patch.object(shared, "PAGE_RESOURCES", 1 << 30), mock.patch.object(shared, "PAGE_BYTES", 1 << 40):
        yield


def written(*resources: Resource) -> str:
    """A file of raw Envoy resources (JSON is YAML)."""
    bodies = [
        {"@type": item.type_url, **json_format.MessageToDict(MESSAGES[item.type_url].FromString(item.body))}
        for item in resources
    ]
    return json.dumps({"resources": bodies})


def spread(seconds: Sequence[float]) -> Figures:
    """Median and longest, in milliseconds."""
    return {"p50_ms": statistics.median(seconds) * 1e3, "max_ms": max(seconds) * 1e3}


async def measure(directory: Path) -> dict[str, dict[str, list[Figures]]]:
    """Every row: what was measured how, and the figures of each run."""
    rows: dict[str, dict[str, list[Figures]]] = {name: {} for name in TARGETS}
    for transport in ("grpcio", "fast"):
        for name, figures in (await endpoint_changes(transport, made(directory / transport))).items():
            rows[name][transport] = [figures]
    for variant in (Variant.DELTA_ADS, Variant.SOTW_ADS):
        for name, figures in (await cluster_changes(variant, made(directory / variant.value))).items():
            rows[name][variant.value] = [figures]
    for number, how in enumerate(RUNS_OF_MANY):  # in turn: a busy neighbour slows both
        with nullcontext() if how == PAGED else unpaged():
            figures = await many_clusters(made(directory / f"many-{number}"))
        rows["many_clusters"].setdefault(how, []).append(figures)
    return rows


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def row(name: str, how: str, runs: Sequence[Figures]) -> dict[str, Any]:
    """Medians, every run if there are several, and targets, which what is there for comparison does not have."""
    found: dict[str, Any] = {}
    targets = TARGETS[name] if how != UNPAGED else {}
    for key in runs[0]:
        values = [float(f"{figures[key]:.3g}") for figures in runs]
        found[key] = {"value": statistics.median(values)}
        if len(values) > 1:
            found[key]["runs"] = values
        if key in targets:
            found[key]["target"] = targets[key]
            found[key]["is_met"] = max(values) <= targets[key]
    return found


def run() -> dict[str, Any]:
    """The figures as one JSON-able value."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    with tempfile.TemporaryDirectory() as directory:
        rows = asyncio.run(measure(Path(directory)))
    return {
        "machine": describe(),
        "load_average": os.getloadavg(),
        "clusters": {"cluster_change": FLEET, "many_clusters": MANY},
        "rows": {name: {how: row(name, how, runs) for how, runs in kinds.items()} for name, kinds in rows.items()},
    }
