"""When what manifests say is in force everywhere: over a running control plane and clients that answer late, refuse,
or are away. Each rule that decides is broken on purpose once, and the test that guards it must see that.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from serve_rig import MESH, REVIEWS_HOST, Client, Rig, node, running, service, virtual_service

from tests.waiting import until
from tests.xds.mutation import Edit
from xdsbpf.cli.wait import deleted, present
from xdsbpf.model.names import FRONTEND, VIRTUAL_HOST
from xdsbpf.report import distribution
from xdsbpf.report.distribution import Awaited, ClientProgress, Distribution, Distributor, Verdict
from xdsbpf.xds import confirmation
from xdsbpf.xds.barriers import Barriers

FILES = {"mesh.yaml": MESH, "vs.yaml": virtual_service()}


async def look(rig: Rig, *awaited: Awaited, connected_only: bool = False) -> Distribution:
    plane = rig.plane
    distributor = Distributor(plane.compiler, plane.catalog, plane.server, plane.barriers)
    return await distributor.look(awaited, connected_only=connected_only)


async def reached(rig: Rig, verdict: Verdict, *awaited: Awaited) -> Distribution:
    """Ask until the verdict is that one."""
    found: list[Distribution] = []

    async def ask() -> bool:
        found.append(await look(rig, *awaited))
        return found[-1].verdict is verdict

    await until_async(ask)
    return found[-1]


async def until_async(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while not await condition():
            await asyncio.sleep(0.01)


def objects_of(directory: Path, text: str) -> tuple[Awaited, ...]:
    """The objects of a manifest as `xdsbpf wait -f` asks for them."""
    (directory / "asked.yaml").write_text(text)
    return tuple(Awaited(**entry) for entry in present([str(directory / "asked.yaml")], []))


def client_of(found: Distribution, kind: str) -> ClientProgress:
    return next(client for client in found.clients if client.kind == kind)


async def connected(rig: Rig) -> Client:
    """The node's Envoy, which holds everything and has said so."""
    envoy = await rig.envoy()
    await until(lambda: envoy.body(VIRTUAL_HOST, REVIEWS_HOST) is not None)
    await rig.synced()
    return envoy


async def a_late_ack_is_waited_for(rig: Rig, directory: Path) -> None:
    envoy = await connected(rig)
    envoy.answers = False
    seen = len(envoy.responses)
    rig.write("vs.yaml", virtual_service("kim"))
    wanted = objects_of(directory, virtual_service("kim"))
    await until(lambda: len(envoy.responses) > seen)
    found = await look(rig, *wanted)
    assert found.verdict is Verdict.WAITING, found
    (gap, *_) = client_of(found, "node-envoy").missing
    assert (gap.type, gap.state) == ("vhds", "unanswered")
    assert REVIEWS_HOST in gap.reason
    await envoy.acknowledge(VIRTUAL_HOST)
    found = await reached(rig, Verdict.DONE, *wanted)
    assert found.resources > 0


async def content_that_the_server_has_not_read_is_not_in_force(rig: Rig, directory: Path) -> None:
    await connected(rig)
    assert (await look(rig, *objects_of(directory, virtual_service()))).verdict is Verdict.DONE
    found = await look(rig, *objects_of(directory, virtual_service("kim")))
    assert found.verdict is Verdict.WAITING, found
    assert found.objects[0].state == "not-read"
    assert "vs.yaml:1:1" in found.objects[0].reason


async def a_resource_that_another_object_changed_is_waited_for(rig: Rig, directory: Path) -> None:
    """The Service itself has not changed, so no barrier stands."""
    envoy = await connected(rig)
    wanted = objects_of(directory, service("reviews", "10.9.0.1", "10.1.0.1"))
    assert (await look(rig, *wanted)).verdict is Verdict.DONE
    envoy.answers = False
    seen = len(envoy.responses)
    rig.write("vs.yaml", virtual_service("kim"))
    await until(lambda: len(envoy.responses) > seen)
    found = await look(rig, *wanted)
    assert found.verdict is Verdict.WAITING, found
    assert [(gap.name, gap.state) for gap in client_of(found, "node-envoy").missing] == [(REVIEWS_HOST, "unanswered")]


