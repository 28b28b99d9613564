"""`serve` and `agent`: the two processes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from xdsbpf.cli.exits import CommandError, Exit, fail
from xdsbpf.cli.manifests import REGISTRY_ONLY, VALIDATE, VALIDATE_BINARY, validating_binary
from xdsbpf.errors import XdsbpfError

if TYPE_CHECKING:
    from xdsbpf.xds.tls import TlsFiles


def configure_logging(level: str) -> None:
    """structlog to standard error: console for people, JSON lines otherwise, UTC timestamps."""
    import logging

    import structlog

    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        fail(f"--log-level {level!r} is not a level", Exit.USAGE, hint="debug, info, warning or error")
    console = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )


def run_until_signal(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` on uvloop; the first SIGTERM or SIGINT cancels it and lets it clean up, a second one ends at once.

    Raises: what a task of `main` raised on purpose, or a CommandError for what the system refused. Anything
    else is a defect and keeps its traceback.
    """

    async def supervised() -> None:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)

        def stop() -> None:
            task.cancel()
            for number in signals:
                loop.remove_signal_handler(number)

        for number in signals:
            loop.add_signal_handler(number, stop)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    try:
        with asyncio.Runner(loop_factory=_uvloop) as runner:
            runner.run(supervised())
    except BaseExceptionGroup as group:
        raise _expected(group) from group


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _expected(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error to show for a group, or the group itself if any of it is a defect."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(reversed(error.exceptions))
        else:
            leaves.append(error)
    for leaf in leaves:
        if not isinstance(leaf, XdsbpfError | OSError):
            return group
    first = leaves[0]
    return CommandError(str(first)) if isinstance(first, OSError) else first


def serve(
    filename: list[Path] = typer.Option([], "--filename", "-f", help="manifest file or directory (repeatable)"),
    envoy_resources: list[Path] = typer.Option(
        [], "--envoy-resources", help="file or directory of raw Envoy resources (repeatable)"
    ),
    validate_with_envoy: bool = VALIDATE,
    envoy_binary: Path | None = VALIDATE_BINARY,
    listen: list[str] = typer.Option(
        ["127.0.0.1:15010"], "--listen", help="xDS address: loopback host:port or unix:PATH (repeatable)"
    ),
    admin: str = typer.Option("127.0.0.1:15014", "--admin", help="admin address: loopback host:port or unix:PATH"),
    rest_listen: str = typer.Option(
        "", "--rest-listen", help="xDS by polling (REST, JSON): loopback host:port or unix:PATH"
    ),
    service_cidr: str = typer.Option("240.240.0.0/16", help="range for services without a cluster IP"),
    trust_domain: str = typer.Option("cluster.local", help="SPIFFE trust domain of the mesh"),
    registry_only: bool = REGISTRY_ONLY,
    listen_tls: list[str] = typer.Option([], "--listen-tls", help="xDS address with mutual TLS, e.g. 0.0.0.0:15012"),
    tls_cert: Path | None = typer.Option(None, "--tls-cert", help="certificate chain of --listen-tls (PEM)"),
    tls_key: Path | None = typer.Option(None, "--tls-key", help="its private key (PEM)"),
    tls_ca: Path | None = typer.Option(None, "--tls-ca", help="CA of the clients' certificates (PEM)"),
    allow: list[str] = typer.Option(
        [], "--allow", help="SPIFFE-PATTERN=NODE-ID-GLOB: further node ids that peers may claim (repeatable)"
    ),
    allow_admin: list[str] = typer.Option([], "--allow-admin", help="SPIFFE pattern of peers that may use CSDS"),
    new_streams: float = typer.Option(200.0, "--new-streams-per-second", min=1, help="more wait in line"),
    streams_per_identity: int = typer.Option(1000, "--streams-per-identity", min=1, help="limit of one SPIFFE id"),
    drain_seconds: float = typer.Option(5.0, "--drain-seconds", min=0, help="spread of the streams' ends on SIGTERM"),
    max_connection_age: float = typer.Option(0.0, "--max-connection-age", min=0, help="seconds, 40 % more or less"),
    transport: str = typer.Option("grpcio", "--transport", help="grpcio, or fast: the built-in HTTP/2"),
    quarantine: bool = typer.Option(
        True,
        "--quarantine/--no-quarantine",
        help="let a client that refuses one resource of several have the others without it",
    ),
    resource_errors: list[str] = typer.Option(
        [], "--resource-errors", help="node id glob: clients that read resource_errors (xRFC TP3; repeatable)"
    ),
    log_level: str = typer.Option("info", help="debug, info, warning or error"),
) -> None:
    """Serve Envoys and agents what manifests say.

    Watches the manifests, compiles each change, and serves Envoys and node agents over xDS.
    """
    configure_logging(log_level)
    import ipaddress

    from xdsbpf.mesh.inputs import MeshSettings
    from xdsbpf.model.globs import MAX_GLOB
    from xdsbpf.serve import ControlPlane, ServeConfig
    from xdsbpf.sources.plugins import load_plugins
    from xdsbpf.web.admin import admin_app
    from xdsbpf.web.listening import bind_admin, bind_rest, serve_http
    from xdsbpf.web.rest import rest_app
    from xdsbpf.xds.admission import AdmissionLimits
    from xdsbpf.xds.peers import parse_allow_rule, parse_identity_pattern
    from xdsbpf.xds.transports import TRANSPORTS

    if transport not in TRANSPORTS:
        fail(f"--transport {transport!r} is not a transport", Exit.USAGE, hint=" or ".join(sorted(TRANSPORTS)))
    if not filename and not envoy_resources:
        fail("there is nothing to serve", Exit.USAGE, hint="name manifests with -f, Envoy's own with --envoy-resources")
    if any(not glob or len(glob) > MAX_GLOB for glob in resource_errors):
        fail(f"--resource-errors takes a glob of 1 to {MAX_GLOB} characters", Exit.USAGE, hint="for example 'grpc-*'")
    missing = [path for path in (*filename, *envoy_resources) if not path.exists()]
    if missing:
        fail(f"{missing[0]} does not exist", Exit.BAD_INPUT, hint="name files and directories")
    try:
        ipaddress.ip_network(service_cidr)
    except ValueError as error:
        fail(f"--service-cidr: {error}", Exit.USAGE, hint="for example 240.240.0.0/16")
    config = ServeConfig(
        paths=tuple(filename),
        envoy_paths=tuple(envoy_resources),
        plugins=load_plugins(),
        validate_with=validating_binary(validate_with_envoy, envoy_binary),
        listen=tuple(listen),
        settings=MeshSettings(trust_domain=trust_domain, service_cidr=service_cidr, registry_only=registry_only),
        transport=transport,
        listen_tls=tuple(listen_tls),
        tls=_tls_files(listen_tls, tls_cert, tls_key, tls_ca),
        allow=tuple(parse_allow_rule(text) for text in allow),
        admins=tuple(parse_identity_pattern(text) for text in allow_admin),
        drain_s=drain_seconds,
        max_connection_age_s=max_connection_age,
        admission=AdmissionLimits(
            per_s=new_streams,
            burst=math.ceil(new_streams),
            identity_per_s=new_streams / 2,
            identity_burst=math.ceil(new_streams / 2),
            streams_per_identity=streams_per_identity,
        ),
        quarantine=quarantine,
        resource_errors=tuple(resource_errors),
    )

    async def run() -> None:
        control_plane = ControlPlane(config)
        listener = bind_admin(admin)
        rest_listener = bind_rest(rest_listen) if rest_listen else None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(control_plane.run())
            tasks.create_task(serve_http(admin_app(control_plane), listener))
            if rest_listener is not None:
                polling = rest_app(control_plane.server.handlers, control_plane.ready.is_set)
                tasks.create_task(serve_http(polling, rest_listener))

    run_until_signal(run())


def _tls_files(
    addresses: list[str], certificate: Path | None, key: Path | None, authorities: Path | None
) -> TlsFiles | None:
    """What --listen-tls needs, or None without it."""
    from xdsbpf.xds.tls import TlsFiles

    if not addresses and certificate is None and key is None and authorities is None:
        return None
    if not addresses or certificate is None or key is None or authorities is None:
        fail("mutual TLS needs all of --listen-tls, --tls-cert, --tls-key and --tls-ca", Exit.USAGE)
    return TlsFiles(certificate, key, authorities)


def agent(
    node: str = typer.Option(..., "--node", help="name of this node"),
    xds: str = typer.Option(
        "127.0.0.1:15010", "--xds", help="control plane: loopback host:port or unix:PATH; any host:port with --tls-cert"
    ),
    tls_cert: Path | None = typer.Option(None, "--tls-cert", help="this node's certificate chain (PEM)"),
    tls_key: Path | None = typer.Option(None, "--tls-key", help="its private key (PEM)"),
    tls_ca: Path | None = typer.Option(None, "--tls-ca", help="CA of the control plane (PEM)"),
    tls_server_name: str = typer.Option(
        "", "--tls-server-name", help="DNS name or address in its certificate; default: the host"
    ),
    cgroup_root: Path | None = typer.Option(None, help="cgroup whose processes are served; default: all"),
    pin_root: Path = typer.Option(Path("/sys/fs/bpf/xdsbpf"), help="where programs and maps are pinned"),
    state_dir: Path = typer.Option(Path("/run/xdsbpf"), help="sockets and files of this agent"),
    envoy: bool = typer.Option(True, "--envoy/--no-envoy", help="run the node's Envoy, or leave that to you"),
    envoy_binary: Path | None = typer.Option(None, help="Envoy to run; default: beside Python, then PATH"),
    concurrency: int = typer.Option(2, min=1, help="worker threads of Envoy"),
    stop_envoy: bool = typer.Option(False, "--stop-envoy", help="on SIGTERM also stop Envoy"),
    strict_envoy: bool = typer.Option(False, "--strict-envoy", help="let Envoy refuse deprecated fields"),
    detach: bool = typer.Option(False, "--detach", help="remove programs, maps and Envoy of this node, and exit"),
    log_level: str = typer.Option("info", help="debug, info, warning or error"),
) -> None:
    """Keep this node as the control plane says.

    Loads the eBPF programs, keeps their maps, and runs the node's Envoy; needs root.

    Programs, maps and Envoy outlive the agent, so that a restart or an upgrade drops nothing; --detach removes them.
    A control plane on another machine is dialled with mutual TLS (--tls-cert, --tls-key, --tls-ca), by the agent and
    by its Envoy; replaced files are taken up within about a second.
    """
    configure_logging(log_level)
    from xdsbpf.xds.tls import TlsFiles

    tls = None
    if tls_cert is not None and tls_key is not None and tls_ca is not None:
        tls = TlsFiles(tls_cert, tls_key, tls_ca)
    elif tls_server_name or any((tls_cert, tls_key, tls_ca)):
        fail("mutual TLS needs --tls-cert, --tls-key and --tls-ca", Exit.USAGE)
    if os.geteuid() != 0:
        fail("the agent needs root: it loads BPF programs", Exit.NOT_PERMITTED)
    from xdsbpf import node as node_agent

    options: dict[str, Any] = {} if cgroup_root is None else {"cgroup_root": cgroup_root}
    config = node_agent.NodeAgentConfig(
        node=node,
        xds=xds,
        pin_root=pin_root,
        state_dir=state_dir,
        envoy=envoy,
        envoy_binary=envoy_binary,
        concurrency=concurrency,
        stop_envoy=stop_envoy,
        strict_envoy=strict_envoy,
        tls=tls,
        tls_server_name=tls_server_name,
        **options,
    )
    if detach:
        node_agent.detach(config)
        return
    raise typer.Exit(node_agent.run(config))


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.command()(serve)
    app.command()(agent)
