"""Cgroups of a lab: made before anything runs, and the exact handle on everything that does.

A process joins its cgroup before it creates a socket, because a socket keeps the cgroup it was made in.
Killing the lab's root cgroup therefore ends every process of the lab and nothing else, also after a crash.
"""

from __future__ import annotations

import contextlib
import errno
import time
from pathlib import Path

from xdsbpf.lab.layout import Layout
from xdsbpf.lab.plan import LabPlan
from xdsbpf.lab.processes import LabError

REMOVE_TIMEOUT = 10.0


def build(layout: Layout, plan: LabPlan) -> None:
    """Make `control`, and per node `proxy`, `agent` and one below `pods` for each pod."""
    layout.role_cgroup("control-plane").mkdir(parents=True)
    for node in plan.nodes:
        layout.role_cgroup(f"envoy/{node.name}").mkdir(parents=True)
        layout.role_cgroup(f"agent/{node.name}").mkdir(parents=True)
    for pod in plan.pods:
        layout.pod_cgroup(pod).mkdir(parents=True)


def members(cgroup: Path) -> list[int]:
    """Pids of the processes directly in a cgroup; empty if there is no such cgroup."""
    try:
        return [int(line) for line in (cgroup / "cgroup.procs").read_text().split()]
    except FileNotFoundError:
        return []


def kill(cgroup: Path) -> None:
    """SIGKILL every process in and below a cgroup; nothing if there is no such cgroup."""
    with contextlib.suppress(FileNotFoundError):
        (cgroup / "cgroup.kill").write_text("1")


def remove(cgroup: Path) -> None:
    """Remove a tree of cgroups, killing what is in it; waits for the kernel to see the processes gone.

    Raises: LabError when something still lives in it after 10 s.
    """
    deadline = time.monotonic() + REMOVE_TIMEOUT
    while cgroup.exists():
        try:
            for path in sorted((p for p in cgroup.rglob("*") if p.is_dir()), reverse=True):
                path.rmdir()
            cgroup.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise LabError(f"cannot remove the cgroup {cgroup}: {error.strerror}") from error
            # Race: a command that was just starting may have joined after the first kill.
            kill(cgroup)
            time.sleep(0.005)
