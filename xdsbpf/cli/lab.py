"""`xdsbpf lab …`: nodes and pods in network namespaces of this machine (root)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from xdsbpf.cli.exits import Exit, fail
from xdsbpf.cli.tables import NO_HEADERS, Output, write_document, write_names, write_table

app = typer.Typer(help="A mesh on one machine: what kind is to Kubernetes.", no_args_is_help=True)

NAME = typer.Option("xb", "--name", help="name of the lab; several can run at once")
OUTPUT = typer.Option(Output.TABLE, "--output", "-o", help="table, json, yaml or name")


def require_root() -> None:
    """The lab makes network namespaces and loads BPF programs."""
    if os.geteuid() != 0:
        fail("the lab needs root: it makes network namespaces and loads BPF programs", Exit.NOT_PERMITTED)


def progress(line: str) -> None:
    """Progress of long work, on standard error and only for people."""
    if sys.stderr.isatty():
        sys.stderr.write(line + "\n")


def parse_replicas(values: list[str]) -> tuple[tuple[str, int], ...]:
    """`details=2` -> ("details", 2); anything else ends the command with a usage error."""
    parsed = []
    for value in values:
        name, separator, count = value.partition("=")
        if not separator or not name or not count.isdigit():
            fail(
                f"--replicas {value!r} is not NAME=NUMBER",
                Exit.USAGE,
                hint="for example --replicas details=2",
            )
        parsed.append((name, int(count)))
    return tuple(parsed)


@app.command()
def up(
    filename: list[Path] = typer.Option(..., "--filename", "-f", help="manifest file or directory (repeatable)"),
    nodes: int = typer.Option(2, "--nodes", min=1, max=8, help="number of nodes"),
    replicas: list[str] = typer.Option([], "--replicas", help="NAME=NUMBER: scale a Deployment (repeatable)"),
    name: str = NAME,
    bare: bool = typer.Option(False, "--bare", help="network and pods only: no control plane, agent or Envoy"),
    mtls: bool = typer.Option(False, "--mtls", help="agents and Envoys dial the control plane with certificates"),
    envoy_binary: Path | None = typer.Option(None, "--envoy-binary", help="Envoy to run on the nodes"),
) -> None:
    """Make nodes and pods, and run a mesh on them.

    Starts control plane, agents and Envoys, and leaves them running until `lab down`.
    """
    require_root()
    from xdsbpf.lab.bringup import up as bring_up
    from xdsbpf.lab.plan import LabOptions

    options = LabOptions(
        name=name,
        paths=tuple(filename),
        nodes=nodes,
        replicas=parse_replicas(replicas),
        bare=bare,
        mtls=mtls,
        envoy_binary=envoy_binary,
    )
    lab = bring_up(options, progress=progress)
    sys.stderr.write(
        f"lab {name} is up: {len(lab.plan.pods)} pods on {nodes} nodes\n"
        f"  xdsbpf lab status · xdsbpf lab exec POD -- CMD · xdsbpf ps · xdsbpf bpf frontends · xdsbpf lab down\n"
    )


@app.command()
def down(name: str = NAME) -> None:
    """Remove every trace of a lab; fine to repeat."""
    require_root()
    from xdsbpf.lab.bringup import down as take_down

    if not take_down(name):
        sys.stderr.write(f"there is no lab {name}\n")


@app.command()
def status(name: str = NAME, output: Output = OUTPUT, no_headers: bool = NO_HEADERS) -> None:
    """Pods and processes of a lab."""
    require_root()
    import msgspec

    from xdsbpf.lab.lab import Lab

    lab_status = Lab.load(name).status()
    if write_document(output, "LabStatus", msgspec.to_builtins(lab_status)):
        return
    if output is Output.NAME:
        write_names(pod.name for pod in lab_status.pods)
        return
    write_table(
        ("POD", "NAMESPACE", "NODE", "ADDRESS", "READY"),
        [(pod.name, pod.namespace, pod.node, pod.address, "yes" if pod.ready else "no") for pod in lab_status.pods],
        no_headers=no_headers,
    )
    sys.stdout.write("\n")
    write_table(
        ("PROCESS", "PID", "STATE"),
        [(entry.role, entry.pid, "running" if entry.alive else "dead") for entry in lab_status.processes],
        no_headers=no_headers,
    )


@app.command(context_settings={"ignore_unknown_options": True})
def exec(
    pod: str = typer.Argument(help="pod, or the name of its Deployment or app"),
    command: list[str] = typer.Argument(help="command and arguments"),
    name: str = NAME,
) -> None:
    """Run a command in a pod: its network, cgroup and hosts file."""
    require_root()
    from xdsbpf.lab.lab import Lab

    arguments = Lab.load(name).exec_argv(pod, command)
    os.execvp(arguments[0], arguments)
