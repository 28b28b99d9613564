"""Which streams listen to what: from changed names to the streams that asked for them, without a look at the others.

In: what each subscription asks for, as it changes (`Listening`, told by `xds.subscription`), and the scopes of each
view (told by `xds.session`). Out: the members whom a change may concern. One who is concerned is never left out; one
who is not may be there, as after it gave up a name that others of the same question still ask for. Owned by
`xds.streams`. Pure.

Many streams ask the same question, so an audience is either one member or all those that share a frozen set of names.
A number stands for each, and a name leads to the numbers of its audiences: one stream more with the same names costs
nothing per name, one with other names 4 bytes for each, or a dict entry where nobody else asks for it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Generic, TypeVar

Member = TypeVar("Member")
Key = tuple[str, str]
"""(type URL, name)"""

_SETS_AT_MOST = 64
"""Sets that a subscription shares: a client that asks in pages has one for each, and names of its own behind them."""


class Interest(Generic[Member]):
    """The index over all members; a member is a session, or whatever hears of changes."""

    def __init__(self) -> None:
        self._members: dict[int, Member] = {}
        self._sharers: dict[int, set[int]] = {}
        """Number of an audience that shares a set of names -> its members; each member is an audience as well."""
        self._unused: list[int] = []
        self._named: dict[str, dict[str, int | array[int]]] = {}
        """Type -> name -> the number of its audience, or sorted those of several."""
        self._shared: dict[tuple[str, frozenset[str]], int] = {}
        """(type, names) -> the audience that asks for all of them."""
        self._of_all: dict[str, set[int]] = {}
        """Type -> who hears of every name: wildcards and globs."""
        self._in_scope: dict[str, set[int]] = {}

    def enter(self, member: Member, scopes: Iterable[str]) -> int:
        """A member sees these scopes, and listens to nothing yet; returns its number."""
        number = self._number()
        self._members[number] = member
        self.move(number, (), scopes)
        return number

    def move(self, number: int, before: Iterable[str], after: Iterable[str]) -> None:
        """It sees other scopes from now on."""
        for scope in before:
            _discard(self._in_scope, scope, number)
        for scope in after:
            self._in_scope.setdefault(scope, set()).add(number)

    def leave(self, number: int, scopes: Iterable[str]) -> None:
        """It is gone, and all its `Listening`s are closed."""
        self.move(number, scopes, ())
        del self._members[number]
        self._unused.append(number)

    def heard_by(self, by_scope: Mapping[str, tuple[Key, ...]]) -> list[Member]:
        """Whom a change may concern, by `Changes.by_scope`. Cost: O(changed keys + those who ask for any of them).

        In the order of their numbers, which is nearly that of their coming, and so of their memory: to send to all in
        another order costs a tenth more of the processor.
        """
        found: set[int] = set()
        for scope, keys in by_scope.items():
            present = self._in_scope.get(scope)
            if present is not None:
                for audience in self._audiences_of(keys):
                    found |= present & audience
        return [self._members[number] for number in sorted(found)]

    def _audiences_of(self, keys: tuple[Key, ...]) -> Iterator[set[int]]:
        """Each once, whatever the number of its names among the keys."""
        types: set[str] = set()
        numbers: set[int] = set()
        for type_url, name in keys:
            types.add(type_url)
            entry = self._named[type_url].get(name) if type_url in self._named else None
            if isinstance(entry, int):
                numbers.add(entry)
            elif entry is not None:
                numbers.update(entry)
        yield from (self._of_all[type_url] for type_url in types if type_url in self._of_all)
        alone = {number for number in numbers if number in self._members}
        yield alone
        yield from (self._sharers[number] for number in numbers - alone)

    # For `Listening`.

    def hear_all(self, type_url: str, number: int, *, hears: bool) -> None:
        if hears:
            self._of_all.setdefault(type_url, set()).add(number)
        else:
            _discard(self._of_all, type_url, number)

    def put(self, type_url: str, name: str, number: int) -> None:
        """That audience asks for the name; it has not before."""
        names = self._named.setdefault(type_url, {})
        entry = names.setdefault(name, number)
        if entry == number:
            return
        if isinstance(entry, int):
            names[name] = array("I", sorted((entry, number)))
        else:
            insort(entry, number)

    def remove(self, type_url: str, name: str, number: int) -> None:
        """It does not any more."""
        names = self._named[type_url]
        entry = names[name]
        if isinstance(entry, int):
            assert entry == number
            del names[name]
            if not names:
                del self._named[type_url]  # types come from peers
            return
        place = bisect_left(entry, number)
        assert entry[place] == number
        del entry[place]
        if len(entry) == 1:
            names[name] = entry[0]

    def share(self, type_url: str, names: frozenset[str], number: int) -> None:
        """A member asks for all of these. Cost: O(names) for the first of those that do, and for the last one to go."""
        shared = self._shared.get((type_url, names))
        if shared is None:
            shared = self._shared[type_url, names] = self._number()
            self._sharers[shared] = set()
            for name in names:
                self.put(type_url, name, shared)
        self._sharers[shared].add(number)

    def unshare(self, type_url: str, names: frozenset[str], number: int) -> None:
        shared = self._shared[type_url, names]
        sharers = self._sharers[shared]
        sharers.discard(number)
        if not sharers:
            for name in names:
                self.remove(type_url, name, shared)
            del self._shared[type_url, names], self._sharers[shared]
            self._unused.append(shared)

    def is_shared(self, type_url: str, names: frozenset[str]) -> bool:
        """Whether more than one member asks for all of these."""
        return len(self._sharers[self._shared[type_url, names]]) > 1

    def _number(self) -> int:
        """One that stands for nobody yet."""
        return self._unused.pop() if self._unused else len(self._members) + len(self._sharers)


class Listening:
    """What one subscription of a member has in the index: sets that it may share, and names of its own."""

    __slots__ = ("_given_up", "_hears_all", "_interest", "_number", "_shared", "_type_url")

    def __init__(self, interest: Interest[Any], number: int, type_url: str) -> None:
        self._interest = interest
        self._number = number
        self._type_url = type_url
        self._shared: tuple[frozenset[str], ...] = ()
        self._given_up = 0
        """Names of the shared sets that it does not ask for any more."""
        self._hears_all = False

    def hear_all(self, *, hears: bool) -> None:
        """It hears of every name of the type, or not any more."""
        if hears != self._hears_all:
            self._hears_all = hears
            self._interest.hear_all(self._type_url, self._number, hears=hears)

    def share(self, new: frozenset[str], names: Set[str]) -> None:
        """New names that others may ask for together as well; `names` are all from now on, as below."""
        if len(self._shared) >= _SETS_AT_MOST:
            self._part_if_alone(names - new)
            for name in new:
                self.add(name, names)
        elif new and new not in self._shared:
            self._shared = (*self._shared, new)
            self._interest.share(self._type_url, new, self._number)

    def add(self, name: str, names: Set[str]) -> None:
        """A new name."""
        if self._is_shared(name):
            self._given_up = max(0, self._given_up - 1)
            return
        self._part_if_alone(names)
        self._interest.put(self._type_url, name, self._number)

    def drop(self, name: str, names: Set[str]) -> None:
        """A name that it asked for."""
        if not self._is_shared(name):
            self._interest.remove(self._type_url, name, self._number)
            return
        self._given_up += 1
        if self._given_up * 2 > sum(map(len, self._shared)):
            self._part(names)
        else:
            self._part_if_alone(names)

    def close(self, names: Set[str]) -> None:
        """Its stream has ended."""
        self.hear_all(hears=False)
        for name in names - frozenset().union(*self._shared) if self._shared else names:
            self._interest.remove(self._type_url, name, self._number)
        self._unshare()

    def _is_shared(self, name: str) -> bool:
        return any(name in names for names in self._shared)

    def _part_if_alone(self, names: Set[str]) -> None:
        """A set that nobody shares would be in memory twice: here, and in `names`, which differ from now on."""
        if self._shared and not any(self._interest.is_shared(self._type_url, shared) for shared in self._shared):
            self._part(names)

    def _part(self, names: Set[str]) -> None:
        """What it asks for has little to do with the shared sets any more. Cost: O(names)."""
        for name in frozenset().union(*self._shared) & names:
            self._interest.put(self._type_url, name, self._number)
        self._unshare()

    def _unshare(self) -> None:
        for shared in self._shared:
            self._interest.unshare(self._type_url, shared, self._number)
        self._shared, self._given_up = (), 0


def _discard(numbers: dict[str, set[int]], key: str, number: int) -> None:
    """Scopes and types come from peers: nothing is kept of one that nobody has."""
    found = numbers.get(key)
    if found is not None:
        found.discard(number)
        if not found:
            del numbers[key]
