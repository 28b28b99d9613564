"""The kernel maps as typed tables of ABI values.

`Kernel` is what the agent's reconcile reads and writes; `KernelTables` implements it over map file
descriptors (handed over by the loader), `memory.MemoryTables` over dictionaries. One contract test
runs against both. Nothing here decides what to write or in which order.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from xdsbpf.datapath import abi, libbpf
from xdsbpf.datapath.objects import Map
from xdsbpf.errors import MapFull

K = TypeVar("K")
V = TypeVar("V")
PK = TypeVar("PK", bound="Packed")
PV = TypeVar("PV", bound="Packed")
_CHUNK = 1024


class Table(Protocol[K, V]):
    """Entries of one map. Hash and LPM entries are replaced atomically for readers in the kernel."""

    def get(self, key: K) -> V | None:
        """The value at `key`, or None."""

    def put(self, key: K, value: V) -> None:
        """Insert or replace; MapFull when there is no room."""

    def put_many(self, entries: Iterable[tuple[K, V]]) -> None:
        """`put` in order; after MapFull an unknown part of `entries` is in place."""

    def delete(self, key: K) -> bool:
        """Remove; False if it was not there. An array element becomes zero."""

    def items(self) -> list[tuple[K, V]]:
        """All entries at about one time; of an array only the elements that are not zero."""

    def scan(self) -> Iterator[tuple[K, V]]:
        """`items` one after the other; what is written meanwhile may be missed or seen twice."""


class SlotTable(Protocol):
    """The arena of slots: backend index per slot. A frontend owns `[offset, offset + count)`."""

    def read(self, offset: int, count: int) -> tuple[int, ...]:
        """`count` backend indexes from `offset`; MapFull beyond the arena."""

    def write(self, offset: int, backends: Sequence[int]) -> None:
        """Store backend indexes from `offset` on; MapFull beyond the arena.

        Not atomic as a whole: write only ranges that no frontend refers to.
        """


class Kernel(Protocol):
    """Everything the agent knows of the kernel's state."""

    @property
    def frontends(self) -> Table[abi.FrontendKey, abi.Frontend]:
        """Service addresses."""

    @property
    def backends(self) -> Table[int, abi.Backend]:
        """Endpoints by index; an element is not replaced atomically."""

    @property
    def slots(self) -> SlotTable:
        """Backend indexes, weights as repetition."""

    @property
    def addresses(self) -> Table[abi.AddressKey, abi.Address]:
        """Address prefixes to identity and guarding policy."""

    @property
    def netns(self) -> Table[abi.NetnsKey, abi.Netns]:
        """Network namespace cookies to workload addresses."""

    @property
    def policies(self) -> Table[abi.PolicyKey, abi.Policy]:
        """Verdicts."""

    @property
    def veths(self) -> Table[abi.VethKey, abi.Veth]:
        """Addresses that may be a source on an interface."""

    @property
    def names(self) -> Table[abi.NameKey, abi.Name]:
        """What numbers stand for; the agent's memory across restarts."""

    @property
    def handshakes(self) -> Table[abi.Tuple, abi.Original]:
        """Redirected connections that the proxy has not accepted yet; the kernel's, to be read only."""

    def config(self) -> abi.Config:
        """The node's configuration; all zero before the first `set_config`."""

    def set_config(self, config: abi.Config) -> None:
        """Replace the node's configuration."""

    def active(self, backend: int) -> int:
        """Open balanced connections of a backend index."""

    def counters(self) -> dict[abi.CounterIndex, int]:
        """Every counter, summed over CPUs."""


class Packed(Protocol):
    """A value of `abi`, or anything else that knows its bytes."""

    def pack(self) -> bytes:
        """The bytes of the C struct."""


class HashTable(Generic[PK, PV]):
    """`Table` over a hash or LPM map. An LPM `get` answers like the kernel: the longest prefix that fits."""

    def __init__(self, kernel_map: Map, key_from: Callable[[bytes], PK], value_from: Callable[[bytes], PV]) -> None:
        self._map, self._key_from, self._value_from = kernel_map, key_from, value_from

    def get(self, key: PK) -> PV | None:
        """The value at `key`, or None."""
        value = self._map.lookup(key.pack())
        return None if value is None else self._value_from(value)

    def put(self, key: PK, value: PV) -> None:
        """Insert or replace; MapFull when there is no room."""
        self._map.update(key.pack(), value.pack())

    def put_many(self, entries: Iterable[tuple[PK, PV]]) -> None:
        """All in one call."""
        packed = [(key.pack(), value.pack()) for key, value in entries]
        self._map.update_batch(b"".join(key for key, _ in packed), b"".join(value for _, value in packed))

    def delete(self, key: PK) -> bool:
        """Remove; False if it was not there."""
        return self._map.delete(key.pack())

    def items(self) -> list[tuple[PK, PV]]:
        """All entries at about one time."""
        return list(self.scan())

    def scan(self) -> Iterator[tuple[PK, PV]]:
        """`items` one after the other, read from the kernel in batches."""
        return ((self._key_from(key), self._value_from(value)) for key, value in self._map.entries())


