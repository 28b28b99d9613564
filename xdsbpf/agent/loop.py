"""The agent's main loop: the one place where something received becomes something written.

Woken by the client, by enrolment, by the end of a quarantine and by the verification interval; applies
what changed, then answers the control plane. Started by the composition root.
"""

from __future__ import annotations

import asyncio
import gc
import time

import structlog

from xdsbpf.agent.client import DatapathClient
from xdsbpf.agent.enroller import Enroller
from xdsbpf.agent.envoy import EnvoySupervisor
from xdsbpf.agent.fragment import Problem
from xdsbpf.agent.ops import interface_cause
from xdsbpf.agent.received import Received
from xdsbpf.agent.reconcile import VERIFY_INTERVAL, Outcome, Reconciler

_LOG = structlog.get_logger()
SETTLE = 0.5
"""Seconds without a resource that was not known after which the first state counts as complete (only if there
is something of an earlier agent to prune: the protocol has no mark for the last page)."""


class AgentLoop:
    """Owner of the decision when to apply and when to prune.

    `synced`: the first full state is in force. `problems`: what is not, as of the last pass.
    """

    def __init__(
        self,
        received: Received,
        reconciler: Reconciler,
        client: DatapathClient,
        enroller: Enroller,
        envoy: EnvoySupervisor,
        changed: asyncio.Event,
    ) -> None:
        self._received = received
        self._reconciler = reconciler
        self._client = client
        self._enroller = enroller
        self._envoy = envoy
        self._changed = changed
        self._settle = SETTLE if reconciler.adopted else 0.0
        self._outcome = Outcome(0, {}, (), None)
        self.synced = False

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Resources that are not in force as written, of the last pass."""
        failed = [Problem(*cause, reason) for cause, reason in self._outcome.failed.items()]
        rejected = [Problem(*cause, reason) for cause, reason in self._received.rejections.items()]
        return tuple(sorted({*self._outcome.problems, *failed, *rejected}))

    def nobodies(self) -> dict[bytes, str]:
        """Addresses of this node's pods that are no identity, because their interface is not guarded; and why."""
        node = self._received.node_config()
        findings, failed = self._enroller.findings, self._outcome.failed
        interfaces = {found.workload: interface_cause(found.ifindex) for found in findings.enrolled}
        found: dict[bytes, str] = {}
        for workload in node.workloads if node else ():
            if workload.name in interfaces:
                reason = failed.get(interfaces[workload.name], "")
            else:
                reason = findings.missing.get(workload.name, "its interface has not been looked for yet")
            if reason:
                found |= dict.fromkeys(workload.addresses, f"{workload.name}: {reason}")
        return found

    async def run(self) -> None:
        """Apply whenever there is a reason to; until cancelled."""
        verify_at = time.monotonic() + VERIFY_INTERVAL
        while True:
            await self._wait(verify_at)
            self._pass()
            if time.monotonic() >= verify_at:
                await self._verify()
                verify_at = time.monotonic() + VERIFY_INTERVAL

    async def _wait(self, verify_at: float) -> None:
        wakes = [verify_at]
        if self._outcome.wake_at is not None:
            wakes.append(self._outcome.wake_at)
        now = time.monotonic()
        answered_at = self._client.answered_at
        if not self.synced and answered_at is not None and answered_at + self._settle > now:
            wakes.append(answered_at + self._settle)
        try:
            async with asyncio.timeout(max(0.0, min(wakes) - now)):
                await self._changed.wait()
        except TimeoutError:
            return
        finally:
            self._changed.clear()

    async def _verify(self) -> None:
        """Compare the kernel with what was written, a slice at a time; changes go first."""
        before = self._reconciler.drift
        for _ in self._reconciler.compare():
            await asyncio.sleep(0)
            if self._changed.is_set():
                self._changed.clear()
                self._pass()
        self._pass()
        if self._reconciler.drift != before:
            _LOG.warning("agent.drift_repaired", count=self._reconciler.drift - before)

    def _pass(self) -> None:
        now = time.monotonic()
        node = self._received.node_config()
        if node is not None:
            self._envoy.configure(node.proxy_address)
            self._enroller.want(node.workloads)
        elif self._client.answered_at is not None:
            self._enroller.want(())
        desired = self._received.desired(self._enroller.findings.enrolled)
        prune = self.synced or self._complete(now)
        changed = self._received.take_changed()
        self._outcome = outcome = self._reconciler.apply(desired, now, prune=prune, changed=changed)
        self._client.answer(outcome)
        if outcome.applied or outcome.failed:
            _LOG.info("agent.plan_applied", count=outcome.applied, failed=len(outcome.failed), prune=prune)
        if prune and not self.synced:
            self.synced = True
            # What a large mesh left in memory lives as long as the process: a collection of it would hold up
            # the loop for a quarter of a second.
            gc.collect()
            gc.freeze()
            _LOG.info("agent.first_state_applied")

    def _complete(self, now: float) -> bool:
        """All types are answered on this stream, no page followed, and workloads have been looked for."""
        answered_at = self._client.answered_at
        if answered_at is None or now < answered_at + self._settle:
            return False
        return self._enroller.up_to_date
