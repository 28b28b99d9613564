"""The composition root's own decisions: how services end together, who may be exempt, who may run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from xdsbpf.agent import process
from xdsbpf.agent.process import ProcessRecord
from xdsbpf.errors import ConfigError
from xdsbpf.node import NodeAgentConfig, _only_agent, _own_cgroup, _until, run


async def test_the_first_service_that_fails_ends_all_and_its_error_is_raised() -> None:
    ended = []

    async def lasting() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("lasting")

    async def failing() -> None:
        await asyncio.sleep(0)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await _until(asyncio.Event(), lasting(), failing())
    assert ended == ["lasting"]


async def test_a_stop_ends_all_services_without_an_error() -> None:
    stop = asyncio.Event()

    async def stopping() -> None:
        stop.set()
        await asyncio.Event().wait()

    await _until(stop, stopping())


def test_a_cgroup_that_is_not_strictly_below_the_root_is_not_exempt(tmp_path: Path) -> None:
    assert _own_cgroup(tmp_path) == 0


def test_a_second_agent_of_a_state_directory_is_refused(tmp_path: Path) -> None:
    with _only_agent(tmp_path), pytest.raises(ConfigError, match="another agent"), _only_agent(tmp_path):
        pass
    with _only_agent(tmp_path):
        pass


@pytest.mark.parametrize(
    ("node", "xds"),
    [("a~b", "unix:/run/x.sock"), ("", "unix:/run/x.sock"), ("n", "10.0.0.1:15010"), ("n", "unix:/run/x.sock")],
)
def test_a_start_that_cannot_work_is_refused_before_anything_is_touched(node: str, xds: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(ConfigError):  # the last one: the directory is no cgroup
        run(NodeAgentConfig(node=node, xds=xds, cgroup_root=tmp_path, state_dir=state, envoy=False))
    assert not state.exists()


async def test_a_process_is_itself_only_with_its_start_time(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        started = process.start_time(child.pid)
        assert started is not None
        record, other = ProcessRecord(child.pid, started, "d"), ProcessRecord(child.pid, started + 1, "d")
        process.write_record(tmp_path / "pid", record)
        assert process.read_record(tmp_path / "pid") == record
        process.write_record(tmp_path / "pid", other)
        assert process.read_record(tmp_path / "pid") is None
        await process.end_process(other, 0.1)
        assert child.poll() is None, "another process is never signalled"
        await process.end_process(record, 5.0)
        assert child.wait(5) == -15
    finally:
        child.kill()
        child.wait()


def test_a_damaged_pid_file_is_no_process(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("{half a rec")
    assert process.read_record(tmp_path / "pid") is None
    assert process.read_record(tmp_path / "nothing") is None
