"""Agent and control plane restart together: what waits for Envoy stays in the kernel, what is gone is pruned."""

from __future__ import annotations

import pytest

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2 as pb
from xdsbpf.agent.desired import frontend_name
from xdsbpf.agent.received import Received
from xdsbpf.agent.reconcile import Outcome, Reconciler
from xdsbpf.datapath.address import address16, address_text
from xdsbpf.datapath.memory import MemoryTables
from xdsbpf.model.names import BACKENDS, DATAPATH_TYPES, FRONTEND, VIRTUAL_HOST
from xdsbpf.model.resource import Requirement, Resource, make_resource
from xdsbpf.xds import protocol
from xdsbpf.xds.delta import DeltaSession
from xdsbpf.xds.gate import Gate
from xdsbpf.xds.request import decode_delta
from xdsbpf.xds.response import encode
from xdsbpf.xds.store import AGENT, NODE_ENVOY, ResourceStore, View

HOST = make_resource(VIRTUAL_HOST, "r/web", b"routes")
NEED = Requirement(VIRTUAL_HOST, HOST.name, HOST.version)
L7, L4 = bytes((240, 0, 0, 1)), bytes((240, 0, 0, 2))


class NoHooks:
    def attach_veth(self, ifindex: int) -> None: ...

    def detach_veth(self, ifindex: int) -> None: ...

    def veths(self) -> tuple[int, ...]:
        return ()


def frontend(address: bytes, **plane: object) -> Resource:
    name = frontend_name(address16(address), 80)
    message = pb.Frontend(address=address, port=80, protocol=pb.TCP, service="web:80", **plane)  # type: ignore[arg-type]
    requires = (NEED,) if "redirect" in plane else ()
    return make_resource(FRONTEND, name, message.SerializeToString(), requires=requires)


ENVOY = View(("node-envoy",), "n", NODE_ENVOY)
REDIRECTED = frontend(L7, redirect=pb.Redirect(proxy_port=15001))
BALANCED = frontend(L4, balance=pb.Balance(backends="web:80"))
ENDPOINTS = make_resource(
    BACKENDS,
    "web:80",
    pb.Backends(
        service="web:80", backends=[pb.Backend(address=bytes((10, 0, 0, 1)), port=80, weight=1)]
    ).SerializeToString(),
)


class ControlPlane:
    """A process of it: it knows of no ACK of an earlier one."""

    def __init__(self, *resources: Resource) -> None:
        self.store, self.gate = ResourceStore(), Gate()
        self.store.apply("datapath", resources)
        self.store.apply("node-envoy", [HOST])

    def envoy_acks(self) -> None:
        session = DeltaSession(ENVOY, self.store, ledger=self.gate.open(ENVOY, self.store), gate=self.gate)
        session.on_request(decode_delta(protocol.encode_request(VIRTUAL_HOST)))
        for sent in session.poll():
            answer = protocol.encode_request(sent.type_url, nonce=sent.nonce)
            session.on_request(decode_delta(answer))


class Agent:
    """A process of it on the kernel that earlier ones wrote."""

    def __init__(self, kernel: MemoryTables, control: ControlPlane) -> None:
        self.received = Received("n")
        self.reconciler = Reconciler(kernel, NoHooks())
        self.outcome = Outcome(0, {}, (), None)
        self.now = 0.0
        self.connect(control)

    def connect(self, control: ControlPlane) -> None:
        self.control = control
        self.session = DeltaSession(View(("datapath",), "n", AGENT), control.store, gate=control.gate)
        for type_url in DATAPATH_TYPES:
            claims = self.received.claims(type_url, self.outcome.failed)
            first = protocol.encode_request(type_url, subscribe=("*",), initial_versions=claims)
            self.session.on_request(decode_delta(first))

    def sync(self) -> None:
        """Take everything that may be sent, apply, answer, until nothing more comes."""
        while responses := self.session.poll():
            for sent in responses:
                decoded = protocol.decode_response(encode(sent, self.control.store))
                assert self.received.accept(decoded) == {}
                answer = protocol.encode_request(sent.type_url, nonce=sent.nonce)
                self.session.on_request(decode_delta(answer))
        self.now += 1.0
        changed = self.received.take_changed()
        self.outcome = self.reconciler.apply(self.received.desired(()), self.now, prune=True, changed=changed)

    def change(self, *puts: Resource, remove: tuple[tuple[str, str], ...] = ()) -> None:
        self.session.on_changes(self.control.store.apply("datapath", puts, remove))
        self.sync()


