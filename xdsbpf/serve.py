"""Composition root of the unprivileged process: sources, compiler, xDS server.

One event loop, one owner of the database. A batch from a source is applied at once; the compile task
works in slices of a few milliseconds, so that streams are served meanwhile, and publishes one
revision when nothing is left to do.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from pathlib import Path

import msgspec
import structlog
from prometheus_client import Histogram

from xdsbpf.client_views import ClientViews
from xdsbpf.compile.client_metadata import without_effect
from xdsbpf.compile.raw.resources import Globs
from xdsbpf.compile.views import GRPC, SIDECAR, ClientView, client_scopes, client_view, is_mesh_client
from xdsbpf.compiler import Compiler
from xdsbpf.diagnostics import State
from xdsbpf.errors import ConfigError, ProtocolError
from xdsbpf.mesh.inputs import MeshSettings
from xdsbpf.model.names import parse_node_id
from xdsbpf.plugin import LoadedPlugin
from xdsbpf.sources.catalog import Catalog, CatalogDelta
from xdsbpf.sources.envoy_validation import EnvoyValidator
from xdsbpf.sources.files import FileSource
from xdsbpf.xds import client_status, health, load_reporting, reflection
from xdsbpf.xds.access import Access, AccessControl
from xdsbpf.xds.addresses import listen_target, tls_target
from xdsbpf.xds.admission import AdmissionLimits
from xdsbpf.xds.barriers import Barriers
from xdsbpf.xds.certificates import Certificates
from xdsbpf.xds.client_status import ClientStatus
from xdsbpf.xds.health import Health
from xdsbpf.xds.load_reporting import LoadReporting
from xdsbpf.xds.load_reports import LoadReports
from xdsbpf.xds.peers import AllowRule, PeerRules
from xdsbpf.xds.publisher import Slot
from xdsbpf.xds.reflection import reflection_handlers
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.services import METHODS
from xdsbpf.xds.store import AGENT, ENVOY, NODE_ENVOY, View
from xdsbpf.xds.tls import TlsFiles
from xdsbpf.xds.transport import Peer
from xdsbpf.xds.transports import DEFAULT_TRANSPORT, TRANSPORTS

log = structlog.get_logger(__name__)

COLLECT_AFTER = (20_000, 2, 2)
"""`gc.set_threshold`: a full collection comes after 80,000 new objects, with Python's own values after 70,000. A stream
that is over leaves a hundred."""

SLICE_S = 0.005
"""Longest the compile task keeps the loop to itself."""

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Buckets of the compile histogram, in seconds."""

SERVICES = (*dict.fromkeys(path.split("/")[1] for path in METHODS), load_reporting.SERVICE, client_status.SERVICE)
"""Full names of the gRPC services, for health and reflection."""

ACCESS = {
    health.SERVICE: Access.ANYONE,
    client_status.SERVICE: Access.ADMIN,  # it shows every client's configuration
    **dict.fromkeys(reflection.SERVICES, Access.MEMBER),
}
"""Who may call what, beyond the peers of the mesh."""

KINDS = {"node": NODE_ENVOY, "agent": AGENT}


class ServeConfig(msgspec.Struct, frozen=True):
    """What `xdsbpf serve` was started with."""

    paths: tuple[Path, ...]
    envoy_paths: tuple[Path, ...] = ()
    plugins: tuple[LoadedPlugin, ...] = ()
    validate_with: Path | None = None
    """The Envoy that is asked about raw resources before they are taken."""
    listen: tuple[str, ...] = ("127.0.0.1:15010",)
    settings: MeshSettings = MeshSettings()
    transport: str = DEFAULT_TRANSPORT
    """A key of `TRANSPORTS`."""
    listen_tls: tuple[str, ...] = ()
    tls: TlsFiles | None = None
    """What `listen_tls` needs."""
    allow: tuple[AllowRule, ...] = ()
    admins: tuple[str, ...] = ()
    """Patterns of SPIFFE ids."""
    admission: AdmissionLimits = AdmissionLimits()
    drain_s: float = 5.0
    """At the end streams are sent away one by one within that time; few take less."""
    max_connection_age_s: float = 0.0
    """0: connections have no age."""
    quarantine: bool = True
    """See `Session`."""
    resource_errors: tuple[str, ...] = ()
    """Globs of the node ids of clients that read `resource_errors`."""


