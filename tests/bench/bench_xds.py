"""What the xDS server costs: the table of the design, on both transports, above what is below them.

Each row runs against the product on each transport and, in the same run, against servers without an engine. CPU is the
server process's own, reading the answers included; the load client is C on the other processor, and its share of the
time shows that it is not what is measured. Repeated, and the median is taken.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest

from tests.bench.load.rig import NODE_ID, PEER, PEER_COMMAND, Rig, all_clusters, named, started
from tests.bench.load.subject import endpoints
from tests.bench.machine import describe
from xdsbpf.model.names import ENDPOINTS
from xdsbpf.xds import protocol

STREAMS, NAMES, ROUNDS = 1000, 100, 20
SYNC_STREAMS, SYNC_RESOURCES = 100, 10_000
SOTW_STREAMS, SOTW_NAMES = 200, 1000
MANY_STREAMS, MANY_ROUNDS = 5000, 10
CONNECTED_AT_ONCE = 500
REPEATS = {"push_to_many": 1}
USUAL_REPEATS = 3
PRODUCTS = ("grpcio", "grpcio-asyncio", "fast")
FLOORS = ("bare-grpcio", "bare-sockets")
OVER_TLS = ("grpcio-tls", "fast-tls")
PEERS = (PEER,) if PEER_COMMAND in os.environ else ()
"""Another xDS server in the same run: no part of this repository."""

Figures = dict[str, float]

TARGETS: dict[str, dict[str, Figures]] = {
    "push": {
        "grpcio": {"cpu_us_per_push": 120, "kb_per_stream": 80},
        "fast": {"cpu_us_per_push": 35, "received_all_ms": 80, "kb_per_stream": 27},
        "grpcio-tls": {"cpu_us_per_push": 60, "kb_per_stream": 104},
        "fast-tls": {"cpu_us_per_push": 60, "kb_per_stream": 104},
    },
    "push_to_many": {
        "grpcio": {"cpu_us_per_push": 120, "kb_per_stream": 80},
        "fast": {"cpu_us_per_push": 35, "kb_per_stream": 27},
    },
    "first_sync": {"grpcio": {"cpu_s": 1.5}, "fast": {"cpu_s": 1.5}},
    "sotw_push": {"grpcio": {"cpu_us_per_push": 170}, "fast": {"cpu_us_per_push": 170}},
}
"""Of the design for grpc.aio; for the built-in HTTP/2 those of the server's specification, where its ratios to a peer
are turned into figures by what that peer was measured at."""
FLOOR_OF = {"grpcio": "bare-grpcio", "grpcio-asyncio": "bare-grpcio", "fast": "bare-sockets"}


def push(kind: str) -> Figures:
    """One changed endpoint to STREAMS streams of NAMES names each, everybody idle before."""
    return _push(kind, STREAMS, ROUNDS)


def push_to_many(kind: str) -> Figures:
    """The same to MANY_STREAMS streams."""
    return _push(kind, MANY_STREAMS, MANY_ROUNDS)


def _push(kind: str, streams: int, rounds: int) -> Figures:
    with started(kind, endpoint_sets=NAMES) as rig:
        before = rig.server.rss_bytes
        rig.client.requests([named(NAMES)])
        for first in range(0, streams, CONNECTED_AT_ONCE):  # no more than are let in before they have waited too long
            rig.client.open(first, CONNECTED_AT_ONCE)
            rig.client.wait((first + CONNECTED_AT_ONCE) * NAMES)
        memory = (rig.server.rss_bytes - before) / streams
        received = streams * NAMES
        found = [_one_push(rig, streams, number, received + (number + 1) * streams) for number in range(rounds)]
    return {**_medians(found), "kb_per_stream": memory / 1024}


def _one_push(rig: Rig, streams: int, number: int, received: int) -> Figures:
    answered = rig.ask("answers") + streams
    cpu, waited = rig.cpu(), rig.server.waited_s
    changed_at = rig.ask("change", number % NAMES, 1, number + 1)
    all_at = rig.client.wait(received)
    waited = rig.server.waited_s - waited
    acked_at = rig.ask("answered", answered)
    cost = rig.cost_since(cpu)
    times = rig.client.times(0, streams, changed_at)
    return {
        "cpu_us_per_push": cost.server_s * 1e6 / streams,
        "client_cpu_us_per_push": cost.client_s * 1e6 / streams,
        "received_p50_ms": times.p50 * 1e3,
        "received_all_ms": (all_at - changed_at) * 1e3,
        "server_without_processor_ms": waited * 1e3,
        "last_ack_ms": (acked_at - changed_at) * 1e3,
    }


def first_sync(kind: str) -> Figures:
    """All clusters, then the endpoints of each, to SYNC_STREAMS clients that know nothing."""
    with started(kind, clusters=SYNC_RESOURCES, endpoint_sets=SYNC_RESOURCES) as rig:
        before, cpu = rig.server.rss_bytes, rig.cpu()
        rig.client.requests([all_clusters()], follow=True)
        opened_at = rig.client.open(0, SYNC_STREAMS)
        all_at = rig.client.wait(2 * SYNC_STREAMS * SYNC_RESOURCES)
        cost = rig.cost_since(cpu)
        stat = rig.client.stat()
        return {
            "cpu_s": cost.server_s,
            "client_cpu_s": cost.client_s,
            "wall_s": all_at - opened_at,
            "rss_mb": (rig.server.rss_bytes - before) / 2**20,
            "mb_sent": stat["bytes"] / 2**20,
        }


def sotw_push(kind: str) -> Figures:
    """One changed endpoint to state-of-the-world streams, each of whose ACKs repeats SOTW_NAMES names."""
    with started(kind, endpoint_sets=SOTW_NAMES, method=protocol.SOTW_ADS) as rig:
        rig.client.requests([_sotw_request(SOTW_NAMES)])
        rig.client.open(0, SOTW_STREAMS)
        received = SOTW_STREAMS * SOTW_NAMES
        rig.client.wait(received)
        rounds = []
        for number in range(ROUNDS):
            received += SOTW_STREAMS
            answered = rig.ask("answers") + SOTW_STREAMS
            cpu = rig.cpu()
            changed_at = rig.ask("change", number, 1, number + 1)
            all_at = rig.client.wait(received)
            rig.ask("answered", answered)
            cost = rig.cost_since(cpu)
            rounds.append(
                {
                    "cpu_us_per_push": cost.server_s * 1e6 / SOTW_STREAMS,
                    "client_cpu_us_per_push": cost.client_s * 1e6 / SOTW_STREAMS,
                    "received_all_ms": (all_at - changed_at) * 1e3,
                }
            )
    return _medians(rounds)


def reconnect(kind: str) -> Figures:
    """STREAMS clients come at once, each with NAMES current versions, and are owed nothing; then something changes."""
    with started(kind, endpoint_sets=NAMES) as rig:
        rig.client.requests([named(NAMES, held=True)])
        cpu = rig.cpu()
        opened_at = rig.client.open(0, STREAMS)
        sent = 0.0
        while time.monotonic() - opened_at < 60.0:  # until nothing moves any more: a quiet server is what is wanted
            time.sleep(0.25)
            now = rig.cpu().server_s
            if now - sent < 0.005:
                break
            sent = now
        cost = rig.cost_since(cpu)
        quiet = rig.client.stat()
        changed_at = rig.ask("change", 0, 1, 1)
        all_at = rig.client.wait(STREAMS)
        return {
            "cpu_us_per_stream": cost.server_s * 1e6 / STREAMS,
            "resources_sent": quiet["resources"],
            "then_one_change_to_all_ms": (all_at - changed_at) * 1e3,
        }


SCENARIOS: dict[str, tuple[Callable[[str], Figures], tuple[str, ...]]] = {
    "push": (push, (*PRODUCTS, *OVER_TLS, *FLOORS, *PEERS)),
    "push_to_many": (push_to_many, ("grpcio", "fast", *FLOORS, *PEERS)),
    "first_sync": (first_sync, (*PRODUCTS, *FLOORS, *PEERS)),
    "sotw_push": (sotw_push, (*PRODUCTS, *PEERS)),
    "reconnect": (reconnect, PRODUCTS),
}


def _sotw_request(count: int) -> bytes:
    request = DiscoveryRequest(type_url=ENDPOINTS, resource_names=[endpoints(number).name for number in range(count)])
    request.node.id = NODE_ID
    return bytes(request.SerializeToString())


def _medians(rounds: Sequence[Figures]) -> Figures:
    return {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}


def measure(name: str, repeats: int, kinds: Sequence[str] = ()) -> dict[str, Any]:
    """One scenario, kinds in turn in every repeat: a busy neighbour slows all of them, not one."""
    scenario, every_kind = SCENARIOS[name]
    found: dict[str, list[Figures]] = {kind: [] for kind in kinds or every_kind}
    for _ in range(repeats):
        for kind, runs in found.items():
            runs.append(scenario(kind))
    medians = {kind: _medians(runs) for kind, runs in found.items()}
    return {kind: _row(name, kind, runs, medians) for kind, runs in found.items()}


def _row(name: str, kind: str, runs: Sequence[Figures], medians: Mapping[str, Figures]) -> dict[str, Any]:
    """One kind's figures: median and every run, target, and the ratio to what is below it."""
    row: dict[str, Any] = {}
    floor = medians.get(FLOOR_OF.get(kind, ""), {})
    for key, value in medians[kind].items():
        row[key] = {"value": _short(value), "runs": [_short(figures[key]) for figures in runs]}
        if floor.get(key):
            row[key]["ratio_to_floor"] = _short(value / floor[key])
        if PEER in medians and medians[PEER][key]:
            row[key]["ratio_to_peer"] = _short(value / medians[PEER][key])
        target = TARGETS.get(name, {}).get(kind, {}).get(key)
        if target is not None:
            row[key] |= {"target": target, "ratio_to_target": _short(value / target)}
            if value > 1.5 * target:
                below = f"{FLOOR_OF[kind]} alone took {_short(floor[key])}" if key in floor else "no floor was measured"
                row[key]["miss"] = f"{below}; the runs of all kinds shared the machine, see load_average"
    return row


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def run() -> dict[str, Any]:
    """The figures as one JSON-able value."""
    rows = {name: measure(name, REPEATS.get(name, USUAL_REPEATS)) for name in SCENARIOS}
    return {"machine": describe(), "load_average": os.getloadavg(), "rows": rows}
