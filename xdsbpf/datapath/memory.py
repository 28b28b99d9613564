"""The kernel maps as dictionaries: `Kernel` for unit tests and dry runs, no kernel needed.

Same answers and the same MapFull as `tables.KernelTables` (one contract test runs against both).
`journal` records the writes in order, so that a test can check make-before-break.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from xdsbpf.datapath import abi
from xdsbpf.datapath.abi import Limit
from xdsbpf.errors import MapFull

K = TypeVar("K")
V = TypeVar("V")
Journal = list[tuple[str, str, object]]
_TOTAL_BITS = 128


class MemoryTable(Generic[K, V]):
    """`Table` over a dictionary of at most `capacity` entries."""

    def __init__(self, name: str, capacity: int, journal: Journal) -> None:
        self._name, self._capacity, self._journal = name, capacity, journal
        self._entries: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """The value at `key`, or None."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Insert or replace; MapFull when there is no room."""
        if not self._fits(key):
            detail = f"xb_{self._name} holds {self._capacity} entries"
            raise MapFull("bpf_map_update_elem", errno.E2BIG, detail, hint="raise its capacity")
        self._entries[key] = value
        self._journal.append((self._name, "put", key))

    def put_many(self, entries: Iterable[tuple[K, V]]) -> None:
        """`put` in order."""
        for key, value in entries:
            self.put(key, value)

    def delete(self, key: K) -> bool:
        """Remove; False if it was not there."""
        found = self._entries.pop(key, None) is not None
        if found:
            self._journal.append((self._name, "delete", key))
        return found

    def items(self) -> list[tuple[K, V]]:
        """All entries."""
        return list(self._entries.items())

    def scan(self) -> Iterator[tuple[K, V]]:
        """`items` one after the other."""
        return iter(self.items())

    def _fits(self, key: K) -> bool:
        return key in self._entries or len(self._entries) < self._capacity


class MemoryArray(MemoryTable[int, V]):
    """`Table` over an array: its keys are the indexes below `capacity`."""

    def _fits(self, key: int) -> bool:
        return 0 <= key < self._capacity


class MemoryPrefixes(MemoryTable[abi.AddressKey, V]):
    """`Table` over an LPM trie: `get` answers with the longest prefix that covers the key."""

    def get(self, key: abi.AddressKey) -> V | None:
        """The value of the longest stored prefix that is no longer than the key's and contains it."""
        covering = [
            (stored.prefix_length, value)
            for stored, value in self._entries.items()
            if stored.prefix_length <= key.prefix_length and _covers(stored, key)
        ]
        return max(covering, key=lambda entry: entry[0])[1] if covering else None


class MemorySlots:
    """`SlotTable` over a list; unwritten slots are 0."""

    def __init__(self, capacity: int, journal: Journal) -> None:
        self._capacity, self._journal = capacity, journal
        self._words: dict[int, int] = {}

    def read(self, offset: int, count: int) -> tuple[int, ...]:
        """Backend indexes of `[offset, offset + count)`."""
        self._check(offset, count)
        return tuple(self._words.get(index, 0) for index in range(offset, offset + count))

    def write(self, offset: int, backends: Sequence[int]) -> None:
        """Store backend indexes from `offset` on."""
        self._check(offset, len(backends))
        self._words.update(enumerate(backends, start=offset))
        self._journal.append(("slots", "write", (offset, tuple(backends))))

    def _check(self, offset: int, count: int) -> None:
        if offset < 0 or offset + count > self._capacity:
            raise MapFull("write slots", errno.E2BIG, f"slots {offset}..{offset + count} of {self._capacity}")


class MemoryTables:
    """`Kernel` without a kernel. `active_counts` and `counter_values` are what a test sets them to."""

    def __init__(
        self,
        *,
        frontends: int = Limit.MAX_FRONTENDS,
        backends: int = Limit.MAX_BACKENDS,
        slots: int = Limit.MAX_SLOTS,
        addresses: int = Limit.MAX_ADDRESSES,
        netns: int = Limit.MAX_NETNS,
        policies: int = Limit.MAX_POLICY_ENTRIES,
        veths: int = Limit.MAX_VETHS,
        names: int = Limit.MAX_NAMES,
        handshakes: int = Limit.MAX_HANDSHAKES,
    ) -> None:
        self.journal: Journal = []
        journal = self.journal
        self.frontends: MemoryTable[abi.FrontendKey, abi.Frontend] = MemoryTable("frontends", frontends, journal)
        self.backends: MemoryArray[abi.Backend] = MemoryArray("backends", backends, journal)
        self.slots = MemorySlots(slots, journal)
        self.addresses: MemoryPrefixes[abi.Address] = MemoryPrefixes("addresses", addresses, journal)
        self.netns: MemoryTable[abi.NetnsKey, abi.Netns] = MemoryTable("netns", netns, journal)
        self.policies: MemoryTable[abi.PolicyKey, abi.Policy] = MemoryTable("policies", policies, journal)
        self.veths: MemoryTable[abi.VethKey, abi.Veth] = MemoryTable("veths", veths, journal)
        self.names: MemoryTable[abi.NameKey, abi.Name] = MemoryTable("names", names, journal)
        self.handshakes: MemoryTable[abi.Tuple, abi.Original] = MemoryTable("handshakes", handshakes, journal)
        self.active_counts: dict[int, int] = {}
        self.counter_values: dict[abi.CounterIndex, int] = {}
        self._config = abi.Config.unpack(bytes(abi.Config.SIZE))

    def config(self) -> abi.Config:
        """The node's configuration; all zero before the first `set_config`."""
        return self._config

    def set_config(self, config: abi.Config) -> None:
        """Replace the node's configuration."""
        self._config = config
        self.journal.append(("config", "put", 0))

    def active(self, backend: int) -> int:
        """What the test put into `active_counts`, else 0."""
        return self.active_counts.get(backend, 0)

    def counters(self) -> dict[abi.CounterIndex, int]:
        """Every counter; what the test put into `counter_values`, else 0."""
        return {i: self.counter_values.get(i, 0) for i in abi.CounterIndex if i != abi.CounterIndex.MAX}


def _covers(prefix: abi.AddressKey, key: abi.AddressKey) -> bool:
    shift = _TOTAL_BITS - prefix.prefix_length
    return int.from_bytes(prefix.address, "big") >> shift == int.from_bytes(key.address, "big") >> shift
