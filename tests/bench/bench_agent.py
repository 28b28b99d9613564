"""What one endpoint change costs the agent: decode, plan, write, on tables in memory and in the kernel.

`python -m tests.bench agent`. Services of ten endpoints; each change replaces one endpoint of one service.
Figures: the cold start (all resources at once, empty kernel), a change with the state as it is after the
agent's first sync (frozen, see `agent.loop`), the periodic comparison with the kernel and its longest slice,
and the start of a second agent on what the first one wrote. The kernel part needs root and builds the
programs; without it only memory is measured. No assertion: this is a measurement, not a test.
"""

from __future__ import annotations

import gc
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench import machine
from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2 as pb
from xdsbpf.agent.desired import frontend_name
from xdsbpf.agent.received import Received
from xdsbpf.agent.reconcile import Reconciler
from xdsbpf.datapath.address import address16
from xdsbpf.datapath.attach import detach_all
from xdsbpf.datapath.loader import open_datapath
from xdsbpf.datapath.memory import MemoryTables
from xdsbpf.datapath.tables import Kernel
from xdsbpf.errors import InvariantError
from xdsbpf.model.names import BACKENDS, FRONTEND, IDENTITY, POLICY
from xdsbpf.xds.protocol import ReceivedResource, ReceivedResponse

ENDPOINTS, CHANGES = 10, 400
SIZES = (100, 1_000, 10_000)
PIN_ROOT = Path("/sys/fs/bpf/xbbench")
BPF = Path(__file__).resolve().parents[2] / "bpf"
SPIFFE = "spiffe://bench/ns/default/sa/"


class NoHooks:
    """No pods on this node."""

    def attach_veth(self, ifindex: int) -> None:
        raise InvariantError(f"a node without pods has no veth {ifindex}")

    def detach_veth(self, ifindex: int) -> None:
        raise InvariantError(f"a node without pods has no veth {ifindex}")

    def veths(self) -> tuple[int, ...]:
        return ()


def pod(service: int, endpoint: int, generation: int = 0) -> bytes:
    return (0x0A000000 + (generation << 18) + service * ENDPOINTS + endpoint).to_bytes(4, "big")


def host(service: int) -> str:
    return f"service-{service}.default.svc.cluster.local:80"


def backends(service: int, generation: int = 0) -> ReceivedResource:
    """Ten endpoints, the first of which depends on the generation."""
    addresses = [pod(service, number, generation if number == 0 else 0) for number in range(ENDPOINTS)]
    message = pb.Backends(
        service=host(service), backends=[pb.Backend(address=address, port=8080, weight=1) for address in addresses]
    )
    return ReceivedResource(host(service), str(generation), BACKENDS, message.SerializeToString())


def frontend(service: int) -> ReceivedResource:
    address = (0xF0000001 + service).to_bytes(4, "big")
    message = pb.Frontend(
        address=address, port=80, protocol=pb.TCP, service=host(service), balance=pb.Balance(backends=host(service))
    )
    name = frontend_name(address16(address), 80)
    return ReceivedResource(name, "0", FRONTEND, message.SerializeToString())


def identity(service: int) -> ReceivedResource:
    addresses = [pod(service, number) for number in range(ENDPOINTS)]
    name = f"{SPIFFE}{service}"
    return ReceivedResource(name, "0", IDENTITY, pb.Identity(name=name, addresses=addresses).SerializeToString())


def policy(service: int) -> ReceivedResource:
    """One service in ten is guarded: one identity may, nobody else."""
    name = f"default/policy-{service}"
    entries = [
        pb.PolicyEntry(identity=f"{SPIFFE}{service + 1}", protocol=pb.TCP, verdict=pb.ALLOW, rule=f"{name} rules[0]"),
        pb.PolicyEntry(any_source=pb.AnySource(), protocol=pb.TCP, verdict=pb.DENY, rule=name),
    ]
    message = pb.Policy(name=name, destinations=[pod(service, n) for n in range(ENDPOINTS)], entries=entries)
    return ReceivedResource(name, "0", POLICY, message.SerializeToString())


