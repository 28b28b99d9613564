"""Map writes as values, and the mirror of what the kernel holds.

The planner makes operations, the reconciler applies them, both count on `Realised`. An operation names
the resource that it is for, so that a failure reaches the right NACK. No kernel access here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from xdsbpf.agent.slots import SlotRanges
from xdsbpf.datapath import abi
from xdsbpf.errors import InvariantError
from xdsbpf.model.names import NODE_CONFIG

Cause = tuple[str, str]
"""(type URL, resource name) of the resource that an operation is for."""

SlotRange = tuple[int, int]
"""(offset, count)."""


class Verdicts(msgspec.Struct, frozen=True):
    """All entries of a policy number, which addresses and frontends refer to."""

    policy: int


Thing = abi.NameKey | int | SlotRange | Verdicts
"""What entries refer to, and what therefore rests before it is taken away: a number with its name, an
endpoint by its index, a range of slots, the entries of a policy."""

TableName = Literal["names", "policies", "addresses", "netns", "veths", "backends", "frontends"]
TABLES: tuple[TableName, ...] = ("names", "policies", "addresses", "netns", "veths", "backends", "frontends")
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

    `slots` has the contents of every range that is referred to or in quarantine, `places` a range for
    each contents, `room` the rest of the arena, whatever it contains. `uses` counts the entries that
    refer to a thing; `loose` are things whose last use has gone since the planner looked. `attached` are
    ifindexes with our tcx link. Cost of every change: O(what the entry refers to).
    """

    def __init__(self, slot_capacity: int = abi.Limit.MAX_SLOTS) -> None:
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
        self.places: dict[tuple[int, ...], SlotRange] = {}
        self.uses: dict[Thing, int] = {}
        self.loose: set[Thing] = set()
        self._slot_capacity = slot_capacity
        self.room = SlotRanges((), slot_capacity)
        self._tables: dict[TableName, dict[Any, Any]] = {name: getattr(self, name) for name in TABLES}

    def table(self, name: TableName) -> dict[Any, Any]:
        """The mirror of one map, by its name; for reading."""
        return self._tables[name]

    def record(self, op: Op) -> None:
        """Take over an operation that was applied to the kernel."""
        match op:
            case Put(table=table, key=key, value=value):
                self.put(table, key, value)
            case Delete(table=table, key=key):
                self.remove(table, key)
            case WriteSlots(offset=offset, backends=backends):
                self.put_slots((offset, len(backends)), backends)
            case FreeSlots(slots=slots):
                self.remove_slots(slots)
            case SetConfig(config=config):
                self.config = config
            case AttachVeth(ifindex=ifindex):
                self.attached.add(ifindex)
            case DetachVeth(ifindex=ifindex):
                self.attached.discard(ifindex)

    def put(self, table: TableName, key: Any, value: Any) -> None:
        """One entry is there, with this value."""
        before = self._tables[table].get(key)
        self._tables[table][key] = value
        self._use(_references(table, key, value))
        if before is not None:
            self._leave(_references(table, key, before))

    def remove(self, table: TableName, key: Any) -> None:
        """One entry is not there."""
        before = self._tables[table].pop(key, None)
        if before is not None:
            self._leave(_references(table, key, before))

    def put_slots(self, place: SlotRange, contents: tuple[int, ...]) -> None:
        """A range that the agent knows, with these contents."""
        if place in self.slots:
            self.remove_slots(place)
        self.slots[place] = contents
        self.places.setdefault(contents, place)
        self.room.occupy(*place)
        self._use(contents)

    def remove_slots(self, place: SlotRange) -> None:
        """A range that is free from now on."""
        contents = self.slots.pop(place)
        if self.places.get(contents) == place:
            del self.places[contents]
        if self.room.overlapping:
            self.room = SlotRanges(self.slots, self._slot_capacity)
        else:
            self.room.give_back(*place)
        self._leave(contents)

    def things(self) -> Iterator[Thing]:
        """Everything that rests before it is taken away."""
        yield from self.names
        yield from self.backends
        yield from self.slots

    def slot_ranges_in_use(self) -> set[SlotRange]:
        """Ranges that a frontend refers to."""
        return {thing for thing in self.uses if isinstance(thing, tuple)}

    def numbers_in_use(self) -> set[tuple[abi.NameSpace, int]]:
        """Every number that an entry other than a name refers to; the reserved ones left out."""
        used = ((thing.space, thing.number) for thing in self.uses if isinstance(thing, abi.NameKey))
        return {(abi.NameSpace(space), number) for space, number in used if number not in (0, abi.Identity.ANY)}

    def check(self) -> None:
        """Raise InvariantError if a frontend refers to slots or backends that are not there.

        Cost: O(frontends + slots); for tests.
        """
        for key, frontend in self.frontends.items():
            if not frontend.slot_count:
                continue
            backends = self.slots.get((frontend.slot_offset, frontend.slot_count))
            if backends is None or any(index not in self.backends for index in backends):
                raise InvariantError(f"frontend {key} refers to a missing slot or backend")

    def _use(self, things: Iterable[Thing]) -> None:
        uses = self.uses
        for thing in things:
            uses[thing] = uses.get(thing, 0) + 1

    def _leave(self, things: Iterable[Thing]) -> None:
        uses = self.uses
        for thing in things:
            left = uses[thing] - 1
            if left:
                uses[thing] = left
            else:
                del uses[thing]
                self.loose.add(thing)


def _references(table: TableName, key: Any, value: Any) -> tuple[Thing, ...]:
    """What an entry refers to; numbers that are reserved count too, nothing is called by them."""
    match table:
        case "backends":
            return (abi.NameKey(abi.NameSpace.SERVICE, value.service),)
        case "frontends":
            things = abi.NameKey(abi.NameSpace.SERVICE, value.service), *_guard(value.policy)
            return (*things, (value.slot_offset, value.slot_count)) if value.slot_count else things
        case "addresses":
            return abi.NameKey(abi.NameSpace.IDENTITY, value.identity), *_guard(value.policy)
        case "policies":
            return (
                abi.NameKey(abi.NameSpace.POLICY, key.policy),
                abi.NameKey(abi.NameSpace.IDENTITY, key.source),
                abi.NameKey(abi.NameSpace.RULE, value.rule),
            )
        case _:
            return ()


def _guard(policy: int) -> tuple[Thing, ...]:
    return (abi.NameKey(abi.NameSpace.POLICY, policy), Verdicts(policy)) if policy else ()


def interface_cause(ifindex: int) -> Cause:
    """What guarding an interface fails under."""
    return NODE_CONFIG, f"interface {ifindex}"


def specificity(key: abi.PolicyKey) -> int:
    """How early the kernel looks at an entry: 0 for (source, port), 3 for (any, any)."""
    return 2 * (key.source == abi.Identity.ANY) + (key.port == 0)
