"""Map writes as values, and the mirror of what the kernel holds.

The plan makes operations, the reconciler applies them, both count on `Realised`. An operation names
the resource that it is for, so that a failure reaches the right NACK. No kernel access here.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from xdsbpf.datapath import abi
from xdsbpf.errors import InvariantError

Cause = tuple[str, str]
"""(type URL, resource name) of the resource that an operation is for."""

SlotRange = tuple[int, int]
"""(offset, count)."""

TableName = Literal["names", "policies", "addresses", "netns", "veths", "backends", "frontends"]
Key = abi.NameKey | abi.PolicyKey | abi.AddressKey | abi.NetnsKey | abi.VethKey | abi.FrontendKey | int
Value = abi.Name | abi.Policy | abi.Address | abi.Netns | abi.Veth | abi.Backend | abi.Frontend


class Put(msgspec.Struct, frozen=True):
    """Insert or replace one entry. Skipped when an earlier operation for `cause` or `needs` failed."""

    table: TableName
    key: Key
    value: Value
    cause: Cause
    needs: Cause | None = None


class Delete(msgspec.Struct, frozen=True):
    """Remove one entry that is there."""

    table: TableName
    key: Key
    cause: Cause | None = None


class WriteSlots(msgspec.Struct, frozen=True):
    """Fill a range that no frontend refers to."""

    offset: int
    backends: tuple[int, ...]
    cause: Cause


class FreeSlots(msgspec.Struct, frozen=True):
    """Forget a range that no frontend has referred to for the quarantine; nothing is written."""

    slots: SlotRange


class SetConfig(msgspec.Struct, frozen=True):
    """Replace the node's configuration."""

    config: abi.Config


class AttachVeth(msgspec.Struct, frozen=True):
    """Guard the host side of a pod's veth; its allowed sources are in place."""

    ifindex: int


class DetachVeth(msgspec.Struct, frozen=True):
    """Stop guarding an interface."""

    ifindex: int


Op = Put | Delete | WriteSlots | FreeSlots | SetConfig | AttachVeth | DetachVeth


class Realised:
    """What the kernel holds, as far as the agent knows; owned and kept true by the reconciler.

    `slots` has the contents of every range that is referred to or in quarantine; the rest of the
    arena is free, whatever it contains. `attached` are ifindexes with our tcx link.
    """

    def __init__(self) -> None:
        """An empty kernel."""
        self.config = abi.Config(0, 0, bytes(16), 0, 0)
        self.names: dict[abi.NameKey, abi.Name] = {}
        self.policies: dict[abi.PolicyKey, abi.Policy] = {}
        self.addresses: dict[abi.AddressKey, abi.Address] = {}
        self.netns: dict[abi.NetnsKey, abi.Netns] = {}
        self.veths: dict[abi.VethKey, abi.Veth] = {}
        self.backends: dict[int, abi.Backend] = {}
        self.frontends: dict[abi.FrontendKey, abi.Frontend] = {}
        self.slots: dict[SlotRange, tuple[int, ...]] = {}
        self.attached: set[int] = set()

    def table(self, name: TableName) -> dict[Any, Any]:
        """The mirror of one map, by its name."""
        tables: dict[TableName, dict[Any, Any]] = {
            "names": self.names,
            "policies": self.policies,
            "addresses": self.addresses,
            "netns": self.netns,
            "veths": self.veths,
            "backends": self.backends,
            "frontends": self.frontends,
        }
        return tables[name]

    def record(self, op: Op) -> None:
        """Take over an operation that was applied to the kernel."""
        match op:
            case Put(table=table, key=key, value=value):
                self.table(table)[key] = value
            case Delete(table=table, key=key):
                self.table(table).pop(key, None)
            case WriteSlots(offset=offset, backends=backends):
                self.slots[(offset, len(backends))] = backends
            case FreeSlots(slots=slots):
                self.slots.pop(slots, None)
            case SetConfig(config=config):
                self.config = config
            case AttachVeth(ifindex=ifindex):
                self.attached.add(ifindex)
            case DetachVeth(ifindex=ifindex):
                self.attached.discard(ifindex)

    def slot_ranges_in_use(self) -> set[SlotRange]:
        """Ranges that a frontend refers to."""
        return {
            (frontend.slot_offset, frontend.slot_count) for frontend in self.frontends.values() if frontend.slot_count
        }

    def numbers_in_use(self) -> set[tuple[abi.NameSpace, int]]:
        """Every number that an entry other than a name refers to; the reserved ones left out."""
        used: set[tuple[abi.NameSpace, int]] = set()
        for address in self.addresses.values():
            used.add((abi.NameSpace.IDENTITY, address.identity))
            used.add((abi.NameSpace.POLICY, address.policy))
        for key, policy in self.policies.items():
            used.add((abi.NameSpace.POLICY, key.policy))
            used.add((abi.NameSpace.IDENTITY, key.source))
            used.add((abi.NameSpace.RULE, policy.rule))
        for frontend in self.frontends.values():
            used.add((abi.NameSpace.SERVICE, frontend.service))
            used.add((abi.NameSpace.POLICY, frontend.policy))
        for backend in self.backends.values():
            used.add((abi.NameSpace.SERVICE, backend.service))
        return {(space, number) for space, number in used if number not in (0, abi.Identity.ANY)}

    def check(self) -> None:
        """Raise InvariantError if a frontend refers to slots or backends that are not there.

        Cost: O(frontends + slots); for tests and for the periodic verification.
        """
        for key, frontend in self.frontends.items():
            if not frontend.slot_count:
                continue
            backends = self.slots.get((frontend.slot_offset, frontend.slot_count))
            if backends is None or any(index not in self.backends for index in backends):
                raise InvariantError(f"frontend {key} refers to a missing slot or backend")
