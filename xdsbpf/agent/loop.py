"""The agent's main loop: the one place where something received becomes something written.

Woken by the client, by enrolment, by the end of a quarantine and by the verification interval; applies
the whole desired state, then answers the control plane. Started by the composition root.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from xdsbpf.agent.client import DatapathClient
from xdsbpf.agent.enroller import Enroller
from xdsbpf.agent.envoy import EnvoySupervisor
from xdsbpf.agent.image import Problem
from xdsbpf.agent.received import Received
from xdsbpf.agent.reconcile import VERIFY_INTERVAL, Outcome, Reconciler

_LOG = structlog.get_logger()
SETTLE = 0.5
"""Seconds without another page after which the first state counts as complete (only if there is
something of an earlier agent to prune: the protocol has no mark for the last page)."""


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

    async def run(self) -> None:
        """Apply whenever there is a reason to; until cancelled."""
        verify_at = time.monotonic() + VERIFY_INTERVAL
        while True:
            await self._wait(verify_at)
            now = time.monotonic()
            verify = now >= verify_at
            self._pass(now, verify=verify)
            if verify:
                verify_at = now + VERIFY_INTERVAL

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

    def _pass(self, now: float, *, verify: bool) -> None:
        node = self._received.node_config()
        if node is not None:
            self._envoy.configure(node.proxy_address)
            self._enroller.want(node.workloads)
        elif self._client.answered_at is not None:
            self._enroller.want(())
        desired = self._received.desired(self._enroller.findings.enrolled)
        prune = self.synced or self._complete(now)
        step = self._reconciler.verify if verify else self._reconciler.apply
        drift = self._reconciler.drift
        self._outcome = outcome = step(desired, now, prune=prune)
        self._client.answer(outcome)
        if outcome.applied or outcome.failed:
            _LOG.info("agent.plan_applied", count=outcome.applied, failed=len(outcome.failed), prune=prune)
        if self._reconciler.drift != drift:
            _LOG.warning("agent.drift_repaired", count=self._reconciler.drift - drift)
        if prune and not self.synced:
            self.synced = True
            _LOG.info("agent.first_state_applied")

    def _complete(self, now: float) -> bool:
        """All types are answered on this stream, no page followed, and workloads have been looked for."""
        answered_at = self._client.answered_at
        if answered_at is None or now < answered_at + self._settle:
            return False
        return self._enroller.up_to_date