def spare_collector() -> None:
    """Keep the garbage collector off what lives as long as the process: all that is there now.

    From now on it runs after so many new objects that a change on its way to thousands of streams does not start it:
    it took a fifth of the CPU time of a push. What it is there for is little: connections that are over.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def view_of(node_id: str, globs: Iterable[Globs] = (), own: ClientView | None = None) -> View:
    """The view of a client, where `globs` are those of the raw resources that there are, `own` its `client_view`.

    Raises: ProtocolError for a node id of the mesh's form and a type that is not served.
    """
    scopes = client_scopes(node_id, globs, own)
    if own is not None:
        return View(scopes=scopes, node="", kind=own.kind)
    if not is_mesh_client(node_id):
        return View(scopes=scopes, node="", kind=ENVOY)
    parsed = parse_node_id(node_id)
    return View(scopes=scopes, node=parsed.name, kind=KINDS[parsed.type])


@contextmanager
def _collector_off() -> Iterator[None]:
    """No collections while nearly all that is made stays: they cost a quarter of a large first compile."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class ControlPlane:
    """The running control plane. `run` until cancelled; the admin endpoint reads the attributes."""

    def __init__(self, config: ServeConfig) -> None:
        """Raises: ConfigError for a path that does not exist or an address it may not listen on."""
        for address in config.listen:
            listen_target(address)
        for address in config.listen_tls:
            tls_target(address)
        if config.listen_tls and config.tls is None:
            raise ConfigError("mutual TLS needs a certificate, its key and the authorities of clients")
        self.config = config
        self.certificates = None if config.tls is None else Certificates(config.tls)
        self.compiler = Compiler(config.settings, plugins=config.plugins)
        self.load_reports = LoadReports()
        self.health = Health(SERVICES)
        self._dirty = asyncio.Event()
        self.client_views = ClientViews(self.compiler, self._dirty.set)
        self._is_moved = False
        self.peers = PeerRules(
            config.settings.trust_domain,
            config.settings.domain,
            allow=config.allow,
            admins=config.admins,
            account_of=self.compiler.account_of,
        )
        self.access = AccessControl(self.peers, ACCESS, time.monotonic, config.admission)
        self.server = XdsServer(
            self.compiler.store,
            self.resolve_view,
            time.monotonic,
            prepare=self._prepare,
            authorize=self._authorize,
            access=self.access,
            more_handlers={
                **self.health.handlers(),
                **reflection_handlers(SERVICES),
                **ClientStatus(self.compiler.store, lambda: self.server.streams.sessions()).handlers(),
                **LoadReporting(self.load_reports, self._admit).handlers(),
            },
            quarantine=config.quarantine,
            max_age_s=config.max_connection_age_s,
            resource_errors=config.resource_errors,
            transport=lambda handlers: TRANSPORTS[config.transport](handlers, max_age_s=config.max_connection_age_s),
        )
        validator = EnvoyValidator(config.validate_with) if config.validate_with is not None else None
        self.source = FileSource(config.paths, self.take, envoy_paths=config.envoy_paths, validator=validator)
        self.ready = asyncio.Event()
        self.bound: tuple[str, ...] = ()
        self.compile_seconds = Histogram(
            "xdsbpf_compile_seconds",
            "From taking a change to publishing it, slices for streams included",
            buckets=BUCKETS_S,
            registry=None,
        )
        self._failures: Mapping[Slot, str] = {}
        self._globs: tuple[Globs, ...] = ()
        self.barriers = Barriers()
        self._taken_at: float | None = None
        """When the oldest change came that is not published yet."""

    @property
    def catalog(self) -> Catalog:
        """The objects in force and their states."""
        return self.source.catalog

    def resolve_view(self, node_id: str, metadata: Mapping[str, object]) -> View:
        """The view of a client at present. Raises: ProtocolError."""
        own = client_view(node_id, metadata, self.compiler.labels_of)
        if own is not None and not self.client_views.is_compiled(own):
            raise ProtocolError("UNAVAILABLE", "the client's labels have changed: connect again")
        return view_of(node_id, self.compiler.globs, own)

    def _prepare(self, node_id: str, metadata: Mapping[str, object]) -> AbstractAsyncContextManager[None]:
        """A client with a view of its own waits until that is compiled. Raises: ProtocolError."""
        own = client_view(node_id, metadata, self.compiler.labels_of)
        if own is None:
            return nullcontext()
        if own.kind == SIDECAR and (ignored := without_effect(metadata)):
            log.warning("serve.metadata_ignored", node=node_id, reasons=ignored)
        return self.client_views.use(node_id, own)

    def _authorize(self, peer: Peer, said: str, metadata: Mapping[str, object]) -> str:
        """See `Authorize`; called before anything is done for the peer."""
        node_id = self.peers.node_id_of(peer, said)
        own = client_view(node_id, metadata, self.compiler.labels_of)
        self.peers.check_claim(peer, node_id, metadata, is_grpc=own is not None and own.kind == GRPC)
        return node_id

    def _admit(self, peer: Peer, said: str, metadata: Mapping[str, object]) -> str:
        """Who may report load: whoever would be served; see `Authorize`."""
        node_id = self._authorize(peer, said, metadata)
        if client_view(node_id, metadata, self.compiler.labels_of) is None:
            view_of(node_id)
        return node_id

    def confirm(self) -> int:
        """Let held removals happen; returns how many objects were held."""
        held = sum(status.state is State.PENDING for status in self.catalog.states())
        self.source.confirm()
        return held

    def take(self, delta: CatalogDelta) -> None:
        """Apply what a source found; the compile task publishes it."""
        if self._taken_at is None:
            self._taken_at = time.monotonic()
        self.compiler.apply(delta.puts, delta.removes)
        touched = (*(id for id, _ in delta.puts), *delta.removes)
        self.barriers.taken(touched)
        self._is_moved |= self.client_views.concerns(touched)
        self._dirty.set()

    async def run(self) -> None:
        """Read, compile, serve. Listens only after the first full compile, so that no client ever
        takes an empty mesh for the truth. Raises: a group with ConfigError for an address that is taken."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.source.run())
            with _collector_off():
                await self.source.synced.wait()
                await self._compile()
                spare_collector()
            self.bound = await self._listen(tasks)
            for plugin in self.config.plugins:
                log.info("serve.plugin_used", name=plugin.name, version=plugin.version)
            log.info("serve.listening", addresses=self.bound, revision=self.compiler.store.revision)
            self.ready.set()
            self.health.set_serving(True)
            try:
                while True:
                    await self._dirty.wait()
                    await self._compile()
            finally:
                self.health.drain()
                await self.server.stop(1.0, self.config.drain_s)

    async def _listen(self, tasks: asyncio.TaskGroup) -> tuple[str, ...]:
        if self.certificates is None:
            return await self.server.start(self.config.listen)
        bound = await self.server.start(self.config.listen, self.config.listen_tls, self.certificates.material)
        tasks.create_task(self.certificates.watch(self.server.use_tls))
        return bound

    async def _compile(self) -> None:
        started = time.monotonic()
        self._dirty.clear()
        deadline = started + SLICE_S
        for _ in self.compiler.steps():
            if time.monotonic() >= deadline:
                await asyncio.sleep(0)
                deadline = time.monotonic() + SLICE_S
        changes = self.compiler.publish()
        self.client_views.published()
        since = self.server.streams.barrier()
        taken_at, self._taken_at = self._taken_at, None
        self.compile_seconds.observe(time.monotonic() - started)
        self._log_failures()
        if self._is_moved:
            self._is_moved = False
            self.server.views_changed()
        if changes:
            self.server.changed(changes, taken_at)
            self._follow_globs()
            count = sum(len(keys) for keys in changes.by_scope.values())
            elapsed_ms = round((time.monotonic() - started) * 1e3, 1)
            log.info("compile.finished", revision=changes.revision, resources=count, duration_ms=elapsed_ms)
        self.barriers.published(since, self.server.streams.barrier())

    def _follow_globs(self) -> None:
        """Raw resources for other nodes came or went: open streams see what their node id opens now."""
        if self.compiler.globs != self._globs:
            self._globs = self.compiler.globs
            self.server.views_changed()

    def _log_failures(self) -> None:
        """Once each: a failure is a defect of ours, and stays visible in `/objects` and the metrics."""
        failures = self.compiler.publisher.failures
        for slot, reason in failures.items():
            if self._failures.get(slot) != reason:
                log.error("compile.build_failed", type_url=slot.type_url, name=slot.name, reason=reason)
        self._failures = failures
