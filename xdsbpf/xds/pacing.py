"""Looking at a great many things without keeping the event loop from the streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Final, TypeVar

SLICE_S: Final = 0.005
"""Longest that a look keeps the loop to itself, if no single item takes longer."""

T = TypeVar("T")


async def unhurried(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, with others getting their turn in between: what is looked at may change meanwhile."""
    began = time.monotonic()
    for item in items:
        yield item
        if time.monotonic() - began >= SLICE_S:
            await asyncio.sleep(0)
            began = time.monotonic()
