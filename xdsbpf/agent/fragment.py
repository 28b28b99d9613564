"""Fragments: what one resource, or one address that several resources claim, wants in the maps.

Frozen values in, map entries with this node's numbers out, each with the resource that it is for.
Contradictions between resources are settled here, closed, and reported. Used by the image only. Pure.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import msgspec

from xdsbpf.agent.blocks import source_name
from xdsbpf.agent.desired import (
    CONFLICT_POLICY,
    TCP,
    Backends,
    Balance,
    Enrolled,
    Frontend,
    PolicyEntry,
    kernel_name,
)
from xdsbpf.agent.numbers import POLICY_LIMIT, Numbers
from xdsbpf.agent.ops import Cause, TableName
from xdsbpf.agent.slots import slot_counts
from xdsbpf.datapath import abi
from xdsbpf.datapath.abi import NameSpace
from xdsbpf.datapath.address import address_text, host_key, prefix_key
from xdsbpf.model.address_block import AddressBlock
from xdsbpf.model.names import BACKENDS, IDENTITY, NODE_CONFIG, POLICY, UNLOCATED


class Problem(msgspec.Struct, frozen=True, order=True):
    """Why a resource is not in force as written."""

    type_url: str
    name: str
    message: str


class Fragment:
    """Entries of one owner; `failure` says which resource has no place in them, and why.

    `slots` are by the name of their Backends, `balanced` names the Backends of a frontend, `policies` are the
    numbers of policies that exist, with entries or without.

    Every method allocates numbers for what is new, and raises NumbersExhausted if none is left.
    """

    def __init__(self, numbers: Numbers) -> None:
        """Nothing wanted."""
        self._numbers = numbers
        self.names: dict[abi.NameKey, tuple[abi.Name, Cause]] = {}
        self.entries: dict[tuple[TableName, Any], tuple[Any, Cause]] = {}
        self.slots: dict[str, tuple[int, ...]] = {}
        self.balanced: dict[abi.FrontendKey, str] = {}
        self.policies: set[int] = set()
        self.problems: list[Problem] = []
        self.failure: tuple[Cause, str] | None = None

    def policy(self, name: str, wanted: Iterable[tuple[str | None, PolicyEntry]]) -> None:
        """The entries of a policy: all of them or, without enough numbers, none (its number then denies).

        `wanted` are (name of the source as the kernel tells it apart, or None for any; entry).
        """
        cause = (POLICY, name)
        number = self._number(NameSpace.POLICY, name, cause)
        self.policies.add(number)
        entries: dict[tuple[TableName, Any], tuple[Any, Cause]] = {}
        for text, entry in wanted:
            source = abi.Identity.ANY if text is None else self._source(text, cause)
            rule = self._number(NameSpace.RULE, entry.rule, cause) if entry.rule else 0
            key = abi.PolicyKey(number, source, entry.port, TCP)
            entries["policies", key] = abi.Policy(rule, entry.verdict), cause
        self.entries.update(entries)

    def conflict_policy(self) -> None:
        """The policy that guards what two policies claim."""
        self.policy(CONFLICT_POLICY, [(None, PolicyEntry(None, 0, abi.Verdict.DENY, ""))])

    def address(
        self,
        address: bytes,
        identities: list[str],
        policies: list[str],
        *,
        is_known_sender: bool,
        block: AddressBlock | None,
        cause: Cause,
    ) -> None:
        """Who an address is, and what guards it; both lists are sorted.

        `is_known_sender`: what is sent from the address is sent by its owner. `block` is the narrowest in
        force around it: an address of its own hides it in the trie, so its entry must say it, and be it of
        nobody known. `cause`: for an address that is there for its block only.
        """
        cause = (POLICY, policies[0]) if policies else (IDENTITY, identities[0]) if identities else cause
        # Security: which of two identities sends from here cannot be told, so it is nobody that a rule allows.
        known = identities[0] if len(identities) == 1 and is_known_sender else None
        identity: int = abi.Identity.UNKNOWN
        nobody = source_name(None, block)
        if nobody is not None:
            identity = self._source(nobody, cause)
        if known is not None:
            identity = self._source(source_name(known, block) or known, (IDENTITY, known))
        guard = 0
        if policies:
            name = policies[0] if len(policies) == 1 else CONFLICT_POLICY
            guard = self._number(NameSpace.POLICY, name, cause)
        self.entries["addresses", host_key(address)] = abi.Address(identity, guard), cause
        self._claimed_twice(IDENTITY, address, identities)
        self._claimed_twice(POLICY, address, policies)

    def block(self, block: AddressBlock, source: str | None, cause: Cause) -> None:
        """Whom the addresses of a block are that have no entry of their own; None: the unknown outside all."""
        identity = self._source(source, cause) if source is not None else abi.Identity.UNKNOWN
        self.entries["addresses", prefix_key(block.network, block.bits)] = abi.Address(identity, 0), cause

    def workloads(self, enrolled: Iterable[Enrolled]) -> None:
        """Interfaces and namespaces of this node's pods."""
        for found in sorted(enrolled):
            cause = (NODE_CONFIG, found.workload)
            for address in found.addresses:
                self.entries["veths", abi.VethKey(address, found.ifindex)] = abi.Veth(1), cause
            # The map has one address for a namespace; ::ffff:0:0/96 sorts first, so it is the IPv4 one.
            for address in sorted(found.addresses)[:1]:
                self.entries["netns", abi.NetnsKey(found.cookie)] = abi.Netns(address), cause

    def backends(self, wanted: Backends) -> None:
        """Endpoints of a service port, and the slots that repeat them by weight."""
        cause = (BACKENDS, wanted.service)
        service = self._number(NameSpace.SERVICE, wanted.service, cause)
        slots: list[int] = []
        counts = slot_counts([backend.weight for backend in wanted.backends])
        for backend, count in zip(wanted.backends, counts, strict=True):
            index = self._numbers.backend((service, backend.address, backend.port))
            ready = abi.Backend(backend.address, backend.port, abi.BackendFlag.READY, service)
            self.entries["backends", index] = ready, cause
            slots.extend([index] * count)
        self.slots[wanted.service] = tuple(slots)

    def frontend(self, cause: Cause, frontend: Frontend, *, known: Container[Cause]) -> None:
        """A service address, its slots left zero. `known`: the endpoints and policies that exist."""
        service = self._number(NameSpace.SERVICE, frontend.service, cause)
        key = abi.FrontendKey(frontend.address, frontend.port, TCP)
        plane = frontend.plane
        policy = self._number(NameSpace.POLICY, plane.policy, cause) if plane.policy else 0
        if plane.policy and (POLICY, plane.policy) not in known:
            # A policy number without entries denies; those of a policy that was there rest a moment.
            message = f"policy {plane.policy} is not known: connections are refused"
            self._problem(cause, f"{message}, within {POLICY_LIMIT:.0f} s if it was there before")
        if isinstance(plane, Balance):
            value = abi.Frontend(service, 0, 0, policy, plane.policy_port, 0, 0)
            if (BACKENDS, plane.backends) in known:
                self.balanced[key] = plane.backends
            else:
                self._problem(cause, f"endpoints {plane.backends} are not known: connections are refused")
        else:
            flags = abi.FrontendFlag.REDIRECT
            value = abi.Frontend(service, 0, 0, policy, plane.policy_port, plane.proxy_port, flags)
        self.entries["frontends", key] = value, cause

    def _source(self, text: str, cause: Cause) -> int:
        """The number of a source; one that the kernel itself knows is fixed."""
        if text != UNLOCATED:
            return self._number(NameSpace.IDENTITY, text, cause)
        key = abi.NameKey(NameSpace.IDENTITY, abi.Identity.UNLOCATED)
        self.names.setdefault(key, (abi.Name(text), cause))
        return abi.Identity.UNLOCATED

    def _number(self, space: NameSpace, text: str, cause: Cause) -> int:
        short = kernel_name(text)
        number = self._numbers.number(space, short)
        self.names.setdefault(abi.NameKey(space, number), (abi.Name(short), cause))
        return number

    def _problem(self, cause: Cause, message: str) -> None:
        self.problems.append(Problem(*cause, message))

    def _claimed_twice(self, type_url: str, address: bytes, names: list[str]) -> None:
        for name in names if len(names) > 1 else ():
            others = ", ".join(other for other in names if other != name)
            self._problem((type_url, name), f"{address_text(address)} is also claimed by {others}")
