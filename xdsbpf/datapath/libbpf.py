"""ctypes bindings of libbpf.so.1, exactly the calls that we use, each raising instead of returning.

Callers (loader, objects, attach, features) pass descriptors and bytes and get values or a
`DatapathError` that carries what libbpf printed meanwhile. libbpf 1.x returns negative error numbers
and NULL with errno set; both end here.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from xdsbpf.errors import DatapathError, FeatureUnsupported

_WARN = 0
# A verifier log comes as one message; what does not fit would cut off its end, which says why.
_MESSAGE_BYTES = 4 << 20
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_pointer, _int, _text, _u32, _u64 = (
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint32,
    ctypes.c_uint64,
)
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "libbpf_set_print": (_pointer, (_PRINT,)),
    "libbpf_num_possible_cpus": (_int, ()),
    "libbpf_probe_bpf_prog_type": (_int, (_int, _pointer)),
    "libbpf_probe_bpf_map_type": (_int, (_int, _pointer)),
    "libbpf_probe_bpf_helper": (_int, (_int, _int, _pointer)),
    "bpf_object__open_file": (_pointer, (_text, _pointer)),
    "bpf_object__load": (_int, (_pointer,)),
    "bpf_object__close": (None, (_pointer,)),
    "bpf_object__next_program": (_pointer, (_pointer, _pointer)),
    "bpf_object__next_map": (_pointer, (_pointer, _pointer)),
    "bpf_program__name": (_text, (_pointer,)),
    "bpf_program__fd": (_int, (_pointer,)),
    "bpf_map__name": (_text, (_pointer,)),
    "bpf_map__fd": (_int, (_pointer,)),
    "bpf_map__type": (_int, (_pointer,)),
    "bpf_map__key_size": (_u32, (_pointer,)),
    "bpf_map__value_size": (_u32, (_pointer,)),
    "bpf_map__max_entries": (_u32, (_pointer,)),
    "bpf_map__map_flags": (_u32, (_pointer,)),
    "bpf_map__set_max_entries": (_int, (_pointer, _u32)),
    "bpf_map__set_pin_path": (_int, (_pointer, _text)),
    "bpf_map_lookup_elem": (_int, (_int, _pointer, _pointer)),
    "bpf_map_update_elem": (_int, (_int, _pointer, _pointer, _u64)),
    "bpf_map_delete_elem": (_int, (_int, _pointer)),
    "bpf_map_lookup_batch": (_int, (_int, _pointer, _pointer, _pointer, _pointer, _pointer, _pointer)),
    "bpf_map_update_batch": (_int, (_int, _pointer, _pointer, _pointer, _pointer)),
    "bpf_obj_get": (_int, (_text,)),
    "bpf_obj_pin": (_int, (_int, _text)),
    "bpf_obj_get_info_by_fd": (_int, (_int, _pointer, _pointer)),
    "bpf_btf_get_fd_by_id": (_int, (_u32,)),
    "bpf_prog_load": (_int, (_int, _text, _text, _pointer, ctypes.c_size_t, _pointer)),
    "bpf_prog_test_run_opts": (_int, (_int, _pointer)),
    "bpf_link_create": (_int, (_int, _int, _int, _pointer)),
    "bpf_link_update": (_int, (_int, _int, _pointer)),
    "bpf_link_detach": (_int, (_int,)),
}


class MapInfo(ctypes.Structure):
    """Head of struct bpf_map_info (linux/bpf.h)."""

    _fields_ = (
        *((name, _u32) for name in ("type", "id", "key_size", "value_size", "max_entries", "map_flags")),
        ("name", ctypes.c_char * 16),
        *((name, _u32) for name in ("ifindex", "btf_vmlinux_value_type_id")),
        *((name, _u64) for name in ("netns_dev", "netns_ino")),
        *((name, _u32) for name in ("btf_id", "btf_key_type_id", "btf_value_type_id", "btf_vmlinux_id")),
    )


class BtfInfo(ctypes.Structure):
    """Head of struct bpf_btf_info: the kernel copies the raw BTF to `data`."""

    _fields_ = (("data", _u64), ("size", _u32), ("id", _u32))


class ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info up to verified_insns."""

    _fields_ = (
        ("type", _u32),
        ("id", _u32),
        ("tag", ctypes.c_ubyte * 8),
        ("jited_prog_len", _u32),
        ("xlated_prog_len", _u32),
        *((name, _u64) for name in ("jited_prog_insns", "xlated_prog_insns", "load_time")),
        ("created_by_uid", _u32),
        ("nr_map_ids", _u32),
        ("map_ids", _u64),
        ("name", ctypes.c_char * 16),
        ("ifindex", _u32),
        ("flags", _u32),
        ("netns_dev", _u64),
        ("netns_ino", _u64),
        ("nr_jited_ksyms", _u32),
        ("nr_jited_func_lens", _u32),
        ("jited_ksyms", _u64),
        ("jited_func_lens", _u64),
        ("btf_id", _u32),
        ("func_info_rec_size", _u32),
        ("func_info", _u64),
        ("nr_func_info", _u32),
        ("nr_line_info", _u32),
        ("line_info", _u64),
        ("jited_line_info", _u64),
        *((n, _u32) for n in ("nr_jited_line_info", "line_info_rec_size", "jited_line_info_rec_size", "nr_prog_tags")),
        *((name, _u64) for name in ("prog_tags", "run_time_ns", "run_cnt", "recursion_misses")),
        ("verified_insns", _u32),
        ("attach_btf_obj_id", _u32),
        ("attach_btf_id", _u32),
        ("pad", _u32),
    )


