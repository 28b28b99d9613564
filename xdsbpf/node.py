"""Composition root of the privileged process `xdsbpf agent`.

Opens the datapath, attaches it, and runs client, enrolment, Envoy and the status service around one
main loop. SIGTERM ends the agent only: the pinned datapath and Envoy go on serving, and the next
agent adopts both without a gap (that is an upgrade); `stop_envoy` ends Envoy too, `detach` removes
everything. Imports no manifest reader and no compiler: a YAML bug must not be a root bug.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path

import msgspec
import structlog

from xdsbpf import __version__
from xdsbpf._pb.xdsbpf.agent.v1 import agent_pb2
from xdsbpf.agent.client import DatapathClient, check_address
from xdsbpf.agent.credentials import Credentials, envoy_files, remove_sets
from xdsbpf.agent.enroller import Enroller
from xdsbpf.agent.envoy import EnvoyOptions, EnvoySupervisor
from xdsbpf.agent.loop import AgentLoop
from xdsbpf.agent.plan import Cgroups
from xdsbpf.agent.received import Received
from xdsbpf.agent.reconcile import Reconciler
from xdsbpf.agent.status import StatusServer
from xdsbpf.datapath.attach import Attachments, detach_all
from xdsbpf.datapath.loader import Datapath, open_datapath
from xdsbpf.datapath.namespaces import cgroup_id
from xdsbpf.envoy_binary import find_binary
from xdsbpf.errors import ConfigError, DatapathError
from xdsbpf.model.names import NodeId
from xdsbpf.xds.tls import TlsFiles

_LOG = structlog.get_logger()
PROXY_CGROUP = "proxy"
STATUS_SOCKET = "agent.sock"


class NodeAgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is started with.

    `xds`: unix:/path or loopback host:port; with `tls` any host:port, whose certificate bears `tls_server_name` or
    else that host. `cgroup_root`: cgroup v2 directory above this node's
    workloads; Envoy runs in its child `proxy`. `pin_root`: directory inside a BPF file system.
    `envoy` off: the user runs Envoy (the bootstrap is written all the same). `strict_envoy` makes
    deprecated Envoy fields an error.
    """

    node: str
    xds: str
    cgroup_root: Path
    pin_root: Path = Path("/sys/fs/bpf/xdsbpf")
    state_dir: Path = Path("/run/xdsbpf")
    envoy: bool = True
    envoy_binary: Path | None = None
    concurrency: int = 2
    domain: str = "cluster.local"
    stop_envoy: bool = False
    strict_envoy: bool = False
    node_address: str = "127.0.0.1"
    tls: TlsFiles | None = None
    tls_server_name: str = ""

    @property
    def status_socket(self) -> Path:
        """Where the status service listens."""
        return self.state_dir / STATUS_SOCKET

    @property
    def proxy_cgroup(self) -> Path:
        """Cgroup of the node's Envoy."""
        return self.cgroup_root / PROXY_CGROUP

    @property
    def envoy_tls(self) -> Path:
        """Where the node's Envoy finds its certificate for the control plane."""
        return self.state_dir / "envoy" / "tls"


def run(config: NodeAgentConfig) -> int:
    """Run the agent until SIGTERM or SIGINT. Returns: the exit code, 0.

    Raises: ConfigError before anything is touched; DatapathError if the kernel refuses the programs.
    """
    check_address(config.xds, is_secure=config.tls is not None)
    credentials = None
    if config.tls is not None:
        credentials = Credentials(config.tls, config.xds, config.tls_server_name, config.envoy_tls)
    _check_node_name(config.node)
    if not (config.cgroup_root / "cgroup.procs").exists():
        raise ConfigError(f"{config.cgroup_root} is no cgroup v2 directory")
    options = _envoy_options(config)
    config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_agent(config.state_dir):
        if credentials is None:
            remove_sets(config.envoy_tls)
        else:
            credentials.install()
        asyncio.run(_run(config, options, credentials))
    return 0


def detach(config: NodeAgentConfig) -> None:
    """Remove everything that agents of this configuration left: links first, then maps, then Envoy.

    New connections go their ordinary way from the first step on. Needs no control plane; again is a
    no-op. Raises: ConfigError while an agent is running; DatapathError.
    """
    if not config.state_dir.exists():
        detach_all(config.pin_root)
        return
    with _only_agent(config.state_dir):
        detach_all(config.pin_root)
        remove_sets(config.envoy_tls)
        asyncio.run(EnvoySupervisor(_envoy_options(msgspec.structs.replace(config, envoy=False))).stop())
    with contextlib.suppress(FileNotFoundError):
        config.proxy_cgroup.rmdir()


def _envoy_options(config: NodeAgentConfig) -> EnvoyOptions:
    return EnvoyOptions(
        node=config.node,
        xds=config.xds,
        directory=config.state_dir / "envoy",
        cgroup=config.proxy_cgroup,
        binary=find_binary(config.envoy_binary) if config.envoy else None,
        concurrency=config.concurrency,
        domain=config.domain,
        strict=config.strict_envoy,
        tls=None if config.tls is None else envoy_files(config.envoy_tls, config.tls_server_name),
    )


