"""Enrolment: which interface and which network namespace belong to each pod of this node.

A pod's address leads by a route to the host side of its veth; the kernel says in which namespace the
other side is; a process of the node's cgroup lends its namespace file. So a pod cannot claim another's
address: routes and veths are the node's. Reads the system, writes nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from xdsbpf.agent.desired import Enrolled, Workload
from xdsbpf.datapath.address import address_text
from xdsbpf.datapath.namespaces import netns_cookie
from xdsbpf.errors import DatapathError

OWN_NETNS = Path("/proc/self/ns/net")


class Findings(msgspec.Struct, frozen=True):
    """What one look at the system gave; `missing` says why a workload (by name) is not enrolled."""

    enrolled: tuple[Enrolled, ...]
    missing: dict[str, str]


class NotFound(Exception):
    """A workload's interface or namespace is not there yet; the message says which."""


def find_workloads(workloads: tuple[Workload, ...], cgroup_root: Path, known: Mapping[str, Enrolled]) -> Findings:
    """Look for the interface and the namespace of every workload.

    `known` are the workloads of an earlier look: one whose processes have all ended keeps its namespace
    as long as its interface is there. Runs in the network namespace with the host sides of the veths;
    blocks for about 1 ms per workload, so call it off the event loop. Two workloads never share an
    interface: the second is missing.
    """
    enrolled: dict[int, Enrolled] = {}
    missing: dict[str, str] = {}
    if not workloads:
        return Findings((), {})
    with IPRoute() as netlink:
        # Links before namespaces: asking for a link makes the kernel number its peer's namespace.
        peers: list[tuple[Workload, int, int]] = []
        for workload in sorted(workloads, key=lambda workload: workload.name):
            try:
                peers.append((workload, *_peer(netlink, workload)))
            except (NotFound, NetlinkError) as err:
                missing[workload.name] = str(err)
        with _namespaces(cgroup_root) as namespaces:
            paths = {_namespace_id(netlink, descriptor): descriptor for descriptor in namespaces}
            for workload, ifindex, namespace_id in peers:
                try:
                    found = _enrolled(workload, ifindex, paths.get(namespace_id), known.get(workload.name))
                except (NotFound, DatapathError, OSError) as err:
                    missing[workload.name] = str(err)
                    continue
                if ifindex in enrolled:
                    missing[workload.name] = f"its interface is that of {enrolled[ifindex].workload}"
                else:
                    enrolled[ifindex] = found
    return Findings(tuple(sorted(enrolled.values())), missing)


def _peer(netlink: IPRoute, workload: Workload) -> tuple[int, int]:
    """(ifindex of the host side, number of the network namespace of the other side)."""
    if not workload.addresses:
        raise NotFound("it has no address")
    indexes = {_interface_of(netlink, address) for address in workload.addresses}
    if len(indexes) > 1:
        raise NotFound("its addresses are routed to different interfaces")
    (ifindex,) = indexes
    link = _one(netlink.get_links(ifindex), f"no interface {ifindex}")
    namespace_id = link.get_attr("IFLA_LINK_NETNSID")
    if namespace_id is None:
        raise NotFound(f"interface {link.get_attr('IFLA_IFNAME')} has no peer in another network namespace")
    return ifindex, int(namespace_id)


def _enrolled(workload: Workload, ifindex: int, descriptor: int | None, known: Enrolled | None) -> Enrolled:
    if descriptor is not None:
        cookie = netns_cookie(Path(f"/proc/self/fd/{descriptor}"))
        return Enrolled(workload.name, cookie, ifindex, workload.addresses)
    if known is not None and known.ifindex == ifindex:
        return Enrolled(workload.name, known.cookie, ifindex, workload.addresses)
    raise NotFound("no process of the node's cgroup runs in its network namespace yet")


def _interface_of(netlink: IPRoute, address: bytes) -> int:
    """Index of the interface that an address is routed to directly."""
    text = address_text(address)
    family = 10 if ipaddress.ip_address(text).version == 6 else 2
    try:
        route = _one(netlink.route("get", dst=text, family=family), f"no route to {text}")
    except NetlinkError as err:
        raise NotFound(f"no route to {text}: {err}") from err
    # Security: an address behind a gateway is not on this node, whatever the list of workloads says.
    if route["type"] != 1 or route.get_attr("RTA_GATEWAY") is not None:
        raise NotFound(f"{text} is not routed to an interface of a pod")
    return int(route.get_attr("RTA_OIF"))


def _one(found: Any, otherwise: str) -> Any:
    for item in found:
        return item
    raise NotFound(otherwise)


def _namespace_id(netlink: IPRoute, descriptor: int) -> int:
    """The number by which this namespace knows another one; -1: it does not.

    The kernel's own answer: the peer of a veth carries the same number (rtnetlink IFLA_LINK_NETNSID).
    """
    number = netlink.get_netnsid(fd=descriptor)["nsid"]
    return -1 if number is None or number == 0xFFFFFFFF else int(number)


@contextlib.contextmanager
def _namespaces(cgroup_root: Path) -> Iterator[tuple[int, ...]]:
    """Descriptors of the network namespaces of the processes below a cgroup, our own left out.

    Processes come and go while we look: one that is gone is skipped, and a namespace stays open until the
    look is over, so that a short-lived process in a pod can not make the pod appear to be missing.
    """
    own = OWN_NETNS.stat().st_ino
    opened: dict[int, int] = {}
    try:
        for pid in _processes(cgroup_root):
            with contextlib.suppress(OSError):
                path = Path(f"/proc/{pid}/ns/net")
                inode = path.stat().st_ino
                if inode != own and inode not in opened:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    # By the descriptor: the process may have gone to another namespace since.
                    kept = opened.setdefault(os.fstat(descriptor).st_ino, descriptor)
                    if kept != descriptor:
                        os.close(descriptor)
        yield tuple(descriptor for inode, descriptor in opened.items() if inode != own)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def _processes(cgroup_root: Path) -> Iterator[str]:
    for directory, _, files in os.walk(cgroup_root):
        if "cgroup.procs" in files:
            with contextlib.suppress(OSError):
                yield from (Path(directory) / "cgroup.procs").read_text().split()
