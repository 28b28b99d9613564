"""Waiting for a condition in place of a pause: every test that looks at something asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

DEADLINE_S = 20.0


async def until(condition: Callable[[], object], what: str = "the condition", seconds: float = DEADLINE_S) -> None:
    """Poll a condition until it holds. Raises: AssertionError after `seconds`, that says what has not happened."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)
