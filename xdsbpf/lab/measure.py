"""Figures from a running lab, for the demo and the tests: what clients got, what Envoy and the kernel counted.

Commands are run as a user would run them; nothing here looks into another process's memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xdsbpf.errors import XdsbpfError
from xdsbpf.lab.lab import Lab
from xdsbpf.unix_http import UnixConnection

LISTENER_CONNECTIONS = "listener.0.0.0.0_15001.downstream_cx_total"
TCP_LISTENER_CONNECTIONS = "listener.0.0.0.0_15002.downstream_cx_total"


def share_of_version(answer: dict[str, Any], version: str) -> float:
    """Percentage of a client's successful requests that `version` answered."""
    counts: Counter[str] = Counter()
    for entry in answer["by"]:
        if entry["status"] == 200:
            counts[entry["version"]] += entry["count"]
    total = sum(counts.values())
    return 100.0 * counts[version] / total if total else 0.0


def balanced_over(answer: dict[str, Any]) -> dict[str, int]:
    """pod -> number of successful answers."""
    counts: Counter[str] = Counter()
    for entry in answer["by"]:
        if entry["status"] == 200:
            counts[entry["pod"]] += entry["count"]
    return dict(counts)


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str, *, fail: bool = True) -> bool:
    """Poll `condition` until it holds.

    Returns: whether it held within `timeout_s`. Raises: XdsbpfError naming `what` if not and `fail`.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    if fail:
        raise XdsbpfError(f"waited {timeout_s:g} s for {what}")
    return False


def xdsbpf_json(lab: Lab, *arguments: str) -> dict[str, Any]:
    """`xdsbpf ARGUMENTS -o json` against this lab."""
    result = run_xdsbpf(lab, *arguments, "-o", "json")
    document: dict[str, Any] = json.loads(result)
    return document


def run_xdsbpf(lab: Lab, *arguments: str) -> str:
    """Standard output of `xdsbpf ARGUMENTS` against this lab.

    Raises: XdsbpfError with the command's own words when it fails.
    """
    environment = {
        **os.environ,
        "XDSBPF_ADMIN": f"unix:{lab.state_dir / 'admin.sock'}",
        "XDSBPF_AGENT": " ".join(str(lab.agent_socket(node)) for node in lab.node_names),
    }
    result = subprocess.run(
        [sys.executable, "-m", "xdsbpf", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=30,
    )
    if result.returncode:
        raise XdsbpfError(f"xdsbpf {' '.join(arguments)}: exit {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def envoy_stat(admin_socket: Path, name: str) -> int:
    """One counter or gauge of an Envoy, through its admin socket; 0 if it does not exist yet."""
    connection = UnixConnection(str(admin_socket), 5.0)
    try:
        connection.request("GET", f"/stats?filter=^{name}$")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    for line in text.splitlines():
        key, _, value = line.partition(": ")
        if key == name:
            return int(value)
    return 0


def envoy_connections(lab: Lab, listener: str = LISTENER_CONNECTIONS) -> int:
    """Connections that an outbound listener, of HTTP unless said, has taken so far on all nodes."""
    return sum(envoy_stat(lab.envoy_admin(node), listener) for node in lab.node_names)


def planes(lab: Lab) -> str:
    """The table of `xdsbpf services`."""
    return run_xdsbpf(lab, "services").rstrip()


def policy_rows(lab: Lab) -> list[dict[str, Any]]:
    """Rows of `xdsbpf bpf policies`."""
    rows: list[dict[str, Any]] = xdsbpf_json(lab, "bpf", "policies")["items"]
    return rows
