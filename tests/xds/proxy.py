"""A client in a process of its own, which can be stopped.

`python -m tests.xds.proxy ADDRESS VARIANT NODE-ID TYPE NAME` subscribes to one resource, ACKs what comes, and prints a
line for each response ("holds EDITION") and for the end of the stream ("ended STATUS").
"""

from __future__ import annotations

import asyncio
import sys

from tests.xds.client import Client
from tests.xds.wire import Variant

DEADLINE_S = 60.0


async def run(address: str, variant: str, node_id: str, type_url: str, name: str) -> None:
    """Go on until the stream ends."""
    client = Client(address, Variant(variant), node_id=node_id, quiet_s=0.0, deadline_s=DEADLINE_S, takes_all=True)
    await client.subscribe(type_url, name)
    while True:
        try:
            response = await client.receive(type_url)
        except AssertionError:
            break
        print("holds", response.holds[name], flush=True)
        await client.ack(response)
    print("ended", (await client.end(type_url))[0].name, flush=True)


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
