"""A node agent as the lab sees it: its sockets, and whether the node is ready to carry traffic.

Input: layout and node name. Called by `bringup` and `lab`. The agent's status client is imported on use: it
brings gRPC, and the lab's other commands start faster without.
"""

from __future__ import annotations

from pathlib import Path

from xdsbpf.errors import SourceError
from xdsbpf.lab.layout import Layout
from xdsbpf.lab.plan import LabPlan
from xdsbpf.lab.processes import tail

STATUS_TIMEOUT = 2.0


def status_socket(layout: Layout, node: str) -> Path:
    """Unix socket of the agent's status service."""
    return layout.node_state(node) / "agent.sock"


def envoy_admin_socket(layout: Layout, node: str) -> Path:
    """Unix socket of the node Envoy's admin interface."""
    return layout.node_state(node) / "envoy" / "admin.sock"


def envoy_log(layout: Layout, node: str) -> Path:
    """Log of the node's Envoy, which the agent keeps."""
    return layout.node_state(node) / "envoy" / "envoy.log"


def explain(layout: Layout, plan: LabPlan, node: str) -> str:
    """What keeps a node from being ready, in words: the agent's state and problems, and Envoy's last words."""
    from xdsbpf.agent.status import fetch_status

    try:
        status = fetch_status(status_socket(layout, node), STATUS_TIMEOUT)
    except SourceError as error:
        return f"the agent does not answer: {error}"
    lines = [f"synced {bool(status.synced)}, xDS {status.xds_state or '?'}, Envoy {status.envoy_state or '?'}"]
    missing = {f"{pod.namespace}/{pod.name}" for pod in plan.pods_of(node)} - set(status.enrolled)
    if missing:
        lines.append(f"not enrolled: {', '.join(sorted(missing))}")
    lines += [str(problem).replace("\n", " ") for problem in status.problems]
    if status.envoy_state != "LIVE":
        lines.append(f"Envoy's log:\n{tail(envoy_log(layout, node))}")
    return "\n".join(lines)


def is_ready(layout: Layout, plan: LabPlan, node: str) -> bool:
    """Whether the agent has applied its first full state, enrolled its pods, and its Envoy is live."""
    if not status_socket(layout, node).exists():
        return False
    from xdsbpf.agent.status import fetch_status

    try:
        status = fetch_status(status_socket(layout, node), STATUS_TIMEOUT)
    except SourceError:
        return False
    pods = {f"{pod.namespace}/{pod.name}" for pod in plan.pods_of(node)}
    return bool(status.synced) and status.envoy_state == "LIVE" and pods <= set(status.enrolled)
