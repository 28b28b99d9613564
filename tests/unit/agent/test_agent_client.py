"""The agent's client and main loop against a real server: refusals, reconnects and the end, while things change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import until
from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2 as pb
from xdsbpf.agent.client import DatapathClient
from xdsbpf.agent.enroller import Enroller
from xdsbpf.agent.envoy import EnvoyOptions, EnvoySupervisor
from xdsbpf.agent.loop import AgentLoop
from xdsbpf.agent.received import Received
from xdsbpf.agent.reconcile import Reconciler
from xdsbpf.datapath.memory import MemoryTables
from xdsbpf.model.names import BACKENDS, IDENTITY, NODE_CONFIG
from xdsbpf.model.resource import Resource, make_resource
from xdsbpf.node import _until
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.store import AGENT, ResourceStore, View


class NoHooks:
    def attach_veth(self, ifindex: int) -> None: ...

    def detach_veth(self, ifindex: int) -> None: ...

    def veths(self) -> tuple[int, ...]:
        return ()


def identity(number: int, generation: int) -> Resource:
    name = f"spiffe://t/{number}"
    address = bytes((10, generation % 250, number // 250, number % 250 + 1))
    return make_resource(IDENTITY, name, pb.Identity(name=name, addresses=[address]).SerializeToString())


NODE = make_resource(NODE_CONFIG, "n", pb.NodeConfig(node="n", trust_domain="t").SerializeToString())


class Control:
    """A control plane that can end and come back with the same store."""

    def __init__(self, directory: Path) -> None:
        self.store = ResourceStore()
        self.address = f"unix:{directory}/xds.sock"
        self.store.apply("agent", [NODE, *(identity(number, 0) for number in range(50))])

    async def start(self) -> None:
        view = View(("agent",), "n", AGENT)
        self.server = XdsServer(self.store, lambda node_id, metadata: view, time.monotonic)
        await self.server.start([self.address])

    def put(self, *resources: Resource) -> None:
        self.server.changed(self.store.apply("agent", resources))


class Agent:
    def __init__(self, control: Control, directory: Path, kernel: MemoryTables) -> None:
        changed = asyncio.Event()
        self.received = Received("n")
        self.reconciler = Reconciler(kernel, NoHooks())
        self.client = DatapathClient(control.address, "agent~127.0.0.1~n~x", self.received, changed)
        enroller = Enroller(directory, changed)
        envoy = EnvoySupervisor(EnvoyOptions("n", control.address, directory, directory, None, 1, "x", False))
        self.loop = AgentLoop(self.received, self.reconciler, self.client, enroller, envoy, changed)
        self.stop = asyncio.Event()
        self.services = _until(self.stop, self.client.run(), enroller.run(), envoy.run(), self.loop.run())


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[None]:
    """The agent's services; at the end nothing of them is left, and no error that nobody has seen."""
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    before = asyncio.all_tasks()
    task = asyncio.create_task(agent.services)
    try:
        yield
    finally:
        agent.stop.set()
        async with asyncio.timeout(5):
            await task
    assert not [left for left in asyncio.all_tasks() - before - {task} if "xdsbpf/agent" in repr(left)]
    assert unseen == []


def addresses(kernel: MemoryTables) -> set[bytes]:
    return {key.address[-4:] for key, _ in kernel.addresses.items()}


def wanted(generation: int) -> set[bytes]:
    return {bytes((10, generation % 250, 0, number + 1)) for number in range(50)}


async def test_servers_that_end_while_everything_changes_leave_the_agent_with_the_last_state(tmp_path: Path) -> None:
    control, kernel = Control(tmp_path), MemoryTables()
    await control.start()
    agent = Agent(control, tmp_path, kernel)
    async with running(agent):
        await until(lambda: agent.loop.synced, "synced")
        generation = 0
        for round_ in range(4):
            for _ in range(40):
                generation += 1
                control.put(*(identity(number, generation) for number in range(50)))
                await asyncio.sleep(0)
            if round_ < 3:
                await control.server.stop(0)
                # What changes while nobody serves is found by the versions that the agent claims.
                control.store.apply("agent", [identity(0, generation + 7)])
                await control.start()
        control.put(*(identity(number, generation) for number in range(50)))
        await until(lambda: addresses(kernel) == wanted(generation), "the last state is in force")
        await until(lambda: all(t.state.name == "SYNCED" for n in control.server.status() for t in n.types), "ACKed")
    await control.server.stop(0)


