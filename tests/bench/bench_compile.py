"""Cold build and latency of single changes, both planes, at 10,000 services with 10 endpoints each.

Measured on the full translation: parsed objects in, encoded resources of both planes in the store. The
pods are spread over nodes of 100 pods, each node with its own /24, as in a cluster.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.bench.machine import describe, percentiles_us, rss_mb
from tests.builders import policy, rule, to_operation
from xdsbpf.compiler import Compiler
from xdsbpf.diagnostics import ObjectId
from xdsbpf.mesh.inputs import MeshSettings
from xdsbpf.model.destination_rule import (
    ConnectionPoolSettings,
    DestinationRule,
    DestinationRuleSpec,
    TCPSettings,
    TrafficPolicy,
)
from xdsbpf.model.kube import (
    EndpointConditions,
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
from xdsbpf.model.sharing import shared_labels, shared_text
from xdsbpf.model.virtual_service import (
    Destination,
    HTTPRoute,
    HTTPRouteDestination,
    VirtualService,
    VirtualServiceSpec,
)

SERVICES = 10_000
ENDPOINTS = 10
PODS_PER_NODE = 100
CHANGES = 500
MESH_WIDE_CHANGES = 5
FIXED_LOOP = 5_000
"""About as long as an endpoint change takes."""
NAMESPACE = "default"


def node_of(service: int, endpoint: int, services: int) -> int:
    """Number of the node that a pod runs on: each service is spread over ten of them."""
    return (service + endpoint * 97) % node_count(services)


def node_count(services: int) -> int:
    return max(1, services * ENDPOINTS // PODS_PER_NODE)


def address(service: int, endpoint: int, services: int, generation: int = 0) -> str:
    node = node_of(service, endpoint, services)
    last = endpoint * (PODS_PER_NODE // ENDPOINTS) + service // node_count(services) + 1
    return f"10.{64 + generation * 64 + (node >> 8)}.{node & 255}.{last}"


def slice_of(service: int, services: int, *, moved: bool = False, ready: bool = True) -> EndpointSlice:
    """The slice of one service; `moved` and `ready` are about its first endpoint."""
    return EndpointSlice(
        metadata=ObjectMeta(
            name=f"svc-{service}",
            namespace=NAMESPACE,
            labels=shared_labels((("kubernetes.io/service-name", f"svc-{service}"),)),
        ),
        ports=(SlicePort(port=8080, name="http"),),
        endpoints=tuple(
            SliceEndpoint(
                addresses=(address(service, endpoint, services, int(moved and endpoint == 0)),),
                conditions=EndpointConditions(ready=ready or endpoint > 0),
                node_name=shared_text(f"node{node_of(service, endpoint, services)}"),
                target_ref=TargetRef(kind="Pod", name=f"svc-{service}-{endpoint}", namespace=NAMESPACE),
            )
            for endpoint in range(ENDPOINTS)
        ),
    )


def pod(service: int, endpoint: int, services: int, account: str = "") -> Pod:
    labels = shared_labels((("app", f"svc-{service}"), ("version", "v1")))
    return Pod(
        metadata=ObjectMeta(name=f"svc-{service}-{endpoint}", namespace=NAMESPACE, labels=labels),
        spec=PodSpec(
            node_name=shared_text(f"node{node_of(service, endpoint, services)}"),
            service_account_name=shared_text(account or f"sa-{service % 500}"),
        ),
        status=PodStatus(phase="Running", pod_ip=address(service, endpoint, services)),
    )


def virtual_service(service: int, seconds: int) -> VirtualService:
    host = f"svc-{service}"
    route = HTTPRoute(route=(HTTPRouteDestination(Destination(host)),), timeout=seconds * 10**9)
    return VirtualService(
        metadata=ObjectMeta(name=host, namespace=NAMESPACE), spec=VirtualServiceSpec(hosts=(host,), http=(route,))
    )


def mesh_rule(connections: int) -> DestinationRule:
    """A rule for every service of the mesh."""
    policy = TrafficPolicy(connection_pool=ConnectionPoolSettings(tcp=TCPSettings(max_connections=connections)))
    return DestinationRule(
        metadata=ObjectMeta(name="mesh", namespace="istio-system"),
        spec=DestinationRuleSpec(host="*.cluster.local", traffic_policy=policy),
    )


def objects(services: int) -> list[tuple[ObjectId, Manifest]]:
    """Services, slices and pods, as a source would yield them: with one copy of what the schema says is shared."""
    made: list[Manifest] = []
    for service in range(services):
        made.append(
            Service(
                metadata=ObjectMeta(name=f"svc-{service}", namespace=NAMESPACE),
                spec=ServiceSpec(
                    cluster_ip=f"10.32.{service >> 8}.{service & 255}",
                    selector=shared_labels((("app", f"svc-{service}"),)),
                    ports=(ServicePort(port=80, name="http", target_port=8080),),
                ),
            )
        )
        made.append(slice_of(service, services))
        made.extend(pod(service, endpoint, services) for endpoint in range(ENDPOINTS))
    return [(manifest.id, manifest) for manifest in made]


def _measure(compiler: Compiler, changes: Iterator[Manifest]) -> dict[str, Any]:
    """Each manifest put and compiled by itself: time (on the wall, and of this thread) and resources per change.

    Between two changes stands a loop that is always the same: what its slowest hundredth has beyond its median is the
    machine's.
    """
    latencies: list[float] = []
    cpu: list[float] = []
    loops: list[float] = []
    touched = runs = 0
    for manifest in changes:
        before = compiler.database.runs
        started, started_cpu = time.perf_counter(), time.thread_time()
        compiler.apply([(manifest.id, manifest)])
        changed = compiler.compile()
        cpu.append(time.thread_time() - started_cpu)
        latencies.append(time.perf_counter() - started)
        started = time.perf_counter()
        for _ in range(FIXED_LOOP):
            pass
        loops.append(time.perf_counter() - started)
        touched += sum(len(keys) for keys in changed.by_scope.values())
        runs += compiler.database.runs - before
    return {
        **percentiles_us(latencies),
        "cpu": percentiles_us(cpu),
        "fixed_loop": percentiles_us(loops),
        "changes": len(latencies),
        "resources_per_change": round(touched / len(latencies), 2),
        "queries_run_per_change": round(runs / len(latencies), 2),
    }


def _alternating(
    services: int, first: Callable[[int], Manifest], second: Callable[[int], Manifest]
) -> Iterator[Manifest]:
    """CHANGES manifests of random services, `first` and `second` in turn for each service."""
    rng = random.Random(1)
    is_first: dict[int, bool] = {}
    for _ in range(CHANGES):
        service = rng.randrange(services)
        is_first[service] = not is_first.get(service, False)
        yield (first if is_first[service] else second)(service)


def run(services: int = SERVICES) -> dict[str, Any]:
    """The figures as one JSON-able value."""
    gc.disable()
    before_mb = rss_mb()
    inputs = objects(services)
    inputs_mb = rss_mb()
    compiler = Compiler(MeshSettings())
    started, started_cpu = time.perf_counter(), time.process_time()
    compiler.apply(inputs)
    changes = compiler.compile()
    cold_s, cold_cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    count = sum(len(keys) for keys in changes.by_scope.values())
    built_mb = rss_mb()
    gc.collect()
    gc.freeze()
    moves = _measure(
        compiler,
        _alternating(services, lambda s: slice_of(s, services, moved=True), lambda s: slice_of(s, services)),
    )
    readiness = _measure(
        compiler,
        _alternating(services, lambda s: slice_of(s, services, ready=False), lambda s: slice_of(s, services)),
    )
    routes = _measure(
        compiler, _alternating(services, lambda s: virtual_service(s, 1), lambda s: virtual_service(s, 2))
    )
    accounts = _measure(
        compiler, _alternating(services, lambda s: pod(s, 0, services, "other"), lambda s: pod(s, 0, services))
    )
    # For one service; it makes those of all others ask for theirs.
    guard = policy("guard", rule(to_operation(ports=("8080",))), selector={"app": "svc-0"})
    compiler.apply([(guard.id, guard)])
    compiler.compile()
    guarded = _measure(
        compiler, _alternating(services, lambda s: pod(s, 0, services, "third"), lambda s: pod(s, 0, services))
    )
    mesh_wide = _measure(compiler, (mesh_rule(1000 + number) for number in range(MESH_WIDE_CHANGES)))
    gc.enable()
    gc.unfreeze()
    return {
        "machine": describe(),
        "services": services,
        "endpoints_per_service": ENDPOINTS,
        "nodes": node_count(services),
        "resources": count,
        "cells": compiler.database.cells,
        "cold_build_s": round(cold_s, 2),
        "cold_build_cpu_s": round(cold_cpu_s, 2),
        "inputs_mb": round(inputs_mb - before_mb, 1),
        "build_mb": round(built_mb - inputs_mb, 1),
        "endpoint_change_us": moves,
        "endpoint_readiness_change_us": readiness,
        "virtual_service_change_us": routes,
        "pod_identity_change_us": accounts,
        "pod_identity_change_with_a_policy_us": guarded,
        "mesh_wide_destination_rule_change_us": mesh_wide,
        "target": {"cold_build_s": 3, "total_mb": 300, "endpoint_change_us_p99": 150},
    }
