"""`xdsbpf diff`: what manifests would change in both planes if they were applied, or deleted; nothing is.

Reads the manifests here, and compares with what a running control plane has, or with other files (`--against`). As
kubectl does, it exits 0 without differences, 1 with some, and with a code above for an error.
"""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from xdsbpf.cli import admin_client
from xdsbpf.cli.exits import CommandError, Exit, fail
from xdsbpf.cli.manifests import (
    ENVOY_RESOURCES,
    FILENAME,
    REGISTRY_ONLY,
    SERVICE_CIDR,
    TRUST_DOMAIN,
    node_metadata,
    refuse_invalid,
)
from xdsbpf.cli.status import ADMIN, OUTPUT, first_places
from xdsbpf.cli.tables import NO_HEADERS, Output, write_document, write_names, write_table
from xdsbpf.errors import ConfigError, ProtocolError

if TYPE_CHECKING:
    from xdsbpf.sources.catalog import Catalog

Texts = tuple[tuple[str, bytes], ...]


def diff(
    filename: list[str] = FILENAME,
    envoy_resources: list[str] = ENVOY_RESOURCES,
    delete: bool = typer.Option(False, "--delete", help="compare with the objects deleted, not applied"),
    against: list[str] = typer.Option([], "--against", help="compare with these manifests, without a control plane"),
    against_envoy_resources: list[str] = typer.Option(
        [], "--against-envoy-resources", help="compare with these raw Envoy resources, too"
    ),
    proxy: str = typer.Option("", "--proxy", help="only what this client sees: its xDS node id, as for translate"),
    metadata: Path | None = typer.Option(None, "--metadata", help="JSON file with the proxy's node metadata"),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="the lines of every resource that would change"),
    output: Output = OUTPUT,
    no_headers: bool = NO_HEADERS,
    admin: str = ADMIN,
    registry_only: bool = REGISTRY_ONLY,
    service_cidr: str = SERVICE_CIDR,
    trust_domain: str = TRUST_DOMAIN,
) -> None:
    """Show what manifests would change.

    In Envoys and in the kernel, without applying anything. Exits 0 if nothing would change, 1 if something would.
    """
    from xdsbpf.sources.loading import load_texts, read_texts

    if not filename and not envoy_resources:
        fail(
            "there is nothing to compare", Exit.USAGE, hint="name manifests with -f, Envoy's own with --envoy-resources"
        )
    known = node_metadata(metadata)
    try:
        manifests, raw = read_texts(filename), read_texts(envoy_resources)
        changed = load_texts(manifests, raw)
        refuse_invalid(changed)
        if not changed.states():
            fail("no object could be read", Exit.BAD_INPUT, hint="-f takes YAML or JSON files and directories of them")
        question = {"deletes": delete, "proxy": proxy, "metadata": known, "bodies": _wants_bodies(output, verbose)}
        if against or against_envoy_resources:
            settings = {"registry_only": registry_only, "service_cidr": service_cidr, "trust_domain": trust_domain}
            answer = _compare(changed, against, against_envoy_resources, settings, question)
        else:
            answer = _ask(admin, {**question, "manifests": _sent(manifests), "envoy_resources": _sent(raw)})
    except ConfigError as error:
        raise CommandError(str(error), Exit.BAD_INPUT, hint=error.hint) from error
    if not write_document(output, "Difference", {"proxy": proxy, **answer}):
        _write(answer, output, has_scopes=not proxy, verbose=verbose, no_headers=no_headers)
    if answer["resources"] or answer["planes"]:
        raise typer.Exit(Exit.FAILURE)


def _wants_bodies(output: Output, verbose: bool) -> bool:
    return output in (Output.JSON, Output.YAML) or (verbose and output is Output.TABLE)


def _sent(texts: Texts) -> list[tuple[str, str]]:
    """The texts as JSON has them; they have been read, so they can be decoded."""
    from xdsbpf.sources.yaml_reader import decode

    return [(name, decode(data)) for name, data in texts]


