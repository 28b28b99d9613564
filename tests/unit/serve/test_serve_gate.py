"""The gate between the planes, end to end in one process: kernel frontends wait for the node's Envoy."""

from __future__ import annotations

from pathlib import Path

from serve_rig import DETAILS_FRONTEND, MESH, REVIEWS_FRONTEND, REVIEWS_HOST, running, virtual_service

from tests.waiting import until
from xdsbpf.diagnostics import State
from xdsbpf.model.names import FRONTEND, VIRTUAL_HOST

FILES = {"mesh.yaml": MESH, "vs.yaml": virtual_service()}
REVIEWS = "VirtualService/default/reviews"


async def test_an_l7_frontend_waits_for_the_envoy_of_its_node_and_an_l4_frontend_does_not(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        agent = await rig.agent()
        await until(lambda: (FRONTEND, DETAILS_FRONTEND) in agent.held)
        await rig.synced()
        assert (FRONTEND, REVIEWS_FRONTEND) not in agent.held
        assert rig.states()[REVIEWS] == "PENDING"
        assert "not connected" in rig.row(REVIEWS)["detail"]
        assert rig.states()["Service/default/details"] == "APPLIED"

        other = await rig.envoy("node2")
        await until(lambda: (VIRTUAL_HOST, REVIEWS_HOST) in other.held)
        await rig.synced()
        assert (FRONTEND, REVIEWS_FRONTEND) not in agent.held

        envoy = await rig.envoy("node1")
        await until(lambda: (FRONTEND, REVIEWS_FRONTEND) in agent.held)
        assert (VIRTUAL_HOST, REVIEWS_HOST) in envoy.held
        await until(lambda: rig.states()[REVIEWS] == "APPLIED")


async def test_a_frontend_stays_away_after_a_nack_and_the_manifests_say_why(tmp_path: Path) -> None:
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        envoy = await rig.envoy()
        envoy.refuse = lambda item: f"{item.name}: no such filter" if item.name == REVIEWS_HOST else ""
        agent = await rig.agent()
        await rig.settled(State.REJECTED, of=REVIEWS)
        await until(lambda: (FRONTEND, DETAILS_FRONTEND) in agent.held)
        await rig.synced()
        assert (FRONTEND, REVIEWS_FRONTEND) not in agent.held
        assert "no such filter" in rig.row(REVIEWS)["detail"]
        assert rig.states()["Service/default/details"] == "APPLIED"

        envoy.refuse = lambda _: ""
        rig.write("vs.yaml", virtual_service(header="martha"))
        await until(lambda: (FRONTEND, REVIEWS_FRONTEND) in agent.held)
        await until(lambda: rig.states()[REVIEWS] == "APPLIED")


async def test_a_silent_envoy_keeps_the_gate_shut(tmp_path: Path) -> None:
    """Sent is not enough: the ACK opens the gate."""
    moved = "10.9.0.6:9080/tcp"
    async with running(tmp_path / "m", FILES, tmp_path / "xds.sock") as rig:
        envoy = await rig.envoy()
        agent = await rig.agent()
        await until(lambda: (FRONTEND, REVIEWS_FRONTEND) in agent.held)
        envoy.answers = False
        rig.write("mesh.yaml", MESH.replace("10.9.0.1,", "10.9.0.6,"))
        rig.write("vs.yaml", virtual_service(header="martha"))
        await until(lambda: b"martha" in (envoy.body(VIRTUAL_HOST, REVIEWS_HOST) or b""))
        await until(lambda: moved in rig.withheld())
        assert (FRONTEND, moved) not in agent.held
        await envoy.acknowledge(VIRTUAL_HOST)
        await until(lambda: (FRONTEND, moved) in agent.held)
