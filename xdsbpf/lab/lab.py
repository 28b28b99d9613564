"""A lab that is up: its status, commands in its pods, and faults for chaos tests.

Input: the name of a lab. Called by the command line, the demo and the tests; `bringup` makes and removes
labs. Keeps no state of its own: `lab.json` and the cgroups say what there is.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from xdsbpf.errors import ConfigError
from xdsbpf.lab import agents, cgroups, readiness
from xdsbpf.lab.commands import pod_argv
from xdsbpf.lab.hosts import ServiceAddress, render_hosts, write_in_place
from xdsbpf.lab.layout import Layout
from xdsbpf.lab.plan import LabPlan, PodPlan
from xdsbpf.lab.processes import (
    LabError,
    ProcessRecord,
    environment,
    is_alive,
    send_signal,
    spawn,
    start_time,
    tail,
    wait_for,
)
from xdsbpf.lab.state import LabRecord, require_record, write_record

START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0


class PodStatus(msgspec.Struct, frozen=True):
    """`ready`: the stand-in listens on all its ports and its process lives."""

    name: str
    namespace: str
    node: str
    address: str
    service_account: str
    uid: str
    ready: bool


class ProcessStatus(msgspec.Struct, frozen=True):
    """A process of the mesh; an Envoy that does not run has pid 0."""

    role: str
    pid: int
    alive: bool


class LabStatus(msgspec.Struct, frozen=True):
    name: str
    ready: bool
    bare: bool
    nodes: tuple[str, ...]
    pods: tuple[PodStatus, ...]
    processes: tuple[ProcessStatus, ...]


class Lab:
    """Handle on a lab. Its methods re-read `lab.json`, so two handles never disagree for long."""

    def __init__(self, layout: Layout, record: LabRecord) -> None:
        self.layout = layout
        self._record = record

    @classmethod
    def load(cls, name: str) -> Lab:
        """The lab of that name. Raises: ConfigError if there is none."""
        layout = Layout(name)
        return cls(layout, require_record(layout))

    @property
    def plan(self) -> LabPlan:
        return self._record.plan

    @property
    def paths(self) -> tuple[str, ...]:
        """Manifest paths that the control plane watches, absolute."""
        return self._record.paths

    @property
    def state_dir(self) -> Path:
        return self.layout.state

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.plan.nodes)

    def agent_socket(self, node: str) -> Path:
        """Status socket of a node's agent."""
        return agents.status_socket(self.layout, node)

    def envoy_admin(self, node: str) -> Path:
        """Admin socket of a node's Envoy."""
        return agents.envoy_admin_socket(self.layout, node)

    def status(self) -> LabStatus:
        """What there is and whether it runs."""
        record = self._record = require_record(self.layout)
        mesh = [p for p in record.processes if not p.role.startswith("pod/")]
        processes = [ProcessStatus(p.role, p.pid, is_alive(p)) for p in mesh]
        for node in () if record.bare else self.node_names:
            pids = cgroups.members(self.layout.role_cgroup(f"envoy/{node}"))
            processes.append(ProcessStatus(f"envoy/{node}", pids[0] if pids else 0, bool(pids)))
        return LabStatus(
            record.plan.name,
            record.ready,
            record.bare,
            self.node_names,
            tuple(self._pod_status(record, pod) for pod in record.plan.pods),
            tuple(sorted(processes, key=lambda process: process.role)),
        )

    def pod(self, name: str) -> PodPlan:
        """A pod by its name, or the first one of a Deployment or app; `namespace/name` narrows it.

        Raises: ConfigError.
        """
        namespace, _, short = name.rpartition("/")
        pods = [pod for pod in self.plan.pods if namespace in ("", pod.namespace)]
        for attribute in ("name", "owner", "app"):
            for pod in pods:
                if getattr(pod, attribute) == short:
                    return pod
        raise ConfigError(
            f"lab {self.plan.name} has no pod {name}",
            hint="one of: " + ", ".join(p.name for p in self.plan.pods),
        )

    def exec_argv(self, pod: str, command: Sequence[str]) -> list[str]:
        """The command that runs `command` in a pod, whose hosts file is brought up to date first."""
        self.refresh_hosts()
        return list(pod_argv(self.layout, self.pod(pod), command))

    def run(self, pod: str, command: Sequence[str], *, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a command in a pod and return what it printed. Raises: subprocess.TimeoutExpired."""
        argv = self.exec_argv(pod, command)
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, env=environment())

    def client(self, pod: str, *arguments: str, timeout: float = 30) -> dict[str, Any]:
        """Run the lab's client in a pod (`get URL -n 100`) and return its JSON. Raises: LabError."""
        result = self.run(pod, (sys.executable, "-m", "xdsbpf.lab.client", *arguments), timeout=timeout)
        if result.returncode:
            raise LabError(f"client in {pod}: exit {result.returncode}: {result.stderr.strip()}")
        document: dict[str, Any] = json.loads(result.stdout)
        return document

    def start_client(self, pod: str, *arguments: str) -> subprocess.Popen[str]:
        """The client in the background; its JSON comes on stdout when it ends (SIGTERM ends it early)."""
        argv = self.exec_argv(pod, (sys.executable, "-m", "xdsbpf.lab.client", *arguments))
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env=environment())

    def start(self, role: str, argv: Sequence[str]) -> ProcessRecord:
        """Start a process of the lab and remember it; `save` writes the record. Raises: LabError."""
        process = spawn(role, argv, self.layout.log(role))
        self._record = self._record.with_process(process)
        return process

    def save(self, *, ready: bool | None = None) -> None:
        """Write `lab.json`; `ready` marks that the lab carries traffic."""
        if ready is not None:
            self._record = msgspec.structs.replace(self._record, ready=ready)
        write_record(self.layout, self._record)

    def refresh_hosts(self) -> None:
        """Write every pod's hosts file from what the control plane serves now; without one they stay."""
        if self._record.bare or not readiness.control_plane_is_ready(self.layout):
            return
        self.write_hosts(readiness.service_addresses(self.layout))

    def write_hosts(self, services: Sequence[ServiceAddress]) -> None:
        """Write every pod's hosts file in place."""
        for pod in self.plan.pods:
            write_in_place(self.layout.pod_file(pod, "hosts"), render_hosts(pod, services))

    def kill(self, role: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Signal `control-plane`, `agent/NODE`, `envoy/NODE` or `pod/NAME`; returns the pid that was hit.

        Raises: ConfigError for an unknown role or one that does not run.
        """
        record = self._running(role)
        if not send_signal(record, number):
            raise ConfigError(f"{role} does not run", hint="see: xdsbpf lab status")
        return record.pid

    def restart(self, role: str) -> int:
        """Stop (if it runs) and start a process again with the same command; waits until it is ready.

        Raises: ConfigError for a role the lab does not start itself (the agent starts Envoy), LabError.
        """
        record = require_record(self.layout)
        old = record.process(role)
        if old is None:
            raise ConfigError(f"the lab does not start {role}", hint=_roles(record))
        if send_signal(old, signal.SIGTERM):
            try:
                wait_for(lambda: not is_alive(old), STOP_TIMEOUT, f"{role} to stop")
            except LabError:
                send_signal(old, signal.SIGKILL)
                wait_for(lambda: not is_alive(old), STOP_TIMEOUT, f"{role} to die")
        if role.startswith("pod/"):
            self.layout.pod_file(self.pod(role.removeprefix("pod/")), "ready").unlink(missing_ok=True)
        self._record = record
        new = self.start(role, old.argv)
        self.save()
        self.wait_ready((new,))
        return new.pid

    def wait_ready(self, records: Sequence[ProcessRecord], timeout: float = START_TIMEOUT) -> None:
        """Wait until each of these processes does its work. Raises: LabError with the tail of its log."""
        for record in records:
            ready = partial(self._is_ready, record.role)
            try:
                wait_for(ready, timeout, f"{record.role} to be ready", (record,))
            except LabError as error:
                kind, _, node = record.role.partition("/")
                if kind == "agent" and is_alive(record):
                    raise LabError(str(error), hint=agents.explain(self.layout, self.plan, node)) from error
                raise

    def log(self, role: str, lines: int = 50) -> str:
        """The last lines of the log of a role (as for `kill`), indented."""
        kind, _, name = role.partition("/")
        return tail(agents.envoy_log(self.layout, name) if kind == "envoy" else self.layout.log(role), lines)

    def _is_ready(self, role: str) -> bool:
        kind, _, name = role.partition("/")
        if kind == "control-plane":
            return readiness.control_plane_is_ready(self.layout)
        if kind == "agent":
            return agents.is_ready(self.layout, self.plan, name)
        return self.layout.pod_file(self.pod(name), "ready").exists()

    def _running(self, role: str) -> ProcessRecord:
        record = require_record(self.layout)
        if role.startswith("envoy/"):
            cgroup = self.layout.role_cgroup(role)
            for pid in cgroups.members(cgroup):
                return ProcessRecord(role, pid, start_time(pid) or 0, (), "")
            raise ConfigError(f"{role} does not run", hint="see: xdsbpf lab status")
        found = record.process(role)
        if found is None and role.startswith("pod/"):
            found = record.process(f"pod/{self.pod(role.removeprefix('pod/')).name}")
        if found is None:
            raise ConfigError(f"the lab has no process {role}", hint=_roles(record))
        return found

    def _pod_status(self, record: LabRecord, pod: PodPlan) -> PodStatus:
        process = record.process(f"pod/{pod.name}")
        ready = process is not None and is_alive(process) and self.layout.pod_file(pod, "ready").exists()
        return PodStatus(pod.name, pod.namespace, pod.node, pod.address, pod.service_account, pod.uid, ready)


def _roles(record: LabRecord) -> str:
    return "one of: " + ", ".join(sorted(process.role for process in record.processes))
