"""Owned kernel objects: one map, program or link per value, one descriptor each.

Raw bytes in and out; `tables` gives them types. `close` is idempotent and never detaches what is
pinned. Made by loader and attach.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from xdsbpf.datapath import libbpf
from xdsbpf.errors import DatapathError, InvariantError, MapFull

_BATCH = 4096
# What a map without room answers: hashes and arrays E2BIG, tries ENOSPC.
_FULL = (errno.E2BIG, errno.ENOSPC)


class Descriptor:
    """Owner of one file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @property
    def fd(self) -> int:
        """The descriptor; InvariantError after `close`."""
        if self._descriptor is None:
            raise InvariantError(f"{type(self).__name__} used after close")
        return self._descriptor

    def close(self) -> None:
        """Give the descriptor back; again is a no-op."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Map(Descriptor):
    """One BPF map; keys and values are the bytes of its C structs."""

    def __init__(self, name: str, descriptor: int) -> None:
        super().__init__(descriptor)
        self.name = name
        described = libbpf.MapInfo()
        libbpf.info(descriptor, described)
        self.id: int = described.id
        self.type: int = described.type
        self.key_size: int = described.key_size
        self.value_size: int = described.value_size
        self.max_entries: int = described.max_entries
        self.map_flags: int = described.map_flags
        self.btf_id: int = described.btf_id
        self.btf_key_type_id: int = described.btf_key_type_id
        self.btf_value_type_id: int = described.btf_value_type_id

    @classmethod
    def from_pin(cls, path: Path) -> Map:
        """Open a pinned map under its own name."""
        return cls(path.name, libbpf.call("bpf_obj_get", os.fsencode(path), detail=str(path)))

    def lookup(self, key: bytes, size: int | None = None) -> bytes | None:
        """The value at `key`; `size` bytes for per-CPU maps, which answer with one value per CPU."""
        buffer = ctypes.create_string_buffer(size or self.value_size)
        try:
            libbpf.call("bpf_map_lookup_elem", self.fd, self._key(key), buffer, detail=self.name)
        except DatapathError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return buffer.raw

    def update(self, key: bytes, value: bytes) -> None:
        """Insert or replace."""
        try:
            libbpf.call("bpf_map_update_elem", self.fd, self._key(key), self._value(value), 0, detail=self.name)
        except DatapathError as error:
            raise self._full(error) from error

    def update_batch(self, keys: bytes, values: bytes) -> None:
        """`update` of joined keys and values, in order, in one call."""
        count = ctypes.c_uint32(len(keys) // self.key_size)
        if len(keys) != count.value * self.key_size or len(values) != count.value * self.value_size:
            raise InvariantError(f"{self.name}: keys and values of a batch do not match")
        if not count.value:
            return
        try:
            libbpf.call("bpf_map_update_batch", self.fd, keys, values, ctypes.byref(count), None, detail=self.name)
        except DatapathError as error:
            raise self._full(error) from error

    def delete(self, key: bytes) -> bool:
        """Remove; False if it was not there."""
        try:
            libbpf.call("bpf_map_delete_elem", self.fd, self._key(key), detail=self.name)
        except DatapathError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Every (key, value). What changes meanwhile may be missed or seen twice."""
        keys = ctypes.create_string_buffer(self.key_size * _BATCH)
        values = ctypes.create_string_buffer(self.value_size * _BATCH)
        token = ctypes.create_string_buffer(max(self.key_size, 4))
        started, more = False, True
        while more:
            count = ctypes.c_uint32(_BATCH)
            arguments = (token if started else None, token, keys, values, ctypes.byref(count), None)
            try:
                libbpf.call("bpf_map_lookup_batch", self.fd, *arguments, detail=self.name)
            except DatapathError as error:
                if error.errno != errno.ENOENT:  # ENOENT: this was the last batch
                    raise
                more = False
            started = True
            all_keys, all_values = keys.raw, values.raw
            for index in range(count.value):
                key_at, value_at = index * self.key_size, index * self.value_size
                yield (
                    all_keys[key_at : key_at + self.key_size],
                    all_values[value_at : value_at + self.value_size],
                )

    @property
    def stride(self) -> int:
        """Distance of two elements in `map_memory`; the kernel pads them to 8 bytes."""
        return -(-self.value_size // 8) * 8

    def map_memory(self) -> mmap.mmap:
        """The elements of an mmapable array as shared memory."""
        size = self.stride * self.max_entries
        return mmap.mmap(self.fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.key_size:
            raise InvariantError(f"{self.name}: key of {len(key)} bytes, not {self.key_size}")
        return key

    def _value(self, value: bytes) -> bytes:
        if len(value) != self.value_size:
            raise InvariantError(f"{self.name}: value of {len(value)} bytes, not {self.value_size}")
        return value

    def _full(self, error: DatapathError) -> DatapathError:
        if error.errno not in _FULL:
            return error
        return MapFull(
            error.call,
            error.errno,
            f"{self.name} holds {self.max_entries} entries",
            hint="raise its capacity",
        )


class Program(Descriptor):
    """One loaded program; `instructions` after the verifier's rewrites, `verified` as it walked them."""

    def __init__(self, name: str, descriptor: int) -> None:
        super().__init__(descriptor)
        described = libbpf.ProgramInfo()
        libbpf.info(descriptor, described)
        self.name = name
        self.id: int = described.id
        self.instructions: int = described.xlated_prog_len // 8
        self.verified: int = described.verified_insns


class Link(Descriptor):
    """One attachment of a program to a hook. It lives while it is pinned or open."""

    @classmethod
    def create(cls, program: Program, target: int, attach_type: int) -> Link:
        """Attach to a cgroup descriptor or, in the calling thread's network namespace, an ifindex."""
        return cls(libbpf.call("bpf_link_create", program.fd, target, attach_type, None, detail=program.name))

    @classmethod
    def from_pin(cls, path: Path) -> Link:
        """Open a pinned link."""
        return cls(libbpf.call("bpf_obj_get", os.fsencode(path), detail=str(path)))

    def info(self) -> libbpf.LinkInfo:
        """Type, program and target of the link."""
        described = libbpf.LinkInfo()
        libbpf.info(self.fd, described)
        return described

    def update(self, program: Program) -> None:
        """Replace the program; packets and calls see the old or the new one, never none."""
        libbpf.call("bpf_link_update", self.fd, program.fd, None, detail=program.name)

    def pin(self, path: Path) -> None:
        """Keep the link after this process."""
        libbpf.call("bpf_obj_pin", self.fd, os.fsencode(path), detail=str(path))

    def detach(self) -> None:
        """Detach now, whoever else holds the link; again is a no-op."""
        try:
            libbpf.call("bpf_link_detach", self.fd)
        except DatapathError as error:
            if error.errno != errno.ENOLINK:
                raise