class CgroupTarget(ctypes.Structure):
    """struct bpf_link_info.cgroup."""

    _fields_ = (("cgroup_id", _u64), ("attach_type", _u32))


class InterfaceTarget(ctypes.Structure):
    """struct bpf_link_info.tcx; `ifindex` is 0 once the device is gone."""

    _fields_ = (("ifindex", _u32), ("attach_type", _u32))


class LinkTarget(ctypes.Union):
    """The part of struct bpf_link_info that depends on the link's type."""

    _fields_ = (("cgroup", CgroupTarget), ("interface", InterfaceTarget), ("room", ctypes.c_ubyte * 64))


class LinkInfo(ctypes.Structure):
    """struct bpf_link_info."""

    _fields_ = (("type", _u32), ("id", _u32), ("program_id", _u32), ("pad", _u32), ("target", LinkTarget))


_messages = threading.local()


def _remember(level: int, template: bytes, arguments: int) -> int:
    """libbpf's print callback: keeps warnings for the call that caused them, prints nothing."""
    collected: list[str] | None = getattr(_messages, "collected", None)
    if level == _WARN and collected is not None:
        buffer = ctypes.create_string_buffer(_MESSAGE_BYTES)
        ctypes.CDLL(None).vsnprintf(buffer, ctypes.c_size_t(_MESSAGE_BYTES), template, ctypes.c_void_p(arguments))
        collected.append(buffer.value.decode(errors="replace"))
    return 0


_remember_callback = _PRINT(_remember)  # kept: libbpf holds only the address


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf with the signatures above; FeatureUnsupported when it is not installed or older than 1.0."""
    try:
        loaded = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise FeatureUnsupported(
            "dlopen libbpf.so.1",
            0,
            str(error),
            hint="install libbpf1 (Debian and Ubuntu: apt install libbpf1)",
        ) from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    loaded.libbpf_set_print(_remember_callback)
    return loaded


@contextmanager
def messages() -> Iterator[list[str]]:
    """Collects what libbpf warns about on this thread while the block runs."""
    outer: list[str] | None = getattr(_messages, "collected", None)
    collected: list[str] = []
    _messages.collected = collected
    try:
        yield collected
    finally:
        _messages.collected = outer


def call(name: str, *arguments: object, detail: str = "") -> int:
    """Call `name`; its non-negative result, or DatapathError with the error number and libbpf's words."""
    with messages() as said:
        result: int = getattr(library(), name)(*arguments)
    if result < 0:
        words = "; ".join(filter(None, (detail, " ".join(" ".join(said).split()))))
        raise DatapathError(name, -result if result < -1 else ctypes.get_errno() or -result, words)
    return result


def info(descriptor: int, structure: ctypes.Structure) -> None:
    """Fill `structure` from BPF_OBJ_GET_INFO_BY_FD; a shorter kernel struct leaves the rest zero."""
    size = _u32(ctypes.sizeof(structure))
    call("bpf_obj_get_info_by_fd", descriptor, ctypes.byref(structure), ctypes.byref(size))


def raw_btf(btf_id: int) -> bytes:
    """The BTF that the kernel keeps under `btf_id`."""
    descriptor = call("bpf_btf_get_fd_by_id", btf_id)
    try:
        described = BtfInfo()
        info(descriptor, described)
        buffer = ctypes.create_string_buffer(described.size)
        described = BtfInfo(data=ctypes.addressof(buffer), size=len(buffer))
        info(descriptor, described)
        return buffer.raw
    finally:
        os.close(descriptor)
