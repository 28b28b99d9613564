"""Rest: what the kernel holds, nobody wants, and a program may still be reading.

Names, endpoints, slot ranges and the entries of policies that are gone come in when the plan finds them;
the deletes that are due come out. Owned by the planner. Pure: time is passed in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from xdsbpf.agent.image import Image
from xdsbpf.agent.numbers import (
    BACKEND_QUARANTINE,
    NAME_QUARANTINE,
    POLICY_LIMIT,
    POLICY_QUARANTINE,
    SLOT_QUARANTINE,
    Numbers,
    Quarantine,
)
from xdsbpf.agent.ops import Delete, FreeSlots, Op, Realised, TableName, Thing, Verdicts, specificity
from xdsbpf.datapath.abi import NameKey, PolicyKey


class Resting:
    """Things that nothing wants, each with its clock.

    The entries of a policy that is gone rest as they were last and all together, so that an address or a
    frontend that names it has the old verdict until it names the next policy: the frontends of a page come
    after the policies. Their clock starts when the last of these has gone. A second clock starts when the
    policy goes, and ends the rest of one that is still named: such a frontend then refuses everything.
    """

    def __init__(self, realised: Realised, image: Image, numbers: Numbers) -> None:
        """All three are the planner's. Nothing rests."""
        self._realised = realised
        self._image = image
        self._numbers = numbers
        self._slots: Quarantine[Thing] = Quarantine(SLOT_QUARANTINE)
        self._verdicts: Quarantine[Thing] = Quarantine(POLICY_QUARANTINE)
        self._leaving: Quarantine[Thing] = Quarantine(POLICY_LIMIT)
        self._backends: Quarantine[Thing] = Quarantine(BACKEND_QUARANTINE)
        self._names: Quarantine[Thing] = Quarantine(NAME_QUARANTINE)
        self._entries: defaultdict[Verdicts, set[PolicyKey]] = defaultdict(set)
        """Entries in the kernel of policies that are gone."""
        self._spoiled: set[Verdicts] = set()

    def collect(self) -> None:
        """Take over what is gone from the keys that the plan looks at, and give back what is wanted again.

        Cost: O(keys that are looked at, policies at rest).
        """
        image, loose = self._image, self._realised.loose
        loose.update(image.touched["names"], image.touched["backends"])
        places = (self._realised.places.get(contents) for contents in image.touched_contents)
        loose.update(place for place in places if place is not None)
        image.touched_contents.clear()
        tables: tuple[TableName, ...] = ("names", "backends")
        for table in tables:
            image.touched[table] -= {key for key in image.touched[table] if key not in image.table(table)}
        touched = image.touched["policies"]
        for verdicts in [verdicts for verdicts in self._entries if verdicts.policy in image.policies]:
            touched |= self._entries.pop(verdicts)
            loose.add(verdicts)
        for key in [key for key in touched if key.policy not in image.policies and key in self._realised.policies]:
            touched.discard(key)
            self._entries[Verdicts(key.policy)].add(key)
            loose.add(Verdicts(key.policy))

    @property
    def has_policies(self) -> bool:
        """Whether entries of a policy are at rest."""
        return bool(self._entries)

    def spoil(self, policy: int) -> None:
        """Somebody else changed an entry of this policy: if it is gone it does not rest, it goes."""
        self._spoiled.add(Verdicts(policy))

    def take_due(self, now: float) -> tuple[list[Op], float | None]:
        """Deletes of what has rested long enough, and when more is due (None: never).

        Unused means that nothing in the kernel referred to it before this plan, so a clock starts only when
        the last reference has really gone.
        """
        for thing in sorted(self._realised.loose, key=_order):
            self._wind(self._clock(thing), thing, now, self._is_idle(thing))
            if isinstance(thing, Verdicts):
                self._wind(self._leaving, thing, now, thing in self._entries)
        self._realised.loose.clear()
        ended: set[Thing] = set(self._spoiled & self._entries.keys())
        self._spoiled.clear()
        for thing in self._leaving.take_due(now):
            if thing in self._realised.uses:
                ended.add(thing)
            else:
                # Left just now: what was read before may still be looked up, so the rest runs on.
                self._leaving.start(thing, now)
        clocks = self._slots, self._verdicts, self._backends, self._names
        # Looked at again: the check of the kernel may have found a reference that nobody planned.
        rested = [t for clock in clocks for t in sorted(clock.take_due(now), key=_order) if self._is_idle(t)]
        ops = [op for thing in (*sorted(ended, key=_order), *rested) for op in self._release(thing)]
        wakes = [clock.wake_at() for clock in (*clocks, self._leaving)]
        return ops, min((wake for wake in wakes if wake is not None), default=None)

    @staticmethod
    def _wind(clock: Quarantine[Thing], thing: Thing, now: float, runs: bool) -> None:
        if runs:
            clock.start(thing, now)
        else:
            clock.forget(thing)

    def _is_idle(self, thing: Thing) -> bool:
        """True if the kernel has it, nothing there refers to it, and the image does not want it."""
        realised, image = self._realised, self._image
        if thing in realised.uses:
            return False
        match thing:
            case NameKey():
                return thing in realised.names and thing not in image.table("names")
            case Verdicts():
                return thing in self._entries
            case int():
                return thing in realised.backends and thing not in image.table("backends")
            case place:
                return realised.slots.get(place) is not None and realised.slots[place] not in image.contents

    def _clock(self, thing: Thing) -> Quarantine[Thing]:
        match thing:
            case NameKey():
                return self._names
            case Verdicts():
                return self._verdicts
            case int():
                return self._backends
            case _:
                return self._slots

    def _release(self, thing: Thing) -> Iterator[Op]:
        match thing:
            case NameKey():
                self._numbers.release_name(thing)
                yield Delete("names", thing)
            case Verdicts():
                self._verdicts.forget(thing)
                self._leaving.forget(thing)
                # What a refused delete leaves is looked at by the next plan.
                keys = self._entries.pop(thing, set())
                self._image.touched["policies"] |= keys
                for key in sorted(keys & self._realised.policies.keys(), key=lambda key: (-specificity(key), key)):
                    yield Delete("policies", key)
            case int():
                self._numbers.release_backend(thing, self._realised.backends[thing])
                yield Delete("backends", thing)
            case place:
                yield FreeSlots(place)


def _order(thing: Thing) -> tuple[int, int]:
    """Any order that is the same every time."""
    match thing:
        case NameKey():
            return thing.space, thing.number
        case Verdicts():
            return 0, thing.policy
        case int():
            return 0, thing
        case place:
            return place
