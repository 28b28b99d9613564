"""Cold build and one-change latency of both planes at 10,000 services with 10 endpoints each.

Measured on the full translation: parsed objects in, encoded resources of both planes in the store.
"""

from __future__ import annotations

import gc
import random
import time
from typing import Any

from tests.bench.machine import describe, percentiles_us, rss_mb
from xdsbpf.compiler import Compiler
from xdsbpf.diagnostics import ObjectId
from xdsbpf.mesh.inputs import MeshSettings
from xdsbpf.model.kube import (
    EndpointSlice,
    Pod,
    PodSpec,
    PodStatus,
    Service,
    ServicePort,
    ServiceSpec,
    SliceEndpoint,
    SlicePort,
    TargetRef,
)
from xdsbpf.model.meta import Manifest, ObjectMeta

SERVICES = 10_000
ENDPOINTS = 10
CHANGES = 500


def address(service: int, endpoint: int, generation: int = 0) -> str:
    number = service * ENDPOINTS + endpoint
    return f"10.{64 + generation * 8 + (number >> 16)}.{(number >> 8) & 255}.{number & 255}"


def slice_of(service: int, generation: int = 0) -> EndpointSlice:
    """The slice of one service; `generation` 1 moves its first endpoint to another address."""
    return EndpointSlice(
        metadata=ObjectMeta(
            name=f"svc-{service}",
            namespace="default",
            labels=(("kubernetes.io/service-name", f"svc-{service}"),),
        ),
        ports=(SlicePort(port=8080, name="http"),),
        endpoints=tuple(
            SliceEndpoint(
                addresses=(address(service, endpoint, generation if endpoint == 0 else 0),),
                node_name=f"node{endpoint % 4}",
                target_ref=TargetRef(kind="Pod", name=f"svc-{service}-{endpoint}", namespace="default"),
            )
            for endpoint in range(ENDPOINTS)
        ),
    )


def objects(services: int) -> list[tuple[ObjectId, Manifest]]:
    """Services, slices and pods, as a source would yield them."""
    made: list[Manifest] = []
    for service in range(services):
        labels = (("app", f"svc-{service}"), ("version", "v1"))
        made.append(
            Service(
                metadata=ObjectMeta(name=f"svc-{service}", namespace="default"),
                spec=ServiceSpec(
                    cluster_ip=f"10.32.{service >> 8}.{service & 255}",
                    selector=labels[:1],
                    ports=(ServicePort(port=80, name="http", target_port=8080),),
                ),
            )
        )
        made.append(slice_of(service))
        made.extend(
            Pod(
                metadata=ObjectMeta(name=f"svc-{service}-{endpoint}", namespace="default", labels=labels),
                spec=PodSpec(node_name=f"node{endpoint % 4}", service_account_name=f"sa-{service % 500}"),
                status=PodStatus(phase="Running", pod_ip=address(service, endpoint)),
            )
            for endpoint in range(ENDPOINTS)
        )
    return [(manifest.id, manifest) for manifest in made]


def run(services: int = SERVICES) -> dict[str, Any]:
    """The figures as one JSON-able value."""
    gc.disable()
    before_mb = rss_mb()
    inputs = objects(services)
    inputs_mb = rss_mb()
    compiler = Compiler(MeshSettings())
    started = time.perf_counter()
    compiler.apply(inputs)
    changes = compiler.compile()
    cold_s = time.perf_counter() - started
    count = sum(len(keys) for keys in changes.by_scope.values())
    built_mb = rss_mb()
    gc.collect()
    gc.freeze()
    rng = random.Random(1)
    generation = dict.fromkeys(range(services), 0)
    latencies, touched = [], 0
    for _ in range(CHANGES):
        service = rng.randrange(services)
        generation[service] ^= 1
        changed = slice_of(service, generation[service])
        started = time.perf_counter()
        compiler.apply([(changed.id, changed)])
        changes = compiler.compile()
        latencies.append(time.perf_counter() - started)
        touched += sum(len(keys) for keys in changes.by_scope.values())
    gc.enable()
    gc.unfreeze()
    return {
        "machine": describe(),
        "services": services,
        "endpoints_per_service": ENDPOINTS,
        "resources": count,
        "cold_build_s": round(cold_s, 2),
        "inputs_mb": round(inputs_mb - before_mb, 1),
        "build_mb": round(built_mb - inputs_mb, 1),
        "endpoint_change_us": percentiles_us(latencies),
        "resources_per_change": round(touched / CHANGES, 2),
        "target": {"cold_build_s": 3, "total_mb": 300, "endpoint_change_us_p99": 150},
    }
