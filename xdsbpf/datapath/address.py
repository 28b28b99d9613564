"""Addresses as the kernel maps hold them: 16 network-order bytes, IPv4 as ::ffff:a.b.c.d.

Packed 4- or 16-byte addresses in, ABI bytes and LPM keys out. Used by the agent and by people's
commands; pure.
"""

from __future__ import annotations

import ipaddress

from xdsbpf.datapath.abi import AddressKey

_V4_MAPPED = bytes(10) + b"\xff\xff"


def address16(packed: bytes) -> bytes:
    """The ABI form of a packed IPv4 (4 bytes) or IPv6 (16 bytes) address; ValueError otherwise."""
    if len(packed) == 4:
        return _V4_MAPPED + packed
    if len(packed) == 16:
        return packed
    raise ValueError(f"an address has 4 or 16 bytes, not {len(packed)}")


def family_bytes(address: bytes) -> bytes:
    """The address in its own family: 4 bytes for an IPv4 address in its ABI form, 16 for any other."""
    return address[12:] if address.startswith(_V4_MAPPED) else address


def address_text(address: bytes) -> str:
    """What people write for an ABI address: `10.0.0.1` or `fd00::1`."""
    parsed = ipaddress.IPv6Address(address)
    return str(parsed.ipv4_mapped or parsed)


def host_key(packed: bytes) -> AddressKey:
    """LPM key of exactly one address."""
    return AddressKey(prefix_length=128, address=address16(packed))


def prefix_key(packed: bytes, bits: int) -> AddressKey:
    """LPM key of a prefix; `bits` counts in the address's own family: 10.0.0.0 and 8 give length 104.

    ValueError when host bits are set: the trie would mask them and the key would not be found again.
    """
    network = ipaddress.ip_network((packed, bits))
    offset = 96 if network.version == 4 else 0
    return AddressKey(prefix_length=offset + network.prefixlen, address=address16(packed))
