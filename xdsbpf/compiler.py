"""Manifests in, resources of both planes out: the database, the publisher and the store as one value.

`serve`, `translate`, `analyze` and the benchmarks drive it. It does no I/O and keeps no time: a shell
hands it batches and lets it work step by step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Set
from typing import Any, Final

from xdsbpf.compile.generator import Generator
from xdsbpf.compile.outputs import generators, view_generators
from xdsbpf.compile.plugins import PluginError, empty_families, patched_types, plugged
from xdsbpf.compile.raw.resources import Globs, families
from xdsbpf.compile.views import ClientView
from xdsbpf.diagnostics import Diagnostic, ObjectId, Origin, Severity
from xdsbpf.incremental import ABSENT, Absent, Database, Table
from xdsbpf.mesh.findings import findings
from xdsbpf.mesh.identities import known_nodes
from xdsbpf.mesh.inputs import (
    MESH,
    PATCHED_TYPES,
    PODS,
    SETTINGS,
    MeshSettings,
    get_object,
    object_id,
    put_object,
    remove_object,
    table_of,
)
from xdsbpf.mesh.summary import ServiceSummary, summaries
from xdsbpf.model.meta import Manifest
from xdsbpf.model.resource import Resource
from xdsbpf.model.scalars import Labels
from xdsbpf.plugin import LoadedPlugin
from xdsbpf.xds.publisher import Publisher, Slot
from xdsbpf.xds.store import Changes, ResourceStore

BUILD_FAILED: Final = "XB9001"
"""A resource could not be built (a defect of ours); what proxies hold of it stays."""
PLUGIN_FAILED: Final = "XB9002"
"""A plug-in failed on a resource; what proxies hold of it stays."""
_FOLLOWED: Final = (known_nodes, families)
"""Watched queries that say what else is to be watched."""
DEFECT: Final = "this is a defect of xdsbpf: please report it with the manifest"


class Compiler:
    """Owner of the database. Calls come from one task; a batch becomes visible with `publish`."""

    def __init__(
        self, settings: MeshSettings, *, check_values: bool = False, plugins: tuple[LoadedPlugin, ...] = ()
    ) -> None:
        """Raises: ConfigError for a plug-in that patches what is not open to plug-ins."""
        self.plugins = plugins
        self.database = Database(check_values=check_values)
        self.store = ResourceStore()
        self.publisher = Publisher(self.database, self.store)
        self.generation = 0
        """Grows with every batch, node and commit; what is derived may be kept for as long as it stays."""
        self._generators: dict[tuple[str, str], Generator] = {}
        self._bases: dict[tuple[str, str], Generator] = {}
        """The same generators without plug-ins."""
        self._found: tuple[int, tuple[Diagnostic, ...]] = (-1, ())
        self._nodes: tuple[str, ...] = ()
        self._families: tuple[tuple[Globs, str], ...] = ()
        with self.database.change() as change:
            change.put(SETTINGS, MESH, settings)
            for type_url, plugin in patched_types(plugins).items():
                change.put(PATCHED_TYPES, type_url, plugin)
        self._shared: set[tuple[str, str]] = set()
        """Keys of the generators that are of no view alone."""
        self._views: Counter[str] = Counter()
        """How many views of each kind of client there are."""
        self.database.watch(known_nodes)
        self.database.watch(families)
        self._known_nodes: tuple[str, ...] = ()
        self._use((), ())

    def apply(self, puts: Iterable[tuple[ObjectId, Manifest]], removes: Iterable[ObjectId] = ()) -> None:
        """Change inputs as one group; kinds that no query reads are ignored there."""
        self.generation += 1
        with self.database.change() as change:
            for object_id in removes:
                remove_object(change, object_id)
            for object_id, manifest in puts:
                put_object(change, object_id, manifest)

    def add_nodes(self, names: Iterable[str]) -> None:
        """Build per-node resources for these nodes too, whether or not a manifest names them."""
        new = set(names).difference(self._nodes)
        if new:
            self._use(tuple(sorted(new.union(self._nodes))), self._families)

    def add_view(self, view: ClientView) -> None:
        """Build what the clients of a new view see. Cost: of that view, however many others there are."""
        self._add(view_generators(view))
        self._count_view(view, 1)

    def drop_view(self, view: ClientView) -> None:
        """Build no longer what only the clients of an added view saw."""
        self._drop((entry.scope, entry.type_url) for entry in view_generators(view))
        self._count_view(view, -1)

    def _count_view(self, view: ClientView, change: int) -> None:
        kinds = self._kinds
        self._views[view.kind] += change
        self.generation += 1
        if self._kinds != kinds:
            self._use(self._nodes, self._families)

    @property
    def _kinds(self) -> frozenset[str]:
        return frozenset(+self._views)

    def labels_of(self, namespace: str, pod: str) -> Labels | None:
        """The labels of a pod; None if there is none of that name."""
        manifest = self.database.input(PODS, object_id("Pod", namespace, pod))
        return None if manifest is ABSENT else manifest.metadata.labels

    def account_of(self, namespace: str, pod: str) -> str | None:
        """The service account of a pod; None if there is none of that name."""
        manifest = self.database.input(PODS, object_id("Pod", namespace, pod))
        return None if manifest is ABSENT else manifest.service_account

    def steps(self) -> Iterator[None]:
        """Recompute step by step; a shell yields to its loop between steps. `publish` must follow.

        New names and new nodes are watched on the way, so it drains until nothing is left.
        """
        while self.database.pending:
            yield from self.database.steps()
            revision = self.database.published
            if revision is None:
                return
            self.publisher.take(revision)
            # Of a failure what is known stays; `diagnostics` has the reason.
            new = {output.query: output.value for output in revision.outputs if output.query in _FOLLOWED}
            present, nodes = new.get(families), new.get(known_nodes)
            if isinstance(present, tuple):
                self._use(self._nodes, present)
            if isinstance(nodes, tuple):
                self._known_nodes = nodes
                self.add_nodes(nodes)

    def publish(self) -> Changes:
        """Everything that `steps` has finished, moved into the store as one revision."""
        self.generation += 1
        return self.publisher.commit()

    def compile(self) -> Changes:
        """`steps` to the end, then `publish`."""
        for _ in self.steps():
            pass
        return self.publish()

    @property
    def globs(self) -> tuple[Globs, ...]:
        """The distinct lists of globs that raw resources are addressed by; a client's view depends on them."""
        return tuple(dict.fromkeys(nodes for nodes, _ in self._families))

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that manifests name, sorted."""
        return self._known_nodes

    def get(self, object_id: ObjectId) -> Manifest | Absent | None:
        """An object as it was applied last; ABSENT if it is not there, None for a kind that no query reads."""
        return get_object(self.database, object_id)

    def made_from(self, objects: Set[ObjectId]) -> set[Slot]:
        """The resources (and lists of names) that were made from one of the objects; the inverse of `origins`.

        Cost: one visit per cell above them.
        """
        by_table: dict[Table[ObjectId, Any], set[ObjectId]] = {}
        for wanted in objects:
            table = table_of(wanted)
            if table is not None:
                by_table.setdefault(table, set()).add(wanted)
        outputs = (self.database.citing(table, ids) for table, ids in by_table.items())
        return self.publisher.slots_of(output for found in outputs for output in found)

    def services(self) -> tuple[ServiceSummary, ...]:
        """Which plane carries each service port, and why."""
        return summaries(self.database)

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All findings of the mesh and of the resources, each once, sorted as they are printed.

        Cost: `findings` and one visit per cell, once per generation; then nothing.
        """
        generation, found = self._found
        if generation != self.generation:
            reported, failure = self.database.reported(findings)
            every = {*reported, *self._failures()}
            if failure is not None:
                text = f"not everything could be examined: {failure}"
                every.add(Diagnostic(BUILD_FAILED, Severity.ERROR, None, "", text, DEFECT))
            found = tuple(sorted(every, key=lambda d: (str(d.object), d.path, d.code, d.message)))
            self._found = (self.generation, found)
        return found

    def _failures(self) -> Iterator[Diagnostic]:
        """What could not be built, on every object that it would have been made from."""
        for slot, reason in self.publisher.failures.items():
            what = f"{slot.type_url.rpartition('.')[2]} {slot.name!r}" if slot.name else f"names of {slot.type_url}"
            text = f"{what} could not be built; what proxies hold of it stays in force: {reason}"
            is_plugin = reason.startswith(f"{PluginError.__name__}: ")
            code, hint = (PLUGIN_FAILED, "repair or uninstall the plug-in") if is_plugin else (BUILD_FAILED, DEFECT)
            targets = sorted({origin.object for origin in self._origins_of(slot)})
            for target in targets:
                yield Diagnostic(code, Severity.ERROR, target, "", text, hint)
            if not targets:
                yield Diagnostic(code, Severity.ERROR, None, "", text, hint)

    def origins(self, scope: str, resource: Resource) -> tuple[Origin, ...]:
        """The parts of manifests that a resource of the store was made from."""
        return self._origins_of(Slot(scope, resource.type_url, resource.name))

    def _origins_of(self, slot: Slot) -> tuple[Origin, ...]:
        generator = self._generators[slot.scope, slot.type_url]
        if not slot.name:
            return self.database.origins(generator.names, *generator.args)
        return self.database.origins(generator.build, *generator.args, slot.name)

    def _use(self, nodes: tuple[str, ...], present: tuple[tuple[Globs, str], ...]) -> None:
        wanted = generators(nodes, present, self._kinds)
        wanted += empty_families(wanted, self.plugins)
        keys = {(entry.scope, entry.type_url) for entry in wanted}
        self._add(wanted)
        self._drop(self._shared - keys)
        self._shared = keys
        if nodes != self._nodes:
            self.generation += 1
            self._nodes = nodes
        self._families = present

    def _add(self, wanted: Iterable[Generator]) -> None:
        for generator in wanted:
            key = (generator.scope, generator.type_url)
            if self._bases.get(key) == generator:
                continue
            self._drop((key,))
            self._bases[key] = generator
            self._generators[key] = plugged(generator, self.plugins)
            self.publisher.add(self._generators[key])

    def _drop(self, keys: Iterable[tuple[str, str]]) -> None:
        for key in keys:
            if key in self._generators:
                self.publisher.remove(self._generators.pop(key))
                del self._bases[key]
