"""Sources as the kernel tells them apart: an identity, or nobody known, in a block of addresses.

Policies in, for every address the name of its source and for every policy the entries of all sources out.
The blocks in force are those of all policies; they nest, so the narrowest one around an address tells where
it stands to every policy. A source's name is `spiffe://...` outside all of them, `spiffe://...@10.0.0.0/24` or
`cidr:10.0.0.0/24` (an unknown one) inside. A policy decides as if it were alone: no block of another changes it.
Owned by the image. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from xdsbpf.agent.desired import Identity, Policy, PolicyEntry
from xdsbpf.agent.ops import Cause
from xdsbpf.datapath.address import family_bytes
from xdsbpf.model.address_block import AddressBlock, BlockSet, parse_block
from xdsbpf.model.names import POLICY, RESERVED_IDENTITY

ALL_IPV4 = AddressBlock(bytes(4), 0)
_IPV4_MAPPED = AddressBlock(bytes(10) + b"\xff\xff" + bytes(4), 96)
_UNKNOWN = "cidr:"


def source_name(identity: str | None, block: AddressBlock | None) -> str | None:
    """Name of an identity (None: unknown) in a block (None: outside all); None for number 0, unknown."""
    if identity is None:
        return None if block is None else f"{_UNKNOWN}{block}"
    return identity if block is None or identity.startswith(RESERVED_IDENTITY) else f"{identity}@{block}"


def is_unknown(name: str) -> bool:
    """Whether a name is that of a source of which only its block is known."""
    return name.startswith(_UNKNOWN)


def named_blocks(names: Iterable[str]) -> Iterator[AddressBlock]:
    """The blocks that some names of identities in the kernel speak of: those that an earlier agent told apart."""
    return (parse_block(name.removeprefix(_UNKNOWN)) for name in names if is_unknown(name))


class SourceBlocks:
    """The blocks in force, and which identities have addresses in them.

    A block that no policy mentions any more stays until `forget`: it changes no verdict, as every source in
    it has the entries of the source that it would be without it.
    """

    def __init__(self, blocks: Iterable[AddressBlock] = ()) -> None:
        """`blocks` are in force from the start."""
        self._users: dict[AddressBlock, set[str]] = {block: set() for block in blocks}
        """Block -> the policies that mention it."""
        self._set = BlockSet(self._users)
        self._identities: dict[str, Identity] = {}
        self._present: dict[str, frozenset[AddressBlock]] = {}

    @property
    def in_force(self) -> frozenset[AddressBlock]:
        """All blocks that are told apart."""
        return self._set.blocks

    @property
    def unused(self) -> frozenset[AddressBlock]:
        """Blocks in force that no policy mentions."""
        return frozenset(block for block, users in self._users.items() if not users)

    def around(self, address: bytes) -> AddressBlock | None:
        """The narrowest block in force around an address in its ABI form."""
        return self._set.around(family_bytes(address)) if self._users else None

    def is_prefix(self, block: AddressBlock) -> bool:
        """Whether the kernel's trie must have an entry for a block.

        IPv4 addresses are IPv6 ones to the trie. So an IPv6 block that is wide enough to swallow them is
        cut open for them.
        """
        return block in self._users or (block == ALL_IPV4 and any(user.contains(_IPV4_MAPPED) for user in self._users))

    def cause(self, block: AddressBlock) -> Cause:
        """A resource that a block is there for; an unused one has none."""
        users = self._users.get(block) or {name for names in self._users.values() for name in names}
        return POLICY, min(users, default="")

    def follow_policy(self, old: Policy | None, new: Policy | None) -> None:
        """Take over which blocks a policy mentions; new ones must be in force already (`widen`)."""
        for policy in (old,) if old is not None else ():
            for block in policy.blocks:
                self._users[block].discard(policy.name)
        for policy in (new,) if new is not None else ():
            for block in policy.blocks:
                self._users[block].add(policy.name)

    def follow_identity(self, name: str, value: Identity | None) -> bool:
        """Take over where an identity is seen. Returns: whether it came to a block or left one."""
        if name.startswith(RESERVED_IDENTITY):
            return False
        if value is None:
            self._identities.pop(name, None)
        else:
            self._identities[name] = value
        return self._locate(name)

    def widen(self, blocks: Iterable[AddressBlock]) -> frozenset[AddressBlock]:
        """Put blocks in force. Returns: those that were not. Cost: O(addresses) if there are any."""
        added = frozenset(blocks) - self.in_force
        if added:
            self._users.update((block, set()) for block in added)
            self._replace()
        return added

    def forget(self, blocks: Iterable[AddressBlock]) -> frozenset[AddressBlock]:
        """Cease to tell unused blocks apart. Returns: those that were. Cost: O(addresses) if there are any."""
        gone = self.unused.intersection(blocks)
        if gone:
            for block in gone:
                del self._users[block]
            self._replace()
        return gone

    def entries(self, policy: Policy) -> Iterator[tuple[str | None, PolicyEntry]]:
        """(name of the source, entry) for every source that needs one; None: any source.

        A source that the policy does not name has entries of its own only in the policy's blocks: elsewhere
        it may be any. Cost: O(what is yielded + blocks in force); for a policy with blocks O(identities) more.
        """
        cells: dict[tuple[str | None, AddressBlock | None], list[PolicyEntry]] = {}
        for entry in policy.entries:
            cells.setdefault((entry.source, entry.block), []).append(entry)
            if entry.block is None:
                yield entry.source, entry
        if not self._users:
            return
        own = BlockSet(policy.blocks)
        seen = {block: own.around_block(block) for block in sorted(self._users)}
        for block, narrowest in seen.items():
            if narrowest is not None:
                yield from ((source_name(None, block), entry) for entry in cells.get((None, narrowest), ()))
        sources = {source for source, _ in cells if source is not None}
        for identity in sorted(self._present if policy.blocks else sources & self._present.keys()):
            for block in sorted(self._present[identity]):
                if identity in sources or seen[block] is not None:
                    row = cells.get((identity if identity in sources else None, seen[block]), ())
                    yield from ((source_name(identity, block), entry) for entry in row)

    def _replace(self) -> None:
        self._set = BlockSet(self._users)
        for name in self._identities:
            self._locate(name)

    def _locate(self, name: str) -> bool:
        """Find the blocks of an identity. Returns: whether they are others than before."""
        value = self._identities.get(name)
        before = self._present.pop(name, frozenset())
        addresses = value.addresses if value is not None and self._users else ()
        present = frozenset(block for address in addresses if (block := self.around(address)) is not None)
        if present:
            self._present[name] = present
        return present != before
