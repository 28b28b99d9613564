"""A control plane in this process over manifests in a directory, and a small delta client that ACKs or refuses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from grpc import aio

from tests.waiting import until
from xdsbpf.diagnostics import State
from xdsbpf.model.names import CLUSTER, DATAPATH_TYPES, EXTENSION, LISTENER, ROUTES, VIRTUAL_HOST
from xdsbpf.report.objects import object_rows
from xdsbpf.serve import ControlPlane, ServeConfig
from xdsbpf.xds import protocol
from xdsbpf.xds.tls import TlsFiles
from xdsbpf.xds.transports import DEFAULT_TRANSPORT

DEADLINE_S = 15.0

REVIEWS_HOST = "9080/reviews.default.svc.cluster.local"
REVIEWS_FRONTEND = "10.9.0.1:9080/tcp"
DETAILS_FRONTEND = "10.9.0.2:9080/tcp"


def service(name: str, address: str, pod_address: str) -> str:
    return f"""apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{clusterIP: {address}, selector: {{app: {name}}}, ports: [{{name: http, port: 9080}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: 9080}}]
endpoints: [{{addresses: [{pod_address}], nodeName: node1}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}-v1, labels: {{app: {name}, version: v1}}}}
spec: {{nodeName: node1, serviceAccountName: {name}}}
status: {{phase: Running, podIP: {pod_address}, podIPs: [{{ip: {pod_address}}}]}}
"""


def node(name: str, address: str) -> str:
    return f"""apiVersion: v1
kind: Node
metadata: {{name: {name}}}
status: {{addresses: [{{type: InternalIP, address: {address}}}]}}
"""


def virtual_service(header: str = "jason") -> str:
    return f"""apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
    - match:
        - headers: {{end-user: {{exact: {header}}}}}
      route:
        - destination: {{host: reviews}}
      timeout: 3s
    - route:
        - destination: {{host: reviews}}
