"""Runs each rule's tests in the variants where the rule applies, against our server or another one.

`@pytest.mark.rule(21, on=DELTA)` names the rule and its variants; `needs="own server"` marks a test that restarts or
looks at the server, which only ours allows. Options: see README.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import uvloop

from tests.xds.drivers import Directory, Driver, InProcess
from tests.xds.lab import Lab, running_lab
from tests.xds.wire import ALL, Variant
from xdsbpf.xds.transports import TRANSPORTS

QUIET_OWN_S = 0.05
"""The quiet window in one process with the server: it answers within a few milliseconds."""
QUIET_OTHER_S = 0.5

SERVED = ALL
"""The variants that our server serves; `--xds-variants` asks for others."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xds", "conformance of an xDS server")
    group.addoption("--xds-server", metavar="ADDRESS", help="the server to test; ours in this process by default")
    group.addoption("--xds-resources", metavar="DIRECTORY", type=Path, help="what that server watches")
    group.addoption("--xds-variants", metavar="LIST", help="of sotw-ads,sotw-per-type,delta-ads,delta-per-type")
    group.addoption("--xds-quiet", metavar="SECONDS", type=float, help="how long silence is (0.5 for another server)")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop on which `xdsbpf serve` runs."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("rule")
    if "lab" in metafunc.fixturenames and marker is not None:
        other = bool(metafunc.config.getoption("xds_server", None))
        transports = (None,) if other else tuple(TRANSPORTS)
        asked = [(variant, transport) for variant in marker.kwargs.get("on", ALL) for transport in transports]
        ids = ["-".join(filter(None, (variant.value, transport))) for variant, transport in asked]
        metafunc.parametrize("lab", asked, indirect=True, ids=ids)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What cannot be asked of the server is deselected, not skipped: it says nothing about it."""
    asked = config.getoption("xds_variants", None)
    other = bool(config.getoption("xds_server", None))
    offered = [Variant(name) for name in asked.split(",")] if asked else ALL if other else SERVED
    out = [item for item in items if _is_here(item) and not _can_be_asked(item, tuple(offered), other)]
    if out:
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=out)


def _is_here(item: pytest.Item) -> bool:
    return item.path.parent == Path(__file__).parent


def _can_be_asked(item: pytest.Item, offered: tuple[Variant, ...], other: bool) -> bool:
    marker = item.get_closest_marker("rule")
    if other and (marker is None or "needs" in marker.kwargs):
        return False
    call = getattr(item, "callspec", None)
    return call is None or "lab" not in call.params or call.params["lab"][0] in offered


@pytest.fixture
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """A server that serves nothing yet, ours over each of its transports, and clients of one variant."""
    option = request.config.getoption
    address = option("xds_server", None)
    variant, transport = request.param
    driver: Driver = Directory(address, option("xds_resources")) if address else InProcess(transport)
    quiet_s = option("xds_quiet", None) or (QUIET_OTHER_S if address else QUIET_OWN_S)
    async with running_lab(driver, variant, quiet_s) as lab:
        yield lab
