"""What of a raw resource the kernel does exactly: fields by list, all others refuse.

A field that is not on a list, or that this release does not even know, keeps the listener with Envoy: the kernel
never carries a connection of which it would leave something undone. Called by the other `kernel_*` modules. Pure.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.unknown_fields import UnknownFieldSet

from xdsbpf.compile.raw.checks import BY_NAME
from xdsbpf.compile.raw.resources import Globs
from xdsbpf.diagnostics import Origin
from xdsbpf.errors import XdsbpfError
from xdsbpf.incremental import Database
from xdsbpf.mesh.addresses import refusal
from xdsbpf.model.envoy_resource import EnvoyResource

_AGENT_ID: Final = "agent~"
_SOCKET_ADDRESS: Final = frozenset({"protocol", "address", "port_value"})


class NotForKernel(XdsbpfError):
    """A listener stays with Envoy; the message says why, `path` where the field is that says so."""

    path: str

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def only(message: Any, allowed: frozenset[str], path: str) -> None:
    """Raises: NotForKernel if any field is set that is not in `allowed`."""
    for descriptor, _ in message.ListFields():
        if descriptor.name not in allowed:
            raise NotForKernel(join(path, descriptor.name), f"only Envoy does {descriptor.name}")
    if len(UnknownFieldSet(message)):
        raise NotForKernel(path, f"{message.DESCRIPTOR.name} has a field that this release does not know")


def join(path: str, field: str) -> str:
    """`path.field`."""
    return f"{path}.{field}" if path else field


def place_of(address: Any, path: str) -> tuple[str, int]:
    """(IPv4 address, port) of a core.v3.Address. Raises: NotForKernel for any other, or one of no single host."""
    only(address, frozenset({"socket_address"}), path)
    path = join(path, "socket_address")
    if not address.HasField("socket_address"):
        raise NotForKernel(path, "it has no address")
    socket = address.socket_address
    only(socket, _SOCKET_ADDRESS, path)
    if socket.protocol != socket.TCP:
        raise NotForKernel(join(path, "protocol"), "the kernel balances TCP only")
    reason = refusal(socket.address)
    if reason:
        raise NotForKernel(join(path, "address"), f"{socket.address or 'the empty address'} {reason}")
    if not 0 < socket.port_value < 65536:
        raise NotForKernel(path, "it has no port")
    return socket.address, socket.port_value


def may_meet(one: Globs, other: Globs) -> bool:
    """Whether one agent may be named by both lists; false only if their beginnings rule it out.

    An agent is named by its node's name or by its id, which begins with `agent~`.
    """
    if not one or not other:
        return True
    pairs = ((_beginning(glob), _beginning(rival)) for glob in one for rival in other)
    return any(_fit(first, second) or _fit(first, _AGENT_ID) or _fit(second, _AGENT_ID) for first, second in pairs)


def _beginning(glob: str) -> str:
    """What every text that fits begins with; a text without wildcards ends there, which a zero byte says."""
    cut = min((glob.find(mark) for mark in "*?" if mark in glob), default=-1)
    return glob + "\0" if cut < 0 else glob[:cut]


def _fit(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def seen(db: Database, nodes: Globs, type_url: str, name: str, path: str) -> EnvoyResource:
    """The one resource of that name for whoever sees what has these globs; it is cited.

    Its own globs win over none. Another list of globs that may match the same node: which of the two resources
    counts there cannot be told, so neither does.

    Raises: NotForKernel.
    """
    short = type_url.rpartition(".")[2]
    found = {entry.nodes: entry for entry in db.bucket(BY_NAME, (type_url, name))}
    others = sorted(globs for globs in found if globs and globs != nodes and may_meet(globs, nodes))
    if others:
        text = f"{short} {name!r} is also addressed to {','.join(others[0])}: which one counts depends on the node"
        raise NotForKernel(path, text)
    entry = found.get(nodes) or found.get(())
    if entry is None:
        raise NotForKernel(path, f"there is no raw {short} {name!r}")
    db.cite(Origin(entry.id))
    return entry