"""


MESH = "---\n".join(
    [
        service("reviews", "10.9.0.1", "10.1.0.1"),
        service("details", "10.9.0.2", "10.1.0.2"),
        node("node1", "10.0.0.1"),
    ]
)


def content(response: protocol.ReceivedResponse) -> list[protocol.ReceivedResource]:
    """The resources of a response; an entry without a body only says that the name is withheld."""
    return [item for item in response.resources if item.body is not None]


class Client:
    """A delta ADS client: keeps what it is sent, ACKs it unless `refuse` gives a reason."""

    def __init__(self, address: str, node_id: str) -> None:
        self.node_id = node_id
        self.held: dict[tuple[str, str], protocol.ReceivedResource] = {}
        self.responses: list[protocol.ReceivedResponse] = []
        self.refuse: Callable[[protocol.ReceivedResource], str] = lambda _: ""
        self.answers = True
        self.error: aio.AioRpcError | None = None
        self._channel = aio.insecure_channel(address)
        self._call: Any = self._channel.stream_stream(protocol.DELTA_ADS)(wait_for_ready=True)
        self._task: asyncio.Task[None] | None = None
        self._first = True
        self._writing = asyncio.Lock()

    async def subscribe(
        self, types: Iterable[str], names: Iterable[str] = (), claims: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        for type_url in types:
            await self._send(type_url, subscribe=tuple(names), initial_versions=(claims or {}).get(type_url))
        if self._task is None:
            self._task = asyncio.create_task(self._receive())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._channel.close()

    def body(self, type_url: str, name: str) -> bytes | None:
        resource = self.held.get((type_url, name))
        return resource.body if resource is not None else None

    def versions(self) -> dict[str, dict[str, str]]:
        """type -> name -> version, as a client claims them when it connects again."""
        found: dict[str, dict[str, str]] = {}
        for (type_url, name), resource in self.held.items():
            found.setdefault(type_url, {})[name] = resource.version
        return found

    def updates(self) -> list[str]:
        """Names of everything sent or removed so far, in order."""
        return [name for r in self.responses for name in (*(item.name for item in content(r)), *r.removed)]

    async def acknowledge(self, type_url: str, *, error: str = "") -> None:
        """ACK the newest response of a type, or refuse it, for a client that does not answer by itself."""
        last = next(response for response in reversed(self.responses) if response.type_url == type_url)
        await self._send(type_url, nonce=last.nonce, error=error)

    async def _send(self, type_url: str, **fields: Any) -> None:
        node_id = self.node_id if self._first else ""
        self._first = False
        async with self._writing:  # a call takes one write at a time
            await self._call.write(protocol.encode_request(type_url, node_id=node_id, **fields))

    async def _receive(self) -> None:
        try:
            while (raw := await self._call.read()) is not aio.EOF:
                await self._take(protocol.decode_response(raw))
        except aio.AioRpcError as error:
            self.error = error

    async def _take(self, response: protocol.ReceivedResponse) -> None:
        reasons = [text for item in response.resources if (text := self.refuse(item))]
        if not reasons:
            for item in content(response):
                self.held[response.type_url, item.name] = item
            for name in response.removed:
                self.held.pop((response.type_url, name), None)
        self.responses.append(response)
        if self.answers:
            await self._send(response.type_url, nonce=response.nonce, error="; ".join(reasons))


class Rig:
    """Control plane, manifests and clients of one test."""

    def __init__(self, directory: Path, plane: ControlPlane, address: str) -> None:
        self.directory = directory
        self.plane = plane
        self.address = address
        self.clients: list[Client] = []

    def client(self, node_id: str) -> Client:
        client = Client(self.address, node_id)
        self.clients.append(client)
        return client

    async def envoy(self, name: str = "node1", claims: Mapping[str, Mapping[str, str]] | None = None) -> Client:
        """A node's Envoy: subscribes as the real one does."""
        client = self.client(f"node~10.0.0.1~{name}~cluster.local")
        await client.subscribe([CLUSTER, LISTENER, VIRTUAL_HOST], claims=claims)
        await client.subscribe([ROUTES], ["9080"], claims)
        await client.subscribe([EXTENSION], ["srcid"], claims)
        return client

    async def agent(self, name: str = "node1", claims: Mapping[str, Mapping[str, str]] | None = None) -> Client:
        client = self.client(f"agent~10.0.0.1~{name}~cluster.local")
        await client.subscribe(DATAPATH_TYPES, claims=claims)
        return client

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def states(self) -> dict[str, str]:
        """State of every object (of the last place, for objects with several)."""
        return {row["object"]: row["state"] for row in self.rows()}

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.rows() if row["object"] == name)

    def rows(self) -> list[dict[str, Any]]:
        return object_rows(self.plane.compiler, self.plane.catalog, self.plane.server.status())

    def withheld(self) -> set[str]:
        """Names of what any client is kept from."""
        return {
            waiting.name
            for status in self.plane.server.status()
            for entry in status.types
            for waiting in entry.withheld
        }

    async def settled(self, *states: State, of: str) -> None:
        await until(lambda: self.row(of)["state"] in {state.value for state in states})

    async def synced(self) -> None:
        """Every client has been sent everything and has answered; withheld resources stay out."""
        await until(
            lambda: all(
                entry.state.value in ("SYNCED", "NOT-SENT", "NACKED") or entry.withheld
                for status in self.plane.server.status()
                for entry in status.types
            )
        )


@asynccontextmanager
async def running(
    directory: Path,
    files: Mapping[str, str],
    socket: Path,
    *,
    raw: Mapping[str, str] | None = None,
    transport: str = DEFAULT_TRANSPORT,
    tls: TlsFiles | None = None,
    resource_errors: tuple[str, ...] = (),
) -> AsyncIterator[Rig]:
    """A control plane over `files` written to `directory`, listening on a unix socket, or by `tls` on a port as well.

    `raw` are Envoy resources, `resource_errors` globs of clients that read errors.
    """
    directory.mkdir(exist_ok=True)
    beside = directory.with_name(f"{directory.name}-raw")
    for place, texts in ((directory, files), (beside, raw or {})):
        for name, text in texts.items():
            place.mkdir(exist_ok=True)
            (place / name).write_text(text)
    envoy_paths = (beside,) if raw else ()
    config = ServeConfig(
        paths=(directory,),
        envoy_paths=envoy_paths,
        listen=(f"unix:{socket}",),
        transport=transport,
        listen_tls=("127.0.0.1:0",) if tls else (),
        tls=tls,
        resource_errors=resource_errors,
    )
    plane = ControlPlane(config)
    rig = Rig(directory, plane, f"unix:{socket}")
    task = asyncio.create_task(plane.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            ready = asyncio.create_task(plane.ready.wait())
            await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
        yield rig
    finally:
        for client in rig.clients:
            await client.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
