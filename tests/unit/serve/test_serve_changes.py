"""From a file on disk to what a client holds: edits, broken texts and their repair, deletions, restarts."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import grpc
import pytest
from serve_rig import (
    DETAILS_FRONTEND,
    MESH,
    REVIEWS_FRONTEND,
    REVIEWS_HOST,
    Client,
    Rig,
    node,
    running,
    service,
    virtual_service,
)

from tests.waiting import until
from xdsbpf.diagnostics import State
from xdsbpf.model.names import CLUSTER, EXTENSION, FRONTEND, IDENTITY, VIRTUAL_HOST
from xdsbpf.serve import COLLECT_AFTER, ControlPlane, ServeConfig

FILES = {"mesh.yaml": MESH, "vs.yaml": virtual_service()}
REVIEWS = "VirtualService/default/reviews"


async def both(rig: Rig) -> tuple[Client, Client]:
    """An Envoy and an agent of node1 that hold everything."""
    envoy, agent = await rig.envoy(), await rig.agent()
    await until(lambda: (FRONTEND, REVIEWS_FRONTEND) in agent.held and (EXTENSION, "srcid") in envoy.held)
    await until(lambda: [len(status.types) for status in rig.plane.server.status()] == [5, 5])
    await rig.synced()
    return envoy, agent


async def test_an_edit_reaches_the_envoy_and_the_agent(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        envoy, agent = await both(rig)
        before = agent.held[FRONTEND, REVIEWS_FRONTEND]
        rig.write("vs.yaml", virtual_service(header="martha"))
        await until(lambda: b"martha" in (envoy.body(VIRTUAL_HOST, REVIEWS_HOST) or b""))
        rig.write("mesh.yaml", MESH.replace("10.9.0.2", "10.9.0.7"))
        await until(lambda: (FRONTEND, "10.9.0.7:9080/tcp") in agent.held)
        await until(lambda: (FRONTEND, DETAILS_FRONTEND) not in agent.held)
        assert agent.held[FRONTEND, REVIEWS_FRONTEND].body == before.body


async def test_the_collector_stays_off_what_was_loaded_and_is_back_when_clients_are_served(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock"):
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() == COLLECT_AFTER


@pytest.mark.parametrize("cut", [0, 10, 60, 120, 150, 230, -1], ids=lambda cut: f"cut at {cut}")
async def test_a_half_written_file_changes_nothing_until_it_is_whole(tmp_path: Path, cut: int) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        envoy, agent = await both(rig)
        sent = len(envoy.responses), len(agent.responses)
        whole = virtual_service(header="martha")
        rig.write("vs.yaml", virtual_service()[:cut])
        await until(lambda: rig.states()[REVIEWS] != "APPLIED")
        row = rig.row(REVIEWS)
        assert row["state"] in ("PENDING", "REJECTED")
        assert row["detail"]
        assert row["diagnostics"]
        assert (len(envoy.responses), len(agent.responses)) == sent
        rig.write("vs.yaml", whole)
        await until(lambda: b"martha" in (envoy.body(VIRTUAL_HOST, REVIEWS_HOST) or b""))
        await until(lambda: rig.states()[REVIEWS] == "APPLIED")


async def test_an_invalid_file_changes_nothing_and_is_explained_to_the_column(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        envoy, agent = await both(rig)
        sent = len(envoy.responses), len(agent.responses)
        rig.write("vs.yaml", virtual_service().replace("timeout: 3s", "timeoot: 3s"))
        await rig.settled(State.REJECTED, of=REVIEWS)
        found = rig.row(REVIEWS)["diagnostics"][0]
        assert found["location"].endswith("vs.yaml:12:7")
        assert found["path"] == "spec.http[0].timeoot"
        assert "timeout" in found["hint"]
        assert (len(envoy.responses), len(agent.responses)) == sent
        rig.write("vs.yaml", virtual_service(header="martha"))
        await until(lambda: b"martha" in (envoy.body(VIRTUAL_HOST, REVIEWS_HOST) or b""))


async def test_an_emptied_file_changes_nothing_until_it_is_confirmed(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        envoy, agent = await both(rig)
        sent = len(envoy.responses), len(agent.responses)
        rig.write("vs.yaml", "# nothing any more\n")
        await rig.settled(State.PENDING, of=REVIEWS)
        assert (len(envoy.responses), len(agent.responses)) == sent
        assert "confirm" in rig.row(REVIEWS)["diagnostics"][0]["hint"]
        assert rig.plane.confirm() == 1
        await until(lambda: b"jason" not in (envoy.body(VIRTUAL_HOST, REVIEWS_HOST) or b""))
        assert REVIEWS not in rig.states()


async def test_a_comment_on_top_sends_nothing_and_moves_the_lines(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        envoy, agent = await both(rig)
        sent = len(envoy.responses), len(agent.responses)
        assert rig.row(REVIEWS)["location"].endswith("vs.yaml:1:1")
        rig.write("vs.yaml", "# a comment\n" + virtual_service())
        await until(lambda: rig.row(REVIEWS)["location"].endswith("vs.yaml:2:1"))
        assert (len(envoy.responses), len(agent.responses)) == sent
        rig.write("vs.yaml", "# a comment\n" + virtual_service(header="martha"))
        await until(lambda: len(envoy.responses) > sent[0])


async def test_a_deleted_file_takes_its_objects_along(tmp_path: Path) -> None:
    async with running(
        tmp_path / "m", {**FILES, "extra.yaml": service("extra", "10.9.0.9", "10.1.0.9")}, tmp_path / "xds.sock"
    ) as rig:
        envoy, agent = await both(rig)
        await until(lambda: (FRONTEND, "10.9.0.9:9080/tcp") in agent.held)
        (rig.directory / "extra.yaml").unlink()
        await until(lambda: (FRONTEND, "10.9.0.9:9080/tcp") not in agent.held)
        await until(lambda: (VIRTUAL_HOST, "9080/extra.default.svc.cluster.local") not in envoy.held)
        assert (FRONTEND, DETAILS_FRONTEND) in agent.held


async def test_a_second_node_gets_an_identity_table_of_its_own(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        first, second = await rig.envoy("node1"), await rig.envoy("node2")
        await until(lambda: (EXTENSION, "srcid") in first.held)
        await rig.synced()
        assert (EXTENSION, "srcid") not in second.held
        pod = service("local", "10.9.0.8", "10.1.0.8").replace("node1", "node2")
        rig.write("second.yaml", "---\n".join([node("node2", "10.0.0.2"), pod]))
        await until(lambda: (EXTENSION, "srcid") in second.held)
        assert b"sa/local" in (second.body(EXTENSION, "srcid") or b"")
        assert b"sa/local" not in (first.body(EXTENSION, "srcid") or b"")


async def test_a_restart_sends_only_what_changed_meanwhile(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        envoy, agent = await both(rig)
        claims = envoy.versions(), agent.versions()
        held = dict(agent.held)
    assert claims[0]
    assert claims[1]
    async with running(tmp_path / "m", {}, tmp_path / "xds2.sock") as rig:
        envoy, agent = await rig.envoy(claims=claims[0]), await rig.agent(claims=claims[1])
        await until(lambda: [len(status.types) for status in rig.plane.server.status()] == [5, 5])
        await rig.synced()
        # Names that were subscribed by name are answered again only if their version differs.
        assert set(envoy.updates()) == set()
        assert set(agent.updates()) == set()
        rig.write("mesh.yaml", MESH.replace("10.9.0.2", "10.9.0.7"))
        await until(lambda: (FRONTEND, "10.9.0.7:9080/tcp") in agent.held)
        changed = {REVIEWS_FRONTEND, *(name for type_url, name in held if type_url == IDENTITY)}
        assert not changed & set(agent.updates())


async def test_a_client_that_connects_early_waits_for_the_first_full_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty first answer would be taken for an empty mesh."""
    asked, gate = asyncio.Event(), asyncio.Event()
    compile_now = ControlPlane._compile

    async def held_back(plane: ControlPlane) -> None:
        asked.set()
        await gate.wait()
        await compile_now(plane)

    monkeypatch.setattr(ControlPlane, "_compile", held_back)
    directory, socket = tmp_path / "m", tmp_path / "xds.sock"
    directory.mkdir()
    (directory / "mesh.yaml").write_text(MESH)
    plane = ControlPlane(ServeConfig(paths=(directory,), listen=(f"unix:{socket}",)))
    task = asyncio.create_task(plane.run())
    rig = Rig(directory, plane, f"unix:{socket}")
    agent_started = asyncio.create_task(rig.agent())
    try:
        await asyncio.wait_for(asked.wait(), 15)
        assert plane.source.synced.is_set()
        assert not plane.ready.is_set()
        assert not socket.exists()
        assert rig.clients[0].responses == []
        gate.set()
        agent = await agent_started
        await until(lambda: (FRONTEND, DETAILS_FRONTEND) in agent.held)
        first = next(r for r in agent.responses if r.type_url == FRONTEND)
        assert {item.name for item in first.resources} == {DETAILS_FRONTEND, REVIEWS_FRONTEND}, "all at once"
    finally:
        agent_started.cancel()
        for client in rig.clients:
            await client.close()
        task.cancel()
        await asyncio.gather(task, agent_started, return_exceptions=True)


