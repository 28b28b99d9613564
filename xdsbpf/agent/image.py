"""The image: what the maps shall contain, kept up to date resource by resource.

`DesiredState` and what changed in it in; wanted entries and the keys that they touch out. The plan compares
those keys with what the kernel holds. Owned by the planner. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from xdsbpf.agent.blocks import ALL_IPV4, SourceBlocks, is_unknown, source_name
from xdsbpf.agent.desired import (
    CONFLICT_POLICY,
    Backends,
    Balance,
    DatapathValue,
    DesiredState,
    Enrolled,
    Frontend,
    Identity,
    NodeConfig,
    Policy,
)
from xdsbpf.agent.fragment import Fragment, Problem
from xdsbpf.agent.numbers import Numbers, NumbersExhausted
from xdsbpf.agent.ops import TABLES, Cause, TableName
from xdsbpf.datapath import abi
from xdsbpf.datapath.address import address16, family_bytes
from xdsbpf.model.address_block import AddressBlock, BlockSet
from xdsbpf.model.names import BACKENDS, FRONTEND, IDENTITY, POLICY

Owner = Cause | bytes | AddressBlock
"""Who wants entries: a resource, an address (several resources may claim one), a block of addresses."""

_WORKLOADS: Owner = ("", "workloads")
_CONFLICT: Owner = ("", CONFLICT_POLICY)


class _Wants(msgspec.Struct, frozen=True, gc=False):
    """What an owner's fragment put into the tables: enough to take it out again. One per address, so small."""

    names: tuple[abi.NameKey, ...]
    entries: tuple[tuple[TableName, Any], ...]
    balanced: tuple[abi.FrontendKey, ...]
    slots: tuple[tuple[str, tuple[int, ...]], ...]
    policies: tuple[int, ...]