def _ask(admin: str, question: dict[str, Any]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = admin_client.request(
            admin or admin_client.default_admin(), "/diff", method="POST", body=question, timeout_s=120
        )
    except CommandError as error:
        # 1 says that there are differences.
        code = Exit.UNREACHABLE if error.code is Exit.FAILURE else error.code
        raise CommandError(str(error), code, hint=error.hint or "--against compares with files") from error
    return answer


def _compare(
    changed: Catalog, against: list[str], raw: list[str], settings: dict[str, Any], question: dict[str, Any]
) -> dict[str, Any]:
    """The same answer from files. Raises: ConfigError; CommandError(USAGE) for a proxy that is not served."""
    import msgspec

    from xdsbpf.diagnostics import Severity
    from xdsbpf.mesh.inputs import MeshSettings
    from xdsbpf.report.difference import Base, Proxy, difference, finding_rows, resource_rows
    from xdsbpf.sources.loading import load_once
    from xdsbpf.sources.plugins import load_plugins
    from xdsbpf.sources.positions import Layered
    from xdsbpf.sources.report import format_lines

    catalog = load_once(against, envoy_paths=raw)
    for line in format_lines((e for e in catalog.diagnostics() if e.severity is Severity.ERROR), catalog):
        sys.stderr.write(line + "\n")
    base = Base(catalog.manifests(), MeshSettings(**settings), load_plugins())
    proxy = Proxy(question["proxy"], question["metadata"]) if question["proxy"] else None
    try:
        found = difference(base, changed, is_deletion=question["deletes"], proxy=proxy, with_bodies=question["bodies"])
    except ProtocolError as error:
        raise CommandError(f"--proxy: {error}", Exit.USAGE, hint=error.hint) from error
    locator = Layered(changed, catalog)
    return {
        "resources": list(resource_rows(found, locator)),
        "planes": msgspec.to_builtins(found.planes),
        "diagnostics": finding_rows(found, locator),
    }


def _write(answer: dict[str, Any], output: Output, *, has_scopes: bool, verbose: bool, no_headers: bool) -> None:
    resources = answer["resources"]
    if output is Output.NAME:
        write_names(f"{item['type']}/{item['name']}" for item in resources)
        return
    for found in answer["diagnostics"]:
        place = f"{found['location']}: " if found["location"] else ""
        subject = " ".join(part for part in (found["object"], found["path"]) if part)
        sys.stderr.write(f"{place}{found['severity']}: {subject}: {found['message']} [{found['code']}]\n")
    if verbose:
        for item in resources:
            sys.stdout.writelines(_lines(item))
    elif resources:
        header = ("PLANE", "CHANGE", "TYPE", "NAME", *(("SCOPE",) if has_scopes else ()), "FROM")
        write_table(header, [_row(item, has_scopes=has_scopes) for item in resources], no_headers=no_headers)
    if answer["planes"]:
        sys.stdout.write("\n" if resources else "")
        rows = [
            (item["name"], item["before"] or "-", item["after"] or "-", "; ".join(item["reasons"]) or "-")
            for item in answer["planes"]
        ]
        write_table(("SERVICE", "BEFORE", "AFTER", "WHY"), rows, no_headers=no_headers)
    if not resources and not answer["planes"]:
        sys.stderr.write("nothing would change\n")


def _row(item: dict[str, Any], *, has_scopes: bool) -> tuple[str, ...]:
    row = (item["plane"], item["change"], item["type"], item["name"])
    return (*row, *((item["scope"],) if has_scopes else ()), first_places(item["origins"]))


def _lines(item: dict[str, Any]) -> list[str]:
    """A unified diff of the resource as JSON; a secret has a line that says only that it is another one."""
    name = f"{item['type']}/{item['name']}" + (f" ({item['scope']})" if item["scope"] else "")
    if item["before"] is None and item["after"] is None:
        return [f"{item['change']}: {name}\n"]
    old, new = (_text(item[side]) for side in ("before", "after"))
    return list(difflib.unified_diff(old, new, f"before {name}", f"after {name}"))


def _text(body: dict[str, Any] | None) -> list[str]:
    if body is None:
        return []
    return [line + "\n" for line in json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False).splitlines()]


def register(app: typer.Typer) -> None:
    """Add this command to the tree."""
    app.command()(diff)
