"""`xdsbpf bpf agents`, and what `xdsbpf agent` refuses before it looks at anything."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from xdsbpf._pb.xdsbpf.agent.v1 import agent_pb2
from xdsbpf.agent.status import StatusServer
from xdsbpf.datapath.memory import MemoryTables

REFUSED = "disconnected: PERMISSION_DENIED: spiffe://cluster.local/node/node2 claims …: that is node 'node1'"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "xdsbpf", *arguments], capture_output=True, text=True, timeout=30)


async def test_an_agents_certificate_and_what_the_control_plane_says_are_shown(tmp_path: Path) -> None:
    async def status() -> agent_pb2.Status:
        return agent_pb2.Status(
            node="node1",
            synced=True,
            xds_state=REFUSED,
            envoy_state="LIVE",
            certificate=agent_pb2.Certificate(
                serial="abc", names=["spiffe://cluster.local/node/node2"], not_after=1795291456, error="it is garbage"
            ),
            problems=[agent_pb2.Problem(subject="certificate", message="the former certificate stays in force: …")],
        )

    server = StatusServer(tmp_path / "agent.sock", MemoryTables(), status, dict)
    await server.start()
    try:
        arguments = ("bpf", "agents", "--agent", str(tmp_path / "agent.sock"))
        table = await asyncio.to_thread(command, *arguments)
        document = json.loads((await asyncio.to_thread(command, *arguments, "-o", "json")).stdout)
        nobody = await asyncio.to_thread(command, *arguments, "--node", "node2")
    finally:
        await server.stop()
    header, row = table.stdout.splitlines()
    assert header.split("  ")[0] == "NODE"
    assert REFUSED in row
    assert row.endswith("spiffe://cluster.local/node/node2   2026-11-21T20:04:16Z"), row
    assert "node1: certificate: the former certificate stays in force" in table.stderr
    assert document["kind"] == "Agents"
    assert document["items"][0]["certificate"]["serial"] == "abc"
    assert document["items"][0]["certificate"]["error"] == "it is garbage"
    assert nobody.returncode == 69


@pytest.mark.parametrize(
    "given", [("--tls-cert", "c"), ("--tls-key", "k", "--tls-ca", "a"), ("--tls-server-name", "n")]
)
def test_half_of_mutual_tls_is_a_usage_error(given: tuple[str, ...]) -> None:
    result = command("agent", "--node", "n", "--xds", "10.0.0.1:15012", *given)
    assert result.returncode == 64
    assert "--tls-cert, --tls-key and --tls-ca" in result.stderr