async def a_resource_whose_newer_version_waits_its_turn_is_not_confirmed(rig: Rig, directory: Path) -> None:
    """The Service itself has not changed, so no barrier stands; the version alone tells."""
    envoy = await connected(rig)
    wanted = objects_of(directory, service("reviews", "10.9.0.1", "10.1.0.1"))
    assert (await look(rig, *wanted)).verdict is Verdict.DONE
    envoy.answers = False
    seen = len(envoy.responses)
    rig.write("other.yaml", virtual_service().replace("reviews", "details"))
    await until(lambda: len(envoy.responses) > seen)
    rig.write("vs.yaml", virtual_service("kim"))
    revision = rig.plane.compiler.store.revision
    await until(lambda: rig.plane.compiler.store.revision > revision)
    found = await look(rig, *wanted)
    assert found.verdict is Verdict.WAITING, found
    assert (REVIEWS_HOST, "unsent") in {(gap.name, gap.state) for gap in client_of(found, "node-envoy").missing}


async def a_removal_is_waited_for(rig: Rig, directory: Path) -> None:
    envoy = await connected(rig)
    envoy.answers = False
    seen = len(envoy.responses)
    (directory / "asked.yaml").write_text(virtual_service())
    wanted = tuple(Awaited(**entry) for entry in deleted([str(directory / "asked.yaml")], []))
    assert (await look(rig, *wanted)).objects[0].state == "not-read"
    (rig.directory / "vs.yaml").unlink()
    await until(lambda: len(envoy.responses) > seen)
    found = await look(rig, *wanted)
    assert found.verdict is Verdict.WAITING, found
    assert found.objects[0].state == "current"
    await envoy.acknowledge(VIRTUAL_HOST)
    assert (await reached(rig, Verdict.DONE, *wanted)).resources == 0


