"""Loads the programs with libbpf, over the maps of an earlier run where there are any.

Object file and pin root in, a `Datapath` with tables and programs out. Called by the agent and the
lab; attaches nothing (see attach). Pins outlive the process: `close` gives back descriptors only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from xdsbpf.datapath import abi, libbpf, pins
from xdsbpf.datapath.layout import Btf, check_layout, check_struct, read_object_btf
from xdsbpf.datapath.objects import Map, Program
from xdsbpf.datapath.tables import KernelTables
from xdsbpf.errors import DatapathError, FeatureUnsupported, LayoutMismatch, VerifierError

_OBJECT_NAME = "xdsbpf.o"
_LOAD_LOG = re.compile(r"prog '(\w+)': -- BEGIN PROG LOAD LOG --\n(.*?)-- END PROG LOAD LOG --", re.DOTALL)


class Datapath:
    """Programs and maps of one node, loaded or adopted under one pin root."""

    def __init__(self, root: Path, maps: Mapping[str, Map], programs: Mapping[str, Program], adopted: bool) -> None:
        self.root = root
        self.maps = maps
        self.programs = programs
        self.adopted = adopted
        self.tables = KernelTables(maps)

    def close(self) -> None:
        """Give back every descriptor; what is pinned stays in force. Again is a no-op."""
        self.tables.close()
        for owned in (*self.programs.values(), *self.maps.values()):
            owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def default_object() -> Path:
    """The compiled programs: installed beside this package, or built in the source tree."""
    package = Path(__file__).resolve().parent
    installed = package / _OBJECT_NAME
    return installed if installed.exists() else package.parents[1] / "bpf" / "build" / _OBJECT_NAME


def open_datapath(
    root: Path, *, object_file: Path | None = None, capacities: Mapping[str, int] | None = None
) -> Datapath:
    """Load the programs and create or adopt the maps pinned under `root` (a path inside a bpffs).

    `capacities` maps a map's name to its number of entries; an adopted map keeps the size it has.
    Raises LayoutMismatch (object or pinned map against `abi`), AdoptRefused (pins that are not
    root's alone), VerifierError, FeatureUnsupported, DatapathError. Nothing is attached, and a
    failed load leaves earlier pins and links as they were. Cost: about 40 ms.
    """
    path = object_file or default_object()
    check_layout(read_object_btf(path), str(path))
    directory = pins.make_directories(root)
    with _opened(path) as handle:
        maps = dict(_maps(handle))
        pinned = {name for name in maps if (directory / name).exists()}
        unknown = set(capacities or {}) - set(maps)
        if unknown:
            raise DatapathError("capacities", 0, f"no map is named {', '.join(sorted(unknown))}")
        for name, pointer in maps.items():
            if name in pinned:
                size = _check_pinned(directory / name, pointer)
                libbpf.call("bpf_map__set_max_entries", pointer, size)
            elif capacities and name in capacities:
                libbpf.call("bpf_map__set_max_entries", pointer, capacities[name])
            libbpf.call("bpf_map__set_pin_path", pointer, bytes(directory / name))
        _load(handle)
        # Descriptors of our own, so that the object's memory can go.
        owned_maps = {name: Map(name, _duplicate("bpf_map__fd", p)) for name, p in maps.items()}
        programs = {name: Program(name, _duplicate("bpf_program__fd", p)) for name, p in _programs(handle)}
        return Datapath(root, owned_maps, programs, "xb_config" in pinned)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    with libbpf.messages() as said:
        handle: int | None = libbpf.library().bpf_object__open_file(bytes(path), None)
    if not handle:
        raise DatapathError("bpf_object__open_file", ctypes.get_errno(), " ".join(said) or str(path))
    try:
        yield handle
    finally:
        libbpf.library().bpf_object__close(handle)


def _load(handle: int) -> None:
    with libbpf.messages() as said:
        result: int = libbpf.library().bpf_object__load(handle)
    if result >= 0:
        return
    text = "".join(said)
    refused = _LOAD_LOG.search(text)
    if refused:
        raise VerifierError(refused[1], -result, refused[2])
    words = " ".join(text.split())
    if -result in (errno.EPERM, errno.EACCES):
        raise DatapathError(
            "bpf_object__load", -result, words, hint="loading programs needs root (CAP_BPF, CAP_NET_ADMIN)"
        )
    if -result in (errno.EINVAL, errno.ENOTSUP):
        raise FeatureUnsupported("bpf_object__load", -result, words, hint="see what the kernel lacks: xdsbpf check")
    raise DatapathError("bpf_object__load", -result, words)


def _check_pinned(path: Path, pointer: int) -> int:
    """Refuse a pinned map that is not ours or not as `abi` has it; its number of entries."""
    pins.check_owner(path)
    library = libbpf.library()
    with Map.from_pin(path) as pinned:
        for what, found in (
            ("type", pinned.type),
            ("key_size", pinned.key_size),
            ("value_size", pinned.value_size),
            ("map_flags", pinned.map_flags),
        ):
            expected = getattr(library, f"bpf_map__{what}")(pointer)
            if found != expected:
                raise LayoutMismatch("adopt", 0, f"{path}: {what} {found}, expected {expected}")
        if pinned.btf_id:
            btf = Btf(libbpf.raw_btf(pinned.btf_id))
            for type_id in (pinned.btf_key_type_id, pinned.btf_value_type_id):
                described = btf.struct_of(type_id)
                if described is not None and described[0] in abi.LAYOUT:
                    check_struct(described[0], described[1], abi.LAYOUT[described[0]], str(path))
        return pinned.max_entries


def _maps(handle: int) -> Iterator[tuple[str, int]]:
    library = libbpf.library()
    pointer = library.bpf_object__next_map(handle, None)
    while pointer:
        yield library.bpf_map__name(pointer).decode(), pointer
        pointer = library.bpf_object__next_map(handle, pointer)


def _programs(handle: int) -> Iterator[tuple[str, int]]:
    library = libbpf.library()
    pointer = library.bpf_object__next_program(handle, None)
    while pointer:
        yield library.bpf_program__name(pointer).decode(), pointer
        pointer = library.bpf_object__next_program(handle, pointer)


def _duplicate(function: str, pointer: int) -> int:
    return fcntl.fcntl(libbpf.call(function, pointer), fcntl.F_DUPFD_CLOEXEC, 3)
