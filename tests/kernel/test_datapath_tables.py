"""One contract for the tables in memory and in the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from xdsbpf.datapath import abi
from xdsbpf.datapath.address import address16, host_key, prefix_key
from xdsbpf.datapath.attach import detach_all
from xdsbpf.datapath.loader import open_datapath
from xdsbpf.datapath.memory import MemoryTables
from xdsbpf.datapath.tables import Kernel
from xdsbpf.errors import MapFull

ROOT = Path("/sys/fs/bpf/xbk-tables")
SIZES = {"frontends": 4, "backends": 8, "slots": 16, "addresses": 4}


@pytest.fixture(params=["memory", pytest.param("kernel", marks=pytest.mark.root)])
def tables(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    if request.param == "memory":
        yield MemoryTables(**SIZES)
        return
    object_file = request.getfixturevalue("object_file")
    detach_all(ROOT)
    capacities = {f"xb_{name}": size for name, size in SIZES.items()} | {"xb_active": 8}
    with open_datapath(ROOT, object_file=object_file, capacities=capacities) as datapath:
        yield datapath.tables
    detach_all(ROOT)


def key(last: int) -> abi.FrontendKey:
    return abi.FrontendKey(address16(bytes([10, 0, 0, last])), 80, 6)


def frontend(service: int) -> abi.Frontend:
    return abi.Frontend(service, 1, 2, 3, 8080, 15001, abi.FrontendFlag.REDIRECT)


BACKEND = abi.Backend(address16(b"\x0a\0\0\1"), 8080, abi.BackendFlag.READY, 1)


def test_what_was_put_is_got_listed_and_deleted_once(tables: Kernel) -> None:
    assert tables.frontends.get(key(1)) is None
    tables.frontends.put(key(1), frontend(1))
    tables.frontends.put(key(2), frontend(2))
    tables.frontends.put(key(1), frontend(3))
    assert tables.frontends.get(key(1)) == frontend(3)
    assert sorted(tables.frontends.items()) == [(key(1), frontend(3)), (key(2), frontend(2))]
    assert tables.frontends.delete(key(1))
    assert not tables.frontends.delete(key(1))
    assert tables.frontends.items() == [(key(2), frontend(2))]


def test_many_entries_go_in_at_once(tables: Kernel) -> None:
    tables.frontends.put_many((key(n), frontend(n)) for n in range(4))
    tables.frontends.put_many([])
    assert sorted(tables.frontends.items()) == [(key(n), frontend(n)) for n in range(4)]


def test_a_full_table_says_so_and_still_replaces(tables: Kernel) -> None:
    tables.frontends.put_many((key(n), frontend(n)) for n in range(4))
    with pytest.raises(MapFull, match="xb_frontends holds 4 entries"):
        tables.frontends.put(key(9), frontend(9))
    with pytest.raises(MapFull):
        tables.frontends.put_many([(key(9), frontend(9))])
    tables.frontends.put(key(3), frontend(7))
    assert tables.frontends.get(key(3)) == frontend(7)


def test_an_array_has_indexes_and_zero_counts_as_absent(tables: Kernel) -> None:
    assert tables.backends.get(3) is None
    tables.backends.put_many([(3, BACKEND), (7, BACKEND)])
    assert tables.backends.items() == [(3, BACKEND), (7, BACKEND)]
    assert tables.backends.delete(3)
    assert not tables.backends.delete(3)
    assert tables.backends.get(3) is None
    assert tables.backends.get(8) is None
    with pytest.raises(MapFull):
        tables.backends.put(8, BACKEND)


def test_slots_are_read_back_and_end_where_the_arena_ends(tables: Kernel) -> None:
    tables.slots.write(3, [5, 6, 7])
    assert tables.slots.read(2, 5) == (0, 5, 6, 7, 0)
    tables.slots.write(14, [1, 2])
    for write in (lambda: tables.slots.write(15, [1, 2]), lambda: tables.slots.write(-1, [1])):
        with pytest.raises(MapFull):
            write()
    with pytest.raises(MapFull):
        tables.slots.read(16, 1)
    assert tables.slots.read(14, 2) == (1, 2)


def test_an_address_answers_with_its_longest_prefix(tables: Kernel) -> None:
    tables.addresses.put(prefix_key(b"\x0a\0\0\0", 8), abi.Address(1, 0))
    tables.addresses.put(prefix_key(b"\x0a\1\0\0", 16), abi.Address(2, 0))
    tables.addresses.put(host_key(b"\x0a\1\0\5"), abi.Address(3, 9))
    found = {
        last: tables.addresses.get(host_key(last))
        for last in (b"\x0a\1\0\5", b"\x0a\1\0\6", b"\x0a\2\0\0", b"\x0b\0\0\0")
    }
    assert [entry and entry.identity for entry in found.values()] == [3, 2, 1, None]
    assert tables.addresses.delete(prefix_key(b"\x0a\1\0\0", 16))
    assert not tables.addresses.delete(prefix_key(b"\x0a\1\0\0", 16))
    assert tables.addresses.get(host_key(b"\x0a\1\0\6")) == abi.Address(1, 0)
    tables.addresses.put_many(
        [(host_key(b"\x0a\1\0\7"), abi.Address(4, 0)), (host_key(b"\x0a\1\0\x08"), abi.Address(5, 0))]
    )
    with pytest.raises(MapFull):
        tables.addresses.put(host_key(b"\x0a\1\0\x09"), abi.Address(6, 0))
    assert len(tables.addresses.items()) == 4


def test_configuration_is_zero_until_it_is_set(tables: Kernel) -> None:
    assert tables.config() == abi.Config(0, 0, bytes(16), 0, 0)
    config = abi.Config(1 << 40, 2, address16(b"\x0a\0\0\1"), abi.AbiVersion.VERSION, 7)
    tables.set_config(config)
    assert tables.config() == config


def test_counters_and_active_counts_start_at_zero(tables: Kernel) -> None:
    counters = tables.counters()
    assert len(counters) == abi.CounterIndex.MAX
    assert set(counters.values()) == {0}
    assert tables.active(1) == 0
    assert tables.active(99) == 0


def test_every_other_table_holds_its_struct(tables: Kernel) -> None:
    address = address16(b"\x0a\0\0\1")
    for table, its_key, value in (
        (tables.netns, abi.NetnsKey(1 << 50), abi.Netns(address)),
        (tables.policies, abi.PolicyKey(1, abi.Identity.ANY, 80, 6), abi.Policy(5, abi.Verdict.DENY)),
        (tables.veths, abi.VethKey(address, 12), abi.Veth(1)),
        (
            tables.names,
            abi.NameKey(abi.NameSpace.RULE, 5),
            abi.Name("AuthorizationPolicy/défaut/x spec.rules[0]"),
        ),
        (tables.handshakes, abi.Tuple(address, address, 1, 2), abi.Original(address, 80, 8080, address, 1)),
    ):
        table.put(its_key, value)
        assert table.get(its_key) == value
        assert table.items() == [(its_key, value)]


@pytest.mark.root
def test_tables_larger_than_one_batch_are_read_whole(object_file: Path) -> None:
    detach_all(ROOT)
    addresses = [host_key((0x0A000000 + number).to_bytes(4, "big")) for number in range(10_000)]
    with open_datapath(ROOT, object_file=object_file) as datapath:
        tables = datapath.tables
        tables.addresses.put_many((key, abi.Address(number, 0)) for number, key in enumerate(addresses))
        tables.names.put_many((abi.NameKey(1, number), abi.Name(f"n{number}")) for number in range(10_000))
        tables.backends.put_many((number, BACKEND) for number in range(0, abi.Limit.MAX_BACKENDS, 999))
        assert {key: value.identity for key, value in tables.addresses.items()} == {
            key: number for number, key in enumerate(addresses)
        }
        assert {key.number: name.text for key, name in tables.names.items()} == {n: f"n{n}" for n in range(10_000)}
        assert [index for index, _ in tables.backends.items()] == list(range(0, abi.Limit.MAX_BACKENDS, 999))
    detach_all(ROOT)