def _check_node_name(node: str) -> None:
    if not node or "~" in node or not node.isprintable():
        raise ConfigError(f"node name {node!r} is empty, not printable or contains '~'")


@contextlib.contextmanager
def _only_agent(state_dir: Path) -> Iterator[None]:
    """Hold the lock of a state directory; two agents would undo each other's writes."""
    descriptor = os.open(state_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise ConfigError(f"another agent runs with the state directory {state_dir}") from err
        yield
    finally:
        os.close(descriptor)


async def _run(config: NodeAgentConfig, options: EnvoyOptions, credentials: Credentials | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with open_datapath(config.pin_root) as datapath:
        _LOG.info("agent.datapath_opened", adopted=datapath.adopted, pin_root=str(config.pin_root))
        reconciler = _attached(config, datapath)
        changed = asyncio.Event()
        received = Received(config.node)
        node_id = str(NodeId("agent", config.node_address, config.node, config.domain))
        client = DatapathClient(config.xds, node_id, received, changed, credentials)
        enroller = Enroller(config.cgroup_root, changed)
        envoy = EnvoySupervisor(options)
        loop = AgentLoop(received, reconciler, client, enroller, envoy, changed)

        async def status() -> agent_pb2.Status:
            return await _status(config, loop, client, enroller, envoy, reconciler, credentials)

        server = StatusServer(config.status_socket, datapath.tables, status, loop.nobodies)
        await server.start()
        try:
            watching = () if credentials is None else (credentials.run(),)
            await _until(stop, client.run(), enroller.run(), envoy.run(), loop.run(), *watching)
        finally:
            await server.stop()
            if config.stop_envoy:
                await envoy.stop()
    _LOG.info("agent.stopped", envoy_pid=envoy.pid)


async def _until(stop: asyncio.Event, *services: Coroutine[object, object, None]) -> None:
    """Run services until `stop`; the first one that fails ends all, and its error is raised."""
    tasks = [asyncio.create_task(service) for service in services]
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait((*tasks, stopping), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (*tasks, stopping):
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)


def _attached(config: NodeAgentConfig, datapath: Datapath) -> Reconciler:
    """Attach everything in an order that leaves no instant with a wrong answer, then read the maps."""
    config.proxy_cgroup.mkdir(exist_ok=True)
    cgroups = Cgroups(proxy=cgroup_id(config.proxy_cgroup), agent=_own_cgroup(config.cgroup_root))
    attachments = Attachments(datapath)
    held = datapath.tables.config()
    # Before the hooks: without these ids the proxy's own connects would be translated (loop).
    datapath.tables.set_config(msgspec.structs.replace(held, proxy_cgroup=cgroups.proxy, agent_cgroup=cgroups.agent))
    attachments.attach_proxy(config.proxy_cgroup)
    attachments.attach_node(config.cgroup_root)
    for ifindex in attachments.veths():
        try:
            # An earlier agent's link gets this version's program.
            attachments.attach_veth(ifindex)
        except DatapathError as err:
            _LOG.info("agent.interface_gone", ifindex=ifindex, error=str(err))
            attachments.detach_veth(ifindex)
    return Reconciler(datapath.tables, attachments, cgroups)


def _own_cgroup(root: Path) -> int:
    """Id of the agent's own cgroup if it is strictly below `root`, else 0: then no hook sees it.

    Never the root's own id: that would exempt every workload.
    """
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::/"):
            for mount in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
                own = mount / line.removeprefix("0::/")
                if own.is_dir() and own != root and own.is_relative_to(root):
                    return cgroup_id(own)
    return 0


async def _status(
    config: NodeAgentConfig,
    loop: AgentLoop,
    client: DatapathClient,
    enroller: Enroller,
    envoy: EnvoySupervisor,
    reconciler: Reconciler,
    credentials: Credentials | None,
) -> agent_pb2.Status:
    findings = enroller.findings
    problems = [
        agent_pb2.Problem(subject=f"{p.type_url.rpartition('.')[2]} {p.name}", message=p.message) for p in loop.problems
    ]
    problems += [
        agent_pb2.Problem(
            subject=workload,
            message=f"nobody that a rule allows, because its interface is not guarded: {reason}",
            hint="looked for again until it is found",
        )
        for workload, reason in sorted(findings.missing.items())
    ]
    if reconciler.drift:
        message = f"{reconciler.drift} entries were changed by somebody else and repaired"
        problems.append(agent_pb2.Problem(subject="maps", message=message))
    if not await envoy.has_control_plane():
        problems.append(agent_pb2.Problem(subject="Envoy", message="it has no connection to the control plane"))
    if credentials is not None:
        problems += [agent_pb2.Problem(subject="certificate", message=message) for message in credentials.problems()]
    return agent_pb2.Status(
        node=config.node,
        version=__version__,
        synced=loop.synced,
        xds_state=client.state,
        envoy_state=await envoy.state(),
        envoy_pid=envoy.pid,
        problems=problems,
        enrolled=sorted(found.workload for found in findings.enrolled),
        not_enrolled=sorted(findings.missing),
        certificate=None if credentials is None else credentials.status(),
    )
