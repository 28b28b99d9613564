"""The image: what the maps shall contain, resource names resolved to this node's numbers.

`DesiredState` and the allocator in, map entries out, each with the resource that it is for. Contradictions
between resources are settled here, closed, and reported. Used by the plan only. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from xdsbpf.agent.desired import Balance, DesiredState, Frontend, Policy, PolicyEntry, kernel_name
from xdsbpf.agent.numbers import Numbers, NumbersExhausted
from xdsbpf.agent.ops import Cause
from xdsbpf.agent.slots import slot_counts
from xdsbpf.datapath import abi
from xdsbpf.datapath.abi import NameSpace
from xdsbpf.datapath.address import address_text, host_key
from xdsbpf.model.names import BACKENDS, FRONTEND, IDENTITY, NODE_CONFIG, POLICY

TCP = 6
CONFLICT_POLICY = "xdsbpf:conflict"
"""Guards addresses that two policies claim: denies everything."""


class Problem(msgspec.Struct, frozen=True, order=True):
    """Why a resource is not in force as written."""

    type_url: str
    name: str
    message: str


class Image:
    """Target contents of the maps; `balanced` maps a frontend to the Backends that its slots come from.

    `problems`: resources that are in force otherwise than written; `failed`: those that have no place.
    """

    def __init__(self) -> None:
        """An empty target."""
        self.names: dict[abi.NameKey, tuple[abi.Name, Cause]] = {}
        self.policies: dict[abi.PolicyKey, tuple[abi.Policy, Cause]] = {}
        self.addresses: dict[abi.AddressKey, tuple[abi.Address, Cause]] = {}
        self.netns: dict[abi.NetnsKey, tuple[abi.Netns, Cause]] = {}
        self.veths: dict[abi.VethKey, tuple[abi.Veth, Cause]] = {}
        self.attached: set[int] = set()
        self.backends: dict[int, tuple[abi.Backend, Cause]] = {}
        self.slots: dict[str, tuple[int, ...]] = {}
        self.frontends: dict[abi.FrontendKey, tuple[abi.Frontend, Cause]] = {}
        self.balanced: dict[abi.FrontendKey, str] = {}
        self.problems: list[Problem] = []
        self.failed: dict[Cause, str] = {}


def build_image(desired: DesiredState, numbers: Numbers) -> Image:
    """Resolve all resources; slots of frontends are left zero, the plan places them.

    Allocates numbers for new names and endpoints. A resource for which no number is left is left out
    of the image with a problem. Cost: O(all entries).
    """
    return _Builder(desired, numbers).build()


class _Builder:
    def __init__(self, desired: DesiredState, numbers: Numbers) -> None:
        self._desired = desired
        self._numbers = numbers
        self._image = Image()

    def build(self) -> Image:
        desired = self._desired
        for policy_name in sorted(desired.policies):
            with _blaming(self._image, (POLICY, policy_name)):
                self._policy(desired.policies[policy_name])
        self._addresses()
        self._workloads()
        for name in sorted(desired.frontends):
            with _blaming(self._image, (FRONTEND, name)):
                self._frontend((FRONTEND, name), desired.frontends[name])
        return self._image

    def _number(self, space: NameSpace, text: str, cause: Cause) -> int:
        short = kernel_name(text)
        number = self._numbers.number(space, short)
        self._image.names.setdefault(abi.NameKey(space, number), (abi.Name(short), cause))
        return number

    def _policy(self, policy: Policy) -> int:
        cause = (POLICY, policy.name)
        number = self._number(NameSpace.POLICY, policy.name, cause)
        for entry in policy.entries:
            source: int = abi.Identity.ANY
            if entry.source is not None:
                source = self._number(NameSpace.IDENTITY, entry.source, cause)
            rule = self._number(NameSpace.RULE, entry.rule, cause) if entry.rule else 0
            key = abi.PolicyKey(number, source, entry.port, TCP)
            self._image.policies[key] = abi.Policy(rule, entry.verdict), cause
        return number

    def _addresses(self) -> None:
        claims: defaultdict[bytes, list[str]] = defaultdict(list)
        guards: defaultdict[bytes, list[str]] = defaultdict(list)
        for name in sorted(self._desired.identities):
            for address in self._desired.identities[name].addresses:
                claims[address].append(name)
        for name in sorted(self._desired.policies):
            for address in self._desired.policies[name].destinations:
                guards[address].append(name)
        for address in sorted(claims.keys() | guards.keys()):
            names, policies = claims.get(address, []), guards.get(address, [])
            cause = (POLICY, policies[0]) if policies else (IDENTITY, names[0])
            with _blaming(self._image, cause):
                identity = self._identity(address, names)
                value = abi.Address(identity, self._guard(address, policies))
                self._image.addresses[host_key(address)] = value, cause

    def _identity(self, address: bytes, names: list[str]) -> int:
        if not names:
            return abi.Identity.UNKNOWN
        if len(names) > 1:
            # Security: which of them sends from here cannot be told, so it is nobody that a rule allows.
            self._claimed_twice(IDENTITY, address, names)
            return abi.Identity.UNKNOWN
        return self._number(NameSpace.IDENTITY, names[0], (IDENTITY, names[0]))

    def _guard(self, address: bytes, names: list[str]) -> int:
        if not names:
            return 0
        if len(names) == 1:
            return self._number(NameSpace.POLICY, names[0], (POLICY, names[0]))
        self._claimed_twice(POLICY, address, names)
        deny = PolicyEntry(None, 0, abi.Verdict.DENY, "")
        return self._policy(Policy(CONFLICT_POLICY, (), (deny,)))

    def _claimed_twice(self, type_url: str, address: bytes, names: list[str]) -> None:
        message = f"{address_text(address)} is also claimed by"
        for name in names:
            others = ", ".join(other for other in names if other != name)
            self._image.problems.append(Problem(type_url, name, f"{message} {others}"))

    def _workloads(self) -> None:
        for enrolled in sorted(self._desired.enrolled):
            cause = (NODE_CONFIG, enrolled.workload)
            self._image.attached.add(enrolled.ifindex)
            for address in enrolled.addresses:
                self._image.veths[abi.VethKey(address, enrolled.ifindex)] = abi.Veth(1), cause
            # The map has one address for a namespace; ::ffff:0:0/96 sorts first, so it is the IPv4 one.
            for address in sorted(enrolled.addresses)[:1]:
                self._image.netns[abi.NetnsKey(enrolled.cookie)] = abi.Netns(address), cause

    def _frontend(self, cause: Cause, frontend: Frontend) -> None:
        service = self._number(NameSpace.SERVICE, frontend.service, cause)
        key = abi.FrontendKey(frontend.address, frontend.port, TCP)
        plane = frontend.plane
        if isinstance(plane, Balance):
            self._balance(cause, key, plane.backends)
            value = abi.Frontend(service, 0, 0, 0, 0, 0, 0)
        else:
            policy = self._number(NameSpace.POLICY, plane.policy, cause) if plane.policy else 0
            if plane.policy and plane.policy not in self._desired.policies:
                # A policy number without entries denies.
                self._problem(cause, f"policy {plane.policy} is not known: all connections are refused")
            flags = abi.FrontendFlag.REDIRECT
            value = abi.Frontend(service, 0, 0, policy, plane.policy_port, plane.proxy_port, flags)
        self._image.frontends[key] = value, cause

    def _balance(self, cause: Cause, key: abi.FrontendKey, name: str) -> None:
        wanted = self._desired.backends.get(name)
        if wanted is None:
            self._problem(cause, f"endpoints {name} are not known: connections are refused")
            return
        self._image.balanced[key] = name
        if name in self._image.slots:
            return
        owner = (BACKENDS, name)
        with _blaming(self._image, owner):
            service = self._number(NameSpace.SERVICE, wanted.service, owner)
            slots: list[int] = []
            counts = slot_counts([backend.weight for backend in wanted.backends])
            for backend, count in zip(wanted.backends, counts, strict=True):
                index = self._numbers.backend((service, backend.address, backend.port))
                ready = abi.Backend(backend.address, backend.port, abi.BackendFlag.READY, service)
                self._image.backends[index] = ready, owner
                slots.extend([index] * count)
            self._image.slots[name] = tuple(slots)

    def _problem(self, cause: Cause, message: str) -> None:
        self._image.problems.append(Problem(*cause, message))


@contextmanager
def _blaming(image: Image, cause: Cause) -> Iterator[None]:
    """A resource for which numbers have run out fails; the others go on."""
    try:
        yield
    except NumbersExhausted as err:
        image.failed[cause] = str(err)
