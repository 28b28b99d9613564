"""A plug-in of pytest: `-p tests.xds.breaking` runs each test that `mutants.elsewhere` names with what it must see.

It imports nothing of the product before tests/conftest.py has. What does not come is waited for less long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest

DEADLINE_S = 1.0


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Break the product while the test runs."""
    from tests.xds.mutants.elsewhere import BROKEN

    wait_for = asyncio.wait_for

    async def impatient(awaitable: Awaitable[Any], timeout: float) -> Any:
        return await wait_for(awaitable, min(timeout, DEADLINE_S))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "wait_for", impatient)
        for broken in BROKEN:
            if item.nodeid == broken.place + broken.case:
                patch.setattr(broken.edit.owner, broken.edit.name, broken.edit.apply())
        yield
