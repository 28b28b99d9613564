"""What the running kernel offers of what the datapath needs, each with the release that brought it.

Nothing in, a list of findings out, for `xdsbpf check` and for hints after a failed load. Asks the
kernel to load tiny programs and to refuse impossible attachments; changes nothing. A conclusive
answer is remembered: a kernel does not change under a running process.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

import msgspec

from xdsbpf.datapath import libbpf
from xdsbpf.errors import DatapathError

# enum bpf_prog_type, bpf_map_type and helper numbers of linux/bpf.h.
_SCHED_CLS, _CGROUP_SKB, _CGROUP_SOCK, _SOCK_OPS, _SOCK_ADDR, _SOCKOPT = 3, 8, 9, 13, 18, 25
_LPM_TRIE, _SK_STORAGE = 11, 24
_STORAGE_GET, _NETNS_COOKIE, _ANCESTOR_CGROUP, _SET_RETVAL = 107, 122, 123, 187
_TCX_INGRESS = 46
_NO_SUCH_IFINDEX = 0x7FFFFFFF
# r0 = -1 (the "next program" verdict); exit
_RETURN_NEXT = bytes.fromhex("b7000000ffffffff9500000000000000")
_remembered: dict[str, Feature] = {}


class Feature(msgspec.Struct, frozen=True):
    """One finding; `supported` is None when the kernel would not say (usually: not root)."""

    name: str
    needs: str
    supported: bool | None
    detail: str = ""


def probe_features() -> tuple[Feature, ...]:
    """Probe everything that the datapath needs; FeatureUnsupported only if libbpf itself is missing."""
    return tuple(_probe(name, needs, ask) for name, needs, ask in _PROBES)


def _probe(name: str, needs: str, ask: Callable[[], int]) -> Feature:
    if name not in _remembered:
        try:
            result = ask()
        except DatapathError as error:
            return Feature(name, needs, None, str(error))
        if result < 0:
            return Feature(name, needs, None, os.strerror(-result))
        _remembered[name] = Feature(name, needs, bool(result), "" if result else f"needs kernel {needs}")
    return _remembered[name]


def _program(kind: int) -> Callable[[], int]:
    return lambda: int(libbpf.library().libbpf_probe_bpf_prog_type(kind, None))


def _map(kind: int) -> Callable[[], int]:
    return lambda: int(libbpf.library().libbpf_probe_bpf_map_type(kind, None))


def _helper(kind: int, helper: int) -> Callable[[], int]:
    return lambda: int(libbpf.library().libbpf_probe_bpf_helper(kind, helper, None))


def _tcx() -> int:
    """1 if attaching to an interface that cannot exist fails for that reason, 0 if for not knowing tcx."""
    count = ctypes.c_size_t(len(_RETURN_NEXT) // 8)
    program = libbpf.call("bpf_prog_load", _SCHED_CLS, b"xb_probe", b"GPL", _RETURN_NEXT, count, None)
    try:
        os.close(libbpf.call("bpf_link_create", program, _NO_SUCH_IFINDEX, _TCX_INGRESS, None))
    except DatapathError as error:
        if error.errno == errno.ENODEV:
            return 1
        if error.errno == errno.EINVAL:
            return 0
        raise
    finally:
        os.close(program)
    return 1


_PROBES: tuple[tuple[str, str, Callable[[], int]], ...] = (
    ("cgroup connect and getpeername hooks", "5.8", _program(_SOCK_ADDR)),
    ("refusing connect with a chosen errno", "5.18", _helper(_SOCK_ADDR, _SET_RETVAL)),
    ("network namespace cookie at connect", "5.7", _helper(_SOCK_ADDR, _NETNS_COOKIE)),
    ("ancestor cgroup at connect", "5.7", _helper(_SOCK_ADDR, _ANCESTOR_CGROUP)),
    ("cgroup getsockopt hook", "5.3", _program(_SOCKOPT)),
    ("cgroup packet hook", "4.10", _program(_CGROUP_SKB)),
    ("socket release hook", "5.9", _program(_CGROUP_SOCK)),
    ("socket operations hook", "4.13", _program(_SOCK_OPS)),
    ("socket storage", "5.2", _map(_SK_STORAGE)),
    ("socket storage at connect", "5.10", _helper(_SOCK_ADDR, _STORAGE_GET)),
    ("network namespace cookie in socket operations", "5.14", _helper(_SOCK_OPS, _NETNS_COOKIE)),
    ("longest prefix match maps", "4.11", _map(_LPM_TRIE)),
    ("tcx hook", "6.6", _tcx),
)
