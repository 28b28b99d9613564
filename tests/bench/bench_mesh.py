"""The mesh against what it replaces: the kernel's service against a direct connection, one Envoy against two sidecars.

`python -m tests.bench mesh`; root, about a minute and a half. Two labs of one node run side by side, see `mesh_rig`.
Paths take turns of a fraction of a second and each turn has its ratios, whose median counts: a busy neighbour slows all
paths of a turn. Then the agent is killed and restarted, and endpoints move, while each connection of a load is counted.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.load import mesh_rig as rig
from tests.bench.load.http import Client, Watched
from tests.bench.load.mesh_rig import Rig
from tests.bench.load.processes import cpu_s_of
from tests.bench.machine import describe
from xdsbpf.lab.measure import wait_until

L4_TURNS, L4_SECONDS = 25, 0.2
L7_TURNS, L7_SECONDS = 9, 0.6
CONNECTS = 400
CONNECTIONS = 8
EDITS = 10
KILLS, RESTARTS = 4, 2
MOVE_EVERY_S = 0.3
DENIED_TIMEOUT_S = 0.05
"""The destination drops what it does not admit: such a connect ends with this."""

Figures = dict[str, float]

TARGETS: dict[str, Figures] = {
    "kernel": {"requests_ratio": 0.97, "requests_per_cpu_ratio": 0.97, "connect_us_more": 4},
    "node_envoy": {"requests_ratio": 2.5, "requests_per_cpu_ratio": 2.5},
    "restarts": {"dropped": 0, "unpoliced": 0},
}
AT_LEAST = {"requests_ratio", "requests_per_cpu_ratio"}
"""Figures that shall not be below their target; the others shall not be above it."""


class Way(msgspec.Struct, frozen=True):
    """A way to a server: its client, and the pids of the server and of the Envoys on the way."""

    client: Client
    server: int
    envoys: tuple[int, ...] = ()

    def cpu_s(self) -> float:
        """CPU time that all of them have used."""
        return sum(map(cpu_s_of, (self.client.pid, self.server, *self.envoys)))


def in_turn(ways: Mapping[str, Way], turns: int, seconds: float) -> dict[str, Figures]:
    """Requests and connects, each way against the first one in the same turn.

    Requests per CPU second are what a machine with nothing else to do comes to, whatever this one does beside.
    """
    found: dict[str, list[Turn]] = {name: [] for name in ways}
    for turn in range(turns):
        names = list(ways)
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):  # everybody is first at times
            found[name].append(one_turn(ways[name], seconds))
    (base, *_) = found.values()

    def ratio(name: str, value: Callable[[Turn], float]) -> float:
        return statistics.median(value(mine) / value(other) for mine, other in zip(found[name], base, strict=True))

    return {
        name: {
            "requests_per_s": statistics.median(one.per_second for one in all_turns),
            "requests_ratio": ratio(name, lambda one: one.per_second),
            "requests_ratio_1_connection": ratio(name, lambda one: one.per_second_alone),
            "cpu_us_per_request": statistics.median(one.cpu_us for one in all_turns),
            "requests_per_cpu_ratio": ratio(name, lambda one: 1 / one.cpu_us),
            "connect_us": statistics.median(one.connect_us for one in all_turns),
            "connect_us_more": statistics.median(
                mine.connect_us - other.connect_us for mine, other in zip(all_turns, base, strict=True)
            ),
        }
        for name, all_turns in found.items()
    }


class Turn(msgspec.Struct, frozen=True):
    """What one way came to in one turn."""

    per_second: float
    per_second_alone: float
    """On one connection."""
    cpu_us: float
    connect_us: float


def one_turn(way: Way, seconds: float) -> Turn:
    before = way.cpu_s()
    many = way.client.keep(CONNECTIONS, seconds)
    cpu_us = (way.cpu_s() - before) * 1e6 / many.served
    alone = way.client.keep(1, seconds / 2)
    return Turn(many.per_second, alone.per_second, cpu_us, way.client.connects(CONNECTS).p50_us)


def edits(mesh: Rig, directory: Path) -> dict[str, Figures]:
    """From the edit of an EndpointSlice's file to the first answer from the other pod, in either plane."""
    found: dict[str, Figures] = {}
    for name, address in (("moving", rig.MOVING), ("moving-proxied", rig.MOVING_PROXIED)):
        with mesh.client("client", address, f"{name}.default.svc.cluster.local") as client:
            client.watch(is_kept=False, pause_s=0.001)
            seconds = []
            client.answered_by("first", 0.0)
            for number in range(EDITS):
                pod = ("second", "first")[number % 2]
                at = time.monotonic()
                rig.replace(directory / f"{name}.yaml", rig.slice_of(name, mesh.lab, pod))
                seconds.append(client.answered_by(pod, at) - at)
            seen = client.stop()
        plane = "kernel" if name == "moving" else "node_envoy"
        figures = {"p50_ms": statistics.median(seconds) * 1e3, "max_ms": max(seconds) * 1e3}
        found[plane] = {**figures, "requests": seen.served, "failed_requests": seen.failed}
    return found


