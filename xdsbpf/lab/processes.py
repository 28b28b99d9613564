"""Processes of a lab: started inside a pod or node, identified by pid and start time, logged to files.

Input: an argv and where it belongs (cgroup, network namespace, files to bind). Output: a `ProcessRecord` that
`lab.json` keeps. Called by `bringup` and `lab`. A process outlives the command that started it, and a signal
is only ever sent to the process that was started, never to another that got its pid.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

import xdsbpf
from xdsbpf.errors import XdsbpfError

TAIL_LINES = 15
_POLL = 0.01

# Joining comes first and by exec only, so the pid stays the same and no socket exists before it.
_JOIN = 'echo 0 > "$1/cgroup.procs" && shift && exec "$@"'
# `ip netns exec` would remount /sys and hide cgroups and pins; a private mount namespace keeps them.
_BIND = 'mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && shift 2 && exec "$@"'


class LabError(XdsbpfError):
    """The lab could not be brought up or taken down, or a part of it died."""


class ProcessRecord(msgspec.Struct, frozen=True):
    """A process that the lab started; `start_time`: field 22 of /proc/PID/stat, clock ticks since boot."""

    role: str
    pid: int
    start_time: int
    argv: tuple[str, ...]
    log: str


def enter_argv(
    argv: Sequence[str],
    *,
    cgroup: Path,
    netns: Path | None = None,
    hosts: tuple[Path, Path] | None = None,
) -> tuple[str, ...]:
    """The command that joins `cgroup`, enters `netns`, binds (hosts, resolv.conf) and becomes `argv`."""
    command = tuple(argv)
    if hosts is not None:
        command = ("unshare", "--mount", "sh", "-c", _BIND, "sh", str(hosts[0]), str(hosts[1]), *command)
    if netns is not None:
        command = ("nsenter", f"--net={netns}", *command)
    return ("sh", "-c", _JOIN, "sh", str(cgroup), *command)


def environment() -> Mapping[str, str]:
    """Environment of the lab's processes: the caller's, with this package importable from anywhere."""
    package = str(Path(xdsbpf.__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{package}:{inherited}" if inherited else package}


def spawn(role: str, argv: Sequence[str], log: Path) -> ProcessRecord:
    """Start a process in a session of its own, its output appended to `log` (0600).

    Raises: LabError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = (
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    )
    try:
        pid = os.posix_spawnp(
            argv[0], list(argv), environment(), file_actions=actions, setsid=True, setsigdef=[signal.SIGPIPE]
        )
    except OSError as error:
        raise LabError(f"cannot start {role}: {error}") from error
    return ProcessRecord(role, pid, start_time(pid) or 0, tuple(argv), str(log))


def start_time(pid: int) -> int | None:
    """When a running process was started, or None if it does not run (a zombie does not)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(record: ProcessRecord) -> bool:
    """Whether the very process of the record still runs; reaps it if it was our child and has ended."""
    try:
        os.waitpid(record.pid, os.WNOHANG)
    except ChildProcessError:
        return start_time(record.pid) == record.start_time
    return start_time(record.pid) == record.start_time


def send_signal(record: ProcessRecord, number: signal.Signals) -> bool:
    """Signal the process of the record; False if it is gone.

    Race: the pidfd is opened before the start time is compared, so a reused pid is never signalled.
    """
    try:
        handle = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return False
    try:
        if start_time(record.pid) != record.start_time:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def wait_for(condition: Callable[[], bool], timeout: float, what: str, needed: Sequence[ProcessRecord] = ()) -> None:
    """Poll until `condition` holds.

    Raises: LabError when the time is over, or at once when one of `needed` has ended; with its log's tail.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        dead = next((record for record in needed if not is_alive(record)), None)
        if dead is not None:
            raise LabError(f"{dead.role} ended while the lab waited for {what}\n{tail(Path(dead.log))}")
        if time.monotonic() > deadline:
            logs = "\n".join(f"{record.role}:\n{tail(Path(record.log))}" for record in needed[:2])
            raise LabError(f"waited {timeout:g} s for {what}\n{logs}".rstrip())
        time.sleep(_POLL)


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, indented; says so if there are none."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - 65536, 0))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        text = ""
    found = text.splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in found) if found else "    (its log is empty)"
