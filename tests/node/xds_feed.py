"""A control plane for agent tests: the real xDS server over a store that stdin fills.

`python -m tests.node.xds_feed SOCKET`; one JSON line per change ({"put": [[type, name, base64]],
"remove": [[type, name]]}), answered by one line with the clients' state after it. Every agent and
every Envoy sees the one scope.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Mapping

from xdsbpf.model.names import parse_node_id
from xdsbpf.model.resource import make_resource
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.store import AGENT, NODE_ENVOY, ResourceStore, View


def view_of(node_id: str, metadata: Mapping[str, object]) -> View:
    node = parse_node_id(node_id)
    if node.type == "agent":
        return View(scopes=("agent",), node=node.name, kind=AGENT)
    return View(scopes=("envoy",), node=node.name, kind=NODE_ENVOY)


async def main(socket: str) -> None:
    store = ResourceStore()
    server = XdsServer(store, view_of, time.monotonic)
    await server.start([f"unix:{socket}"])
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    while line := await reader.readline():
        change = json.loads(line)
        puts = [make_resource(kind, name, base64.b64decode(body)) for kind, name, body in change["put"]]
        server.changed(store.apply("agent", puts, [tuple(key) for key in change["remove"]]))
        status = [
            {
                "node_id": node.node_id,
                "types": {t.type_url.rpartition(".")[2]: [t.state.name, t.held, t.error] for t in node.types},
            }
            for node in server.status()
        ]
        print(json.dumps(status), flush=True)
    await server.stop(0.1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
