"""A scripted delta client against one session: builds requests, collects responses, ACKs and NACKs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from xdsbpf.model import names
from xdsbpf.model.resource import Requirement, Resource, make_resource
from xdsbpf.xds import protocol
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.gate import EnvoyLedger, Gate
from xdsbpf.xds.request import SotwRequest, decode_delta
from xdsbpf.xds.response import Response
from xdsbpf.xds.sotw import SotwSession
from xdsbpf.xds.store import AGENT, NODE_ENVOY, Changes, ResourceStore, View

CDS, EDS, LDS, RDS, VHDS = names.CLUSTER, names.ENDPOINTS, names.LISTENER, names.ROUTES, names.VIRTUAL_HOST
ENVOY_VIEW = View(("node-envoy", "node-envoy/node1"), "node1", NODE_ENVOY)
AGENT_VIEW = View(("datapath", "datapath/node1"), "node1", AGENT)
NODE_ID = "node~10.0.0.1~node1~cluster.local"


def resource(
    type_url: str,
    name: str,
    content: str = "1",
    *,
    on_demand: bool = False,
    requires: tuple[Requirement, ...] = (),
    ttl_ms: int = 0,
) -> Resource:
    """A resource whose body says `content`."""
    made = make_resource(type_url, name, f"{name}={content}".encode(), on_demand=on_demand, requires=requires)
    return msgspec.structs.replace(made, ttl_ms=ttl_ms)


def need(what: Resource) -> Requirement:
    return Requirement(what.type_url, what.name, what.version)


class StreamClient:
    """One stream of one client. `on` sends a request, `got` what may be sent then; `ack` answers it."""

    def __init__(
        self,
        store: ResourceStore,
        view: View = ENVOY_VIEW,
        *,
        gate: Gate | None = None,
        nonces: Iterator[int] | None = None,
        now: Iterator[float] | None = None,
        max_message: int | None = None,
    ) -> None:
        self.store = store
        self.now = 0.0
        self.ledger: EnvoyLedger | None = gate.open(view, store) if gate and view.kind == NODE_ENVOY else None
        self.session = DeltaSession(
            view,
            store,
            node_id=NODE_ID,
            gate=gate if view.kind == AGENT else None,
            ledger=self.ledger,
            nonces=nonces,
            clock=lambda: self.now,
            max_message=max_message,
        )

    def on(
        self,
        type_url: str,
        *subscribe: str,
        unsubscribe: Iterable[str] = (),
        claims: Mapping[str, str] | None = None,
        nonce: str = "",
        error: str = "",
        node_id: str = "",
    ) -> tuple[Response, ...]:
        """Send one request, return what the server sends then."""
        data = protocol.encode_request(
            type_url,
            node_id=node_id,
            subscribe=subscribe,
            unsubscribe=tuple(unsubscribe),
            initial_versions=claims,
            nonce=nonce,
            error=error,
        )
        self.session.on_request(decode_delta(data))
        return self.session.poll()

    def ack(self, response: Response) -> tuple[Response, ...]:
        return self.on(response.type_url, nonce=response.nonce)

    def nack(self, response: Response, text: str) -> tuple[Response, ...]:
        return self.on(response.type_url, nonce=response.nonce, error=text)

    def ack_all(self, responses: Iterable[Response]) -> tuple[Response, ...]:
        """ACK these and everything that follows; returns all responses, the given ones first."""
        queue = list(responses)
        for response in queue:
            queue.extend(self.ack(response))
        return tuple(queue)

    def changed(self, changes: Changes) -> tuple[Response, ...]:
        self.session.on_changes(changes)
        return self.session.poll()

    def put(self, *resources: Resource, scope: str = "node-envoy") -> tuple[Response, ...]:
        return self.changed(self.store.apply(scope, resources))

    def remove(self, type_url: str, *gone: str, scope: str = "node-envoy") -> tuple[Response, ...]:
        return self.changed(self.store.apply(scope, (), [(type_url, name) for name in gone]))


class SotwClient:
    """One state-of-the-world stream of one client, which repeats its names and the last version like Envoy."""

    def __init__(
        self,
        store: ResourceStore,
        view: View = ENVOY_VIEW,
        *,
        gate: Gate | None = None,
        nonces: Iterator[int] | None = None,
        quarantine: bool = True,
        max_message: int | None = None,
    ) -> None:
        self.store = store
        self.now = 0.0
        self.ledger: EnvoyLedger | None = gate.open(view, store) if gate else None
        self.session = SotwSession(
            view,
            store,
            node_id=NODE_ID,
            ledger=self.ledger,
            nonces=nonces,
            clock=lambda: self.now,
            quarantine=quarantine,
            max_message=max_message,
        )
        self.names: dict[str, tuple[str, ...]] = {}
        self.last: dict[str, Response] = {}

    def on(
        self, type_url: str, *asked: str, version: str = "", nonce: str | None = None, error: str | None = None
    ) -> tuple[Response, ...]:
        """Send a request for exactly these names with the nonce of the last response, return what is sent then."""
        self.names[type_url] = asked
        if nonce is None:
            nonce = self.last[type_url].nonce if type_url in self.last else ""
        self.session.on_request(SotwRequest(type_url, asked, version, nonce, error))
        return self._poll()

    def ack(self, response: Response) -> tuple[Response, ...]:
        asked = self.names[response.type_url]
        return self.on(response.type_url, *asked, version=response.version, nonce=response.nonce)

    def nack(self, response: Response, text: str) -> tuple[Response, ...]:
        return self.on(response.type_url, *self.names[response.type_url], nonce=response.nonce, error=text)

    def ack_all(self, responses: Iterable[Response]) -> tuple[Response, ...]:
        """ACK these and everything that follows; returns all responses, the given ones first."""
        queue = list(responses)
        for response in queue:
            queue.extend(self.ack(response))
        return tuple(queue)

    def changed(self, changes: Changes) -> tuple[Response, ...]:
        self.session.on_changes(changes)
        return self._poll()

    def put(self, *resources: Resource, scope: str = "node-envoy") -> tuple[Response, ...]:
        return self.changed(self.store.apply(scope, resources))

    def remove(self, type_url: str, *gone: str, scope: str = "node-envoy") -> tuple[Response, ...]:
        return self.changed(self.store.apply(scope, (), [(type_url, name) for name in gone]))

    def _poll(self) -> tuple[Response, ...]:
        responses = self.session.poll()
        self.last.update({response.type_url: response for response in responses})
        return responses


def contents(responses: Iterable[Response]) -> list[tuple[str, list[str]]]:
    """(type, `name=content` of its resources) of each response."""
    return [(r.type_url, [item.body.decode() for item in r.resources]) for r in responses]


def sent(responses: Iterable[Response]) -> list[tuple[str, list[str], list[str]]]:
    """(type, resource names, removed names) of each response."""
    return [(r.type_url, [item.name for item in r.resources], list(r.removed)) for r in responses]


def store_with(*resources: Resource, scope: str = "node-envoy") -> ResourceStore:
    store = ResourceStore()
    store.apply(scope, resources)
    return store
