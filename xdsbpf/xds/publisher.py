"""Keeps the resource store in step with what the compiler's generators produce.

In: generators, and revisions of the database. Out: batches for the store, one revision of it per commit, and
the list of what could not be built. Called by the control plane's owner task; the only one that watches
outputs of its database. Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from xdsbpf.compile.generator import Generator
from xdsbpf.incremental import ABSENT, Absent, Database, Failure, Revision
from xdsbpf.model.resource import Resource
from xdsbpf.xds.store import Changes, Key, ResourceStore


class Slot(msgspec.Struct, frozen=True, order=True):
    """Where a resource goes; an empty `name` stands for the list of names of that family."""

    scope: str
    type_url: str
    name: str


class _Output:
    """A watched query: its last good value, why there is no newer one, and who takes it as the resource `name`."""

    __slots__ = ("failure", "name", "takers", "value")

    def __init__(self, name: str, takers: tuple[Generator, ...]) -> None:
        self.name = name
        self.takers = takers
        self.value: Any = ABSENT
        self.failure = ""


class Publisher:
    """Watches generators and translates revisions to the store.

    A build that fails keeps its last good resource in the store and is in `failures`; a failed list of
    names keeps all of them.
    """

    def __init__(self, database: Database, store: ResourceStore) -> None:
        self._database = database
        self._store = store
        self._outputs: dict[Callable[..., Any], dict[tuple[Any, ...], _Output]] = {}
        """Watched queries by function, then arguments: a key of both would cost each a tuple more."""
        self._builds: dict[Generator, dict[str, _Output]] = {}
        self._families: dict[tuple[str, str], tuple[Generator, ...]] = {}
        """Generators by scope and type; mostly one, and the first one that builds a name counts."""
        self._shared: set[tuple[str, str]] = set()
        """Families of several generators."""
        self._alone: dict[Generator, tuple[Generator, ...]] = {}  # one tuple for all outputs of a generator
        self._touched: dict[str, dict[Key, _Output | None]] = {}
        """What to put in the store, by scope, and the output that it is taken from; None: it must be looked up."""
        self._failures: dict[tuple[Generator, Slot], str] = {}

    @property
    def failures(self) -> Mapping[Slot, str]:
        """What the store does not hold as compiled, and why; sorted."""
        found = {slot: text for (_, slot), text in self._failures.items()}
        for family in self._shared:
            names = (name for generator in self._families[family] for name in self._builds[generator])
            for name in dict.fromkeys(names):
                slot = Slot(*family, name)
                number = len(self._built(*family, name))
                if number > 1:
                    found[slot] = f"{number} generators build {name!r}; the first one counts"
        return dict(sorted(found.items()))

    def add(self, generator: Generator) -> None:
        """Start to watch a family; its resources are in the next `publish`. Adding it again does nothing."""
        if generator not in self._builds:
            self._builds[generator] = {}
            family = (generator.scope, generator.type_url)
            self._families[family] = (*self._families.get(family, ()), generator)
            if len(self._families[family]) > 1:
                self._shared.add(family)
            self._watch(generator.names, generator.args, generator, "")

    def remove(self, generator: Generator) -> None:
        """Stop watching a family; its resources leave the store with the next commit."""
        for name in tuple(self._builds[generator]):
            self._drop(generator, name)
        self._unwatch(generator.names, generator.args, generator)
        self._failures.pop((generator, _slot(generator, "")), None)
        del self._builds[generator], self._alone[generator]
        family = (generator.scope, generator.type_url)
        rest = tuple(other for other in self._families[family] if other != generator)
        if rest:
            self._families[family] = rest
        else:
            del self._families[family]  # scopes are named by clients: nothing is kept of one that is gone
        if len(rest) < 2:
            self._shared.discard(family)

    def publish(self) -> Changes:
        """Drain the database until it is quiet, then commit.

        A shell that must not block does the same with `Database.steps`, `take` and `commit`.
        """
        while (revision := self._database.drain()) is not None:
            self.take(revision)
        return self.commit()

    def take(self, revision: Revision) -> None:
        """Note the outputs of a revision; new names are watched, so drain again before `commit`."""
        for changed in revision.outputs:
            try:
                output = self._outputs[changed.query][changed.args]
            except KeyError:
                continue  # somebody else's watch
            output.failure = _defect_of(changed.value, output)
            if not output.failure:
                output.value = changed.value
            for taker in output.takers:
                if taker in output.takers:
                    self._settle(output, taker)

    def commit(self) -> Changes:
        """Apply everything taken since the last commit to the store, as one revision of it."""
        touched, self._touched = self._touched, {}
        return self._store.set_all({scope: self._wanted(scope, outputs) for scope, outputs in touched.items()})

    def _wanted(self, scope: str, outputs: dict[Key, _Output | None]) -> dict[Key, Resource | None]:
        """What the store is to hold of a scope, None for what is gone; that comes first."""
        puts: dict[Key, Resource | None] = {}
        wanted: dict[Key, Resource | None] = {}
        for key, output in outputs.items():
            value: Resource | Absent
            if output is None or (scope, key[0]) in self._shared:
                value = next(iter(self._built(scope, *key)), ABSENT)
            else:
                value = output.value
            if value is ABSENT:
                wanted[key] = None
            else:
                puts[key] = value
        wanted.update(puts)
        return wanted

    def slots_of(self, outputs: Iterable[tuple[Callable[..., Any], tuple[Any, ...]]]) -> set[Slot]:
        """Where the resources (and lists of names) go that these watched queries build."""
        found = (self._outputs.get(query, {}).get(args) for query, args in outputs)
        return {_slot(taker, output.name) for output in found if output is not None for taker in output.takers}

    def _built(self, scope: str, type_url: str, name: str) -> list[Resource]:
        """What the generators of a slot make of it, the one that was added first to the front."""
        found = (self._builds[generator].get(name) for generator in self._families.get((scope, type_url), ()))
        return [output.value for output in found if output is not None and output.value is not ABSENT]

    def _watch(self, query: Callable[..., Any], args: tuple[Any, ...], generator: Generator, name: str) -> _Output:
        outputs = self._outputs.setdefault(query, {})
        output = outputs.get(args)
        if output is None:
            output = _Output(name, self._alone.setdefault(generator, (generator,)))
            outputs[self._database.watch(query, *args)] = output
        else:
            output.takers = (*output.takers, generator)
            self._settle(output, generator)
        return output

    def _unwatch(self, query: Callable[..., Any], args: tuple[Any, ...], generator: Generator) -> None:
        outputs = self._outputs[query]
        output = outputs[args]
        output.takers = tuple(taker for taker in output.takers if taker != generator)
        if not output.takers:
            del outputs[args]
            if not outputs:
                del self._outputs[query]
            self._database.unwatch(query, *args)

    def _settle(self, output: _Output, generator: Generator) -> None:
        if output.failure:
            self._failures[generator, _slot(generator, output.name)] = output.failure
            return
        if self._failures:
            self._failures.pop((generator, _slot(generator, output.name)), None)
        if output.name:
            self._touched.setdefault(generator.scope, {})[generator.type_url, output.name] = output
        else:
            self._rename(generator, () if output.value is ABSENT else output.value)

    def _rename(self, generator: Generator, wanted: tuple[str, ...]) -> None:
        builds = self._builds[generator]
        for name in builds.keys() - set(wanted):
            self._drop(generator, name)
        for name in wanted:
            if name not in builds:
                builds[name] = self._watch(generator.build, (*generator.args, name), generator, name)

    def _drop(self, generator: Generator, name: str) -> None:
        del self._builds[generator][name]
        self._unwatch(generator.build, (*generator.args, name), generator)
        self._failures.pop((generator, _slot(generator, name)), None)
        self._touched.setdefault(generator.scope, {})[generator.type_url, name] = None


def _defect_of(value: Any, output: _Output) -> str:
    """Why a new value cannot be taken: the query failed, or made a resource that it was not asked for; "" if fine."""
    if isinstance(value, Failure):
        return str(value)
    for generator in output.takers if output.name and value is not ABSENT else ():
        if value.type_url != generator.type_url or value.name != output.name:
            return f"the build of {output.name!r} made {value.name!r} of {value.type_url}"
    return ""


def _slot(generator: Generator, name: str) -> Slot:
    return Slot(generator.scope, generator.type_url, name)