class Image:
    """Target contents of the maps, each entry with the resource that it is for.

    `contents` are the slots that a Backends resource wants, by that content; `balanced` maps a frontend
    to the name of its Backends; `policies` are the numbers of those that exist. `touched` and
    `touched_contents` grow with every update; the planner takes out what it has dealt with. `problems`:
    resources that are in force otherwise than written; `failed`: those that have no place.
    """

    def __init__(self, numbers: Numbers, blocks: Iterable[AddressBlock] = ()) -> None:
        """An empty target; `blocks` of addresses are told apart in the kernel, by policies not known yet."""
        self._numbers = numbers
        self._tables: dict[TableName, dict[Any, tuple[Any, Cause]]] = {name: {} for name in TABLES}
        self.attached: frozenset[int] = frozenset()
        self.slots: dict[str, tuple[int, ...]] = {}
        self.contents: dict[tuple[int, ...], str] = {}
        self.balanced: dict[abi.FrontendKey, str] = {}
        self.policies: set[int] = set()
        self.touched: dict[TableName, set[Any]] = {name: set() for name in TABLES}
        self.touched_contents: set[tuple[int, ...]] = set()
        self._wants: dict[Owner, _Wants] = {}
        self._troubled: dict[Owner, Fragment] = {}
        """Those with problems or a failure."""
        self._name_users: defaultdict[abi.NameKey, dict[Owner, Cause]] = defaultdict(dict)
        self._values: dict[Cause, DatapathValue] = {}
        self._links: defaultdict[Owner, set[Cause]] = defaultdict(set)
        """Address, Backends or Policy -> the resources that refer to it."""
        self._conflicts: set[bytes] = set()
        self.contested: set[bytes] = set()
        """Addresses that several identities claim: they are nobody's, whatever else is still to come."""
        self._enrolled: tuple[Enrolled, ...] = ()
        self.interface_of: dict[bytes, int] = {}
        """Enrolled address -> the interface that must be guarded before the address is anybody."""
        self._node: NodeConfig | None = None
        self._local: frozenset[bytes] | None = None
        """Addresses of this node's workloads; None before the node's configuration came."""
        self._sources = SourceBlocks(blocks)
        self.deferred: set[Cause] = set()
        """Changes that wait until every source has its finer name."""
        self._rebuild(self._in_blocks(self._sources.in_force))

    def table(self, name: TableName) -> dict[Any, tuple[Any, Cause]]:
        """Wanted entries of one map; slots of frontends are left zero, the plan places them."""
        return self._tables[name]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems, sorted."""
        return tuple(sorted(problem for fragment in self._troubled.values() for problem in fragment.problems))

    @property
    def failed(self) -> dict[Cause, str]:
        """Resources for which no number is left; tried again by every update."""
        return dict(fragment.failure for fragment in self._troubled.values() if fragment.failure)

    def update(
        self, desired: DesiredState, changed: Iterable[Cause] | None, *, is_first_half_done: bool = True
    ) -> None:
        """Follow the desired state, of which only `changed` differs from the last call's (None: look at all).

        Policies that mention a new block of addresses come in two steps (`is_widening`): first every source
        in the block gets its finer name, under the policies as they are, so no verdict changes; the next
        call takes over what changed, once the first half is done: till then policies and identities stay. In
        one step a source would have its old name under the new policies.
        Allocates numbers for new names and endpoints. Cost: O(entries of what changed and of what refers
        to it); with None, or new blocks, also O(resources).
        """
        owners = {owner for owner, fragment in self._troubled.items() if fragment.failure}
        causes = self.deferred.union(self._known(desired) if changed is None else changed)
        policies = (desired.policies.get(name) for type_url, name in causes if type_url == POLICY)
        added = self._sources.widen(block for policy in policies if policy is not None for block in policy.blocks)
        owners |= self._in_blocks(added)
        now = causes
        if added:
            now = set()
        elif self.deferred and not is_first_half_done:
            now = {cause for cause in causes if cause[0] not in (IDENTITY, POLICY)}
        self.deferred = causes - now
        for cause in now:
            old, new = self._values.get(cause), _value(desired, cause)
            if old is new or old == new:
                continue
            self._relink(cause, old, new, owners)
            if new is None:
                del self._values[cause]
            else:
                self._values[cause] = new
        if desired.enrolled != self._enrolled:
            self._enrolled = desired.enrolled
            self.attached = frozenset(found.ifindex for found in desired.enrolled)
            owners.add(_WORKLOADS)
            before = self.interface_of
            self.interface_of = {address: found.ifindex for found in desired.enrolled for address in found.addresses}
            owners |= before.keys() ^ self.interface_of.keys()
        if desired.node is not None and desired.node is not self._node:
            self._node = desired.node
            owners.update(self._settle_local(desired.node))
        self._rebuild(owners)
        if bool(self._conflicts) != (_CONFLICT in self._wants):
            self._rebuild({_CONFLICT})

    @property
    def is_widening(self) -> bool:
        """Whether the changes of the last update are still to come."""
        return bool(self.deferred)

    @property
    def blocks(self) -> frozenset[AddressBlock]:
        """All blocks of source addresses that are told apart."""
        return self._sources.in_force

    @property
    def unused_blocks(self) -> frozenset[AddressBlock]:
        """Blocks of addresses that are told apart for no policy any more."""
        return self._sources.unused

    def forget_blocks(self, blocks: Iterable[AddressBlock]) -> None:
        """Cease to tell unused blocks apart. Cost: O(resources) if there are any."""
        self._rebuild(self._in_blocks(self._sources.forget(blocks)))

    def _in_blocks(self, blocks: frozenset[AddressBlock]) -> set[Owner]:
        """Whose fragments depend on whether these blocks are told apart."""
        if not blocks:
            return set()
        within = BlockSet(blocks)
        addresses = (owner for owner in self._links if isinstance(owner, bytes))
        owners: set[Owner] = {address for address in addresses if within.around(family_bytes(address)) is not None}
        owners |= {_owner_of(block) for block in (*blocks, ALL_IPV4)}
        return owners | {cause for cause in self._values if cause[0] == POLICY}

    def nobody_at(self, address: bytes) -> int:
        """The number of an unknown source that has this address, which is wanted or in a wanted block."""
        name = source_name(None, self._sources.around(address))
        return abi.Identity.UNKNOWN if name is None else self._numbers.number(abi.NameSpace.IDENTITY, name)

    def is_nobody(self, identity: int) -> bool:
        """Whether a number is that of an unknown source, somewhere."""
        name = self._numbers.text(abi.NameSpace.IDENTITY, identity)
        return identity == abi.Identity.UNKNOWN or (name is not None and is_unknown(name))

    def _settle_local(self, node: NodeConfig) -> Iterable[Owner]:
        """Take over which addresses are of this node. Returns: those of which it was not known before."""
        local = frozenset(address for workload in node.workloads for address in workload.addresses)
        before, self._local = self._local, local
        return local ^ before if before is not None else [link for link in self._links if isinstance(link, bytes)]

    def _is_known_sender(self, address: bytes) -> bool:
        """Security: whoever shares a link with an interface that is not guarded could send from its address.

        So a workload of this node is nobody until its interface is found (and the plan has it guarded). An
        address of another node is that node's to guard.
        """
        return self._local is not None and (address not in self._local or address in self.interface_of)

    def _known(self, desired: DesiredState) -> set[Cause]:
        wanted = {(type_url, name) for type_url, values in _tables(desired).items() for name in values}
        return wanted | self._values.keys()

    def _relink(self, cause: Cause, old: DatapathValue | None, new: DatapathValue | None, owners: set[Owner]) -> None:
        """Note what a resource refers to, and collect whose fragments its change concerns."""
        owners.add(cause)
        owners |= self._links.get(cause, set())
        before, after = _targets(old), _targets(new)
        owners.update(before, after)
        for target in before:
            self._links[target].discard(cause)
        for target in after:
            self._links[target].add(cause)
        for target in before:
            if not self._links[target]:
                del self._links[target]
        if isinstance(old, Policy) or isinstance(new, Policy):
            self._sources.follow_policy(cast("Policy | None", old), cast("Policy | None", new))
        elif cause[0] == IDENTITY and self._sources.follow_identity(cause[1], cast("Identity | None", new)):
            owners |= {key for key, value in self._values.items() if isinstance(value, Policy) and _asks(value, cause)}

    def _rebuild(self, owners: set[Owner]) -> None:
        """Replace fragments: all old ones go first, so that an entry may pass from one owner to another.

        Sorted, so that equal histories give equal numbers.
        """
        for owner in owners:
            self._withdraw(owner)
        ordered: list[Owner] = [*sorted(owner for owner in owners if isinstance(owner, tuple))]
        ordered += sorted(owner for owner in owners if isinstance(owner, bytes))
        ordered += sorted(owner for owner in owners if isinstance(owner, AddressBlock))
        for owner in ordered:
            fragment = Fragment(self._numbers)
            try:
                self._fill(fragment, owner)
            except NumbersExhausted as err:
                fragment.failure = (self._cause(owner), str(err))
            self._add(owner, fragment)

    def _fill(self, fragment: Fragment, owner: Owner) -> None:
        if isinstance(owner, bytes):
            self._fill_address(fragment, owner)
            return
        if isinstance(owner, AddressBlock):
            if self._sources.is_prefix(owner):
                own = owner if owner in self._sources.in_force else None
                fragment.block(owner, source_name(None, own), self._sources.cause(owner))
            return
        value = self._values.get(owner)
        if isinstance(value, Policy):
            fragment.policy(value.name, self._sources.entries(value))
        elif isinstance(value, Backends) and self._links.get(owner):
            fragment.backends(value)
        elif isinstance(value, Frontend):
            fragment.frontend(owner, value, known=self._values)
        elif owner == _WORKLOADS:
            fragment.workloads(self._enrolled)
        elif owner == _CONFLICT and self._conflicts:
            fragment.conflict_policy()

    def _fill_address(self, fragment: Fragment, address: bytes) -> None:
        claims = self._claims(address)
        identities = [name for type_url, name in claims if type_url == IDENTITY]
        policies = [name for type_url, name in claims if type_url == POLICY]
        if len(policies) > 1:
            self._conflicts.add(address)
        else:
            self._conflicts.discard(address)
        if len(identities) > 1:
            self.contested.add(address)
        else:
            self.contested.discard(address)
        block = self._sources.around(address)
        if claims or (block is not None and _owner_of(block) == address):
            fragment.address(
                address,
                identities,
                policies,
                is_known_sender=self._is_known_sender(address),
                block=block,
                cause=self._cause(address),
            )

    def _cause(self, owner: Owner) -> Cause:
        """The resource that a failure of an owner's fragment is told to."""
        if isinstance(owner, tuple):
            return owner
        if isinstance(owner, AddressBlock):
            return self._sources.cause(owner)
        block = self._sources.around(owner)
        claims = self._claims(owner)
        return claims[0] if claims or block is None else self._sources.cause(block)

    def _claims(self, address: bytes) -> list[Cause]:
        return sorted(self._links.get(address, ()))

    def _add(self, owner: Owner, fragment: Fragment) -> None:
        for key, (name, cause) in fragment.names.items():
            self._name_users[key][owner] = cause
            self._tables["names"].setdefault(key, (name, cause))
            self.touched["names"].add(key)
        for (table, key), wanted in fragment.entries.items():
            self._tables[table][key] = wanted
            self.touched[table].add(key)
        self.balanced.update(fragment.balanced)
        self.policies |= fragment.policies
        for backends, contents in fragment.slots.items():
            self.slots[backends] = contents
            self.contents[contents] = backends
            self.touched_contents.add(contents)
        if fragment.problems or fragment.failure:
            self._troubled[owner] = fragment
        if fragment.names or fragment.entries:
            self._wants[owner] = _Wants(
                names=tuple(fragment.names),
                entries=tuple(fragment.entries),
                balanced=tuple(fragment.balanced),
                slots=tuple(fragment.slots.items()),
                policies=tuple(fragment.policies),
            )

    def _withdraw(self, owner: Owner) -> None:
        self._troubled.pop(owner, None)
        wants = self._wants.pop(owner, None)
        if wants is None:
            return
        for key in wants.names:
            self._withdraw_name(key, owner)
        for table, entry in wants.entries:
            del self._tables[table][entry]
            self.touched[table].add(entry)
        for frontend in wants.balanced:
            del self.balanced[frontend]
        self.policies.difference_update(wants.policies)
        for name, contents in wants.slots:
            del self.slots[name]
            self.contents.pop(contents, None)
            self.touched_contents.add(contents)

    def _withdraw_name(self, key: abi.NameKey, owner: Owner) -> None:
        users = self._name_users[key]
        del users[owner]
        self.touched["names"].add(key)
        if not users:
            del self._name_users[key], self._tables["names"][key]
            return
        name, _ = self._tables["names"][key]
        self._tables["names"][key] = name, next(iter(users.values()))


