"""`translate` and `analyze`: what manifests become, and what is wrong with them; offline, without root."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from xdsbpf.cli.exits import CommandError, Exit, fail
from xdsbpf.cli.tables import NO_HEADERS, Format, write_document, write_table
from xdsbpf.errors import ProtocolError

if TYPE_CHECKING:
    from xdsbpf.compiler import Compiler
    from xdsbpf.diagnostics import Diagnostic
    from xdsbpf.sources.catalog import Catalog

FILENAME = typer.Option([], "--filename", "-f", help="manifest file, directory, or - (repeatable)")
ENVOY_RESOURCES = typer.Option([], "--envoy-resources", help="file or directory of raw Envoy resources (repeatable)")
SERVICE_CIDR = typer.Option("240.240.0.0/16", help="range for services without a cluster IP")
TRUST_DOMAIN = typer.Option("cluster.local", help="SPIFFE trust domain of the mesh")


REGISTRY_ONLY = typer.Option(
    False, "--registry-only", help="sidecars refuse destinations that are no service of the mesh"
)


VALIDATE = typer.Option(False, "--validate-with-envoy", help="ask a real Envoy about raw Envoy resources first")
VALIDATE_BINARY = typer.Option(None, "--envoy-binary", help="that Envoy; default: beside Python, then PATH")


def validating_binary(is_wanted: bool, named: Path | None) -> Path | None:
    """The Envoy to ask about raw resources; None if nobody wants that. Raises: ConfigError if there is none."""
    from xdsbpf.envoy_binary import find_binary

    return find_binary(named, hint="name one with --envoy-binary") if is_wanted else None


class Threshold(enum.StrEnum):
    """Least severity that makes `analyze` exit 79."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


def load(
    filenames: list[str],
    envoy_resources: list[str],
    service_cidr: str,
    trust_domain: str,
    *,
    registry_only: bool = False,
    validate_with: Path | None = None,
) -> tuple[Catalog, Compiler]:
    """Read and compile manifests and raw Envoy resources.

    Raises: CommandError(BAD_INPUT) when a path does not exist or nothing at all can be read.
    """
    from xdsbpf.compiler import Compiler
    from xdsbpf.errors import ConfigError
    from xdsbpf.mesh.inputs import MeshSettings
    from xdsbpf.sources.envoy_validation import EnvoyValidator
    from xdsbpf.sources.loading import load_once
    from xdsbpf.sources.plugins import load_plugins
    from xdsbpf.sources.report import format_lines

    if not filenames and not envoy_resources:
        fail("there is nothing to read", Exit.USAGE, hint="name manifests with -f, Envoy's own with --envoy-resources")
    try:
        validator = EnvoyValidator(validate_with) if validate_with is not None else None
        catalog = load_once(filenames, envoy_paths=envoy_resources, validator=validator)
    except ConfigError as error:
        raise CommandError(str(error), Exit.BAD_INPUT, hint=error.hint) from error
    sources = catalog.sources()
    if not catalog.states():
        for source in sources:
            for line in format_lines(source.diagnostics):
                sys.stderr.write(line + "\n")
        fail(
            "no object could be read",
            Exit.BAD_INPUT,
            hint="-f takes YAML or JSON files and directories of them",
        )
    compiler = Compiler(
        MeshSettings(
            trust_domain=trust_domain,
            service_cidr=service_cidr,
            registry_only=registry_only,
        ),
        plugins=load_plugins(),
    )
    compiler.apply(catalog.manifests().items())
    return catalog, compiler


def all_diagnostics(catalog: Catalog, compiler: Compiler) -> tuple[Diagnostic, ...]:
    """Findings of every stage in the order of files and lines."""
    from xdsbpf.sources.report import sort_by_place

    return sort_by_place((*catalog.diagnostics(), *compiler.diagnostics()), catalog)


def refuse_invalid(catalog: Catalog) -> None:
    """Say what no control plane would take, with its place. Raises: CommandError(BAD_INPUT) if there is anything."""
    from xdsbpf.diagnostics import Severity, State
    from xdsbpf.sources.report import format_lines

    broken = [source for source in catalog.sources() if source.state != "ok"]
    rejected = [status for status in catalog.states() if status.state is State.REJECTED]
    if not broken and not rejected:
        return
    found = [*(source.diagnostics for source in broken), *(status.diagnostics for status in rejected)]
    errors = [entry for group in found for entry in group if entry.severity is Severity.ERROR]
    for line in format_lines(errors, catalog):
        sys.stderr.write(line + "\n")
    fail("the manifests are not valid, so nobody will ever have them", Exit.BAD_INPUT, hint="xdsbpf analyze -f …")


def _types(chosen: str) -> set[str] | None:
    from xdsbpf.model.names import DATAPATH_TYPES, SHORT_TYPES

    if not chosen:
        return None
    wanted: set[str] = set()
    for name in chosen.lower().split(","):
        if name == "datapath":
            wanted.update(DATAPATH_TYPES)
        elif name in SHORT_TYPES:
            wanted.add(SHORT_TYPES[name])
        else:
            fail(f"--type {name!r} is not a type", Exit.USAGE, hint=f"datapath, {', '.join(SHORT_TYPES)}")
    return wanted


