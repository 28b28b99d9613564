"""The generated ABI: bytes stand where the layout says, in the byte order it says."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from xdsbpf.datapath import abi
from xdsbpf.datapath.address import address16, address_text, host_key, prefix_key
from xdsbpf.datapath.layout import Btf, check_struct, read_object_btf
from xdsbpf.errors import DatapathError, LayoutMismatch

FORMATS = {"u8": "=B", "u16": "=H", "u32": "=I", "u64": "=Q", "be16": ">H", "be32": ">I"}


def python_name(struct_name: str) -> str:
    return "".join(part.capitalize() for part in struct_name.removeprefix("xb_").split("_"))


def sample(kind: str, seed: int) -> tuple[object, bytes]:
    """A value for a member of type `kind`, and the bytes that it must become."""
    base, _, count = kind.partition("[")
    if base.startswith("struct "):
        return build(base.removeprefix("struct "), seed)
    if base == "char":
        return f"é{seed}", f"é{seed}".encode().ljust(int(count[:-1]), b"\0")
    if count:
        data = bytes((seed + index) % 256 for index in range(struct.calcsize(FORMATS[base]) * int(count[:-1])))
        return data, data
    number = seed + 1 if base == "u8" else 0x0102 + seed
    return number, struct.pack(FORMATS[base], number)


def build(struct_name: str, seed: int = 0) -> tuple[object, bytes]:
    """A value of the struct with every field different, and its bytes put together from the layout."""
    size, members = abi.LAYOUT[struct_name]
    expected, values = bytearray(size), {}
    for index, (name, offset, kind) in enumerate(members):
        if name != "pad":
            values[name], data = sample(kind, seed + 7 * index)
            expected[offset : offset + len(data)] = data
    return getattr(abi, python_name(struct_name))(**values), bytes(expected)


@pytest.mark.parametrize("struct_name", abi.LAYOUT)
def test_a_value_packs_to_the_bytes_of_the_layout_and_back(struct_name: str) -> None:
    value, expected = build(struct_name)
    packed = value.pack()
    assert packed == expected
    assert len(expected) == type(value).SIZE
    assert type(value).unpack(packed) == value


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"xb_frontend_key.address has 4 bytes, not 16"):
        abi.FrontendKey(b"\x0a\0\0\1", 80, 6).pack()
    with pytest.raises(OverflowError):
        abi.FrontendKey(bytes(16), 65536, 6).pack()
    with pytest.raises(ValueError, match="fewer than 256 bytes"):
        abi.Name("x" * 256).pack()
    with pytest.raises(ValueError, match="zero byte"):
        abi.Name("a\0b").pack()
    with pytest.raises(struct.error):
        abi.FrontendKey.unpack(bytes(19))


def test_unknown_is_not_any_and_allocated_identities_are_neither() -> None:
    assert abi.Identity.UNKNOWN == 0
    assert abi.Identity.ANY == 2**32 - 1
    assert abi.Identity.UNKNOWN < abi.Identity.FIRST < abi.Identity.ANY


def test_addresses_have_one_shape() -> None:
    assert address16(b"\x0a\0\0\1") == bytes(10) + b"\xff\xff\x0a\0\0\1"
    assert address16(b"\xfd" + bytes(15)) == b"\xfd" + bytes(15)
    assert address_text(address16(b"\x0a\0\0\1")) == "10.0.0.1"
    assert address_text(b"\xfd" + bytes(14) + b"\1") == "fd00::1"
    assert host_key(b"\x0a\0\0\1").prefix_length == 128
    assert prefix_key(b"\x0a\0\0\0", 8).prefix_length == 104
    assert prefix_key(b"\xfd" + bytes(15), 8).prefix_length == 8
    for wrong in (lambda: address16(b"\1\2\3"), lambda: prefix_key(b"\x0a\0\0\1", 8)):
        with pytest.raises(ValueError, match=r"4 or 16|host bits"):
            wrong()


def test_the_first_member_that_differs_is_named() -> None:
    expected = abi.LAYOUT["xb_backend"]
    check_struct("xb_backend", expected, expected, "here")
    size, members = expected
    moved = (size, (members[0], ("port", 18, "be16"), *members[2:]))
    with pytest.raises(LayoutMismatch, match=r"here: struct xb_backend member port: be16 port at byte 18"):
        check_struct("xb_backend", moved, expected, "here")
    with pytest.raises(LayoutMismatch, match=r"member service: nothing"):
        check_struct("xb_backend", (size, members[:-1]), expected, "here")
    with pytest.raises(LayoutMismatch, match=r"member more: not expected"):
        check_struct("xb_backend", (size, (*members, ("more", 24, "u32"))), expected, "here")
    with pytest.raises(LayoutMismatch, match=r"has 28 bytes, expected 24"):
        check_struct("xb_backend", (28, members), expected, "here")


def test_a_file_without_type_information_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "x.o"
    text.write_text("not an object")
    with pytest.raises(LayoutMismatch, match="no 64-bit ELF"):
        read_object_btf(text)
    with pytest.raises(DatapathError, match="No such file"):
        read_object_btf(tmp_path / "missing.o")
    with pytest.raises(LayoutMismatch, match="no BTF magic"):
        Btf(bytes(64))