def restarts(mesh: Rig, directory: Path) -> Figures:
    """The agent is killed, and restarted, and endpoints move, while everybody goes on connecting.

    A restart loads the programs anew and exchanges them under their links, as an upgrade does.
    """
    with ExitStack() as stack:

        def watching(pod: str, address: str, port: int = 80, **how: Any) -> Client:
            client = stack.enter_context(mesh.client(pod, address, "proxied.default.svc.cluster.local", port))
            client.watch(pause_s=0.001, **how)
            return client

        first = mesh.address("first")
        allowed = {
            "connects": watching("client", rig.MOVING, is_kept=False),
            "kept": watching("client", rig.MOVING, is_kept=True),
            "connects_through_envoy": watching("client", rig.PROXIED, is_kept=False),
            "kept_through_envoy": watching("client", rig.PROXIED, is_kept=True),
        }
        denied = [
            watching("denied", rig.MOVING, is_kept=False),
            watching("denied", first, rig.PORT, is_kept=False, timeout_s=DENIED_TIMEOUT_S),
        ]
        began = time.monotonic()
        with moving(mesh, directory) as moved:
            (agent,) = (f"agent/{node}" for node in mesh.lab.node_names)
            for number in range(KILLS + RESTARTS):
                if number < KILLS:
                    mesh.lab.kill(agent, signal.SIGKILL)
                mesh.lab.restart(agent)
                time.sleep(2 * MOVE_EVERY_S)
        seconds = time.monotonic() - began
        seen = {name: client.stop() for name, client in allowed.items()}
        refused = [client.stop() for client in denied]
        dropped = {f"dropped_{name}": one.failed for name, one in seen.items()}
        return {
            "seconds": seconds,
            "agent_kills": KILLS,
            "agent_restarts": RESTARTS,
            "moves": len(moved),
            "moves_seen": len(seen["connects"].answers) - 1,
            "connections": sum(one.connected for one in seen.values()),
            "requests": sum(one.served for one in seen.values()),
            "dropped": sum(dropped.values()),
            **{name: count for name, count in dropped.items() if count},
            "denied_attempts": sum(one.connected + one.failed for one in refused),
            "unpoliced": sum(one.connected for one in refused),
            **witnesses(mesh, directory),
        }


@contextmanager
def moving(mesh: Rig, directory: Path) -> Iterator[list[str]]:
    """Meanwhile the endpoints of `moving` are the one pod, then the other; yields the moves so far."""
    moves: list[str] = []
    over = threading.Event()

    def move() -> None:
        while not over.wait(MOVE_EVERY_S):
            moves.append(("second", "first")[len(moves) % 2])
            rig.replace(directory / "moving.yaml", rig.slice_of("moving", mesh.lab, moves[-1]))

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield moves
    finally:
        over.set()
        thread.join()


def witnesses(mesh: Rig, directory: Path) -> Figures:
    """That the clients above would have seen it: the policy is taken away, and then the servers."""

    def tried(pod: str) -> Watched:
        with mesh.client(pod, rig.MOVING, "moving") as client:
            client.watch(is_kept=False, pause_s=0.001)
            time.sleep(0.2)
            return client.stop()

    (directory / "policy.yaml").unlink()
    wait_until(lambda: tried("denied").connected > 0, 20, "the policy to be gone")
    without_policy = tried("denied").connected
    rig.replace(directory / "moving.yaml", rig.slice_of("moving", mesh.lab, "client"))  # where nobody serves
    wait_until(lambda: tried("client").failed > 0, 20, "connections that fail")
    return {"seen_without_policy": without_policy, "seen_without_server": tried("client").failed}


def row(name: str, figures: Figures) -> dict[str, Any]:
    """Each figure, beside its target if it has one."""
    found: dict[str, Any] = {}
    for key, value in figures.items():
        found[key] = {"value": float(f"{value:.3g}") if isinstance(value, float) else value}
        target = TARGETS.get(name, {}).get(key)
        if target is not None:
            is_met = value >= target if key in AT_LEAST else value <= target
            found[key] |= {"target": target, "is_met": is_met}
    return found


def measure(directory: Path) -> dict[str, dict[str, Figures]]:
    """Every row, in both labs."""
    places = directory / "mesh", directory / "bare"
    for place in places:
        place.mkdir()
    with rig.mesh(places[0]) as mesh, rig.bare(places[1]) as bare:
        rows = {"l4": l4(mesh, bare), "l7": l7(mesh, bare)}
        return {**rows, "edits": edits(mesh, places[0]), "agent": {"restarts": restarts(mesh, places[0])}}


def l4(mesh: Rig, bare: Rig) -> dict[str, Figures]:
    """From pod to pod with no program on the way (twice: what differs is noise), with programs, and to the service."""
    with ExitStack() as stack:

        def way(where: Rig, address: str, port: int) -> Way:
            client = stack.enter_context(where.client("client", address, "server", port))
            return Way(client, where.servers["server"])

        ways = {
            "direct": way(bare, bare.address("server"), rig.PORT),
            "direct_again": way(bare, bare.address("server"), rig.PORT),
            "direct_in_mesh": way(mesh, mesh.address("server"), rig.PORT),
            "kernel": way(mesh, rig.KERNEL, 80),
        }
        return in_turn(ways, L4_TURNS, L4_SECONDS)


def l7(mesh: Rig, bare: Rig) -> dict[str, Figures]:
    """Through two sidecars, and through the node's Envoy."""
    with (
        bare.client("near", rig.SIDECARS, "far") as near,
        mesh.client("client", rig.PROXIED, "proxied.default.svc.cluster.local") as client,
    ):
        ways = {
            "sidecars": Way(near, bare.servers["far"], bare.sidecars),
            "node_envoy": Way(client, mesh.servers["server"], (mesh.envoy(),)),
        }
        return in_turn(ways, L7_TURNS, L7_SECONDS)


def run() -> dict[str, Any]:
    """The figures as one JSON-able value."""
    if os.geteuid() != 0:
        sys.stderr.write("bench: mesh needs root (BPF, network namespaces): nothing was measured\n")
        return {"machine": describe(), "left_out": "needs root"}
    with tempfile.TemporaryDirectory() as directory:
        rows = measure(Path(directory))
    return {
        "machine": describe(),
        "load_average": os.getloadavg(),
        "rows": {name: {how: row(how, one) for how, one in kinds.items()} for name, kinds in rows.items()},
    }
