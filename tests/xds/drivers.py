"""Drivers change what the server under test serves; the tests know nothing else of the server.

`InProcess` is our own server over a store, in the test's event loop. `Directory` writes a file in the format of Envoy's
filesystem subscriptions, for any server that watches one; it sees by a stream of its own when a change is served.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec
from google.protobuf import json_format

from tests.authority import Authority
from tests.xds.client import Client
from tests.xds.resources import LEDS, PREFIX, RTDS, Served, runtime
from tests.xds.wire import Variant
from xdsbpf.model.resource import Resource, make_resource
from xdsbpf.xds.access import AccessControl
from xdsbpf.xds.client_status import ClientStatus
from xdsbpf.xds.lifetimes import PATIENCE, Patience
from xdsbpf.xds.load_reporting import LoadReporting
from xdsbpf.xds.load_reports import LoadReports
from xdsbpf.xds.peers import AllowRule, PeerRules
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.store import ResourceStore, View
from xdsbpf.xds.transports import DEFAULT_TRANSPORT, TRANSPORTS

Key = tuple[str, str]
"""(type URL, name)"""

_SCOPE = "conformance"


class Driver(Protocol):
    """A server under test."""

    address: str

    async def start(self) -> None:
        """Serve nothing yet."""

    async def change(self, puts: Iterable[Served], removes: Iterable[Key]) -> None:
        """One change of several resources; returns when the server has taken it."""

    async def stop(self) -> None:
        """End the server (or forget its resources, if it is not ours to end)."""


class InProcess:
    """Our server in this event loop, over one of its transports."""

    def __init__(self, transport: str = DEFAULT_TRANSPORT) -> None:
        self._transport = transport
        self._rules = PeerRules()
        self._patience = PATIENCE
        self._served: dict[Key, Served] = {}
        self.store = ResourceStore()
        self.server = _server(self.store, self._transport, self._rules, self._patience)
        self.address = self.tls_address = ""

    @cached_property
    def authority(self) -> Authority:
        """Of the certificates of both sides."""
        return Authority()

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        (self.address,) = await self.server.start(["127.0.0.1:0"])

    async def hurry(self, patience: Patience) -> None:
        """As `restart`, with that patience."""
        self._patience = patience
        await self.restart()

    async def secure(self, *allow: AllowRule) -> None:
        """As `restart`, with a listener of mutual TLS beside the plaintext one; `allow` are rules for its peers."""
        self._rules = PeerRules(allow=allow)
        await self._replace()
        self.address, self.tls_address = await self.server.start(
            ["127.0.0.1:0"], ["127.0.0.1:0"], self.authority.material()
        )

    async def change(self, puts: Iterable[Served], removes: Iterable[Key]) -> None:
        puts, removes = tuple(puts), tuple(removes)
        for key in removes:
            self._served.pop(key, None)
        self._served.update({(served.type_url, served.name): served for served in puts})
        self.server.changed(self.store.apply(_SCOPE, [_resource(served) for served in puts], removes))

    async def restart(self) -> None:
        """A new server, on a new address, that builds all anew: a second replica looks the same."""
        await self._replace()
        await self.start()

    async def _replace(self) -> None:
        await self.server.stop(0.0)
        self.store = ResourceStore()
        self.store.apply(_SCOPE, [_resource(served) for served in self._served.values()])
        self.server = _server(self.store, self._transport, self._rules, self._patience)

    async def stop(self) -> None:
        await self.server.stop(0.0)


class Directory:
    """Any server at `address` that watches `directory`, one file with all resources, replaced as a whole."""

    def __init__(self, address: str, directory: Path) -> None:
        self.address = address
        self._file = directory / "resources.json"
        self._resources: dict[Key, Served] = {}
        self._barrier = time.time_ns()
        self._observer: Client | None = None

    async def start(self) -> None:
        """Serve nothing but the barrier, and watch it."""
        self._observer = Client(self.address, Variant.SOTW_ADS, node_id="conformance-observer", quiet_s=0.0)
        self._write()
        await self._observer.subscribe(RTDS, _BARRIER)
        await self._served()

    async def change(self, puts: Iterable[Served], removes: Iterable[Key]) -> None:
        for key in removes:
            self._resources.pop(key)
        self._resources.update({(served.type_url, served.name): served for served in puts})
        self._write()
        await self._served()

    async def stop(self) -> None:
        self._resources.clear()
        self._write()
        await self._served()
        assert self._observer is not None
        await self._observer.close()

    def _write(self) -> None:
        """Replace the file; its barrier grows with each change, and over all runs."""
        self._barrier += 1
        served = [*self._resources.values(), runtime(_BARRIER, self._barrier % 1_000_000_000)]
        document = {"version_info": str(self._barrier), "resources": [_as_json(item) for item in served]}
        scratch = self._file.with_suffix(".new")
        scratch.write_text(json.dumps(document))
        scratch.replace(self._file)

    async def _served(self) -> None:
        """Wait until the observer's stream has the barrier of the last change."""
        assert self._observer is not None
        while True:
            response = await self._observer.receive(RTDS)
            await self._observer.ack(response)
            if response.holds.get(_BARRIER) == self._barrier % 1_000_000_000:
                return


_BARRIER = "conformance-barrier"
_VIEW = View((_SCOPE,), "", "envoy")


def _server(store: ResourceStore, transport: str, rules: PeerRules, patience: Patience) -> XdsServer:
    """Our server, with the services beside xDS that `xdsbpf serve` has."""
    status = ClientStatus(store, lambda: server.streams.sessions())
    reporting = LoadReporting(LoadReports(), rules.authorize)
    handlers = {**status.handlers(), **reporting.handlers()}
    server = XdsServer(
        store,
        _one_view,
        time.monotonic,
        authorize=rules.authorize,
        access=AccessControl(rules, {}, time.monotonic),
        resource_errors=("told-*",),
        patience=patience,
        more_handlers=handlers,
        transport=TRANSPORTS[transport],
    )
    return server


def _one_view(node_id: str, metadata: Mapping[str, object]) -> View:
    return _VIEW


def _resource(served: Served) -> Resource:
    made = make_resource(served.type_url, served.name, served.message.SerializeToString(deterministic=True))
    return msgspec.structs.replace(made, ttl_ms=round(served.ttl_s * 1000))


def _as_json(served: Served) -> dict[str, Any]:
    """A resource as it stands in a file; one with a TTL or without a name is wrapped, as Envoy's format has it."""
    body = {"@type": served.type_url, **json_format.MessageToDict(served.message, preserving_proto_field_name=True)}
    if not served.ttl_s and served.type_url != LEDS:
        return body
    wrapper = PREFIX + "envoy.service.discovery.v3.Resource"
    ttl = {"ttl": f"{served.ttl_s}s"} if served.ttl_s else {}
    return {"@type": wrapper, "name": served.name, **ttl, "resource": body}
