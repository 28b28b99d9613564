"""Who an address of this node is: nobody, until the interface of its pod is guarded."""

from __future__ import annotations

import errno

import msgspec

from xdsbpf.agent.desired import DesiredState, Enrolled, Identity, NodeConfig, Policy, PolicyEntry, Workload
from xdsbpf.agent.reconcile import Outcome, Reconciler
from xdsbpf.datapath import abi
from xdsbpf.datapath.address import address16, host_key
from xdsbpf.datapath.memory import MemoryTables
from xdsbpf.errors import DatapathError
from xdsbpf.model.address_block import AddressBlock

HERE, THERE = address16(bytes((10, 0, 0, 1))), address16(bytes((10, 0, 1, 1)))
NAME = "spiffe://t/a"
MISSING = DesiredState(
    identities={NAME: Identity(NAME, (HERE, THERE))},
    policies={"d/p": Policy("d/p", (HERE,), (PolicyEntry(NAME, 0, abi.Verdict.ALLOW, ""),))},
    node=NodeConfig("n", bytes(16), (Workload("d/here", "1", (HERE,), NAME),), "t"),
)
ENROLLED = msgspec.structs.replace(MISSING, enrolled=(Enrolled("d/here", 77, 5, (HERE,)),))


class Kernel:
    """Tables and interfaces in memory; looks at every change of an interface who the address is then."""

    def __init__(self) -> None:
        self.tables = MemoryTables()
        self.attached: set[int] = set()
        self.refuses = False
        self.identity_at_change: list[int] = []

    def attach_veth(self, ifindex: int) -> None:
        self.identity_at_change.append(self.identity(HERE))
        if self.refuses:
            raise DatapathError("attach", errno.ENODEV, "the interface is gone")
        self.attached.add(ifindex)

    def detach_veth(self, ifindex: int) -> None:
        self.identity_at_change.append(self.identity(HERE))
        self.attached.discard(ifindex)

    def veths(self) -> tuple[int, ...]:
        return tuple(sorted(self.attached))

    def identity(self, address: bytes) -> int:
        found = self.tables.addresses.get(host_key(address))
        return found.identity if found else 0

    def is_guarded(self) -> bool:
        found = self.tables.addresses.get(host_key(HERE))
        return found is not None and found.policy > 0


def apply(kernel: Kernel, *states: DesiredState) -> Outcome:
    reconciler = Reconciler(kernel.tables, kernel)
    return [reconciler.apply(state, float(now), prune=True) for now, state in enumerate(states)][-1]


def test_a_pod_whose_interface_was_not_found_is_nobody_and_stays_guarded() -> None:
    kernel = Kernel()
    apply(kernel, MISSING)
    assert kernel.identity(HERE) == 0
    assert kernel.is_guarded()
    assert kernel.identity(THERE) >= abi.Identity.FIRST, "another node's pod is that node's to guard"


def test_it_is_somebody_as_soon_as_its_interface_is_guarded_and_not_before() -> None:
    kernel = Kernel()
    apply(kernel, MISSING, ENROLLED)
    assert kernel.attached == {5}
    assert kernel.identity_at_change == [0]
    assert kernel.identity(HERE) == kernel.identity(THERE) >= abi.Identity.FIRST
    at_once = Kernel()
    apply(at_once, ENROLLED)
    assert at_once.identity_at_change == [0]


def test_an_interface_that_cannot_be_guarded_leaves_its_pod_nobody_until_it_can() -> None:
    kernel = Kernel()
    kernel.refuses = True
    reconciler = Reconciler(kernel.tables, kernel)
    outcome = reconciler.apply(ENROLLED, 0.0, prune=True)
    assert [name for _, name in outcome.failed] == ["interface 5"]
    assert kernel.identity(HERE) == 0
    assert kernel.is_guarded()
    kernel.refuses = False
    assert not reconciler.apply(ENROLLED, 1.0, prune=True, changed=()).failed
    assert kernel.identity(HERE) == kernel.identity(THERE)


