"""Views of connected clients: compiled before the first answer, kept a while after the last stream has ended.

An empty first answer would make an Envoy that reconnects drop all it has, so a stream of a view that is not compiled
yet waits. Part of the control plane's shell (`serve`); runs in its event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from xdsbpf.compile.views import ClientView
from xdsbpf.compiler import Compiler
from xdsbpf.diagnostics import ObjectId
from xdsbpf.errors import ProtocolError
from xdsbpf.model.names import parse_node_id

LINGER_S = 60.0
"""How long a view outlives its last stream: proxies reconnect."""
MAX_VIEWS = 20_000
"""Views are named by clients, so there is an end to them; one is about 12 KB."""


class ClientViews:
    """Which views are in use. `wake` makes the compile task run."""

    def __init__(self, compiler: Compiler, wake: Callable[[], None]) -> None:
        self._compiler = compiler
        self._wake = wake
        self._streams: Counter[ClientView] = Counter()
        self._pods: dict[tuple[str, str], Counter[ClientView]] = {}
        """Views in use by the clients that say they are of a pod."""
        self._compiled: dict[ClientView, asyncio.Event] = {}
        self._awaited: list[asyncio.Event] = []
        """Those of views that are not compiled yet."""

    def is_compiled(self, view: ClientView) -> bool:
        """Whether the store holds what its clients see."""
        found = self._compiled.get(view)
        return found is not None and found.is_set()

    @property
    def in_use(self) -> tuple[ClientView, ...]:
        """Every view that is compiled, or will be."""
        return tuple(self._compiled)

    def published(self) -> None:
        """Everything that was asked for is in the store now."""
        for event in self._awaited:
            event.set()
        self._awaited.clear()

    def concerns(self, objects: Iterable[ObjectId]) -> bool:
        """Whether some changed objects give a connected client another view: its pod has other labels now."""
        pods = ((id.namespace, id.name) for id in objects if id.kind == "Pod") if self._pods else ()
        return any(
            view.client.labels != self._compiler.labels_of(*pod) for pod in pods for view in self._pods.get(pod, ())
        )

    @asynccontextmanager
    async def use(self, node_id: str, view: ClientView) -> AsyncIterator[None]:
        """Keep a view for one stream of a client; entered when it is compiled.

        Raises: ProtocolError(RESOURCE_EXHAUSTED) where clients name too many different ones.
        """
        if view not in self._compiled and len(self._compiled) >= MAX_VIEWS:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"{MAX_VIEWS} different views of clients are in use")
        pod = _pod_of(node_id)
        self._streams[view] += 1
        self._pods.setdefault(pod, Counter())[view] += 1
        try:
            if view not in self._compiled:
                event = self._compiled[view] = asyncio.Event()
                self._awaited.append(event)
                self._compiler.add_view(view)
                self._wake()
            await self._compiled[view].wait()
            yield
        finally:
            self._leave_pod(pod, view)
            self._streams[view] -= 1
            if not self._streams[view]:
                asyncio.get_running_loop().call_later(LINGER_S, self._forget, view)

    def _leave_pod(self, pod: tuple[str, str], view: ClientView) -> None:
        views = self._pods[pod]
        views[view] -= 1
        if not views[view]:
            del views[view]
        if not views:
            del self._pods[pod]

    def _forget(self, view: ClientView) -> None:
        if self._streams[view] or view not in self._compiled:
            return
        del self._streams[view], self._compiled[view]
        self._compiler.drop_view(view)
        self._wake()


def _pod_of(node_id: str) -> tuple[str, str]:
    """(namespace, pod) of a sidecar's node id; ("", "") for any other."""
    if node_id.count("~") != 3:
        return ("", "")
    pod, _, namespace = parse_node_id(node_id).name.rpartition(".")
    return (namespace, pod)