def _value(desired: DesiredState, cause: Cause) -> DatapathValue | None:
    """The value of a resource; a NodeConfig wants no entries by itself (see `DesiredState.enrolled`)."""
    type_url, name = cause
    return _tables(desired).get(type_url, {}).get(name)


def _tables(desired: DesiredState) -> dict[str, Mapping[str, DatapathValue]]:
    return {
        FRONTEND: desired.frontends,
        BACKENDS: desired.backends,
        IDENTITY: desired.identities,
        POLICY: desired.policies,
    }


def _owner_of(block: AddressBlock) -> bytes | AddressBlock:
    """A block of one address is that address: others may claim it, too."""
    return address16(block.network) if block.bits == 8 * len(block.network) else block


def _asks(policy: Policy, identity: Cause) -> bool:
    """Whether a policy's entries depend on the blocks that an identity is in."""
    return bool(policy.blocks) or any(entry.source == identity[1] for entry in policy.entries)


def _targets(value: DatapathValue | None) -> tuple[Owner, ...]:
    """What a resource refers to."""
    match value:
        case Identity(addresses=addresses) | Policy(destinations=addresses):
            return addresses
        case Frontend(plane=plane):
            balanced = ((BACKENDS, plane.backends),) if isinstance(plane, Balance) else ()
            return (*balanced, (POLICY, plane.policy)) if plane.policy else balanced
        case None | NodeConfig() | Backends():
            return ()