def test_a_pod_that_is_lost_is_nobody_before_its_interface_is_let_go() -> None:
    kernel = Kernel()
    apply(kernel, ENROLLED, MISSING)
    assert kernel.attached == set()
    assert kernel.identity_at_change == [0, 0]
    assert kernel.is_guarded()


def test_a_pod_with_another_interface_is_nobody_until_that_one_is_guarded() -> None:
    kernel = Kernel()
    moved = msgspec.structs.replace(ENROLLED, enrolled=(Enrolled("d/here", 78, 6, (HERE,)),))
    apply(kernel, ENROLLED, moved)
    assert kernel.attached == {6}
    assert kernel.identity_at_change[:2] == [0, 0]
    assert kernel.identity(HERE) == kernel.identity(THERE)


def test_an_agent_that_comes_again_takes_nobodys_identity() -> None:
    """Before the pods have been looked for, and after it: the link of the agent before is there."""
    kernel = Kernel()
    apply(kernel, ENROLLED)
    kernel.tables.journal.clear()
    reborn = Reconciler(kernel.tables, kernel)
    for state in (DesiredState(), MISSING):
        assert reborn.apply(state, 1.0, prune=False).applied == 0
    assert reborn.apply(ENROLLED, 2.0, prune=True).applied == 0
    assert kernel.tables.journal == []


def test_nobody_is_somebody_before_the_node_is_known() -> None:
    kernel = Kernel()
    apply(kernel, msgspec.structs.replace(MISSING, node=None))
    assert kernel.identity(THERE) == kernel.identity(HERE) == 0
    apply(kernel, msgspec.structs.replace(MISSING, node=None), MISSING)
    assert kernel.identity(THERE) >= abi.Identity.FIRST


def test_a_contested_address_is_nobodys_at_once_even_before_the_first_full_state() -> None:
    kernel = Kernel()
    apply(kernel, ENROLLED)
    other = {"spiffe://t/b": Identity("spiffe://t/b", (HERE,))}
    reborn = Reconciler(kernel.tables, kernel)
    reborn.apply(msgspec.structs.replace(ENROLLED, identities={}), 1.0, prune=False)
    assert kernel.identity(HERE) >= abi.Identity.FIRST, "a claim that has not come yet is not gone"
    reborn.apply(msgspec.structs.replace(ENROLLED, identities=dict(MISSING.identities) | other), 1.1, prune=False)
    assert kernel.identity(HERE) == 0
    assert kernel.is_guarded()


def test_a_nobody_is_at_least_in_its_block() -> None:
    """A DENY for a block holds for what is sent from it, also while nobody knows by whom."""
    block = AddressBlock(bytes((10, 0, 0, 0)), 24)
    entries = tuple(
        PolicyEntry(None, 0, verdict, "", place)
        for verdict, place in ((abi.Verdict.ALLOW, None), (abi.Verdict.DENY, block))
    )
    policies = MISSING.policies | {"d/q": Policy("d/q", (THERE,), entries, (block,))}
    missing, enrolled = (msgspec.structs.replace(state, policies=policies) for state in (MISSING, ENROLLED))
    kernel = Kernel()
    reconciler = Reconciler(kernel.tables, kernel)

    def name() -> str:
        key = abi.NameKey(abi.NameSpace.IDENTITY, kernel.identity(HERE))
        found = kernel.tables.names.get(key)
        return found.text if found else ""

    for now, (state, expected) in enumerate(
        ((missing, f"cidr:{block}"), (enrolled, f"{NAME}@{block}"), (missing, f"cidr:{block}"))
    ):
        reconciler.apply(state, float(now), prune=True)
        assert name() == expected
        assert kernel.is_guarded()
    texts = {
        kernel.tables.names.get(abi.NameKey(abi.NameSpace.IDENTITY, who)).text for who in kernel.identity_at_change
    }
    assert texts == {f"cidr:{block}"}
    assert len(kernel.identity_at_change) == 2
    # An agent that starts again keeps who was known until it has looked for the pods.
    reconciler.apply(enrolled, 3.0, prune=True)
    reborn = Reconciler(kernel.tables, kernel)
    reborn.apply(missing, 4.0, prune=False)
    assert name() == f"{NAME}@{block}"
