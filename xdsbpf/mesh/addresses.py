"""The address of each service, and which addresses an endpoint may have.

A service without a clusterIP (no Kubernetes) gets a virtual address: a slot of `service_cidr` by a
hash of its name, with linear probing in the order of names. So the address is a function of the set
of such services: independent of arrival, equal on replicas and after restarts. Adding a service
moves another one only if both hash to one slot and the new name sorts first.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import ipaddress
from typing import Final

from xdsbpf.incremental import Database, query
from xdsbpf.mesh.codes import refuse
from xdsbpf.mesh.inputs import SERVICES_BY_ADDRESS, SERVICES_WITHOUT_ADDRESS, object_id, settings


def _slot(namespace: str, name: str, size: int) -> int:
    digest = hashlib.blake2b(f"{namespace}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % size


@query
def virtual_addresses(db: Database) -> tuple[tuple[tuple[str, str], str], ...]:
    """((namespace, name), address) of every service without a clusterIP, sorted by name.

    Explicit clusterIPs inside the range are left free; its first and last address are not used.
    Services that find no slot are absent.
    """
    network = ipaddress.ip_network(settings(db).service_cidr)
    size = network.num_addresses - 2
    taken: set[int] = set()
    for text in db.bucket_keys(SERVICES_BY_ADDRESS):
        address = _parse(text)
        if address is not None and address.version == network.version and address in network:
            taken.add(int(address) - int(network.network_address) - 1)
    result = []
    for namespace, name in db.bucket_keys(SERVICES_WITHOUT_ADDRESS):
        slot = _slot(namespace, name, max(size, 1))
        for step in range(max(size, 0)):
            candidate = (slot + step) % size
            if candidate not in taken:
                taken.add(candidate)
                result.append(((namespace, name), str(network.network_address + 1 + candidate)))
                break
    return tuple(result)


@query
def virtual_address(db: Database, namespace: str, name: str) -> str:
    """The virtual address of one service; "" if it needs none or the range is exhausted."""
    table = virtual_addresses(db)
    position = bisect.bisect_left(table, ((namespace, name),))
    if position < len(table) and table[position][0] == (namespace, name):
        return table[position][1]
    if (namespace, name) in db.bucket_keys(SERVICES_WITHOUT_ADDRESS):
        refuse(
            db,
            "XB2006",
            object_id("Service", namespace, name),
            "spec.clusterIP",
            f"no address is left in {settings(db).service_cidr}",
            "give the service a clusterIP, or the mesh a larger service range",
        )
    return ""


@query
def _virtual_addresses_by_address(db: Database) -> tuple[tuple[str, tuple[str, str]], ...]:
    return tuple(sorted((address, name) for name, address in virtual_addresses(db)))


def service_at(db: Database, address: str) -> tuple[str, str] | None:
    """(namespace, name) of the service that owns an address: the oldest with that clusterIP; or None."""
    claimants = db.bucket(SERVICES_BY_ADDRESS, address)
    return (claimants[0].namespace, claimants[0].name) if claimants else _virtual_service_at(db, address)


@query
def _virtual_service_at(db: Database, address: str) -> tuple[str, str] | None:
    table = _virtual_addresses_by_address(db)
    position = bisect.bisect_left(table, (address,))
    found = position < len(table) and table[position][0] == address
    return table[position][1] if found else None


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


_OCTETS: Final = {str(number): bytes((number,)) for number in range(256)}
"""An octet in its one spelling."""


@functools.lru_cache(maxsize=16384)
def _block(text: str) -> bytes:
    """The three bytes of `10.0.7`. Cached: the pods of a node share it. KeyError or ValueError for anything else."""
    first, second, third = text.split(".")
    return _OCTETS[first] + _OCTETS[second] + _OCTETS[third]


_SUSPECT: Final = frozenset({0, 127, 169, *range(224, 240), 255})
"""First octets of which at least some addresses are refused."""


def packed(text: str) -> bytes:
    """Network-order bytes of an address: 4 for IPv4, 16 for IPv6. ValueError if it is none.

    As a sort key: addresses of one family in numerical order. Cost for IPv4: a twentieth of `ipaddress`, which counts
    where every endpoint of the mesh passes several times.
    """
    block, _, last = text.rpartition(".")
    try:
        return _block(block) + _OCTETS[last]
    except (KeyError, ValueError):
        return ipaddress.ip_address(text).packed


def usable(text: str) -> bytes:
    """An address as it sorts (`packed`), or b"" for one that has a `refusal`."""
    block, _, last = text.rpartition(".")
    try:
        octets = _block(block) + _OCTETS[last]
    except (KeyError, ValueError):
        return b""
    return b"" if octets[0] in _SUSPECT and _reserved(octets) else octets


def refusal(text: str) -> str:
    """Why traffic must not be sent to this address, or "" for a usable IPv4 unicast address.

    Loopback, link-local (the clouds' metadata servers live there), multicast and unspecified
    addresses would let a manifest reach the node itself (reliability: server-side request forgery).
    """
    if usable(text):
        return ""
    address = _parse(text)
    if address is None:
        return "is not an IP address"
    return "is IPv6, which is not supported yet" if address.version == 6 else _reserved(address.packed)


def _reserved(octets: bytes) -> str:
    first, second = octets[0], octets[1]
    if first == 0:
        return "is in 0.0.0.0/8"
    if first == 127:
        return "is a loopback address"
    if first == 169 and second == 254:
        return "is a link-local address (metadata servers live there)"
    if 224 <= first <= 239:
        return "is a multicast address"
    if octets == b"\xff\xff\xff\xff":
        return "is the broadcast address"
    return ""
