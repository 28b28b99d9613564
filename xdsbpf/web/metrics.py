"""Prometheus metrics of the control plane, gathered when they are asked for.

In: a running control plane. Out: samples whose labels have few values (types, kinds, states; never a name that a
peer or a manifest chose). Called by the admin endpoint.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from xdsbpf.diagnostics import State
from xdsbpf.model.names import SHORT_TYPES
from xdsbpf.report.objects import object_states
from xdsbpf.serve import ControlPlane
from xdsbpf.xds.access import REFUSALS
from xdsbpf.xds.load_reports import ClusterLoad
from xdsbpf.xds.pacing import unhurried
from xdsbpf.xds.status import NodeStatus
from xdsbpf.xds.telemetry import BOUNDS_S, Delays, Telemetry

Samples = dict[tuple[str, ...], int]
"""Labels -> value."""

_TYPE_LABELS: Final = {type_url: short for short, type_url in SHORT_TYPES.items()}


class Metrics:
    """Everything that `/metrics` prints."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._collector = _ControlPlaneCollector(control_plane)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(control_plane.compile_seconds)
        self._registry.register(self._collector)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    async def text(self) -> bytes:
        """The samples of about this moment: streams are served while clients and objects are looked at."""
        plane = self._control_plane
        clients = await plane.server.streams.look()
        states = object_states(plane.compiler, plane.catalog, clients)
        counts = Counter([entry.state async for entry in unhurried(states)])
        self._collector.clients, self._collector.states = clients, counts
        return generate_latest(self._registry)


def type_label(type_url: str) -> str:
    """Short name of a type of ours; "other" for whatever else a client asked for."""
    return _TYPE_LABELS.get(type_url, "other")


class _ControlPlaneCollector(Collector):
    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self.clients: tuple[NodeStatus, ...] = ()
        self.states: Counter[State] = Counter()

    def collect(self) -> Iterator[Metric]:
        """Samples of the clients and states that it was given, and of this moment."""
        plane, clients = self._control_plane, self.clients
        yield _gauge("xdsbpf_ready", "1 once clients are served", {(): int(plane.ready.is_set())})
        yield _gauge("xdsbpf_store_revision", "Revision of the resource store", {(): plane.compiler.store.revision})
        failures = len(plane.compiler.publisher.failures)
        yield _gauge("xdsbpf_build_failures", "Resources that cannot be built", {(): failures})
        streams = Counter[tuple[str, ...]]((client.kind,) for client in clients)
        yield _gauge("xdsbpf_xds_streams", "Connected clients", streams, "kind")
        yield from _client_gauges(clients)
        yield from _traffic(plane.server.telemetry)
        yield from _loads(plane.load_reports.rows())
        yield from _access(plane)
        by_state: dict[tuple[str, ...], int] = {(state.value,): self.states[state] for state in State}
        yield _gauge("xdsbpf_objects", "Manifest objects by state", by_state, "state")


def _access(plane: ControlPlane) -> Iterator[Metric]:
    """Who was not let in, who waits, and the certificate of the mutual TLS listener."""
    refused: Samples = {(status,): plane.access.refused[status] for status in REFUSALS}
    yield _counter("xdsbpf_xds_refused_calls", "Calls that ended with that status", refused, "status")
    waiting: Samples = {(): plane.access.admission.waiting}
    yield _gauge("xdsbpf_xds_waiting_streams", "New streams that wait for their turn", waiting)
    if plane.certificates is None:
        return
    found = plane.certificates.status()
    reloads: Samples = {(result,): plane.certificates.reloads[result] for result in ("taken", "refused")}
    yield _counter("xdsbpf_tls_reloads", "Changed certificate files by what became of them", reloads, "result")
    yield _gauge("xdsbpf_tls_files_refused", "1 while the files cannot be used", {(): int(bool(found.error))})
    ends: Samples = {(): int(found.not_after)}
    yield _gauge("xdsbpf_tls_certificate_end_seconds", "End of the certificate in force (Unix time)", ends)


def _traffic(telemetry: Telemetry) -> Iterator[Metric]:
    """Responses, bytes, and how long changes took; the labels are the types that the server knows."""
    events = Counter[tuple[str, ...]]()
    for (event, type_url), count in telemetry.events.items():
        events[event, type_label(type_url)] += count
    what = "Responses by what became of them: sent, acked, nacked; unfinished: sent, and more of the type followed"
    yield _counter("xdsbpf_xds_responses", what, events, "event", "type")
    for name, what, sizes in (
        ("xdsbpf_xds_sent_bytes", "Bytes of responses", telemetry.sent_bytes),
        ("xdsbpf_xds_received_bytes", "Bytes of requests", telemetry.received_bytes),
    ):
        amounts = Counter[tuple[str, ...]]()
        for type_url, size in sizes.items():
            amounts[type_label(type_url),] += size
        yield _counter(name, what, amounts, "type")
    start = "From taking a change from its source to"
    yield _histogram("xdsbpf_xds_change_sent_seconds", f"{start} its response to a stream", telemetry.until_sent)
    yield _histogram("xdsbpf_xds_change_acked_seconds", f"{start} the ACK of a stream", telemetry.until_acked)


def _histogram(name: str, text: str, delays: Mapping[str, Delays]) -> HistogramMetricFamily:
    """Types that we know and have no short name are one series."""
    merged: dict[str, tuple[list[int], float]] = {}
    for type_url, found in delays.items():
        counts, total = merged.get(type_label(type_url), ([0] * len(found.counts), 0.0))
        summed = [count + more for count, more in zip(counts, found.counts, strict=True)]
        merged[type_label(type_url)] = (summed, total + found.total)
    family = HistogramMetricFamily(name, text, labels=("type",))
    limits = [*map(str, BOUNDS_S), "+Inf"]
    for label, (counts, total) in sorted(merged.items()):
        buckets = list(zip(limits, itertools.accumulate(counts), strict=True))
        family.add_metric((label,), buckets, sum_value=total)
    return family


def _client_gauges(clients: tuple[NodeStatus, ...]) -> Iterator[Metric]:
    states = Counter[tuple[str, ...]]()
    refused = Counter[tuple[str, ...]]()
    withheld = Counter[tuple[str, ...]]()
    for client in clients:
        for entry in client.types:
            label = type_label(entry.type_url)
            states[label, entry.state.value] += 1
            refused[label,] += len(entry.nacked)
            withheld[label,] += len(entry.withheld)
    yield _gauge("xdsbpf_xds_subscriptions", "Subscribed types by sync state", states, "type", "state")
    yield _gauge("xdsbpf_xds_refused_resources", "Resources that clients refuse at present", refused, "type")
    yield _gauge("xdsbpf_xds_withheld_resources", "Resources that wait for a node's Envoy", withheld, "type")


def _loads(rows: tuple[ClusterLoad, ...]) -> Iterator[Metric]:
    """Over all clusters: their names are the peers' and have no bound; `/loads` has them one by one."""
    requests = CounterMetricFamily("xdsbpf_load_requests", "Requests that clients reported", labels=("outcome",))
    requests.add_metric(("success",), sum(row.successful for row in rows))
    requests.add_metric(("error",), sum(row.errors for row in rows))
    requests.add_metric(("dropped",), sum(row.dropped for row in rows))
    yield requests
    current = sum(row.in_progress for row in rows)
    yield _gauge("xdsbpf_load_requests_in_progress", "Requests in progress at the last reports", {(): current})


def _counter(name: str, text: str, values: Mapping[tuple[str, ...], int], *labels: str) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _gauge(name: str, text: str, values: dict[tuple[str, ...], int], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family