@pytest.mark.parametrize(
    ("node_id", "code", "text"),
    [
        ("waypoint~10.0.0.1~a.default~default.svc.cluster.local", "UNIMPLEMENTED", "waypoints are not supported yet"),
        ("sidecar~10.0.0.1~a~default.svc.cluster.local", "INVALID_ARGUMENT", "names no <pod>.<namespace>"),
        ("router~10.0.0.1~a.default~default.svc.cluster.local", "UNIMPLEMENTED", "gateways"),
        ("node~10.0.0.1", "INVALID_ARGUMENT", "node"),
    ],
)
async def test_a_client_that_is_not_served_is_told_why(tmp_path: Path, node_id: str, code: str, text: str) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        refused, served = rig.client(node_id), await rig.envoy()
        await refused.subscribe([CLUSTER])
        await until(lambda: refused.error)
        assert refused.error is not None
        assert refused.error.code() is grpc.StatusCode[code]
        assert text in (refused.error.details() or "")
        await until(lambda: (EXTENSION, "srcid") in served.held)


async def test_a_build_that_fails_keeps_what_clients_hold_and_names_the_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xdsbpf.compile.envoy import virtual_hosts

    whole = virtual_hosts.route_config_requirement

    def broken(port: int) -> object:
        raise ValueError("made for a test")

    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        envoy, _ = await both(rig)
        before = dict(envoy.held)
        monkeypatch.setattr(virtual_hosts, "route_config_requirement", broken)
        rig.write("vs.yaml", virtual_service(header="martha"))
        await rig.settled(State.NOT_ENFORCED, of=REVIEWS)
        assert "made for a test" in rig.row(REVIEWS)["detail"]
        assert envoy.held == before
        assert rig.states()["Service/default/details"] == "APPLIED"
        monkeypatch.setattr(virtual_hosts, "route_config_requirement", whole)
        rig.write("vs.yaml", virtual_service(header="mary"))
        await until(lambda: b"mary" in (envoy.body(VIRTUAL_HOST, REVIEWS_HOST) or b""))
        assert rig.plane.compiler.publisher.failures == {}
