"""Attaches the loaded programs to their hooks, each by one pinned link, and takes them off again.

Works on a `Datapath`; the agent calls it through `Hooks`. An existing link is updated in place to
the new program: a restart or an upgrade leaves no instant without one. Decides nothing about which
cgroups and interfaces are enrolled.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from xdsbpf.datapath import libbpf, pins
from xdsbpf.datapath.loader import Datapath
from xdsbpf.datapath.namespaces import cgroup_id, run_in_netns
from xdsbpf.datapath.objects import Link, Program
from xdsbpf.errors import DatapathError

# enum bpf_attach_type (linux/bpf.h); headers before 6.6 lack the last one.
_CGROUP_SKB_INGRESS, _SOCK_OPS, _CONNECT4, _CONNECT6 = 0, 3, 10, 11
_GETSOCKOPT, _GETPEERNAME4, _GETPEERNAME6, _SOCK_RELEASE, _TCX_INGRESS = 21, 29, 30, 34, 46

# In this order: who accepts and releases is ready before anybody is sent there.
NODE_HOOKS = {
    "xb_sockops": _SOCK_OPS,
    "xb_release": _SOCK_RELEASE,
    "xb_getpeername4": _GETPEERNAME4,
    "xb_getpeername6": _GETPEERNAME6,
    "xb_ingress": _CGROUP_SKB_INGRESS,
    "xb_connect4": _CONNECT4,
    "xb_connect6": _CONNECT6,
}
PROXY_HOOK = ("xb_getsockopt", _GETSOCKOPT)
VETH_PROGRAM = "xb_veth"
_VETH_PIN = "xb_veth-"


class Hooks(Protocol):
    """What the agent needs of the hooks."""

    def attach_node(self, cgroup: Path) -> None:
        """Attach the connection programs to the root cgroup of a node's workloads."""

    def attach_proxy(self, cgroup: Path) -> None:
        """Attach the SO_ORIGINAL_DST answer to the proxy's cgroup, before the proxy starts in it."""

    def attach_veth(self, ifindex: int) -> None:
        """Attach the source check to the host side of a pod's veth, after its table entries."""

    def detach_veth(self, ifindex: int) -> None:
        """Take the source check off; fine if the interface or the link is gone."""

    def veths(self) -> tuple[int, ...]:
        """Interfaces with a pinned link, sorted; one whose device is gone included."""


class Attachments:
    """`Hooks` over the programs of a datapath; links are pinned under its root.

    `netns` is the namespace that holds the host sides of the veths; None: the calling thread's.
    """

    def __init__(self, datapath: Datapath, netns: Path | None = None) -> None:
        self._programs = datapath.programs
        self._links = pins.layout_directory(datapath.root) / pins.LINKS
        self._netns = netns

    def attach_node(self, cgroup: Path) -> None:
        """Attach the connection programs to the root cgroup of a node's workloads.

        Raises DatapathError (a cgroup that is no cgroup v2 directory: EBADF); what was attached
        before the error stays.
        """
        for name, attach_type in NODE_HOOKS.items():
            self._ensure_cgroup(name, cgroup, attach_type)

    def attach_proxy(self, cgroup: Path) -> None:
        """Attach the SO_ORIGINAL_DST answer to the proxy's cgroup, before the proxy starts in it."""
        self._ensure_cgroup(PROXY_HOOK[0], cgroup, PROXY_HOOK[1])

    def attach_veth(self, ifindex: int) -> None:
        """Attach the source check to an interface of `netns`; ENODEV if there is none."""
        program = self._programs[VETH_PROGRAM]

        def create() -> Link:
            # The kernel resolves an ifindex in the namespace of the calling thread.
            if self._netns is None:
                return Link.create(program, ifindex, _TCX_INGRESS)
            return run_in_netns(self._netns, lambda: Link.create(program, ifindex, _TCX_INGRESS))

        def fits(info: libbpf.LinkInfo) -> bool:
            return bool(info.target.interface.ifindex == ifindex)

        _ensure(self._links / f"{_VETH_PIN}{ifindex}", program, create, fits)

    def detach_veth(self, ifindex: int) -> None:
        """Take the source check off; fine if the interface or the link is gone."""
        _remove(self._links / f"{_VETH_PIN}{ifindex}")

    def veths(self) -> tuple[int, ...]:
        """Interfaces with a pinned link, sorted; one whose device is gone included."""
        found = self._links.glob(f"{_VETH_PIN}*")
        return tuple(sorted(int(path.name.removeprefix(_VETH_PIN)) for path in found))

    def _ensure_cgroup(self, name: str, cgroup: Path, attach_type: int) -> None:
        program = self._programs[name]
        identifier = cgroup_id(cgroup)

        def create() -> Link:
            directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return Link.create(program, directory, attach_type)
            finally:
                os.close(directory)

        def fits(info: libbpf.LinkInfo) -> bool:
            return bool(info.target.cgroup.cgroup_id == identifier)

        _ensure(self._links / name, program, create, fits)


def detach_all(root: Path) -> None:
    """Remove everything pinned under `root`, of every layout: links first, then maps, then directories.

    Links first, so that no program runs over maps that are half gone. Needs no object file. Nothing
    there is fine; DatapathError if `root` is on no BPF file system.
    """
    if not root.exists():
        return
    if not pins.is_bpffs(root):
        raise DatapathError("detach", 0, f"{root} is on no BPF file system: nothing of ours is there")
    layouts = sorted(root.glob("v*"))
    for layout in layouts:
        for link in sorted((layout / pins.LINKS).glob("*")):
            _remove(link)
    for layout in layouts:
        for pin in sorted(layout.iterdir()):
            if pin.name != pins.LINKS:
                pin.unlink()
        (layout / pins.LINKS).rmdir()
        layout.rmdir()
    root.rmdir()


def _ensure(pin: Path, program: Program, create: Callable[[], Link], fits: Callable[[libbpf.LinkInfo], bool]) -> None:
    """Make `pin` the one link of its hook, running `program`; update rather than replace."""
    if pin.exists():
        pins.check_owner(pin)
        with Link.from_pin(pin) as existing:
            if fits(existing.info()) and _updated(existing, program):
                return
        # Its cgroup or device is gone or is another one now: it guards nothing of ours any more.
        _remove(pin)
    with create() as link:
        link.pin(pin)


def _updated(link: Link, program: Program) -> bool:
    """Update `link` in place; False if what it was attached to is gone."""
    try:
        link.update(program)
    except DatapathError as error:
        if error.errno == errno.ENOLINK:
            return False
        raise
    return True


def _remove(pin: Path) -> None:
    if not pin.exists():
        return
    with Link.from_pin(pin) as link:
        # At once: closing the last reference alone would leave it to a kernel worker.
        link.detach()
    pin.unlink()
