"""Workload feedback: Node, Pod and EndpointSlice manifests of a running lab.

Input: a `LabPlan` and the services. Output: manifest values (`manifests`) and, by `publish`, one file per
object in the directory that the control plane watches beside the user's own. Called by `bringup`.
One object per file: deleting an object is then deleting its file, which no source holds back.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from xdsbpf.lab.plan import LabPlan, NodePlan, PodPlan, selects
from xdsbpf.model.kube import Service, ServicePort

Manifest = Mapping[str, Any]


def manifests(plan: LabPlan, services: Iterable[Service]) -> dict[str, Manifest]:
    """File name -> manifest, for every node, pod and endpoint slice of the plan."""
    nodes = {node.name: node for node in plan.nodes}
    found: dict[str, Manifest] = {f"node-{node.name}.yaml": node_manifest(node) for node in plan.nodes}
    for pod in plan.pods:
        found[f"pod-{pod.namespace}-{pod.name}.yaml"] = pod_manifest(pod, nodes[pod.node])
    for service in services:
        for slice_ in endpoint_slices(service, plan.pods):
            meta = slice_["metadata"]
            found[f"endpointslice-{meta['namespace']}-{meta['name']}.yaml"] = slice_
    return found


def node_manifest(node: NodePlan) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": {"kubernetes.io/hostname": node.name},
            "annotations": {"xdsbpf.io/proxy-address": node.proxy_address},
        },
        "status": {"addresses": [{"type": "InternalIP", "address": node.address}]},
    }


def pod_manifest(pod: PodPlan, node: NodePlan) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "namespace": pod.namespace,
            "uid": pod.uid,
            "labels": dict(pod.labels),
        },
        "spec": {
            "nodeName": pod.node,
            "serviceAccountName": pod.service_account,
            "containers": [
                {
                    "name": "stand-in",
                    "ports": [{"containerPort": port.number} for port in pod.ports],
                }
            ],
        },
        "status": {
            "phase": "Running",
            "podIP": pod.address,
            "podIPs": [{"ip": pod.address}],
            "hostIP": node.address,
        },
    }


def endpoint_slices(service: Service, pods: Iterable[PodPlan]) -> list[dict[str, Any]]:
    """The slices of a service with a selector, as Kubernetes' endpoint controller groups them.

    One slice per distinct set of resolved ports, since a named target port may be another number in
    another pod; a port that a pod does not name is left out for that pod. A service that selects no
    pod has one slice without endpoints: known to be empty, not unknown.
    """
    if not service.spec.selector:
        return []
    groups: dict[tuple[tuple[int, int], ...], list[PodPlan]] = {}
    for pod in pods:
        if pod.namespace == service.namespace and selects(service, pod.labels):
            groups.setdefault(_resolve(service, pod), []).append(pod)
    if not groups:
        numeric = ((i, p) for i, p in ((i, _target(p)) for i, p in enumerate(service.spec.ports)))
        groups[tuple((i, p) for i, p in numeric if isinstance(p, int))] = []
    return [_slice(service, ports, members) for ports, members in sorted(groups.items())]


def publish(directory: Path, scratch: Path, wanted: Mapping[str, Manifest]) -> int:
    """Make `directory` hold exactly `wanted`; returns how many files changed.

    Each file is written in `scratch` (same filesystem) and renamed, so a reader never sees half of one.
    Files that did not change are not touched.
    """
    changed = 0
    for name, manifest in sorted(wanted.items()):
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
        target = directory / name
        if target.exists() and target.read_bytes() == content:
            continue
        draft = scratch / f"{name}.{os.getpid()}"
        draft.write_bytes(content)
        draft.replace(target)
        changed += 1
    for stale in directory.iterdir():
        if stale.name not in wanted:
            stale.unlink()
            changed += 1
    return changed


def _target(port: ServicePort) -> int | str:
    return port.target_port if port.target_port is not None else port.port


def _resolve(service: Service, pod: PodPlan) -> tuple[tuple[int, int], ...]:
    """(index of the service port, port number in this pod) for every port that the pod has."""
    named = dict(pod.named_ports)
    found: list[tuple[int, int]] = []
    for index, port in enumerate(service.spec.ports):
        target = _target(port)
        number = named.get(target) if isinstance(target, str) else target
        if number is not None:
            found.append((index, number))
    return tuple(found)


def _slice(service: Service, ports: tuple[tuple[int, int], ...], members: list[PodPlan]) -> dict[str, Any]:
    digest = hashlib.sha256(f"{service.namespace}/{service.name}/{ports}".encode()).hexdigest()[:5]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service.name}-{digest}",
            "namespace": service.namespace,
            "labels": {"kubernetes.io/service-name": service.name},
        },
        "addressType": "IPv4",
        "ports": [_slice_port(service.spec.ports[index], number) for index, number in ports],
        "endpoints": [
            {
                "addresses": [pod.address],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": pod.node,
                "targetRef": {"kind": "Pod", "name": pod.name, "namespace": pod.namespace},
            }
            for pod in members
        ],
    }


def _slice_port(port: ServicePort, number: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": port.name, "protocol": port.protocol, "port": number}
    if port.app_protocol:
        entry["appProtocol"] = port.app_protocol
    return entry
