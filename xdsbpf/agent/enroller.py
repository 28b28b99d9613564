"""The enroller: looks for this node's workloads until all are found, and again when links or routes change.

Workloads in, `Findings` out, through an event of the main loop. The search itself is in `enrolment`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import structlog

from xdsbpf.agent.desired import Workload
from xdsbpf.agent.enrolment import Findings, find_workloads

_LOG = structlog.get_logger()
_POLL_MISSING = 0.5
_POLL_ALL_FOUND = 5.0
# rtnetlink multicast groups (linux/rtnetlink.h): RTMGRP_LINK, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE.
_GROUPS = 0x1 | 0x40 | 0x400


class Enroller:
    """Owner of the enrolled workloads; `changed` is set when `findings` differ from before."""

    def __init__(self, cgroup_root: Path, changed: asyncio.Event) -> None:
        """Looks nowhere before `want` and `run`."""
        self._cgroup_root = cgroup_root
        self._changed = changed
        self._wanted: tuple[Workload, ...] | None = None
        self._looked_for: tuple[Workload, ...] | None = None
        self._again = asyncio.Event()
        self.findings = Findings((), {})

    @property
    def up_to_date(self) -> bool:
        """True once the workloads last wanted have been looked for."""
        return self._wanted is not None and self._looked_for == self._wanted

    def want(self, workloads: tuple[Workload, ...]) -> None:
        """Set the workloads to find."""
        if workloads != self._wanted:
            self._wanted = workloads
            self._again.set()

    async def run(self) -> None:
        """Look when asked, when the kernel reports a change, and from time to time; until cancelled."""
        loop = asyncio.get_running_loop()
        with _route_events() as events:
            loop.add_reader(events.fileno(), self._on_event, events)
            try:
                while True:
                    pause = _POLL_MISSING if self.findings.missing else _POLL_ALL_FOUND
                    # After the pause look without being asked: a namespace may have got its first process.
                    # (timeout, not wait_for: that one loses a cancellation that races with its event.)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._again.wait()
                    self._again.clear()
                    await self._look()
            finally:
                loop.remove_reader(events.fileno())

    async def _look(self) -> None:
        wanted = self._wanted
        if wanted is None:
            return
        known = {found.workload: found for found in self.findings.enrolled}
        findings = await asyncio.to_thread(find_workloads, wanted, self._cgroup_root, known)
        news = findings != self.findings or self._looked_for != wanted
        self.findings, self._looked_for = findings, wanted
        if news:
            _LOG.info(
                "agent.workloads_looked_for",
                enrolled=len(findings.enrolled),
                missing=sorted(findings.missing),
            )
            self._changed.set()

    def _on_event(self, events: socket.socket) -> None:
        try:
            while events.recv(65536):
                self._again.set()
        except BlockingIOError:
            return
        except OSError:
            # ENOBUFS: events were lost, so something changed.
            self._again.set()


def _route_events() -> socket.socket:
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    events.bind((0, _GROUPS))
    return events