def services(kernel: MemoryTables) -> set[str]:
    return {address_text(key.address) for key, _ in kernel.frontends.items()}


@pytest.fixture
def kernel() -> MemoryTables:
    """What a node holds that served one service on each plane."""
    kernel = MemoryTables()
    control = ControlPlane(REDIRECTED, BALANCED, ENDPOINTS)
    control.envoy_acks()
    Agent(kernel, control).sync()
    assert services(kernel) == {"240.0.0.1", "240.0.0.2"}
    return kernel


def test_a_withheld_frontend_stays_and_one_that_is_gone_is_pruned(kernel: MemoryTables) -> None:
    before = dict(kernel.frontends.items())
    agent = Agent(kernel, ControlPlane(REDIRECTED, ENDPOINTS))
    agent.sync()
    assert services(kernel) == {"240.0.0.1"}
    assert kernel.frontends.items()[0] in before.items()
    assert agent.received.desired(()).frontends == {}, "a bare name is no content"
    agent.control.envoy_acks()
    kernel.journal.clear()
    agent.sync()
    assert kernel.journal == [], "what arrives is what the kernel has"
    assert set(agent.received.desired(()).frontends) == {REDIRECTED.name}


def test_without_the_name_on_the_wire_it_would_be_pruned(kernel: MemoryTables) -> None:
    Agent(kernel, ControlPlane(ENDPOINTS)).sync()
    assert services(kernel) == set()


def test_one_that_is_removed_while_it_is_withheld_is_pruned(kernel: MemoryTables) -> None:
    agent = Agent(kernel, ControlPlane(REDIRECTED, ENDPOINTS))
    agent.sync()
    assert services(kernel) == {"240.0.0.1"}
    agent.change(remove=((FRONTEND, REDIRECTED.name),))
    assert services(kernel) == set()


@pytest.mark.parametrize("removed_meanwhile", [False, True])
def test_a_reconnect_before_the_gate_opens_keeps_or_prunes_it(kernel: MemoryTables, removed_meanwhile: bool) -> None:
    agent = Agent(kernel, ControlPlane(REDIRECTED, BALANCED, ENDPOINTS))
    agent.sync()
    still = () if removed_meanwhile else (REDIRECTED,)
    agent.connect(ControlPlane(*still, BALANCED, ENDPOINTS))
    agent.sync()
    assert services(kernel) == ({"240.0.0.2"} if removed_meanwhile else {"240.0.0.1", "240.0.0.2"})


def test_a_bare_name_does_not_replace_content_that_the_agent_has(kernel: MemoryTables) -> None:
    received = Received("n")
    decoded = protocol.ReceivedResource(BALANCED.name, BALANCED.version, FRONTEND, BALANCED.body)
    bare = protocol.ReceivedResource(BALANCED.name, "", FRONTEND, None)
    for resource in (decoded, bare):
        assert received.accept(protocol.ReceivedResponse(FRONTEND, "1", (resource,), ())) == {}
    assert received.desired(()).kept == set()
    other = protocol.ReceivedResource("web:80", "", BACKENDS, None)
    refused = received.accept(protocol.ReceivedResponse(BACKENDS, "1", (other,), ()))
    assert "no body" in refused["web:80"], "only frontends are withheld"