class ArrayTable(Generic[PV]):
    """`Table` over an mmapable array: every index exists, one that is zero counts as absent.

    Reads are reads of memory: a status page over the largest array takes milliseconds.
    """

    def __init__(self, kernel_map: Map, value_from: Callable[[bytes], PV]) -> None:
        self._map, self._value_from = kernel_map, value_from
        self._memory = kernel_map.map_memory()
        self._zero = bytes(kernel_map.value_size)

    def get(self, key: int) -> PV | None:
        """The element, or None if it is zero or out of range."""
        if not 0 <= key < self._map.max_entries:
            return None
        start = key * self._map.stride
        value = self._memory[start : start + self._map.value_size]
        return None if value == self._zero else self._value_from(value)

    def put(self, key: int, value: PV) -> None:
        """Replace; MapFull when out of range."""
        self._map.update(_u32(key), value.pack())

    def put_many(self, entries: Iterable[tuple[int, PV]]) -> None:
        """All in one call."""
        packed = [(_u32(key), value.pack()) for key, value in entries]
        self._map.update_batch(b"".join(key for key, _ in packed), b"".join(value for _, value in packed))

    def delete(self, key: int) -> bool:
        """Zero the element; False if it was zero or is out of range."""
        if self.get(key) is None:
            return False
        self._map.update(_u32(key), self._zero)
        return True

    def items(self) -> list[tuple[int, PV]]:
        """The elements that are not zero."""
        return list(self.scan())

    def scan(self) -> Iterator[tuple[int, PV]]:
        """`items` one after the other."""
        stride = self._map.stride
        empty = bytes(stride * _CHUNK)
        for first in range(0, self._map.max_entries, _CHUNK):
            last = min(first + _CHUNK, self._map.max_entries)
            # Most of a large array is empty: whole chunks are skipped at the speed of memory.
            if self._memory[first * stride : last * stride] == empty[: (last - first) * stride]:
                continue
            values = ((index, self.get(index)) for index in range(first, last))
            yield from ((index, value) for index, value in values if value is not None)

    def close(self) -> None:
        """Unmap; again is a no-op."""
        self._memory.close()


class SlotArena:
    """`SlotTable` over the mmapped array: a write is a copy, no system call."""

    def __init__(self, kernel_map: Map) -> None:
        self._memory = kernel_map.map_memory()
        # One u32 in every 8 bytes; the kernel pads array elements.
        self._words = memoryview(self._memory).cast("I")
        self._count = kernel_map.max_entries

    def read(self, offset: int, count: int) -> tuple[int, ...]:
        """Backend indexes of `[offset, offset + count)`."""
        self._check(offset, count)
        return tuple(self._words[2 * offset : 2 * (offset + count) : 2])

    def write(self, offset: int, backends: Sequence[int]) -> None:
        """Store backend indexes from `offset` on."""
        self._check(offset, len(backends))
        # Word by word, each a single aligned store: a reader sees old or new indexes, never half of one.
        for index, backend in enumerate(backends, start=offset):
            self._words[2 * index] = backend

    def close(self) -> None:
        """Unmap; again is a no-op."""
        self._words.release()
        self._memory.close()

    def _check(self, offset: int, count: int) -> None:
        if offset < 0 or offset + count > self._count:
            raise MapFull("write slots", errno.E2BIG, f"slots {offset}..{offset + count} of {self._count}")


class KernelTables:
    """`Kernel` over the maps of a loaded datapath."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self.frontends = HashTable(maps["xb_frontends"], abi.FrontendKey.unpack, abi.Frontend.unpack)
        self.backends = ArrayTable(maps["xb_backends"], abi.Backend.unpack)
        self.slots = SlotArena(maps["xb_slots"])
        self.addresses = HashTable(maps["xb_addresses"], abi.AddressKey.unpack, abi.Address.unpack)
        self.netns = HashTable(maps["xb_netns"], abi.NetnsKey.unpack, abi.Netns.unpack)
        self.policies = HashTable(maps["xb_policies"], abi.PolicyKey.unpack, abi.Policy.unpack)
        self.veths = HashTable(maps["xb_veths"], abi.VethKey.unpack, abi.Veth.unpack)
        self.names = HashTable(maps["xb_names"], abi.NameKey.unpack, abi.Name.unpack)
        self.handshakes = HashTable(maps["xb_handshakes"], abi.Tuple.unpack, abi.Original.unpack)
        self._config, self._counters = maps["xb_config"], maps["xb_counters"]
        self._active = maps["xb_active"].map_memory()
        self._backend_count = maps["xb_active"].max_entries
        self._cpus = libbpf.call("libbpf_num_possible_cpus")

    def config(self) -> abi.Config:
        """The node's configuration; all zero before the first `set_config`."""
        return abi.Config.unpack(self._config.lookup(_u32(0)) or bytes(abi.Config.SIZE))

    def set_config(self, config: abi.Config) -> None:
        """Replace the node's configuration; readers may see a mix of old and new fields for an instant."""
        self._config.update(_u32(0), config.pack())

    def active(self, backend: int) -> int:
        """Open balanced connections of a backend index; 0 if out of range."""
        if not 0 <= backend < self._backend_count:
            return 0
        (count,) = struct.unpack_from("=q", self._active, 8 * backend)
        return int(count)

    def counters(self) -> dict[abi.CounterIndex, int]:
        """Every counter, summed over CPUs. Cost: one system call each."""
        return {index: self._sum(index) for index in abi.CounterIndex if index != abi.CounterIndex.MAX}

    def close(self) -> None:
        """Give the mapped memory back; again is a no-op."""
        self.slots.close()
        self.backends.close()
        self._active.close()

    def _sum(self, index: int) -> int:
        values = self._counters.lookup(_u32(index), size=8 * self._cpus) or b""
        return sum(value for (value,) in struct.iter_unpack("=Q", values))


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
