"""Manifests in, resources of both planes out: the database, the publisher and the store as one value.

`serve`, `translate`, `analyze` and the benchmarks drive it. It does no I/O and keeps no time: a shell
hands it batches and lets it work step by step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from xdsbpf.compile.generator import Generator
from xdsbpf.compile.outputs import generators
from xdsbpf.diagnostics import Diagnostic, ObjectId, Origin
from xdsbpf.incremental import Database
from xdsbpf.mesh.findings import findings
from xdsbpf.mesh.identities import known_nodes
from xdsbpf.mesh.inputs import MESH, SETTINGS, MeshSettings, put_object, remove_object
from xdsbpf.mesh.summary import ServiceSummary, summaries
from xdsbpf.model.meta import Manifest
from xdsbpf.model.resource import Resource
from xdsbpf.xds.publisher import Publisher
from xdsbpf.xds.store import Changes, ResourceStore


class Compiler:
    """Owner of the database. Calls come from one task; a batch becomes visible with `publish`."""

    def __init__(self, settings: MeshSettings, *, check_values: bool = False) -> None:
        self.database = Database(check_values=check_values)
        self.store = ResourceStore()
        self.publisher = Publisher(self.database, self.store)
        self._generators: dict[tuple[str, str], Generator] = {}
        self._nodes: tuple[str, ...] = ()
        with self.database.change() as change:
            change.put(SETTINGS, MESH, settings)
        self.database.watch(known_nodes)
        self._use_nodes(())

    def apply(self, puts: Iterable[tuple[ObjectId, Manifest]], removes: Iterable[ObjectId] = ()) -> None:
        """Change inputs as one group; kinds that no query reads are ignored there."""
        with self.database.change() as change:
            for object_id in removes:
                remove_object(change, object_id)
            for object_id, manifest in puts:
                put_object(change, object_id, manifest)

    def add_nodes(self, names: Iterable[str]) -> None:
        """Build per-node resources for these nodes too, whether or not a manifest names them."""
        self._use_nodes(tuple(sorted({*self._nodes, *names})))

    def steps(self) -> Iterator[None]:
        """Recompute step by step; a shell yields to its loop between steps. `publish` must follow.

        New names and new nodes are watched on the way, so it drains until nothing changes any more.
        """
        while True:
            yield from self.database.steps()
            revision = self.database.published
            if revision is None:
                return
            self.publisher.take(revision)
            self.add_nodes(known_nodes(self.database))

    def publish(self) -> Changes:
        """Everything that `steps` has finished, moved into the store as one revision."""
        return self.publisher.commit()

    def compile(self) -> Changes:
        """`steps` to the end, then `publish`."""
        for _ in self.steps():
            pass
        return self.publish()

    def services(self) -> tuple[ServiceSummary, ...]:
        """Which plane carries each service port, and why."""
        return summaries(self.database)

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All findings of the mesh and of the resources, each once, sorted as they are printed."""
        database = self.database
        found = set(database.diagnostics(findings))
        for generator in self._generators.values():
            for name in generator.names(database, *generator.args):
                found.update(database.diagnostics(generator.build, *generator.args, name))
        return tuple(sorted(found, key=lambda d: (str(d.object), d.path, d.code, d.message)))

    def origins(self, scope: str, resource: Resource) -> tuple[Origin, ...]:
        """The parts of manifests that a resource of the store was made from."""
        generator = self._generators[scope, resource.type_url]
        return self.database.origins(generator.build, *generator.args, resource.name)

    def _use_nodes(self, nodes: tuple[str, ...]) -> None:
        wanted = {(entry.scope, entry.type_url): entry for entry in generators(nodes)}
        for key, generator in wanted.items():
            if key not in self._generators:
                self.publisher.add(generator)
                self._generators[key] = generator
        self._nodes = nodes
