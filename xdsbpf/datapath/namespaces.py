"""Numbers by which the kernel programs know cgroups and network namespaces, and work inside a namespace.

Paths in, ids out. Used by attach and by the agent's enrolment.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from xdsbpf.errors import DatapathError

T = TypeVar("T")
_SO_NETNS_COOKIE = 71
_CLONE_NEWNET = 0x40000000


def cgroup_id(cgroup: Path) -> int:
    """The 64-bit id of a cgroup v2 directory, as bpf_get_current_cgroup_id says it; OSError if absent."""
    return cgroup.stat().st_ino


def netns_cookie(netns: Path) -> int:
    """The cookie of a network namespace file, unique since boot; never 0."""

    def read() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            (cookie,) = struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))
        return int(cookie)

    return run_in_netns(netns, read)


def run_in_netns(netns: Path, function: Callable[[], T]) -> T:
    """Run `function` inside a network namespace and return its result; its exceptions are re-raised.

    A namespace belongs to a thread: a thread of its own enters it and ends there, so the caller can
    never be left in the wrong one. Blocks the caller; keep `function` to a system call or two.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            _set_netns(netns)
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, whatever it is
            errors.append(error)

    thread = threading.Thread(target=enter, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _set_netns(netns: Path) -> None:
    descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, _CLONE_NEWNET):
            raise DatapathError("setns", ctypes.get_errno(), str(netns))
    finally:
        os.close(descriptor)
