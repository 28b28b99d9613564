"""Does the compiled object (or a pinned map) lay its structs out as `abi` does?

Reads BTF, the type information inside the ELF file and in the kernel, and compares names, offsets,
types and enum values with `abi.LAYOUT` and `abi.ENUMS`; LayoutMismatch names struct and field.
Sizes alone would not notice two fields that changed places. Called by the loader before it loads.
"""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from xdsbpf.datapath import abi
from xdsbpf.errors import DatapathError, LayoutMismatch

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _TYPEDEF = 1, 2, 3, 4, 5, 6, 8
_FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = 13, 14, 15, 17, 19
# Bytes after a type's common 12, per kind: (fixed, per member) of linux/btf.h.
_TAILS = {
    _INT: (4, 0),
    _ARRAY: (12, 0),
    _STRUCT: (0, 12),
    _UNION: (0, 12),
    _ENUM: (0, 8),
    _FUNC_PROTO: (0, 8),
    _VAR: (4, 0),
    _DATASEC: (0, 12),
    _DECL_TAG: (4, 0),
    _ENUM64: (0, 12),
}
_SCALARS = {
    "__u8": "u8",
    "__u16": "u16",
    "__u32": "u32",
    "__u64": "u64",
    "be16": "be16",
    "be32": "be32",
    "char": "char",
}
StructLayout = tuple[int, tuple[tuple[str, int, str], ...]]


class BtfType(msgspec.Struct, frozen=True):
    """One type: `size` is its size or the id of the type it refers to; `tail` is what follows it."""

    kind: int
    name: str
    size: int
    members: int
    tail: bytes


class Btf:
    """The types of one BTF section, by id and by name."""

    def __init__(self, data: bytes) -> None:
        magic, _version, _flags, header, type_at, type_size, text_at, text_size = struct.unpack_from("=HBBIIIII", data)
        if magic != 0xEB9F:
            raise LayoutMismatch("read BTF", 0, "no BTF magic in this machine's byte order")
        text = data[header + text_at : header + text_at + text_size]
        types = data[header + type_at : header + type_at + type_size]
        self.types = [BtfType(0, "void", 0, 0, b"")]
        position = 0
        while position < len(types):
            name_at, description, size = struct.unpack_from("=III", types, position)
            kind, members = description >> 24 & 0x1F, description & 0xFFFF
            fixed, each = _TAILS.get(kind, (0, 0))
            end = position + 12 + fixed + each * members
            name = text[name_at : text.index(b"\0", name_at)].decode()
            self.types.append(BtfType(kind, name, size, members, types[position + 12 : end]))
            self._text = text
            position = end
        self._by_name = {(entry.kind, entry.name): entry for entry in self.types}

    def struct(self, name: str) -> StructLayout | None:
        """(size, ((member, byte offset, type), ...)) of a struct, as `abi.LAYOUT` has it."""
        entry = self._by_name.get((_STRUCT, name))
        return None if entry is None else self._layout(entry)

    def enum(self, name: str) -> tuple[tuple[str, int], ...] | None:
        """((enumerator, value), ...), as `abi.ENUMS` has it."""
        entry = self._by_name.get((_ENUM, name))
        if entry is None:
            return None
        pairs = struct.iter_unpack("=II", entry.tail)
        return tuple((self._string(name_at), value) for name_at, value in pairs)

    def struct_of(self, type_id: int) -> tuple[str, StructLayout] | None:
        """Name and layout of a type id; None if it is no struct."""
        entry = self.types[type_id] if type_id < len(self.types) else self.types[0]
        return (entry.name, self._layout(entry)) if entry.kind == _STRUCT else None

    def _layout(self, entry: BtfType) -> StructLayout:
        members = struct.iter_unpack("=III", entry.tail)
        return entry.size, tuple((self._string(at), bits // 8, self._token(kind)) for at, kind, bits in members)

    def _token(self, type_id: int) -> str:
        entry = self.types[type_id]
        if entry.kind == _ARRAY:
            element, _index, count = struct.unpack("=III", entry.tail)
            return f"{self._token(element)}[{count}]"
        if entry.kind == _STRUCT:
            return f"struct {entry.name}"
        if entry.name in _SCALARS:
            return _SCALARS[entry.name]
        return f"kind {entry.kind} {entry.name}"

    def _string(self, position: int) -> str:
        return self._text[position : self._text.index(b"\0", position)].decode()


def read_object_btf(object_file: Path) -> Btf:
    """The BTF of a BPF ELF file (64-bit; System V ABI, "Sections"); DatapathError if there is none."""
    try:
        data = object_file.read_bytes()
    except OSError as error:
        raise DatapathError(
            "open", error.errno or 0, str(object_file), hint="build the BPF programs: make -C bpf"
        ) from error
    if data[:5] != b"\x7fELF\x02":
        raise LayoutMismatch("read BTF", 0, f"{object_file} is no 64-bit ELF file")
    (table,) = struct.unpack_from("=Q", data, 0x28)
    entry_size, count, names_index = struct.unpack_from("=HHH", data, 0x3A)
    # name, type, flags, address, offset, size
    sections = [struct.unpack_from("=IIQQQQ", data, table + index * entry_size) for index in range(count)]
    names_at = sections[names_index][4]
    for name, _kind, _flags, _address, offset, size in sections:
        start = names_at + name
        if data[start : data.index(b"\0", start)] == b".BTF":
            return Btf(data[offset : offset + size])
    raise LayoutMismatch("read BTF", 0, f"{object_file} has no .BTF section", hint="compile it with -g")


def check_layout(btf: Btf, source: str) -> None:
    """LayoutMismatch unless every struct and enum of `abi` is in `btf` exactly so; `source` names it."""
    for name, expected in abi.LAYOUT.items():
        found = btf.struct(name)
        if found is None:
            raise _mismatch(source, f"struct {name} is missing")
        check_struct(name, found, expected, source)
    for name, values in abi.ENUMS.items():
        actual = btf.enum(name)
        if actual != values:
            differing = sorted(set(actual or ()) ^ set(values))
            raise _mismatch(source, f"enum {name} differs at {differing[0][0] if differing else 'order'}")


def check_struct(name: str, found: StructLayout, expected: StructLayout, source: str) -> None:
    """LayoutMismatch that names the first member of struct `name` that is not where `abi` has it."""
    for index, member in enumerate(expected[1]):
        actual = found[1][index] if index < len(found[1]) else None
        if actual != member:
            raise _mismatch(source, f"struct {name} member {member[0]}: {_place(actual)}, expected {_place(member)}")
    if len(found[1]) > len(expected[1]):
        raise _mismatch(source, f"struct {name} member {found[1][len(expected[1])][0]}: not expected")
    if found[0] != expected[0]:
        raise _mismatch(source, f"struct {name} has {found[0]} bytes, expected {expected[0]}")


def _place(member: tuple[str, int, str] | None) -> str:
    return "nothing" if member is None else f"{member[2]} {member[0]} at byte {member[1]}"


def _mismatch(source: str, what: str) -> LayoutMismatch:
    hint = "rebuild both sides: make -C bpf && make -C bpf abi"
    return LayoutMismatch("layout", 0, f"{source}: {what}", hint=hint)