def node_metadata(path: Path | None) -> dict[str, object]:
    """Node metadata from a JSON file; none without one."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"--metadata: {error}", Exit.BAD_INPUT) from error
    if not isinstance(found, dict):
        fail(f"--metadata: {path} is no JSON object", Exit.BAD_INPUT, hint='for example {"GENERATOR": "grpc"}')
    return found


def translate(
    filename: list[str] = FILENAME,
    envoy_resources: list[str] = ENVOY_RESOURCES,
    validate_with_envoy: bool = VALIDATE,
    envoy_binary: Path | None = VALIDATE_BINARY,
    proxy: str = typer.Option(
        ..., "--proxy", help="xDS node id: node~…, agent~…, sidecar~IP~NAME~DOMAIN, or that of any Envoy"
    ),
    metadata: Path | None = typer.Option(None, "--metadata", help="JSON file with the proxy's node metadata"),
    registry_only: bool = REGISTRY_ONLY,
    type_: str = typer.Option("", "--type", help="only these types: lds,rds,vhds,cds,eds,ecds,datapath,…"),
    output: Format = typer.Option(Format.TABLE, "--output", "-o", help="table, json or yaml"),
    no_headers: bool = NO_HEADERS,
    service_cidr: str = SERVICE_CIDR,
    trust_domain: str = TRUST_DOMAIN,
) -> None:
    """Print what a proxy or an agent would get.

    Every resource with the manifest lines that it comes from, from files alone, without a control plane.
    """
    from xdsbpf.compile.views import SIDECAR, client_view, is_mesh_client
    from xdsbpf.model.names import parse_node_id
    from xdsbpf.report.listeners import listener_rows
    from xdsbpf.report.translation import metadata_findings, preview, translation
    from xdsbpf.serve import view_of
    from xdsbpf.sources.report import as_json, format_lines

    wanted = _types(type_)
    findings: tuple[Diagnostic, ...] = ()
    known = node_metadata(metadata)
    try:
        own = client_view(proxy, known, lambda _namespace, _pod: None)
        partly = preview(parse_node_id(proxy)) if is_mesh_client(proxy) and own is None else None
        view = view_of(proxy, (), own) if partly is None else partly[0]
    except ProtocolError as error:
        raise CommandError(f"--proxy: {error}", Exit.USAGE, hint=error.hint) from error
    binary = validating_binary(validate_with_envoy, envoy_binary)
    catalog, compiler = load(
        filename, envoy_resources, service_cidr, trust_domain, registry_only=registry_only, validate_with=binary
    )
    own = client_view(proxy, known, compiler.labels_of)
    if own is not None:
        compiler.add_view(own)
        findings = metadata_findings(known) if own.kind == SIDECAR else ()
    if view.node:
        compiler.add_nodes([view.node])
    compiler.compile()
    if partly is None:
        view = view_of(proxy, compiler.globs, own)
    else:
        findings = (partly[2],)
        wanted = set(partly[1]) if wanted is None else wanted & set(partly[1])
    resources = translation(compiler, catalog, view, wanted)
    listeners = listener_rows(compiler, view.scopes)
    diagnostics = (*findings, *all_diagnostics(catalog, compiler))
    if output is Format.TABLE:
        rows = [
            (kind.rpartition(".")[2], item["name"], item["version"], ", ".join(item["origins"]) or "-")
            for kind, items in resources.items()
            for item in items
        ]
        write_table(("TYPE", "NAME", "VERSION", "FROM"), rows, no_headers=no_headers)
        for row in listeners:
            sys.stderr.write(f"{row['object']}: {row['plane']}: {'; '.join(row['reasons'])}\n")
        for line in format_lines(diagnostics, catalog):
            sys.stderr.write(line + "\n")
        return
    body: dict[str, Any] = {
        "proxy": proxy,
        "resources": resources,
        "listeners": listeners,
        "diagnostics": [as_json(found, catalog) for found in diagnostics],
    }
    write_document(output, "Translation", body)


def analyze(
    filename: list[str] = FILENAME,
    envoy_resources: list[str] = ENVOY_RESOURCES,
    validate_with_envoy: bool = VALIDATE,
    envoy_binary: Path | None = VALIDATE_BINARY,
    output: Format = typer.Option(Format.TABLE, "--output", "-o", help="table, json or yaml"),
    failure_threshold: Threshold = typer.Option(Threshold.WARNING, help="least severity that exits 79"),
    service_cidr: str = SERVICE_CIDR,
    trust_domain: str = TRUST_DOMAIN,
) -> None:
    """Report what is wrong with manifests.

    File, line, column, field, reason, and what to do. Exits 0 without findings, 79 with findings, 65 when nothing can
    be read.
    """
    from xdsbpf.sources.report import as_json, format_lines

    binary = validating_binary(validate_with_envoy, envoy_binary)
    catalog, compiler = load(filename, envoy_resources, service_cidr, trust_domain, validate_with=binary)
    compiler.compile()
    diagnostics = all_diagnostics(catalog, compiler)
    if output is Format.TABLE:
        for line in format_lines(diagnostics, catalog):
            sys.stdout.write(line + "\n")
        states = catalog.states()
        sys.stdout.write(f"{len(states)} objects, {len(diagnostics)} findings\n")
    else:
        items = [as_json(found, catalog) for found in diagnostics]
        write_document(output, "Analysis", {"objects": len(catalog.states()), "diagnostics": items})
    ranks = list(Threshold)
    failing = {str(level) for level in ranks[: ranks.index(failure_threshold) + 1]}
    if any(found.severity.value in failing for found in diagnostics):
        raise typer.Exit(Exit.FINDINGS)


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.command()(translate)
    app.command()(analyze)
