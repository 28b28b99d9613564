"""Command lines of the processes that a lab runs: control plane, agents, stand-ins.

Input: layout and plan. Output: argv tuples that enter the right cgroup and namespaces first. Called by
`bringup`; the only place that knows how the other commands are spelled.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from xdsbpf.lab.layout import CONTROL_PLANE, Layout, PartyFiles
from xdsbpf.lab.network import NODE_GATEWAY
from xdsbpf.lab.plan import LabPlan, NodePlan, PodPlan
from xdsbpf.lab.processes import enter_argv
from xdsbpf.lab.standin import StandInConfig

XDS_TLS = f"{NODE_GATEWAY}:15012"
"""Where every node reaches the control plane of a lab with mutual TLS: the fabric's end of its uplink."""


def control_plane_argv(layout: Layout, plan: LabPlan, paths: Sequence[str], *, mtls: bool) -> tuple[str, ...]:
    """`xdsbpf serve` on unix sockets; the observed manifests come last and win over a user's own Pods.

    With `mtls` it is in the fabric's network namespace and also listens there.
    """
    secure = ("--listen-tls", XDS_TLS, *_tls_options(layout.tls(CONTROL_PLANE))) if mtls else ()
    files = [argument for path in (*paths, str(layout.observed)) for argument in ("-f", path)]
    argv = (
        *(sys.executable, "-m", "xdsbpf", "serve", *files),
        *("--listen", f"unix:{layout.xds_socket}", "--admin", f"unix:{layout.admin_socket}"),
        *("--service-cidr", plan.service_cidr, *secure),
    )
    netns = layout.netns(plan.fabric) if mtls else None
    return enter_argv(argv, cgroup=layout.role_cgroup("control-plane"), netns=netns)


def _tls_options(files: PartyFiles) -> tuple[str, ...]:
    """As `xdsbpf serve` and `xdsbpf agent` spell them."""
    return ("--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--tls-ca", str(files.authorities))


def agent_argv(layout: Layout, node: NodePlan, envoy_binary: Path | None, *, mtls: bool) -> tuple[str, ...]:
    """`xdsbpf agent` in the node's network namespace and agent cgroup."""
    xds = (XDS_TLS, *_tls_options(layout.tls(node.name))) if mtls else (f"unix:{layout.xds_socket}",)
    envoy = ("--envoy-binary", str(envoy_binary)) if envoy_binary else ()
    argv = (
        *(sys.executable, "-m", "xdsbpf", "agent", "--node", node.name),
        *("--xds", *xds, "--cgroup-root", str(layout.node_cgroup(node.name))),
        *("--pin-root", str(layout.pins / node.name), "--state-dir", str(layout.node_state(node.name))),
        *envoy,
    )
    return enter_argv(argv, cgroup=layout.role_cgroup(f"agent/{node.name}"), netns=layout.netns(node.netns))


def stand_in_argv(layout: Layout, pod: PodPlan) -> tuple[str, ...]:
    """The stand-in server of a pod; its configuration is the pod's `config` file."""
    argv = (sys.executable, "-m", "xdsbpf.lab.standin", str(layout.pod_file(pod, "config")))
    return pod_argv(layout, pod, argv)


def pod_argv(layout: Layout, pod: PodPlan, argv: Sequence[str]) -> tuple[str, ...]:
    """Any command inside a pod: its cgroup, network and hosts file."""
    return enter_argv(
        argv,
        cgroup=layout.pod_cgroup(pod),
        netns=layout.netns(pod.netns),
        hosts=(layout.pod_file(pod, "hosts"), layout.resolv_conf),
    )


def stand_in_config(layout: Layout, pod: PodPlan) -> bytes:
    """Content of the pod's `config` file."""
    return msgspec.json.encode(
        StandInConfig(
            pod=pod.name,
            namespace=pod.namespace,
            node=pod.node,
            app=pod.app,
            version=pod.version,
            address="0.0.0.0",
            ports=tuple((port.number, port.server_first) for port in pod.ports),
            env=dict(pod.env),
            ready_file=str(layout.pod_file(pod, "ready")),
        )
    )