Scenario = Callable[[Rig, Path], Awaitable[None]]
SCENARIOS: list[Scenario] = [
    a_late_ack_is_waited_for,
    content_that_the_server_has_not_read_is_not_in_force,
    a_resource_that_another_object_changed_is_waited_for,
    a_resource_whose_newer_version_waits_its_turn_is_not_confirmed,
    a_removal_is_waited_for,
]
MUTANTS: list[tuple[Scenario, Edit]] = [
    (
        a_resource_that_another_object_changed_is_waited_for,
        Edit(confirmation, "_gap", "any(name in sent.versions for sent in subscription.in_flight.values())", "False"),
    ),
    (
        content_that_the_server_has_not_read_is_not_in_force,
        Edit(Distributor, "_object", "found != awaited.digest", "not found"),
    ),
    (
        a_resource_whose_newer_version_waits_its_turn_is_not_confirmed,
        Edit(confirmation, "_gap", "subscription.held.get(name) != version", "name not in subscription.held"),
    ),
    (a_removal_is_waited_for, Edit(distribution, "behind", "sent.stamp <= limit", "False")),
    (a_removal_is_waited_for, Edit(Barriers, "of", "self._spans.get(object_id, self._floor)", "self._floor")),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_wait(scenario: Scenario, tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        await scenario(rig, tmp_path)


@pytest.mark.parametrize(("scenario", "edit"), MUTANTS, ids=lambda value: getattr(value, "old", None))
async def test_wait_fails_when_the_rule_is_broken(
    scenario: Scenario, edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit.owner, edit.name, edit.apply())
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        with pytest.raises(AssertionError):
            await scenario(rig, tmp_path)


async def test_a_refusal_ends_the_wait_with_its_text(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        envoy = await connected(rig)
        envoy.refuse = lambda item: f"{item.name}: no such filter" if item.name == REVIEWS_HOST else ""
        rig.write("vs.yaml", virtual_service("kim"))
        found = await reached(rig, Verdict.FAILED, *objects_of(tmp_path, virtual_service("kim")))
        gap = client_of(found, "node-envoy").missing[0]
        assert (gap.name, gap.state) == (REVIEWS_HOST, "refused")
        assert "no such filter" in gap.reason
        details = objects_of(tmp_path, service("details", "10.9.0.2", "10.1.0.2"))
        assert (await reached(rig, Verdict.DONE, *details)).verdict is Verdict.DONE, (
            "what else there is, is not concerned"
        )


async def test_an_agent_confirms_and_a_withheld_frontend_says_what_it_waits_for(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        agent = await rig.agent()
        wanted = objects_of(tmp_path, virtual_service())

        async def missing() -> list[tuple[str, str]]:
            found = await look(rig, *wanted)
            assert found.verdict is Verdict.WAITING
            agents = [client for client in found.clients if client.kind == "agent"]
            return [(gap.type, gap.state) for client in agents for gap in client.missing]

        async def only_withheld() -> bool:
            return await missing() == [("frontend", "withheld")]

        await until_async(only_withheld)
        (gap,) = client_of(await look(rig, *wanted), "agent").missing
        assert "Envoy of node node1 is not connected" in gap.reason
        agent.answers = False
        await rig.envoy()

        async def only_unanswered() -> bool:
            return await missing() == [("frontend", "unanswered")]

        await until_async(only_unanswered)
        await agent.acknowledge(FRONTEND)
        await reached(rig, Verdict.DONE, *wanted)


async def test_nobody_connected_is_not_everybody(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        found = await look(rig, *objects_of(tmp_path, virtual_service()))
        assert (found.verdict, found.reason) == (Verdict.WAITING, "no proxy and no agent is connected")


async def test_a_node_whose_agent_is_away_is_missed_unless_only_the_connected_count(tmp_path: Path) -> None:
    files = {**FILES, "node2.yaml": node("node2", "10.0.0.2")}
    async with running(tmp_path / "m", files, tmp_path / "xds.sock") as rig:
        await connected(rig)
        wanted = objects_of(tmp_path, virtual_service())
        found = await look(rig, *wanted)
        assert {client.kind for client in found.clients if client.state == "not-connected"} == {"node-envoy"}
        assert (await look(rig, *wanted, connected_only=True)).verdict is Verdict.DONE
        second = await rig.envoy("node2")
        await reached(rig, Verdict.DONE, *wanted)
        await gone(rig, second)
        found = await look(rig, *wanted)
        (away,) = [client for client in found.clients if client.state == "not-connected"]
        assert (away.node, away.node_id) == ("node2", "")
        assert re.fullmatch(r"not connected for \d+ s", away.reason)


async def gone(rig: Rig, client: Client) -> None:
    await client.close()
    rig.clients.remove(client)
    await until(lambda: client.node_id not in {status.node_id for status in rig.plane.server.status()})


async def test_of_two_streams_of_one_node_the_newest_counts(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        dead = await connected(rig)
        dead.answers = False
        rig.write("vs.yaml", virtual_service("kim"))
        wanted = objects_of(tmp_path, virtual_service("kim"))
        await until(lambda: dead.responses[-1].type_url == VIRTUAL_HOST and len(dead.responses) > 4)
        assert (await look(rig, *wanted)).verdict is Verdict.WAITING
        await rig.envoy()
        assert len((await reached(rig, Verdict.DONE, *wanted)).clients) == 1


async def test_an_envoy_that_has_not_asked_for_its_listeners_yet_is_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        client = rig.client("node~10.0.0.1~node1~cluster.local")
        await client.subscribe([VIRTUAL_HOST])
        await until(lambda: client.responses)
        found = await look(rig, *objects_of(tmp_path, MESH))
        assert found.verdict is Verdict.WAITING
        assert "unasked" in {gap.state for gap in client_of(found, "node-envoy").missing}


async def test_a_build_that_fails_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xdsbpf.compile.envoy import virtual_hosts

    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        await connected(rig)

        def broken(port: int) -> object:
            raise ValueError("made for a test")

        monkeypatch.setattr(virtual_hosts, "route_config_requirement", broken)
        rig.write("vs.yaml", virtual_service("kim"))
        found = await reached(rig, Verdict.FAILED, *objects_of(tmp_path, virtual_service("kim")))
        assert "made for a test" in found.reason
        assert found.objects[0].state == "not-built"
