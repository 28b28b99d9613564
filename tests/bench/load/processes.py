"""A child process that answers a line with a line, what it costs, and what it holds.

In: a command, lines. Out: answers; CPU time and memory of that process, read from outside. Used by the load client and
by the benchmarks' servers.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from pathlib import Path

_CPUCLOCK_SCHED = 2


def cpu_s_of(pid: int) -> float:
    """CPU time that a process has used, all threads (its process clock, clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


class Lines:
    """The process. `cpu` pins it, if this machine has that one; `stderr` is where its log goes, else ours."""

    def __init__(self, command: list[str], *, cpu: int | None = None, stderr: Path | None = None) -> None:
        with open(stderr, "wb") if stderr is not None else contextlib.nullcontext() as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self._buffer = b""
        if cpu is not None and cpu in os.sched_getaffinity(0):
            os.sched_setaffinity(self.pid, {cpu})

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu_s(self) -> float:
        """CPU time that the process has used, all threads."""
        return cpu_s_of(self.pid)

    @property
    def waited_s(self) -> float:
        """How long the first thread was ready to run and had no processor: what a busy machine adds to its times."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9

    @property
    def rss_bytes(self) -> int:
        """Resident memory now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def ask(self, line: str, timeout_s: float) -> str:
        """Send a line, wait for the answer. Raises: TimeoutError; EOFError if the process has ended."""
        self.say(line)
        return self.hear(timeout_s, line)

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def hear(self, timeout_s: float, what: str) -> str:
        """The next line of its output."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"no answer to {what!r} within {timeout_s} s")
                got = os.read(self._process.stdout.fileno(), 1 << 16)
                if not got:
                    raise EOFError(f"the process ended at {what!r} with {self._process.wait()}")
                self._buffer += got
        found, _, self._buffer = self._buffer.partition(b"\n")
        return found.decode()

    def close(self) -> None:
        """End the process: it stops at the end of its input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
