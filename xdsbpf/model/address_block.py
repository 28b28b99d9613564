"""Blocks of IP addresses: what policies mean by `10.0.0.1`, `10.0.0.0/8` or `2001:db8::/32`.

Text in, frozen blocks out, and the question that decides everything about them: which of some blocks is the
narrowest around an address. Blocks nest or are disjoint, so that one answer tells the address's place
relative to all of them. Used by mesh, by compile and by the agent. Pure.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

import msgspec


class AddressBlock(msgspec.Struct, frozen=True, order=True):
    """All addresses whose first `bits` bits are those of `network`: 4 or 16 bytes, the other bits zero.

    Families never meet: `::/0` has no IPv4 address in it.
    """

    network: bytes
    bits: int

    def __str__(self) -> str:
        """`10.0.0.0/24`, also `10.0.0.1/32`: a single address is a block like any other."""
        return f"{ipaddress.ip_address(self.network)}/{self.bits}"

    def contains(self, other: AddressBlock) -> bool:
        """Whether all addresses of `other` are in this block."""
        return (
            len(other.network) == len(self.network)
            and other.bits >= self.bits
            and masked(other.network, self.bits) == self.network
        )


class BlockSet:
    """Some blocks, to be asked for the narrowest one around an address. Cost: O(distinct lengths) a question."""

    def __init__(self, blocks: Iterable[AddressBlock]) -> None:
        """The set never changes."""
        self.blocks = frozenset(blocks)
        self._lengths = {
            size: sorted({block.bits for block in self.blocks if len(block.network) == size}, reverse=True)
            for size in (4, 16)
        }

    def around(self, address: bytes) -> AddressBlock | None:
        """The narrowest block around an address of 4 or 16 bytes; None if it is outside all of them."""
        return self.around_block(AddressBlock(address, 8 * len(address)))

    def around_block(self, inner: AddressBlock) -> AddressBlock | None:
        """The narrowest block that contains `inner` (it may be `inner` itself), or None."""
        for bits in self._lengths[len(inner.network)]:
            if bits <= inner.bits:
                candidate = AddressBlock(masked(inner.network, bits), bits)
                if candidate in self.blocks:
                    return candidate
        return None


def masked(address: bytes, bits: int) -> bytes:
    """An address of 4 or 16 bytes with all but its first `bits` bits zero."""
    rest = 8 * len(address) - bits
    return (int.from_bytes(address, "big") >> rest << rest).to_bytes(len(address), "big")


@functools.lru_cache(maxsize=4096)
def parse_block(text: str) -> AddressBlock:
    """The block that a manifest names; ValueError for anything but an address or a CIDR.

    Bits of the host may be set: they are masked, as Envoy does (core.v3.CidrRange). A block of IPv4-mapped
    addresses is a block of the IPv4 addresses that they stand for (RFC 4291, 2.5.5.2).
    """
    if "%" in text:
        raise ValueError(f"{text!r}: a zone has no meaning in a policy")
    parsed = ipaddress.ip_network(text, strict=False)
    network, bits = parsed.network_address, parsed.prefixlen
    mapped = network.ipv4_mapped if isinstance(network, ipaddress.IPv6Address) else None
    if mapped is not None and bits >= 96:
        return AddressBlock(mapped.packed, bits - 96)
    return AddressBlock(network.packed, bits)
