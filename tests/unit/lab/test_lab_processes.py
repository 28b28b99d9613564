"""Processes that the lab starts, told apart by pid and start time; cgroup discovery; the command line."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import msgspec
import pytest

from xdsbpf.errors import ConfigError
from xdsbpf.lab.client import parse
from xdsbpf.lab.layout import cgroup2_mount
from xdsbpf.lab.processes import LabError, is_alive, send_signal, spawn, wait_for


def test_a_started_process_is_alive_until_it_is_killed(tmp_path: Path) -> None:
    record = spawn("sleeper", ("sleep", "60"), tmp_path / "log")
    assert is_alive(record)
    assert send_signal(record, signal.SIGKILL)
    wait_for(lambda: not is_alive(record), 5, "the sleeper to die")
    assert not send_signal(record, signal.SIGKILL)


def test_a_process_that_got_the_pid_of_another_is_left_alone(tmp_path: Path) -> None:
    record = spawn("sleeper", ("sleep", "60"), tmp_path / "log")
    stranger = msgspec.structs.replace(record, start_time=record.start_time + 1)
    assert not is_alive(stranger)
    assert not send_signal(stranger, signal.SIGKILL)
    assert is_alive(record)
    send_signal(record, signal.SIGKILL)
    wait_for(lambda: not is_alive(record), 5, "the sleeper to die")


def test_waiting_for_a_process_that_ends_says_what_it_printed_last(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", "print('port 80 is taken'); raise SystemExit(3)")
    record = spawn("server", argv, tmp_path / "log")
    with pytest.raises(LabError, match="port 80 is taken"):
        wait_for(lambda: False, 10, "it to listen", (record,))


def test_a_process_does_not_inherit_an_ignored_sigpipe(tmp_path: Path) -> None:
    log = tmp_path / "log"
    record = spawn("grep", ("grep", "SigIgn", "/proc/self/status"), log)
    wait_for(lambda: not is_alive(record), 5, "grep to end")
    assert not int(log.read_text().split()[1], 16) & (1 << (signal.SIGPIPE - 1))


def test_the_cgroup2_hierarchy_is_found_wherever_it_is_mounted() -> None:
    hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    assert cgroup2_mount(hybrid) == Path("/sys/fs/cgroup/unified")
    with pytest.raises(ConfigError):
        cgroup2_mount("tmpfs /sys/fs/cgroup tmpfs rw 0 0\n")


def test_the_client_closes_connections_unless_it_is_told_to_keep_them() -> None:
    assert parse(["get", "http://web/"]).keepalive is False
    assert parse(["get", "http://web/", "--keepalive"]).keepalive is True
    assert parse(["load", "http://web/", "--close"]).keepalive is False
