"""`xdsbpf bpf …`: what the kernels hold, with names instead of numbers.

The rows come from the agents, which read them from the maps; the manifest lines come from the
control plane, which alone knows them, and are left out (and said to be) when it does not answer.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from xdsbpf.cli import admin_client
from xdsbpf.cli.exits import CommandError, Exit, fail
from xdsbpf.cli.tables import NO_HEADERS, Output, write_document, write_names, write_table
from xdsbpf.errors import SourceError

if TYPE_CHECKING:
    from xdsbpf._pb.xdsbpf.agent.v1 import agent_pb2

app = typer.Typer(help="Show what the eBPF maps of the nodes hold.", no_args_is_help=True)

AGENT_SOCKETS = ("/run/xdsbpf/agent.sock", "/run/xdsbpf/*/agent.sock", "/run/xdsbpf-lab/*/*/agent.sock")
RULE = re.compile(r"AuthorizationPolicy/\S+ spec\S*")

AGENT = typer.Option([], "--agent", help="status socket of an agent (repeatable); default: every agent found")
NODE = typer.Option("", "--node", help="only this node")
OUTPUT = typer.Option(Output.TABLE, "--output", "-o", help="table, json, yaml or name")
ADMIN = typer.Option("", "--admin", help="control plane, for manifest lines (host:port or unix:PATH)")


def agent_sockets(chosen: list[str]) -> list[str]:
    """The sockets named, or all that exist at the known places."""
    found = (
        chosen
        or os.environ.get("XDSBPF_AGENT", "").split()
        or sorted(path for pattern in AGENT_SOCKETS for path in glob.glob(pattern))
    )
    if not found:
        fail(
            "no agent found",
            Exit.UNREACHABLE,
            hint="is `xdsbpf agent` or a lab running? --agent names a status socket",
        )
    return [path.removeprefix("unix:") for path in found]


def read_states(chosen: list[str], node: str) -> list[agent_pb2.Status]:
    """Status of each agent; raises CommandError(UNREACHABLE) if one does not answer."""
    from xdsbpf.agent.status import fetch_status

    try:
        found = [fetch_status(Path(path)) for path in agent_sockets(chosen)]
    except SourceError as error:
        raise CommandError(str(error), Exit.UNREACHABLE, hint=error.hint) from error
    answers = [status for status in found if node in ("", status.node)]
    if not answers:
        fail(f"no agent of node {node!r} found", Exit.UNREACHABLE)
    return answers


def read_agents(chosen: list[str], node: str) -> list[tuple[str, agent_pb2.Tables]]:
    """(node name, tables) of each agent; raises CommandError(UNREACHABLE) if one does not answer."""
    from xdsbpf.agent.status import fetch_status, fetch_tables

    answers = []
    for path in agent_sockets(chosen):
        try:
            name = fetch_status(Path(path)).node
            if node in ("", name):
                answers.append((name, fetch_tables(Path(path))))
        except SourceError as error:
            raise CommandError(str(error), Exit.UNREACHABLE, hint=error.hint) from error
    if not answers:
        fail(f"no agent of node {node!r} found", Exit.UNREACHABLE)
    return answers


def manifest_lines(rules: list[str], admin: str) -> dict[str, str]:
    """file:line:column of each rule `Kind/namespace/name path…`; {} with a note if nobody can tell."""
    references = sorted({match.group(0) for rule in rules if (match := RULE.match(rule))})
    if not references:
        return {}
    query = urllib.parse.urlencode([("ref", reference) for reference in references])
    try:
        answer = admin_client.request(admin or admin_client.default_admin(), f"/locate?{query}", timeout_s=3)
    except CommandError as error:
        sys.stderr.write(f"xdsbpf: note: manifest lines left out: {error}\n")
        return {}
    return {item["ref"]: item["location"] for item in answer["items"] if item["location"]}


def _show(
    output: Output, kind: str, header: tuple[str, ...], rows: list[tuple[object, ...]], *, no_headers: bool
) -> None:
    """The first column is the node, the second what the rows are called by."""
    keys = [name.lower().replace(" ", "_") for name in header]
    if write_document(output, kind, {"items": [dict(zip(keys, row, strict=True)) for row in rows]}):
        return
    if output is Output.NAME:
        write_names(str(row[1]) for row in rows)
    else:
        write_table(
            header, [[cell if cell not in ("", None) else "-" for cell in row] for row in rows], no_headers=no_headers
        )


@app.command()
def agents(agent: list[str] = AGENT, node: str = NODE, output: Output = OUTPUT, no_headers: bool = NO_HEADERS) -> None:
    """Show how the node agents are.

    Whether they reach the control plane and with which certificate, their Envoys, and what is wrong.
    """
    from google.protobuf import json_format

    found = read_states(agent, node)
    items = [json_format.MessageToDict(status, preserving_proto_field_name=True) for status in found]
    if write_document(output, "Agents", {"items": items}):
        return
    if output is Output.NAME:
        write_names(status.node for status in found)
        return
    header = ("NODE", "SYNCED", "CONTROL PLANE", "ENVOY", "CERTIFICATE", "UNTIL")
    write_table(header, [_agent_row(status) for status in found], no_headers=no_headers)
    for status in found:
        for problem in status.problems:
            sys.stderr.write(f"{status.node}: {problem.subject}: {problem.message}\n")


def _agent_row(status: agent_pb2.Status) -> tuple[str, ...]:
    held = status.certificate
    until = datetime.fromtimestamp(held.not_after, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if held.serial else "-"
    synced = "yes" if status.synced else "no"
    return (status.node, synced, status.xds_state, status.envoy_state or "-", ", ".join(held.names) or "-", until)


@app.command()
def frontends(
    agent: list[str] = AGENT, node: str = NODE, output: Output = OUTPUT, no_headers: bool = NO_HEADERS
) -> None:
    """Show which plane carries each service address."""
    rows: list[tuple[object, ...]] = [
        (
            name,
            row.service,
            f"{row.address}:{row.port}",
            row.protocol,
            row.plane,
            row.backends,
            row.proxy_port or "",
            row.policy,
        )
        for name, tables in read_agents(agent, node)
        for row in tables.frontends
    ]
    _show(
        output,
        "Frontends",
        ("NODE", "SERVICE", "ADDRESS", "PROTOCOL", "PLANE", "BACKENDS", "PROXY PORT", "POLICY"),
        rows,
        no_headers=no_headers,
    )


@app.command()
def backends(
    agent: list[str] = AGENT, node: str = NODE, output: Output = OUTPUT, no_headers: bool = NO_HEADERS
) -> None:
    """Show the endpoints that the kernel balances."""
    rows: list[tuple[object, ...]] = [
        (name, row.service, f"{row.address}:{row.port}", row.weight, row.active_connections)
        for name, tables in read_agents(agent, node)
        for row in tables.backends
    ]
    _show(output, "Backends", ("NODE", "SERVICE", "ADDRESS", "WEIGHT", "ACTIVE"), rows, no_headers=no_headers)


@app.command()
def identities(
    agent: list[str] = AGENT, node: str = NODE, output: Output = OUTPUT, no_headers: bool = NO_HEADERS
) -> None:
    """Show who is behind which address.

    And the policy that guards it, and why a pod of the node is nobody.
    """
    rows: list[tuple[object, ...]] = [
        (name, row.address, row.identity, row.number, row.policy, row.note)
        for name, tables in read_agents(agent, node)
        for row in tables.identities
    ]
    _show(
        output, "Identities", ("NODE", "ADDRESS", "IDENTITY", "NUMBER", "POLICY", "NOTE"), rows, no_headers=no_headers
    )


@app.command()
def policies(
    agent: list[str] = AGENT,
    node: str = NODE,
    output: Output = OUTPUT,
    no_headers: bool = NO_HEADERS,
    admin: str = ADMIN,
) -> None:
    """Show what may connect to what.

    Every entry of the policies, the rule that it comes from, and where that is written.
    """
    answers = read_agents(agent, node)
    lines = manifest_lines([row.rule for _, tables in answers for row in tables.policies], admin)
    rows: list[tuple[object, ...]] = []
    for name, tables in answers:
        for row in tables.policies:
            port: Any = row.port or "any"
            reference = RULE.match(row.rule)
            location = lines.get(reference.group(0), "") if reference else ""
            rows.append((name, row.policy, row.source, port, row.protocol, row.verdict, row.rule, location))
    header = ("NODE", "POLICY", "SOURCE", "PORT", "PROTOCOL", "VERDICT", "RULE", "MANIFEST")
    _show(output, "Policies", header, rows, no_headers=no_headers)


@app.command()
def counters(
    agent: list[str] = AGENT, node: str = NODE, output: Output = OUTPUT, no_headers: bool = NO_HEADERS
) -> None:
    """Count the decisions of the kernel programs."""
    rows: list[tuple[object, ...]] = [
        (name, row.name, row.value) for name, tables in read_agents(agent, node) for row in tables.counters
    ]
    _show(output, "Counters", ("NODE", "COUNTER", "VALUE"), rows, no_headers=no_headers)
