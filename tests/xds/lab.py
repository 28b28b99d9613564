"""What a test gets: a server whose resources it may change, and clients of one variant.

In: a driver and a variant. Out: `lab.put`, `lab.remove`, `lab.client`. `running_lab` is used by the fixture and by the
mutants, so that a test runs the same against a sound server and a broken one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from tests.xds.client import DEADLINE_S, Client
from tests.xds.drivers import Driver, InProcess, Key
from tests.xds.resources import Served
from tests.xds.wire import Variant

_numbers = itertools.count(1)


class Lab:
    """A server under test and the clients of one test."""

    def __init__(self, driver: Driver, variant: Variant, quiet_s: float, deadline_s: float) -> None:
        self.driver = driver
        self.variant = variant
        self._quiet_s = quiet_s
        self.deadline_s = deadline_s
        self._clients: list[Client] = []

    @property
    def own(self) -> InProcess:
        """Our own server, for tests that restart it (`needs="own server"`)."""
        assert isinstance(self.driver, InProcess)
        return self.driver

    def client(
        self,
        *,
        features: tuple[str, ...] = (),
        reads: bool = True,
        user_agent: str = "conformance",
        node_id: str | None = None,
        identity: str = "",
        takes_all: bool = False,
    ) -> Client:
        """Another proxy, with a connection and a node id of its own; see `Client`.

        With an `identity` it connects over mutual TLS, to our own server after `InProcess.secure`.
        """
        client = Client(
            self.own.tls_address if identity else self.driver.address,
            self.variant,
            node_id=f"conformance-{next(_numbers)}" if node_id is None else node_id,
            quiet_s=self._quiet_s,
            deadline_s=self.deadline_s,
            features=features,
            reads=reads,
            user_agent=user_agent,
            takes_all=takes_all,
            credentials=self.own.authority.credentials(identity) if identity else None,
        )
        self._clients.append(client)
        return client

    async def put(self, *served: Served) -> None:
        """Create or replace these, as one change."""
        await self.driver.change(served, ())

    async def remove(self, *keys: Key) -> None:
        """Delete these, as one change."""
        await self.driver.change((), keys)

    async def change(self, puts: Iterable[Served], removes: Iterable[Key]) -> None:
        """Both at once."""
        await self.driver.change(puts, removes)

    async def close(self) -> None:
        """Drop all clients, then end the server."""
        await asyncio.gather(*(client.close() for client in self._clients))
        await self.driver.stop()


@asynccontextmanager
async def running_lab(
    driver: Driver, variant: Variant, quiet_s: float, deadline_s: float = DEADLINE_S
) -> AsyncIterator[Lab]:
    """A lab over a started driver; whatever happens, clients and server are gone afterwards."""
    lab = Lab(driver, variant, quiet_s, deadline_s)
    try:
        await driver.start()
        yield lab
    finally:
        await lab.close()
