"""Node-local numbers: what identities, policies, rules and services are called in the kernel's maps.

Names in, numbers out, and backend indexes likewise. Rebuilt at every start from the pinned `xb_names`
and `xb_backends`, so numbers are stable over restarts. A number whose last use is gone stays taken for
a quarantine; time is passed in. Owned by the planner. No I/O.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from xdsbpf.datapath.abi import Backend, Identity, Limit, Name, NameKey, NameSpace
from xdsbpf.errors import XdsbpfError

T = TypeVar("T", bound=Hashable)

NAME_QUARANTINE = 300.0
BACKEND_QUARANTINE = 60.0
SLOT_QUARANTINE = 1.0
"""Seconds from the last use of a number to its next owner (reliability D5, datapath part C rules 1, 2)."""
POLICY_QUARANTINE = 1.0
"""Seconds that the entries of a policy which is gone outlive the last address or frontend that names it."""
POLICY_LIMIT = 5.0
"""Seconds after which they go even if a frontend still names it: from then on it refuses everything."""
BLOCK_QUARANTINE = 10.0
"""Seconds that a block of source addresses is told apart after the last policy that mentions it; it costs nothing."""

BackendKey = tuple[int, bytes, int]
"""(service number, address, port)."""


class NumbersExhausted(XdsbpfError):
    """No free number is left in a space."""


class Numbers:
    """Allocator of the node's numbers. Allocation moves forward through a space and wraps."""

    def __init__(
        self,
        names: Mapping[NameKey, Name],
        backends: Mapping[int, Backend],
        used: Iterable[tuple[NameSpace, int]] = (),
    ) -> None:
        """Rebuild from the tables; `used` are numbers seen in other tables, named or not.

        Two entries with one name (only tampering makes them): the lower number stays the name's, the
        other has no use and leaves through quarantine.
        """
        self._number: dict[tuple[NameSpace, str], int] = {}
        self._taken: dict[NameSpace, set[int]] = {space: set() for space in NameSpace}
        for key in sorted(names):
            space = NameSpace(key.space)
            self._number.setdefault((space, names[key].text), key.number)
            self._taken[space].add(key.number)
        for space, number in used:
            self._taken[space].add(number)
        self._text = {(space, number): text for (space, text), number in self._number.items()}
        self._cursor = {space: _last(taken, Limit.MAX_NAMES) for space, taken in self._taken.items()}
        self._backend: dict[BackendKey, int] = {}
        for index in sorted(backends):
            self._backend.setdefault(_key_of(backends[index]), index)
        self._backend_taken = set(backends)
        self._backend_cursor = _last(self._backend_taken, Limit.MAX_BACKENDS - 1)

    def number(self, space: NameSpace, text: str) -> int:
        """The number of a name, allocated if it has none. NumbersExhausted when the space is full."""
        known = self._number.get((space, text))
        if known is not None:
            return known
        first = Identity.FIRST if space is NameSpace.IDENTITY else 1
        taken = self._taken[space]
        number = _next_free(taken, self._cursor[space], first, Limit.MAX_NAMES)
        self._cursor[space] = number
        taken.add(number)
        self._number[(space, text)] = number
        self._text[(space, number)] = text
        return number

    def text(self, space: NameSpace, number: int) -> str | None:
        """The name behind a number, None if nothing has it."""
        return self._text.get((space, number))

    def backend(self, key: BackendKey) -> int:
        """Index of an endpoint in xb_backends, allocated if it has none; 0 is never used."""
        known = self._backend.get(key)
        if known is not None:
            return known
        index = _next_free(self._backend_taken, self._backend_cursor, 1, Limit.MAX_BACKENDS - 1)
        self._backend_cursor = index
        self._backend_taken.add(index)
        self._backend[key] = index
        return index

    def release_name(self, key: NameKey) -> None:
        """Give a number back; its entry is being deleted. Unknown: nothing happens."""
        space = NameSpace(key.space)
        text = self._text.pop((space, key.number), None)
        if text is not None and self._number.get((space, text)) == key.number:
            del self._number[(space, text)]
        self._taken[space].discard(key.number)

    def release_backend(self, index: int, backend: Backend) -> None:
        """Give a backend index back; its element is being zeroed."""
        if self._backend.get(_key_of(backend)) == index:
            del self._backend[_key_of(backend)]
        self._backend_taken.discard(index)


class Quarantine(Generic[T]):
    """Things of one kind that nothing uses, and since when. Cost of every call: O(1) and what it returns."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: how long a thing rests."""
        self._seconds = seconds
        # Oldest first: a thing is put in with the time of its plan, and plans follow one another.
        self._since: dict[T, float] = {}

    def start(self, thing: T, now: float) -> None:
        """It is not used; its clock runs on if it was running."""
        self._since.setdefault(thing, now)

    def forget(self, thing: T) -> None:
        """It is in use, or gone."""
        self._since.pop(thing, None)

    def take_due(self, now: float) -> tuple[T, ...]:
        """What has rested long enough; it is not in quarantine any more."""
        due = tuple(itertools.takewhile(lambda thing: now - self._since[thing] >= self._seconds, self._since))
        for thing in due:
            del self._since[thing]
        return due

    def wake_at(self) -> float | None:
        """When the next thing is due; None if there is none."""
        return next((since + self._seconds for since in self._since.values()), None)


def _key_of(backend: Backend) -> BackendKey:
    return backend.service, backend.address, backend.port


def _last(taken: set[int], limit: int) -> int:
    return max((number for number in taken if number <= limit), default=0)


def _next_free(taken: set[int], cursor: int, first: int, last: int) -> int:
    """The first number after `cursor` that is not taken, going round once."""
    for number in itertools.chain(range(max(cursor + 1, first), last + 1), range(first, cursor + 1)):
        if number not in taken:
            return number
    raise NumbersExhausted(f"all numbers from {first} to {last} are taken")
