"""The demo of the README, run as shown: every promise holds and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.root, pytest.mark.envoy, pytest.mark.timeout(300)]


def traces() -> list[str]:
    """Everything that a lab of the demo could leave on this machine."""
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    found = [line for line in namespaces.splitlines() if line.startswith("xbdemo")]
    for pattern, base in (
        ("xdsbpf-xbdemo", Path("/sys/fs/bpf")),
        ("xdsbpf-xbdemo", Path("/sys/fs/cgroup/unified")),
        ("xdsbpf-xbdemo", Path("/sys/fs/cgroup")),
        ("xbdemo", Path("/run/xdsbpf-lab")),
    ):
        found.extend(str(path) for path in base.glob(pattern))
    return found


def test_the_demo_holds_every_promise_and_leaves_nothing_behind() -> None:
    assert traces() == []
    result = subprocess.run(
        [sys.executable, "-m", "xdsbpf.lab.demo"], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAIL" not in result.stdout
    assert result.stdout.count("ok  ") >= 8
    assert traces() == []
