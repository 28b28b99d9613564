"""Cost of the incremental database by itself: 10,000 services x 10 endpoints, four outputs each.

Prints one JSON object with the machine and the figures; the queries build tuples, no protobuf, so
that what is seen is the engine. Run it as `python tests/bench/bench_incremental.py [services]`.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import resource
import sys
import time

import msgspec

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import ABSENT, Database, Index, Table, query

ENDPOINTS = 10
NAMESPACES = 50


class Service(msgspec.Struct, frozen=True):
    host: str
    address: str


class Slice(msgspec.Struct, frozen=True):
    name: str
    host: str
    endpoints: tuple[tuple[str, int], ...]


class Rule(msgspec.Struct, frozen=True):
    name: str
    host: str
    timeout: int


SERVICES = Table[str, Service]("services", order=lambda v: (v.host,))
SLICES = Table[str, Slice]("slices", order=lambda v: (v.name,))
RULES = Table[str, Rule]("rules", order=lambda v: (v.name,))
BY_HOST = Index("by_host", SLICES, keys=lambda v: (v.host,))
RULES_BY_HOST = Index("by_host", RULES, keys=lambda v: (v.host,))


@query
def service(db: Database, host: str) -> Service | None:
    found = db.input(SERVICES, host)
    if found is ABSENT:
        return None
    db.cite(Origin(ObjectId("Service", "", host)))
    return found


@query
def endpoints(db: Database, host: str) -> tuple[tuple[str, int], ...]:
    return tuple(endpoint for part in db.bucket(BY_HOST, host) for endpoint in part.endpoints)


@query
def timeout(db: Database, host: str) -> int:
    for pattern in (host, "*." + host.partition(".")[2], "*"):
        for rule in db.bucket(RULES_BY_HOST, pattern):
            return rule.timeout
    return 10


@query
def cluster(db: Database, host: str) -> tuple[object, ...]:
    return ("cluster", host, service(db, host) is not None, timeout(db, host))


@query
def load_assignment(db: Database, host: str) -> tuple[object, ...]:
    return ("assignment", host, endpoints(db, host))


@query
def virtual_host(db: Database, host: str) -> tuple[object, ...]:
    return ("host", host, timeout(db, host))


@query
def map_entry(db: Database, host: str) -> tuple[object, ...]:
    found = service(db, host)
    return ("entry", found.address if found else "", endpoints(db, host))


OUTPUTS = (cluster, load_assignment, virtual_host, map_entry)


def seconds(work: object) -> float:
    begin = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - begin


def run(count: int = 10_000) -> dict[str, object]:
    db = Database()
    hosts = [f"svc-{i}.ns-{i % NAMESPACES}.svc.cluster.local" for i in range(count)]
    slices = [
        Slice(f"s{i}", hosts[i], tuple((f"10.{i >> 8 & 255}.{i & 255}.{j}", 8080) for j in range(ENDPOINTS)))
        for i in range(count)
    ]
    gc.collect()
    gc.disable()

    def load() -> None:
        with db.change() as change:
            for i, host in enumerate(hosts):
                change.put(SERVICES, host, Service(host, f"10.96.{i >> 8 & 255}.{i & 255}"))
                change.put(SLICES, f"s{i}", slices[i])

    def build() -> None:
        for host in hosts:
            for output in OUTPUTS:
                db.watch(output, host)
        db.drain()

    load_time = seconds(load)
    build_time = seconds(build)
    cells, memory = db.cells, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    rng = random.Random(1)
    latencies = []
    before = db.runs
    for k in range(5000):
        i = rng.randrange(count)
        old = slices[i]
        slices[i] = Slice(old.name, old.host, ((f"10.200.{k >> 8}.{k & 255}", 8080), *old.endpoints[1:]))

        def change_one(i: int = i) -> None:
            with db.change() as change:
                change.put(SLICES, slices[i].name, slices[i])
            assert len(db.drain().outputs) == 2  # type: ignore[union-attr]

        latencies.append(seconds(change_one))
    latencies.sort()

    def rule(name: str, pattern: str, value: int) -> float:
        def put() -> None:
            with db.change() as change:
                change.put(RULES, name, Rule(name, pattern, value))
            db.drain()

        return seconds(put)

    runs_per_change = (db.runs - before) / 5000
    mesh_wide = rule("mesh", "*", 5)
    cut_off = rule("seven", f"*.{hosts[7].partition('.')[2]}", 5)
    return {
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "services": count,
        "outputs": len(OUTPUTS) * count,
        "cells": cells,
        "rss_mib": memory,
        "load_s": round(load_time, 3),
        "cold_build_s": round(build_time, 3),
        "endpoint_change_us": {
            "p50": round(latencies[len(latencies) // 2] * 1e6, 1),
            "p99": round(latencies[len(latencies) * 99 // 100] * 1e6, 1),
        },
        "runs_per_endpoint_change": runs_per_change,
        "mesh_wide_rule_s": round(mesh_wide, 3),
        "equal_namespace_rule_ms": round(cut_off * 1e3, 2),
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000), indent=2))
