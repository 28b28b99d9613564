"""`xdsbpf wait`: until what manifests say is in force everywhere, or a reason why it is not.

Reads the manifests here, asks the control plane with a digest of each object how far it is, and asks again. Results go
to standard output; while it waits, standard error says what for, on a terminal or with -v.
"""

from __future__ import annotations

import enum
import re
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import typer

from xdsbpf.cli import admin_client
from xdsbpf.cli.exits import CommandError, Exit, fail
from xdsbpf.cli.manifests import refuse_invalid
from xdsbpf.cli.status import ADMIN
from xdsbpf.cli.tables import NO_HEADERS, Output, write_document, write_names, write_table
from xdsbpf.errors import ConfigError

if TYPE_CHECKING:
    from xdsbpf.sources.catalog import Catalog

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART: Final = r"(\d+(?:\.\d+)?)(h|ms|m|s)"


class Condition(enum.StrEnum):
    """What is waited for."""

    APPLIED = "applied"
    DELETE = "delete"


def wait(
    filename: list[str] = typer.Option([], "--filename", "-f", help="manifest file, directory, or - (repeatable)"),
    envoy_resources: list[str] = typer.Option(
        [], "--envoy-resources", help="file or directory of raw Envoy resources (repeatable)"
    ),
    condition: Condition = typer.Option(Condition.APPLIED, "--for", help="applied, or delete: until they are gone"),
    timeout: str = typer.Option("60s", "--timeout", help="give up after that long: 90s, 2m, 500ms; 0 asks once"),
    connected: bool = typer.Option(False, "--connected", help="do not miss nodes whose agent or Envoy is away"),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="say what is waited for, also without a terminal"),
    output: Output = typer.Option(Output.TABLE, "--output", "-o", help="table, json, yaml or name (who is in the way)"),
    no_headers: bool = NO_HEADERS,
    admin: str = ADMIN,
) -> None:
    """Wait until manifests are in force everywhere.

    As they are written now: every connected Envoy that subscribes to what comes from them must have ACKed it, and
    every agent have it in its kernel. A node of the mesh whose agent or Envoy is away counts too, if any other node
    has one. Exits 0 when that is so; 1 at once when a client refuses it, or at the timeout, with the list of who does
    not have it and why; 65 when the manifests are not valid, 69 when the control plane does not answer.
    """
    limit_s = parse_duration(timeout)
    objects = (
        deleted(filename, envoy_resources) if condition is Condition.DELETE else present(filename, envoy_resources)
    )
    question = {"objects": objects, "connected_only": connected}
    started = time.monotonic()
    answer = _watch(admin or admin_client.default_admin(), question, limit_s, verbose or sys.stderr.isatty())
    elapsed_s = time.monotonic() - started
    if write_document(output, "WaitResult", {"waited_s": round(elapsed_s, 3), **answer}):
        pass
    elif output is Output.NAME:
        write_names(client_name(client) for client in answer["clients"] if client["state"] != "confirmed")
    else:
        _write(answer, elapsed_s, no_headers=no_headers)
    if answer["verdict"] != "done":
        why = "refused" if answer["verdict"] == "failed" else f"not done after {timeout}"
        fail(f"{why}: {answer['reason']}", hint="xdsbpf ps -v and xdsbpf objects show the state of everything")


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `2m`, `1m30s`, `500ms` or a plain number; anything else is a usage error."""
    written = text + "s" if text[-1:].isdigit() else text
    if re.fullmatch(f"(?:{_PART})+", written) is None:
        fail(f"--timeout {text!r} is not a duration", Exit.USAGE, hint="for example 60s, 2m or 1m30s")
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(_PART, written))


def present(filenames: list[str], envoy_resources: list[str]) -> list[dict[str, str]]:
    """The objects of the manifests with their digests; an invalid one ends the command with BAD_INPUT."""
    from xdsbpf.diagnostics import State
    from xdsbpf.sources.digest import content_digest

    catalog = _read(filenames, envoy_resources)
    refuse_invalid(catalog)
    for status in catalog.states():
        if not status.in_force and status.state is State.NOT_ENFORCED:
            sys.stderr.write(f"xdsbpf: note: {status.object} is not waited for: {status.detail}\n")
    return [
        {**_identity(object_id), "digest": content_digest(manifest)}
        for object_id, manifest in sorted(catalog.manifests().items())
    ]


def deleted(filenames: list[str], envoy_resources: list[str]) -> list[dict[str, str]]:
    """The objects that the manifests name, valid or not, as ones that are to be gone."""
    names = {status.object for status in _read(filenames, envoy_resources).states()}
    return [{**_identity(object_id), "digest": ""} for object_id in sorted(names)]


def _identity(object_id: Any) -> dict[str, str]:
    return {
        "kind": object_id.kind,
        "namespace": object_id.namespace,
        "name": object_id.name,
        "group": object_id.group,
    }


def _read(filenames: list[str], envoy_resources: list[str]) -> Catalog:
    from xdsbpf.sources.loading import load_once

    if not filenames and not envoy_resources:
        fail(
            "there is nothing to wait for",
            Exit.USAGE,
            hint="name manifests with -f, Envoy's own with --envoy-resources",
        )
    try:
        catalog = load_once(filenames, envoy_paths=envoy_resources)
    except ConfigError as error:
        raise CommandError(str(error), Exit.BAD_INPUT, hint=error.hint) from error
    if not catalog.states() and all(source.state == "ok" for source in catalog.sources()):
        fail("no object could be read", Exit.BAD_INPUT, hint="-f takes YAML or JSON files and directories of them")
    return catalog


def _watch(address: str, question: dict[str, Any], limit_s: float, speaks: bool) -> dict[str, Any]:
    """The last answer: one that is not `waiting`, or the one at the time limit.

    Raises: CommandError(UNREACHABLE) if the first or the last question was not answered.
    """
    deadline = time.monotonic() + limit_s
    pause, said = FIRST_PAUSE_S, ""
    answer: dict[str, Any] | None = None
    while True:
        asked = time.monotonic()
        try:
            answer = admin_client.request(address, "/distribution", method="POST", body=question, timeout_s=30)
        except CommandError as error:
            if answer is None or error.code is not Exit.UNREACHABLE or time.monotonic() >= deadline:
                raise
            progress = str(error)
        else:
            progress = answer["reason"]
            if answer["verdict"] != "waiting" or time.monotonic() >= deadline:
                return answer
        if speaks and progress != said:
            said = progress
            sys.stderr.write(f"waiting: {progress}\n")
        # A large mesh takes a while to look at: ask for no more than a third of the server's time.
        pause = min(1.5 * pause, LONGEST_PAUSE_S)
        rest = max(pause, 2 * (time.monotonic() - asked))
        time.sleep(max(0.0, min(rest, deadline - time.monotonic())))


def client_name(client: dict[str, Any]) -> str:
    """A node id, or `agent of node1` for one that is not there."""
    return str(client["node_id"] or f"{client['kind']} of {client['node']}")


def _write(answer: dict[str, Any], elapsed_s: float, *, no_headers: bool) -> None:
    if answer["verdict"] == "done":
        count = len(answer["objects"])
        done = f"{count} object{'s' if count != 1 else ''} ({answer['resources']} resources): {answer['reason']}"
        sys.stdout.write(f"{done}, after {elapsed_s:.1f} s\n")
        return
    rows = [
        (entry["object"], entry["state"], "-", entry["reason"])
        for entry in answer["objects"]
        if entry["state"] != "current"
    ]
    for client in answer["clients"]:
        name = client_name(client)
        if client["reason"]:
            rows.append((name, client["state"], "-", client["reason"]))
        for gap in client["missing"]:
            rows.append((name, gap["state"], f"{gap['type']} {gap['name']}".strip(), gap["reason"]))
        if client["more"]:
            rows.append((name, client["state"], f"and {client['more']} more", "-"))
    if rows:
        write_table(("WHO", "STATE", "WHAT", "WHY"), rows, no_headers=no_headers)


def register(app: typer.Typer) -> None:
    """Add this command to the tree."""
    app.command()(wait)
