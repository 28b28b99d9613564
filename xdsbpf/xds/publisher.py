"""Keeps the resource store in step with what the compiler's generators produce.

In: generators, and revisions of the database. Out: batches for the store, one revision of it per commit, and
the list of what could not be built. Called by the control plane's owner task; the only one that watches
outputs of its database. Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from xdsbpf.compile.generator import Generator
from xdsbpf.incremental import ABSENT, Database, Failure, Revision
from xdsbpf.model.resource import Resource
from xdsbpf.xds.store import Batch, Changes, ResourceStore


class Slot(msgspec.Struct, frozen=True, order=True):
    """Where a resource goes; an empty `name` stands for the list of names of that family."""

    scope: str
    type_url: str
    name: str


class _Output:
    """A watched query: its last good value, and who takes it."""

    def __init__(self) -> None:
        self.value: Any = ABSENT
        self.failure: Failure | None = None
        self.takers: dict[tuple[Generator, str], None] = {}


_OutputKey = tuple[Callable[..., Any], tuple[Any, ...]]


class Publisher:
    """Watches generators and translates revisions to the store.

    A build that fails keeps its last good resource in the store and is in `failures`; a failed list of
    names keeps all of them.
    """

    def __init__(self, database: Database, store: ResourceStore) -> None:
        self._database = database
        self._store = store
        self._outputs: dict[_OutputKey, _Output] = {}
        self._names: dict[Generator, dict[str, None]] = {}
        self._built: dict[Slot, dict[Generator, Resource]] = {}
        self._touched: dict[Slot, None] = {}
        self._failures: dict[tuple[Generator, Slot], str] = {}

    @property
    def failures(self) -> Mapping[Slot, str]:
        """What the store does not hold as compiled, and why; sorted."""
        found = {slot: text for (_, slot), text in self._failures.items()}
        for slot, built in self._built.items():
            if len(built) > 1:
                found[slot] = f"{len(built)} generators build {slot.name!r}; the first one counts"
        return dict(sorted(found.items()))

    def add(self, generator: Generator) -> None:
        """Start to watch a family; its resources are in the next `publish`. Adding it again does nothing."""
        if generator not in self._names:
            self._names[generator] = {}
            self._watch((generator.names, generator.args), generator, "")

    def remove(self, generator: Generator) -> None:
        """Stop watching a family; its resources leave the store with the next commit."""
        for name in tuple(self._names.pop(generator)):
            self._drop(generator, name)
        self._unwatch((generator.names, generator.args), generator, "")
        self._failures.pop((generator, _slot(generator, "")), None)

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
            output = self._outputs.get((changed.query, changed.args))
            if output is None:
                continue
            if isinstance(changed.value, Failure):
                output.failure = changed.value
            else:
                output.failure, output.value = None, changed.value
            for generator, name in tuple(output.takers):
                if (generator, name) in output.takers:
                    self._settle(output, generator, name)

    def commit(self) -> Changes:
        """Apply everything taken since the last commit to the store, as one revision of it."""
        puts: dict[str, list[Resource]] = {}
        removes: dict[str, list[tuple[str, str]]] = {}
        for slot in self._touched:
            built = self._built.get(slot)
            if built:
                puts.setdefault(slot.scope, []).append(next(iter(built.values())))
            else:
                removes.setdefault(slot.scope, []).append((slot.type_url, slot.name))
        self._touched.clear()
        scopes = dict.fromkeys((*puts, *removes))
        return self._store.apply_all(
            Batch(scope, tuple(puts.get(scope, ())), tuple(removes.get(scope, ()))) for scope in scopes
        )

    def _watch(self, key: _OutputKey, generator: Generator, name: str) -> None:
        output = self._outputs.get(key)
        if output is None:
            output = self._outputs[key] = _Output()
            self._database.watch(key[0], *key[1])
        output.takers[generator, name] = None
        self._settle(output, generator, name)

    def _unwatch(self, key: _OutputKey, generator: Generator, name: str) -> None:
        output = self._outputs[key]
        del output.takers[generator, name]
        if not output.takers:
            del self._outputs[key]
            self._database.unwatch(key[0], *key[1])

    def _settle(self, output: _Output, generator: Generator, name: str) -> None:
        slot = _slot(generator, name)
        if output.failure is not None:
            self._failures[generator, slot] = str(output.failure)
            return
        self._failures.pop((generator, slot), None)
        if not name:
            self._rename(generator, () if output.value is ABSENT else output.value)
        elif output.value is ABSENT:
            self._put(generator, slot, None)
        elif (output.value.type_url, output.value.name) == (generator.type_url, name):
            self._put(generator, slot, output.value)
        else:
            self._failures[generator, slot] = (
                f"the build of {name!r} made {output.value.name!r} of {output.value.type_url}"
            )

    def _rename(self, generator: Generator, wanted: tuple[str, ...]) -> None:
        present = self._names[generator]
        gone = present.keys() - set(wanted)
        for name in gone:
            del present[name]
            self._drop(generator, name)
        for name in wanted:
            if name not in present:
                present[name] = None
                self._watch((generator.build, (*generator.args, name)), generator, name)

    def _drop(self, generator: Generator, name: str) -> None:
        self._unwatch((generator.build, (*generator.args, name)), generator, name)
        slot = _slot(generator, name)
        self._failures.pop((generator, slot), None)
        self._put(generator, slot, None)

    def _put(self, generator: Generator, slot: Slot, resource: Resource | None) -> None:
        built = self._built.setdefault(slot, {})
        if resource is None:
            built.pop(generator, None)
        else:
            built[generator] = resource
        if not built:
            del self._built[slot]
        self._touched[slot] = None


def _slot(generator: Generator, name: str) -> Slot:
    return Slot(generator.scope, generator.type_url, name)