def everything(services: int) -> list[ReceivedResponse]:
    by_type = {
        IDENTITY: [identity(number) for number in range(services)],
        POLICY: [policy(number) for number in range(0, services, 10)],
        BACKENDS: [backends(number) for number in range(services)],
        FRONTEND: [frontend(number) for number in range(services)],
    }
    return [ReceivedResponse(type_url, "", tuple(found), ()) for type_url, found in by_type.items()]


@contextmanager
def kernel_tables() -> Iterator[Kernel]:
    subprocess.run(["make", "-s", "-C", str(BPF)], check=True, capture_output=True)
    detach_all(PIN_ROOT)
    try:
        with open_datapath(PIN_ROOT) as datapath:
            yield datapath.tables
    finally:
        detach_all(PIN_ROOT)


def measure(tables: Kernel, services: int) -> dict[str, Any]:
    received = Received("n")
    reconciler = Reconciler(tables, NoHooks())
    responses = everything(services)
    start = time.perf_counter()
    for response in responses:
        received.accept(response)
    decoded = time.perf_counter() - start
    changed, now = received.take_changed(), 0.0
    start = time.perf_counter()
    outcome = reconciler.apply(received.desired(()), now, prune=True, changed=changed)
    cold = time.perf_counter() - start
    if outcome.failed:
        raise RuntimeError(f"the state does not fit: {sorted(outcome.failed.items())[:3]}")
    reconciler.apply(received.desired(()), now, prune=True, changed=())
    gc.collect()
    gc.freeze()
    result = {
        "cold_start_s": {"decode": round(decoded, 3), "plan_and_write": round(cold, 3)},
        "endpoint_change_us": percentiles(changes(received, reconciler, services)),
        "compare": compare(reconciler),
        "rss_mb": round(machine.rss_mb()),
    }
    start = time.perf_counter()
    reborn = Reconciler(tables, NoHooks())
    outcome = reborn.apply(received.desired(()), 0.0, prune=True)
    result["second_agent"] = {"seconds": round(time.perf_counter() - start, 3), "written": outcome.applied}
    gc.unfreeze()
    return result


def percentiles(samples: Iterable[tuple[float, float]]) -> dict[str, dict[str, float]]:
    """Wall time, and this thread's CPU time: on a busy machine the tail of the former is other processes."""
    wall, cpu = zip(*samples, strict=True)
    return {"wall": machine.percentiles_us(wall), "cpu": machine.percentiles_us(cpu)}


def changes(received: Received, reconciler: Reconciler, services: int) -> Iterator[tuple[float, float]]:
    """Wall and CPU seconds of each change: one response with one Backends resource, decoded, planned and written."""
    for number in range(CHANGES):
        response = ReceivedResponse(BACKENDS, "", (backends(number % services, 1 + number // services),), ())
        start, cpu = time.perf_counter(), time.thread_time()
        received.accept(response)
        outcome = reconciler.apply(
            received.desired(()), 10 + number * 0.05, prune=True, changed=received.take_changed()
        )
        yield time.perf_counter() - start, time.thread_time() - cpu
        if outcome.failed or outcome.applied < 3:
            raise RuntimeError(f"a change was not written: {outcome}")


def compare(reconciler: Reconciler) -> dict[str, float]:
    slices = []
    start = last = time.perf_counter()
    for _ in reconciler.compare():
        now = time.perf_counter()
        slices.append(now - last)
        last = now
    if reconciler.drift:
        raise RuntimeError(f"{reconciler.drift} differences that nobody made")
    longest = max(slices)
    return {"total_ms": round((time.perf_counter() - start) * 1e3, 1), "longest_slice_ms": round(longest * 1e3, 2)}


def run() -> dict[str, Any]:
    """Figures by kind of tables and number of services."""
    results: dict[str, Any] = {"machine": machine.describe(), "endpoints_per_service": ENDPOINTS, "changes": CHANGES}
    results["memory"] = {str(services): measure(MemoryTables(), services) for services in SIZES}
    if os.geteuid() != 0:
        return results | {"kernel": "not measured: needs root"}
    results["kernel"] = {}
    for services in SIZES:
        with kernel_tables() as tables:
            results["kernel"][str(services)] = measure(tables, services)
    return results
