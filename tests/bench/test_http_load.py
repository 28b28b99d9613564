"""The parts of the benchmarks with a real Envoy work: changes of who answers are seen, and failures are counted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.bench import bench_envoy, bench_mesh
from tests.bench.load import mesh_rig
from tests.bench.load.http import Client, Server


def test_a_client_counts_what_is_answered_and_what_is_not() -> None:
    with Server("127.0.0.1", 0, "one") as one, Client("127.0.0.1", one.port, "web") as client:
        burst = client.keep(2, 0.05)
        assert burst.served > 10
        assert (burst.failed, client.connects(20).served) == (0, 20)
        client.watch(is_kept=False, timeout_s=0.2)
        client.answered_by("one", 0.0)
        seen = client.stop()
        assert (seen.failed, seen.served) == (0, seen.connected)
        client.watch(is_kept=True, timeout_s=0.2)
        client.answered_by("one", 0.0)
        gone_at = time.monotonic()
        one.close()
        with Server("127.0.0.1", one.port, "two"):
            assert client.answered_by("two", gone_at) > gone_at
        seen = client.stop()
        assert seen.failed == seen.unanswered + seen.not_connected.get("ECONNREFUSED", 0) > 0
        assert [who for _, who in seen.answers] == ["one", "two"]


@pytest.mark.envoy
async def test_a_change_of_endpoints_is_seen_in_traffic(
    tmp_path: Path, envoy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert envoy
    monkeypatch.setattr(bench_envoy, "SWITCHES", 4)
    monkeypatch.setattr(bench_envoy, "FILE_SWITCHES", 2)
    found = await bench_envoy.endpoint_changes("grpcio", tmp_path)
    assert {name: figures["failed_requests"] for name, figures in found.items()} == dict.fromkeys(found, 0)
    assert 0 < found["endpoint_change"]["p50_ms"] < found["endpoint_file_edit"]["p50_ms"]
    assert found["endpoint_file_edit"]["p50_ms"] > found["endpoint_file_edit"]["settling_ms"]


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.envoy
def test_a_restart_is_measured_by_clients_that_would_see_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_mesh, "KILLS", 1)
    monkeypatch.setattr(bench_mesh, "RESTARTS", 0)
    with mesh_rig.mesh(tmp_path) as mesh:
        found = bench_mesh.restarts(mesh, tmp_path)
    assert (found["dropped"], found["unpoliced"]) == (0, 0)
    assert min(found[name] for name in ("moves_seen", "seen_without_policy", "seen_without_server")) > 0
