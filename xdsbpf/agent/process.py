"""Processes that outlive their starter: identity by pid and start time, and waiting for their end.

Used by the Envoy supervisor to adopt what an earlier agent started. A pid alone is never trusted: it
may be somebody else's by now.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec

_START_TIME_FIELD = 19
"""Index of `starttime` in /proc/<pid>/stat after the command (proc_pid_stat(5), field 22)."""


class ProcessRecord(msgspec.Struct, frozen=True):
    """What a pid file says; `start_time` in clock ticks since boot, `digest` of its configuration."""

    pid: int
    start_time: int
    digest: str


def start_time(pid: int) -> int | None:
    """Start of a living process in clock ticks since boot; None if there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command may contain blanks and parentheses: the fields start after the last one.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[_START_TIME_FIELD])


def read_record(path: Path) -> ProcessRecord | None:
    """The process of a pid file if it still lives; None otherwise, also for a damaged file."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=ProcessRecord)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return record if start_time(record.pid) == record.start_time else None


def write_record(path: Path, record: ProcessRecord) -> None:
    """Replace a pid file as a whole."""
    draft = path.with_suffix(".new")
    draft.write_bytes(msgspec.json.encode(record))
    draft.rename(path)


async def wait_for_end(record: ProcessRecord) -> None:
    """Return when the process has ended, child or not. Event-driven (pidfd)."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        if start_time(record.pid) != record.start_time:
            return
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


def send_signal(record: ProcessRecord, number: signal.Signals) -> None:
    """Signal exactly this process; nothing happens if it has ended."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        # After the open the pid cannot change its owner under us.
        if start_time(record.pid) == record.start_time:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


async def end_process(record: ProcessRecord, grace: float) -> None:
    """SIGTERM, and SIGKILL after `grace` seconds; returns when it has ended."""
    send_signal(record, signal.SIGTERM)
    try:
        async with asyncio.timeout(grace):
            await wait_for_end(record)
    except TimeoutError:
        send_signal(record, signal.SIGKILL)
        await wait_for_end(record)
