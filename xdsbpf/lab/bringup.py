"""Bring a lab up and take it down: the order of things, and leaving nothing behind.

`up` reads manifests, plans, records the plan, makes cgroups and namespaces, and starts control plane,
stand-ins and agents; when any step fails it takes everything down again. `down` needs only the name. Called
by the command line, the demo and the tests (root). Nothing is dialled from the caller's network namespace.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable

from xdsbpf.errors import ConfigError
from xdsbpf.lab import cgroups, network
from xdsbpf.lab.commands import agent_argv, control_plane_argv, stand_in_argv, stand_in_config
from xdsbpf.lab.hosts import RESOLV_CONF, bare_addresses
from xdsbpf.lab.lab import START_TIMEOUT, Lab
from xdsbpf.lab.layout import CONTROL_PLANE, STATE_ROOT, Layout
from xdsbpf.lab.manifests import LabManifests, read_manifests
from xdsbpf.lab.observed import manifests, publish
from xdsbpf.lab.plan import CLUSTER_DOMAIN, LabOptions, LabPlan, check_name, schedule
from xdsbpf.lab.processes import LabError, ProcessRecord, is_alive, send_signal, wait_for
from xdsbpf.lab.state import LabRecord, read_record

STOP_TIMEOUT = 10.0
TOOLS = ("ip", "nsenter", "unshare", "mount", "umount", "sh")

Progress = Callable[[str], None]


def up(options: LabOptions, progress: Progress | None = None, *, ready_timeout: float = START_TIMEOUT) -> Lab:
    """Bring a lab up and wait until it carries traffic (bare: until its pods answer).

    `ready_timeout` is in seconds, for each process.

    Raises: ConfigError when it cannot be tried (a lab of that name, no root, a tool missing, nothing to run);
    LabError when it was tried and failed, with the tail of the log that tells why. Either way nothing stays.
    """
    say = progress or _silent
    _check_machine()
    found = read_manifests(options.paths)
    if found.errors:
        say(f"lab: {found.errors} errors in the manifests, see: xdsbpf analyze -f …")
    plan = schedule(options, found.deployments, found.pods, found.services)
    layout = Layout(plan.name)
    _claim(layout)
    try:
        return _bring_up(layout, plan, options, found, say, ready_timeout)
    except BaseException:
        say("lab: failed, removing what was made")
        down(plan.name)
        raise


def down(name: str) -> bool:
    """Remove every trace of a lab: processes, cgroups, namespaces with their routes, pins, files.

    Idempotent, and works on what a crash left at any point. Returns: whether there was anything.
    Raises: LabError when something resists; the rest is then still there for another try.
    """
    layout = Layout(check_name(name))
    record = read_record(layout)
    namespaces = set(network.leftovers(name)) | set(record.plan.namespaces if record else ())
    if not (layout.state.exists() or layout.cgroup.exists() or namespaces):
        return False
    # Processes first: a namespace lives as long as a process in it, and an agent repairs what is removed.
    started = record.processes if record else ()
    cgroups.kill(layout.cgroup)
    for process in started:
        send_signal(process, signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, started)), STOP_TIMEOUT, "the lab's processes to end")
    cgroups.remove(layout.cgroup)
    network.remove(sorted(namespaces))
    if layout.pins.is_mount():
        _run("umount", str(layout.pins))
    if layout.state.exists():
        shutil.rmtree(layout.state)
    with contextlib.suppress(OSError):
        STATE_ROOT.rmdir()
    return True


def _silent(line: str) -> None:
    pass


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise ConfigError("the lab needs root", hint="it makes network namespaces and loads BPF programs")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise ConfigError(f"missing commands: {', '.join(missing)}", hint="install iproute2 and util-linux")


def _claim(layout: Layout) -> None:
    """Make the state directory, which is what two commands race for."""
    taken = ConfigError(
        f"there is already a lab {layout.name}",
        hint=f"xdsbpf lab down --name {layout.name}, or another --name",
    )
    if layout.cgroup.exists() or network.leftovers(layout.name):
        raise taken
    try:
        layout.state.mkdir(mode=0o700, parents=True)
    except FileExistsError as error:
        raise taken from error


def _bring_up(
    layout: Layout, plan: LabPlan, options: LabOptions, found: LabManifests, say: Progress, timeout: float
) -> Lab:
    paths = tuple(str(path.resolve()) for path in options.paths)
    lab = Lab(layout, LabRecord(plan, paths, options.bare))
    lab.save()
    _make_files(layout, plan, found)
    if options.mtls and not options.bare:
        _issue_certificates(layout, plan)
    cgroups.build(layout, plan)
    lab.write_hosts(bare_addresses(plan, found.services) if options.bare else ())
    say(f"lab: {len(plan.nodes)} nodes and {len(plan.pods)} pods")
    # Before the control plane: with mutual TLS it listens in there.
    network.build(plan)
    mesh: list[ProcessRecord] = []
    if not options.bare:
        _run("mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(layout.pins))
        say("lab: starting the control plane")
        mesh = [lab.start("control-plane", control_plane_argv(layout, plan, paths, mtls=options.mtls))]
        lab.save()
    stand_ins = [lab.start(f"pod/{pod.name}", stand_in_argv(layout, pod)) for pod in plan.pods]
    lab.save()
    # First: an agent enrols a workload by its process, so a dead stand-in would show as an agent's trouble.
    lab.wait_ready(stand_ins, timeout)
    for process in mesh:
        _start_mesh(lab, process, options, say, timeout)
    lab.save(ready=True)
    return lab


def _start_mesh(lab: Lab, control_plane: ProcessRecord, options: LabOptions, say: Progress, timeout: float) -> None:
    lab.wait_ready((control_plane,), timeout)
    lab.refresh_hosts()
    say("lab: starting an agent and an Envoy on every node")
    started = [
        lab.start(f"agent/{node.name}", agent_argv(lab.layout, node, options.envoy_binary, mtls=options.mtls))
        for node in lab.plan.nodes
    ]
    lab.save()
    lab.wait_ready(started, timeout)


def _make_files(layout: Layout, plan: LabPlan, found: LabManifests) -> None:
    """Directories of the lab, the observed manifests, and each pod's configuration."""
    names = ("logs", "observed", "scratch", "pods", "bpf", *(node.name for node in plan.nodes))
    for name in names:
        (layout.state / name).mkdir(mode=0o700)
    publish(layout.observed, layout.scratch, manifests(plan, found.services))
    layout.resolv_conf.write_text(RESOLV_CONF)
    for pod in plan.pods:
        layout.pod_file(pod, "config").write_bytes(stand_in_config(layout, pod))


def _issue_certificates(layout: Layout, plan: LabPlan) -> None:
    """One authority for the control plane and every node, of which nobody keeps the key."""
    from xdsbpf.lab.authority import Authority, control_plane_id, node_id, write_files

    authority = Authority(f"lab {plan.name}")
    parties = {CONTROL_PLANE: authority.issue(control_plane_id(CLUSTER_DOMAIN), network.NODE_GATEWAY)}
    parties |= {node.name: authority.issue(node_id(CLUSTER_DOMAIN, node.name)) for node in plan.nodes}
    for party, (certificate, key) in parties.items():
        write_files(layout.tls(party), certificate, key, authority.pem)


def _run(*argv: str) -> None:
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    if result.returncode:
        raise LabError(f"{' '.join(argv)}: {result.stderr.strip()}")
