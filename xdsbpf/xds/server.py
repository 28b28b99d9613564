"""The xDS server of a process: one store, its streams, and the transports that carry them.

In: listening addresses, changes of the store. Out: served clients and their status. Owned by `serve.py`; holds no
protocol logic and no task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import structlog

from xdsbpf.xds.access import AccessControl
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.grpcio import GrpcTransport
from xdsbpf.xds.lifetimes import PATIENCE, Patience
from xdsbpf.xds.peers import Authorize, PeerRules
from xdsbpf.xds.services import METHODS
from xdsbpf.xds.status import NodeStatus
from xdsbpf.xds.store import Changes, ResourceStore
from xdsbpf.xds.streams import Preparation, Streams, ViewResolver, unprepared
from xdsbpf.xds.telemetry import Telemetry
from xdsbpf.xds.tls import Material
from xdsbpf.xds.transport import Handler, Transport

__all__ = ["ViewResolver", "XdsServer"]

log = structlog.get_logger(__name__)


class XdsServer:
    """Serves one store over every method of xDS. `clock` (monotonic seconds) is for the status only.

    `quarantine` see `Session`, `prepare` see `Preparation`. `authorize` decides what peers with a certificate may
    claim, `access` who may call at all: without them only local peers are served. `more_handlers` (path -> handler)
    are served beside it. `max_age_s`: streams end at about that age (0: never); the transport must know it, too.
    `resource_errors`: globs of the node ids of clients that read `resource_errors`. `patience`: with silent clients.
    """

    def __init__(
        self,
        store: ResourceStore,
        resolve_view: ViewResolver,
        clock: Callable[[], float],
        *,
        quarantine: bool = True,
        prepare: Preparation = unprepared,
        authorize: Authorize | None = None,
        access: AccessControl | None = None,
        max_age_s: float = 0.0,
        resource_errors: tuple[str, ...] = (),
        patience: Patience = PATIENCE,
        more_handlers: Mapping[str, Handler] | None = None,
        transport: Callable[[Mapping[str, Handler]], Transport] = GrpcTransport,
    ) -> None:
        self.streams = Streams(
            store,
            resolve_view,
            clock,
            quarantine=quarantine,
            prepare=prepare,
            authorize=authorize,
            max_age_s=max_age_s,
            resource_errors=resource_errors,
            patience=patience,
        )
        self.handlers: dict[str, Handler] = dict.fromkeys(METHODS, self.streams.serve) | dict(more_handlers or {})
        """What a transport serves: method path -> handler."""
        self._access = access or AccessControl(PeerRules(), {}, clock)
        self._clock = clock
        self._transport = transport(self._access.protect(self.handlers))
        self._bound: tuple[str, ...] = ()

    @property
    def store(self) -> ResourceStore:
        return self.streams.store

    @property
    def gate(self) -> Gate:
        return self.streams.gate

    @property
    def telemetry(self) -> Telemetry:
        return self.streams.telemetry

    async def start(
        self, addresses: Iterable[str], tls_addresses: Iterable[str] = (), material: Material | None = None
    ) -> tuple[str, ...]:
        """Listen: see `Transport.start`. Raises: ConfigError."""
        self._bound = await self._transport.start(addresses, tls_addresses, material)
        log.info("xds.server_started", addresses=self._bound)
        return self._bound

    async def use_tls(self, material: Material) -> None:
        """See `Transport.use_tls`."""
        await self._transport.use_tls(material)

    async def stop(self, grace: float, drain_s: float = 0.0) -> None:
        """Take no new streams, end the open ones with trailers, wait at most `grace` seconds for them.

        `drain_s`: connections are told at once to take no new streams (GOAWAY), and the open ones, served until then,
        end one by one within that time, so that their clients do not come back in one instant.
        """
        if not self._bound:
            return
        self._access.close()
        longest = self.streams.drain(drain_s)
        closing = asyncio.create_task(self._transport.stop(longest + grace))
        deadline = self._clock() + longest
        while self.streams.sessions() and self._clock() < deadline:
            await asyncio.sleep(0.02)
        self.streams.stop()
        await closing
        log.info("xds.server_stopped")

    def changed(self, changes: Changes, taken_at: float | None = None) -> None:
        """Tell every session what changed in the store, and let it send; see `Streams.changed`."""
        self.streams.changed(changes, taken_at)

    def views_changed(self) -> None:
        """Ask the resolver again for every open stream; see `Streams.views_changed`."""
        self.streams.views_changed()

    def status(self) -> tuple[NodeStatus, ...]:
        """The status of every connected client, sorted by node id."""
        return self.streams.status()
