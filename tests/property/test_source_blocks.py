"""Blocks of addresses: what the kernel's maps decide is what the policies say, also while they change.

Manifests go through the compiler, the agent's decoder and its planner; the maps are read as the programs do (longest
prefix, then four lookups), and compared with a naive reading of the manifests that knows none of these.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import Mesh, from_source, pod, policy, rule, to_operation
from xdsbpf.agent.desired import DesiredState, NodeConfig, decode
from xdsbpf.agent.ops import Cause, Realised
from xdsbpf.agent.plan import Planner
from xdsbpf.compile.datapath.identities import identity_names, identity_resource
from xdsbpf.compile.datapath.policies import policy_names, policy_resource
from xdsbpf.datapath.abi import AddressKey, PolicyKey, Verdict
from xdsbpf.datapath.abi import Identity as IdentityNumber
from xdsbpf.datapath.address import address16
from xdsbpf.model.authorization_policy import AuthorizationPolicy, Condition, From, Rule
from xdsbpf.model.kube import Pod
from xdsbpf.model.names import IDENTITY, POLICY
from xdsbpf.model.resource import Resource

SERVERS = (
    pod("s1", "10.0.0.1", labels={"app": "x"}, account="server"),
    pod("s2", "10.1.0.1", labels={"app": "x"}, account="server"),
    pod("s3", "10.1.9.1", labels={"app": "y"}, account="server"),
)
CLIENTS = (
    pod("a1", "10.0.0.2", account="a"),
    pod("a2", "10.1.0.2", account="a"),
    pod("b1", "10.1.0.130", account="b"),
    pod("c1", "10.2.0.1", account="c", namespace="other"),
    # Of two identities, so of none; the second is guarded besides.
    pod("d1", "10.1.0.7", account="a"),
    pod("d2", "10.1.0.7", account="b"),
    pod("e1", "10.1.0.8", labels={"app": "x"}, account="a"),
    pod("e2", "10.1.0.8", account="b"),
)
BLOCKS = (
    *("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/15", "10.1.0.0/16", "10.1.0.0/24", "10.1.0.128/25", "10.1.0.9/24"),
    *("10.0.0.2", "10.1.0.7/32", "10.1.0.8", "10.1.0.130", "10.3.0.0/16", "172.16.0.1", "::/0", "fd00::/8", "::1"),
)
STRANGERS = ("10.1.0.3", "10.1.0.200", "10.3.0.1", "172.16.0.1", "192.168.0.1", "fd00::1", "2001:db8::1", "::1")
PORTS = (80, 443, 9)

blocks = st.lists(st.sampled_from(BLOCKS), max_size=3).map(tuple)
principals = st.lists(st.sampled_from(("cluster.local/ns/default/sa/a", "*", "*/sa/c")), max_size=1).map(tuple)
sources = st.builds(
    lambda fields: from_source(**fields),
    st.fixed_dictionaries({}, optional={"ip_blocks": blocks, "not_ip_blocks": blocks, "principals": principals,
                                        "not_principals": principals, "remote_ip_blocks": blocks}),
)  # fmt: skip
operations = st.sampled_from((("80",), ("80", "443"))).map(lambda ports: to_operation(ports=ports))
keys = st.sampled_from(("source.ip", "remote.ip", "destination.ip"))
conditions = st.builds(Condition, keys, blocks, blocks)
rules = st.builds(
    lambda found: rule(*(one for some in found for one in some)),
    st.tuples(st.lists(sources, max_size=2), st.lists(operations, max_size=1), st.lists(conditions, max_size=1)),
)


@st.composite
def policy_sets(draw: st.DrawFn) -> tuple[AuthorizationPolicy, ...]:
    """Up to three policies, of which each may select a part of the servers."""
    names = draw(st.sets(st.sampled_from(("p", "q", "r")), min_size=1))
    return tuple(
        policy(
            name,
            *draw(st.lists(rules, min_size=1, max_size=2)),
            selector=draw(st.sampled_from(({"app": "x"}, {"app": "y"}))),
            action=draw(st.sampled_from(("ALLOW", "DENY"))),
        )
        for name in sorted(names)
    )


# --- what the manifests say, read naively ---


def is_in(address: str, values: Iterable[str]) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(value, strict=False) for value in values)


def is_named(name: str, value: str) -> bool:
    return value == "*" or (name.endswith(value[1:]) if value[0] == "*" else name == value)


def holds(asked: tuple[str, ...], refused: tuple[str, ...], found: bool, excluded: bool) -> bool:
    return (not asked or found) and (not refused or not excluded)


def matches(entry: Rule, name: str | None, address: str, server: str, port: int, *, deny: bool) -> bool:
    def of_source(source: From) -> bool:
        asked = source.source
        for values in (asked.ip_blocks, asked.remote_ip_blocks):
            if values and not is_in(address, values):
                return False
        if asked.not_ip_blocks and is_in(address, asked.not_ip_blocks):
            return False
        if name is None:
            return not asked.principals and (deny or not asked.not_principals)
        found, excluded = (any(is_named(name, v) for v in vs) for vs in (asked.principals, asked.not_principals))
        return holds(asked.principals, asked.not_principals, found, excluded)

    def of_condition(condition: Condition) -> bool:
        where = server if condition.key == "destination.ip" else address
        return holds(
            condition.values, condition.not_values, is_in(where, condition.values), is_in(where, condition.not_values)
        )

    return (
        (not entry.from_ or any(map(of_source, entry.from_)))
        and (not entry.to or any(str(port) in one.operation.ports for one in entry.to))
        and all(map(of_condition, entry.when))
    )


def said(policies: tuple[AuthorizationPolicy, ...], name: str | None, address: str, server: Pod, port: int) -> bool:
    """Whether a connection from an address to a pod may be, by the manifests."""
    labels = dict(server.metadata.labels)
    selecting = [one for one in policies if all(labels.get(k) == v for k, v in one.spec.selector.match_labels)]

    def any_matches(action: str) -> bool:
        entries = [entry for one in selecting if one.spec.action == action for entry in one.spec.rules]
        where = server.addresses[0]
        return any(matches(entry, name, address, where, port, deny=action == "DENY") for entry in entries)

    if any_matches("DENY"):
        return False
    return any_matches("ALLOW") or all(one.spec.action != "ALLOW" for one in selecting)


def names_of(pods: Iterable[Pod]) -> dict[str, str | None]:
    """Address -> its one identity, None for an address of several."""
    found: dict[str, set[str]] = {}
    for one in pods:
        found.setdefault(one.addresses[0], set()).add(f"cluster.local/ns/{one.namespace}/sa/{one.service_account}")
    return {address: names.pop() if len(names) == 1 else None for address, names in found.items()}


# --- what the kernel does ---


def look_up(realised: Realised, address: str) -> tuple[int, int]:
    """(identity, policy) of the longest prefix, as xb_find_address: zeroes if there is none."""
    wanted = int.from_bytes(address16(ipaddress.ip_address(address).packed), "big")
    for bits in sorted({key.prefix_length for key in realised.addresses}, reverse=True):
        network = (wanted >> (128 - bits) << (128 - bits)).to_bytes(16, "big")
        found = realised.addresses.get(AddressKey(bits, network))
        if found is not None:
            return found.identity, found.policy
    return 0, 0


def admits(realised: Realised, source: int, server: str, port: int) -> bool:
    """As xb_may_reach."""
    policy_number = look_up(realised, server)[1]
    if not policy_number:
        return True
    keys = [(IdentityNumber.ANY, port), (IdentityNumber.ANY, 0)]
    if source:
        keys = [(source, port), (source, 0), *keys]
    entries = (realised.policies.get(PolicyKey(policy_number, who, number, 6)) for who, number in keys)
    return next((entry.verdict for entry in entries if entry is not None), Verdict.DENY) == Verdict.ALLOW


def desired(mesh: Mesh) -> DesiredState:
    """What the agent makes of what the compiler says."""

    def decoded(type_url: str, name: str, found: object) -> tuple[str, object]:
        assert isinstance(found, Resource)
        return name, decode(type_url, name, found.body)

    db = mesh.db
    identities = dict(decoded(IDENTITY, name, identity_resource(db, name)) for name in identity_names(db))
    policies = dict(decoded(POLICY, name, policy_resource(db, name)) for name in policy_names(db))
    node = NodeConfig("n", bytes(16), (), "cluster.local")
    return msgspec.structs.replace(DesiredState(), identities=identities, policies=policies, node=node)


def follow(planner: Planner, realised: Realised, state: DesiredState, changed: set[Cause] | None, now: float) -> bool:
    """Apply all that a change takes. Returns: whether it took two plans."""
    plan = planner.plan(state, now, changed=changed)
    two = plan.is_first_half
    while True:
        for op in plan.ops:
            realised.record(op)
        if not plan.is_first_half:
            return two
        plan = planner.plan(state, now, changed=())


ASKED = [(source, server, port) for source in (*names_of((*SERVERS, *CLIENTS)), *STRANGERS)
         for server in (*SERVERS, CLIENTS[6]) for port in PORTS]  # fmt: skip


@given(policy_sets())
@settings(max_examples=200, deadline=None)
def test_the_maps_decide_what_the_policies_say(chosen: tuple[AuthorizationPolicy, ...]) -> None:
    realised = Realised()
    state = desired(Mesh(*SERVERS, *CLIENTS, *chosen))
    follow(Planner(realised), realised, state, None, 0.0)
    known = names_of((*SERVERS, *CLIENTS))
    for address, server, port in ASKED:
        wanted = said(chosen, known.get(address), address, server, port)
        found = admits(realised, look_up(realised, address)[0], server.addresses[0], port)
        assert found is wanted, (address, server.name, port)
    assert not Planner(realised).plan(state, 0.0).ops, "a new agent finds nothing to do"


@given(policy_sets())
@settings(max_examples=100, deadline=None)
def test_a_caller_whose_address_is_not_known_yet_is_refused_only_if_no_stranger_may(
    chosen: tuple[AuthorizationPolicy, ...],
) -> None:
    realised = Realised()
    follow(Planner(realised), realised, desired(Mesh(*SERVERS, *CLIENTS, *chosen)), None, 0.0)
    for address, server, port in ASKED:
        if address in STRANGERS and said(chosen, None, address, server, port):
            assert admits(realised, IdentityNumber.UNLOCATED, server.addresses[0], port), (address, server.name, port)


@given(policy_sets(), policy_sets(), st.booleans())
@settings(max_examples=120, deadline=None)
def test_who_may_before_and_after_a_change_of_blocks_may_in_between(
    old: tuple[AuthorizationPolicy, ...], new: tuple[AuthorizationPolicy, ...], told: bool
) -> None:
    """And who may not never does: looked at after every write, until the blocks that nobody mentions are gone."""
    realised = Realised()
    planner = Planner(realised)
    before = desired(Mesh(*SERVERS, *CLIENTS, *old))
    # Policies that come or go altogether change what guards an address: another test's matter.
    chosen = tuple(
        msgspec.structs.replace(one, spec=msgspec.structs.replace(match.spec, selector=one.spec.selector))
        for one in old
        for match in [next((two for two in new if two.name == one.name), one)]
    )
    after = desired(Mesh(*SERVERS, *CLIENTS, *chosen))
    if after.policies.keys() != before.policies.keys():
        return
    follow(planner, realised, before, None, 0.0)

    def verdicts() -> list[bool]:
        return [admits(realised, look_up(realised, a)[0], s.addresses[0], port) for a, s, port in ASKED]

    first = verdicts()
    history = []
    changed = {(POLICY, name) for name in after.policies} if told else None
    for now in (1.0, 2.0, 12.0, 23.0, 400.0):
        plan = planner.plan(after, now, changed=changed)
        while True:
            for op in plan.ops:
                realised.record(op)
                history.append(verdicts())
            changed = () if told else None
            if not plan.is_first_half:
                break
            plan = planner.plan(after, now, changed=())
    last = verdicts()
    assert last == [said(chosen, names_of((*SERVERS, *CLIENTS)).get(a), a, server, port) for a, server, port in ASKED]
    for now_found in history:
        assert all(x in (a, b) for x, a, b in zip(now_found, first, last, strict=True))
    fresh = Realised()
    follow(Planner(fresh), fresh, after, None, 0.0)
    assert realised.addresses.keys() == fresh.addresses.keys()
    assert len(realised.policies) == len(fresh.policies)
