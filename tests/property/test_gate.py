"""Never a redirect before the ACK: random delays, refusals, breaks and restarts; and broken gates, which are seen."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.conftest import LONG
from tests.property.gate_world import (
    AGENT_SCOPE,
    ENVOY_SCOPE,
    LISTENER_NAME,
    NODES,
    ROUTES_NAME,
    SERVICES,
    Planes,
    frontend_of,
    host_of,
    view_of,
)
from tests.xds.mutation import Edit
from xdsbpf.model.names import FRONTEND, LISTENER, ROUTES, VIRTUAL_HOST
from xdsbpf.model.resource import AS_SERVED, Requirement, make_resource
from xdsbpf.xds import delta, gate
from xdsbpf.xds.store import AGENT, NODE_ENVOY, Batch

node_of = st.sampled_from(NODES)
kind_of = st.sampled_from((NODE_ENVOY, NODE_ENVOY, AGENT))
service_of = st.sampled_from(SERVICES)
index_of = st.sampled_from((-1, -1, 0))
content_of = st.sampled_from((b"1", b"2"))
"""Few, so that a version comes back that was there before."""


class World(RuleBasedStateMachine):
    """Two nodes, two services whose plane changes; every hop of a message is a step of its own."""

    is_live = True
    """Whether what may leave must leave."""

    def __init__(self) -> None:
        super().__init__()
        self.planes = Planes()

    @initialize()
    def start(self) -> None:
        self.change_routes(b"1")
        for service in SERVICES:
            self.change(service, "l4", b"1")
        for node in NODES:
            for kind in (NODE_ENVOY, AGENT):
                self.planes.connect(node, kind)

    @rule(content=content_of)
    def change_routes(self, content: bytes) -> None:
        """Another route configuration: every virtual host of it needs the new one."""
        routes = make_resource(ROUTES, ROUTES_NAME, content)
        hosts = self._hosts().values()
        again = tuple(host_of(host.name.rpartition("/")[2], host.body, routes) for host in hosts)
        self.planes.apply(Batch(ENVOY_SCOPE, (routes, *again)), self._follow(again))

    @rule(service=service_of, plane=st.sampled_from(("l4", "l7", "tcp", "l7")), content=content_of)
    def change(self, service: str, plane: str, content: bytes) -> None:
        """A service in that plane; one revision for both planes, as the compiler publishes it."""
        routes = self.planes.store.get(view_of("n1", NODE_ENVOY), ROUTES, ROUTES_NAME)
        host = host_of(service, content, routes)
        needs: tuple[Requirement, ...] = ()
        puts = [host]
        if plane == "l7":
            needs = (Requirement(VIRTUAL_HOST, host.name, host.version),)
        elif plane == "tcp":
            puts.append(make_resource(LISTENER, LISTENER_NAME, content))
            needs = (Requirement(LISTENER, LISTENER_NAME, AS_SERVED),)
        frontend = frontend_of(service, self.planes.content(), *needs)
        self.planes.apply(Batch(ENVOY_SCOPE, tuple(puts)), Batch(AGENT_SCOPE, (frontend,)))

    @rule(service=service_of, what=st.sampled_from((VIRTUAL_HOST, LISTENER, FRONTEND)))
    def delete(self, service: str, what: str) -> None:
        """A service with its virtual host, the listener, or the frontend alone."""
        gone = {
            VIRTUAL_HOST: ((VIRTUAL_HOST, f"{ROUTES_NAME}/{service}"),),
            LISTENER: ((LISTENER, LISTENER_NAME),),
            FRONTEND: (),
        }[what]
        frontends = () if what == LISTENER else ((FRONTEND, service),)
        self.planes.apply(Batch(ENVOY_SCOPE, (), gone), Batch(AGENT_SCOPE, (), frontends))

    @rule(node=node_of, kind=kind_of, what=st.sampled_from(("reconnect", "close", "restart")), draw=st.integers(0, 5))
    def disturb(self, node: str, kind: str, what: str, draw: int) -> None:
        """A new stream, while the old one stays open as far as the server knows; the end of one; a new process."""
        if what == "close":
            self.planes.close(node, kind, draw)
            return
        if what == "restart":
            self.planes.restart(node, kind, is_delta=kind == AGENT or draw % 3 > 0)
        if what == "reconnect" or draw > 1:
            self.planes.connect(node, kind)

    @rule(node=node_of, hops=st.lists(st.tuples(kind_of, index_of, st.integers(0, 6)), min_size=1, max_size=12))
    def move(self, node: str, hops: list[tuple[str, int, int]]) -> None:
        """Messages make some hops, in any order; one of seven is the refusal of a response."""
        for kind, index, hop in hops:
            links = self.planes.links[node, kind]
            if not links:
                continue
            if hop < 2:
                self.planes.send(node, kind, index)
            elif hop < 4:
                links[index % len(links)].read_request()
            else:
                links[index % len(links)].read_response(refuse=hop == 6)

    @rule()
    def settle(self) -> None:
        """Everything delivered and accepted: who is connected has all that it may have, and no more is withheld."""
        self.planes.settle()
        for node in NODES if self.is_live else ():
            agents, envoys = self.planes.links[node, AGENT], self.planes.links[node, NODE_ENVOY]
            if not agents or not agents[-1].is_alive:
                continue
            held = {name: version for (_, name), version in agents[-1].process.held.items()}
            for frontend in self.planes.store.wildcard(view_of(node, AGENT), FRONTEND):
                unmet = self.planes.gate.unmet(node, frontend)
                if not unmet and not self._was_refused(agents[-1], frontend.name):
                    assert held.get(frontend.name) == frontend.version, f"{frontend.name} never came to {node}"
                for need in unmet:
                    met = bool(envoys) and envoys[-1].process.held.get((need.type_url, need.name)) == need.version
                    assert not (met and envoys[-1].is_alive), f"{need} is held, and {frontend.name} withheld"

    def _was_refused(self, link: Any, name: str) -> bool:
        """The server sends no content again that was refused."""
        return any(name in subscription.nacks for subscription in link.session.subscriptions())

    def _hosts(self) -> dict[str, Any]:
        found = self.planes.store.wildcard(view_of("n1", NODE_ENVOY), VIRTUAL_HOST)
        return {host.name.rpartition("/")[2]: host for host in found}

    def _follow(self, hosts: tuple[Any, ...]) -> Batch:
        """The frontends that need one of these hosts, compiled again."""
        puts = []
        for host in hosts:
            service = host.name.rpartition("/")[2]
            found = self.planes.store.get(view_of("n1", AGENT), FRONTEND, service)
            if found is not None and any(need.type_url == VIRTUAL_HOST for need in found.requires):
                need = Requirement(VIRTUAL_HOST, host.name, host.version)
                puts.append(frontend_of(service, found.body, need))
        return Batch(AGENT_SCOPE, tuple(puts))

    def teardown(self) -> None:
        if self.planes.links["n1", AGENT]:
            self.settle()


class Unlive(World):
    """Nothing but the one promise: what leaves does not leave too early."""

    is_live = False


TestGate = World.TestCase
TestGate.settings = settings(max_examples=4000 if LONG else 100, stateful_step_count=60, deadline=None)


def test_what_an_envoy_claims_counts_if_its_content_is_back_before_another_was_sent() -> None:
    """Nothing is sent then, so no ACK comes; found by chance in 4,000 runs of the above."""
    world = World()
    world.start()
    world.settle()
    world.change(service="b", plane="l4", content=b"2")
    world.disturb(node="n1", kind=NODE_ENVOY, what="reconnect", draw=0)
    world.move(node="n1", hops=[(NODE_ENVOY, -1, 2)] * 3)
    world.change(service="b", plane="l7", content=b"1")
    world.settle()


_GATE, _LEDGER = gate.Gate, gate.EnvoyLedger
BROKEN = {
    "any Envoy will do": Edit(_GATE, "unmet", "if not streams[-1].meets(need)", "if False"),
    "a missing Envoy will do": Edit(_GATE, "unmet", "return resource.requires", "return ()"),
    "the oldest stream decides": Edit(_GATE, "unmet", "streams[-1]", "streams[0]"),
    "any version will do": Edit(_LEDGER, "meets", "self.version(need) == version", "self.version(need) is not None"),
    "a refusal counts as an ACK": Edit(
        _LEDGER,
        "refuse",
        "self.refused[type_url, name] = (version, text)",
        "self.accepted.setdefault(type_url, {})[name] = version",
    ),
    "what was removed still counts": Edit(_LEDGER, "forget", "accepted.pop(name, None)", "pass"),
    "what was sent counts": Edit(
        delta.DeltaSession,
        "_send",
        "nonce = self._take_off(",
        "self._ledger and self._ledger.accept(subscription.type_url, versions)\n    nonce = self._take_off(",
    ),
}
"""What is wrong with a gate -> how it is broken."""


RARE = {
    "what is served is not looked up": Edit(
        _LEDGER, "needed", 'served.version if served is not None else ""', 'self.version(need) or ""'
    ),
    "a stream that ended still counts": Edit(_GATE, "close", "streams.remove(ledger)", "return"),
    "what was replaced still counts": Edit(_LEDGER, "supersede", "if accepted:", "if False:"),
}
"""As BROKEN, for what takes chance long to find."""


@pytest.mark.parametrize("wrong", [*BROKEN, *(pytest.param(wrong, marks=pytest.mark.slow) for wrong in RARE)])
def test_a_broken_gate_is_seen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = (BROKEN | RARE)[wrong]
    monkeypatch.setattr(edit.owner, edit.name, edit.apply())
    found = settings(
        max_examples=1500,
        stateful_step_count=60,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(AssertionError, match="left for"):
        run_state_machine_as_test(Unlive, settings=found)
