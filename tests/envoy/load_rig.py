"""A real Envoy, one or more replicas of the control plane, and servers, for changes under load; loopback only.

In: a variant of xDS. Out: what is served can be changed, replicas stopped and started, and Envoy asked
how long its clusters warmed. Every replica builds its store anew from what is served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.envoy.load import Load, Servers
from tests.envoy.node_mesh import free_port
from tests.envoy.real_envoy import RealEnvoy, until
from tests.envoy.web_resources import Web, endpoints
from tests.xds.wire import Variant
from xdsbpf.model.names import CLUSTER, ENDPOINTS, ROUTES
from xdsbpf.model.resource import Resource
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.status import SyncState, TypeStatus
from xdsbpf.xds.store import ENVOY, Key, ResourceStore, View

SCOPE = "web"
VIEW = View((SCOPE,), "", ENVOY)
DEADLINE_S = 20.0


class Replica:
    """One control plane on a unix socket; `store` is its own. Its streams end at about `max_age_s` (0: never)."""

    def __init__(self, path: Path, max_age_s: float) -> None:
        self.path = path
        self.max_age_s = max_age_s
        self.store = ResourceStore()
        self.server: XdsServer | None = None

    async def start(self, served: tuple[Resource, ...]) -> None:
        self.store = ResourceStore()
        self.store.apply(SCOPE, served)
        self.server = XdsServer(self.store, lambda *_: VIEW, time.monotonic, max_age_s=self.max_age_s)
        await self.server.start([f"unix:{self.path}"])

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(1.0)
            self.server = None

    def types(self) -> list[TypeStatus]:
        """What the Envoy has asked this replica for, on all of its streams."""
        return [item for node in self.server.status() for item in node.types] if self.server else []


class Rig:
    """Replicas, Envoy, servers; see the module."""

    def __init__(
        self, directory: Path, binary: str, variant: Variant, replicas: int = 1, max_age_s: float = 0.0
    ) -> None:
        self.web = Web(free_port(), variant)
        self.variant = variant
        self.replicas = [Replica(directory / f"xds{number}.sock", max_age_s) for number in range(replicas)]
        sockets = tuple(replica.path for replica in self.replicas)
        self.envoy = RealEnvoy(binary, directory, sockets, "edge-1", variant)
        self.servers = Servers()
        self.load = Load(self.web.port)
        self.starts = 0
        """Of replicas."""
        self._served: dict[Key, Resource] = {}

    def put(self, *puts: Resource, removes: tuple[Key, ...] = ()) -> None:
        """One change of what every replica serves."""
        for key in removes:
            del self._served[key]
        self._served.update({(item.type_url, item.name): item for item in puts})
        for replica in self.replicas:
            if replica.server is not None:
                replica.server.changed(replica.store.apply(SCOPE, puts, removes))

    async def start(self, replica: Replica) -> None:
        """Let a replica serve, from a store of its own."""
        await replica.start(tuple(self._served.values()))
        self.starts += 1

    async def synced(self) -> None:
        """Until the Envoy has taken everything on every stream that the load depends on, and no cluster warms.

        Not on that of listeners: Envoy waits longer before each reconnect of a stream on which nothing came meanwhile.
        """

        async def has_synced() -> bool:
            types = [item for replica in self.replicas for item in replica.types()]
            if not {CLUSTER, ROUTES} <= {item.type_url for item in types}:
                return False
            followed = sum(item.subscribed for item in types if item.type_url == ENDPOINTS)
            if followed < sum(1 for type_url, _ in self._served if type_url == ENDPOINTS) or any(
                item.state is not SyncState.SYNCED for item in types
            ):
                return False
            return await self.envoy.stat("cluster_manager.warming_clusters") == 0

        await until(has_synced, DEADLINE_S, self.explain)

    async def answered_by(self, host: str, server: str) -> None:
        """Until a request of the load is answered by that server, and one more by anybody after it."""
        before = self.load.answers[host, server]
        await self.until_true(lambda: self.load.answers[host, server] > before)

    async def until_true(self, condition: Callable[[], object]) -> None:
        async def holds() -> bool:
            return bool(condition())

        await until(holds, DEADLINE_S, self.explain)

    async def connections(self) -> int:
        """How many connections Envoy has made to its control planes."""
        made = await self.envoy.stat("cluster.xds.upstream_cx_total")
        return made - await self.envoy.stat("cluster.xds.upstream_cx_connect_fail")

    async def stalls(self) -> int:
        """How often Envoy gave up waiting for something that it warms with."""
        lines = (await self.envoy.admin("/stats?filter=init_fetch_timeout$")).splitlines()
        return sum(int(line.rpartition(": ")[2]) for line in lines)

    def explain(self) -> str:
        status = [replica.server.status() for replica in self.replicas if replica.server]
        return f"{dict(self.load.failures)}\n{status}\n{self.envoy.tail()}"


@asynccontextmanager
async def running(
    directory: Path, binary: str, variant: Variant, *, replicas: int = 1, fleet: int = 0, max_age_s: float = 0.0
) -> AsyncIterator[Rig]:
    """A rig whose Envoy is live: hosts `web` and `db` go to the clusters `a` and `z`, both to the server `one`.

    `fleet` is the number of clusters beside these.
    """
    rig = Rig(directory, binary, variant, replicas, max_age_s)
    try:
        await rig.servers.start("one", "two")
        one = rig.servers.ports["one"]
        for name in ("a", "z", *(f"fleet-{number}" for number in range(fleet))):
            rig.put(rig.web.cluster(name), endpoints(name, one))
        rig.put(rig.web.listener(), rig.web.routes({"web": "a", "db": "z"}))
        await asyncio.gather(*(rig.start(replica) for replica in rig.replicas))
        await rig.envoy.start()
        await rig.synced()
        yield rig
    finally:
        await rig.envoy.stop()
        await asyncio.gather(*(replica.stop() for replica in rig.replicas))
        rig.servers.stop()


Step = Callable[[Rig], Awaitable[None]]