async def test_an_agent_prunes_what_went_while_it_was_away_though_changes_never_pause(tmp_path: Path) -> None:
    control, kernel = Control(tmp_path), MemoryTables()
    await control.start()
    first = Agent(control, tmp_path, kernel)
    async with running(first):
        await until(lambda: first.loop.synced, "synced")
    assert addresses(kernel) == wanted(0)
    control.server.changed(control.store.apply("agent", (), ((IDENTITY, "spiffe://t/0"),)))

    async def change_for_ever() -> None:
        generation = 0
        while True:
            generation += 1
            control.put(identity(1, generation))
            await asyncio.sleep(0.05)

    second = Agent(control, tmp_path, kernel)
    changes = asyncio.create_task(change_for_ever())
    async with running(second):
        await until(lambda: second.loop.synced, "synced, though changes come more often than it waits for pages")
        await until(lambda: bytes((10, 0, 0, 1)) not in addresses(kernel), "the address that went to be gone")
        assert len(addresses(kernel)) == 49
        changes.cancel()
    await control.server.stop(0)


@pytest.mark.parametrize("server_ends_first", [False, True])
async def test_the_end_in_the_middle_of_a_flood_is_clean(tmp_path: Path, server_ends_first: bool) -> None:
    control, kernel = Control(tmp_path), MemoryTables()
    await control.start()
    agent = Agent(control, tmp_path, kernel)
    async with running(agent):
        await until(lambda: agent.loop.synced, "synced")
        for generation in range(1, 60):
            control.put(*(identity(number, generation) for number in range(50)))
            await asyncio.sleep(0)
        if server_ends_first:
            await control.server.stop(0)
    await control.server.stop(0)
    assert len(addresses(kernel)) == 50, "an agent that ends leaves the kernel as it is"


async def test_what_the_kernel_refused_is_nacked_again_after_a_reconnect(tmp_path: Path) -> None:
    control, kernel = Control(tmp_path), MemoryTables(addresses=50)
    await control.start()
    agent = Agent(control, tmp_path, kernel)

    def errors() -> list[str]:
        return [t.error for n in control.server.status() for t in n.types if t.type_url == IDENTITY]

    async with running(agent):
        await until(lambda: agent.loop.synced and errors() == [""], "synced, nothing refused")
        control.put(identity(60, 0))
        await until(lambda: errors() and "spiffe://t/60" in errors()[0], "the NACK names what does not fit")
        await control.server.stop(0)
        await control.start()
        await until(lambda: errors() and "spiffe://t/60" in errors()[0], "and again on the new stream")
        control.server.changed(control.store.apply("agent", (), [(IDENTITY, "spiffe://t/0")]))
        await until(lambda: bytes((10, 0, 0, 61)) in addresses(kernel), "it comes when there is room")
    await control.server.stop(0)


async def test_a_refused_resource_does_not_hold_up_the_next_change(tmp_path: Path) -> None:
    control, kernel = Control(tmp_path), MemoryTables()
    await control.start()
    agent = Agent(control, tmp_path, kernel)
    async with running(agent):
        await until(lambda: agent.loop.synced, "synced")
        control.put(make_resource(BACKENDS, "a:80", b"\xff"), identity(0, 9))
        await until(lambda: bytes((10, 9, 0, 1)) in addresses(kernel), "the good part is in force")
        assert [(p.type_url, p.name) for p in agent.loop.problems] == [(BACKENDS, "a:80")]
        good = pb.Backends(service="a:80", backends=[pb.Backend(address=b"\x0a\0\0\1", port=1, weight=1)])
        control.put(make_resource(BACKENDS, "a:80", good.SerializeToString()))
        await until(lambda: not agent.loop.problems, "the problem is gone")
    await control.server.stop(0)
