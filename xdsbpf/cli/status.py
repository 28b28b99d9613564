"""`ps`, `services`, `objects`, `confirm`: what a running control plane says of itself."""

from __future__ import annotations

import sys
from typing import Any

import typer

from xdsbpf.cli import admin_client
from xdsbpf.cli.tables import Output, write_json, write_names, write_table

ADMIN = typer.Option("", "--admin", help="admin address of the control plane: host:port or unix:PATH")
OUTPUT = typer.Option(Output.TABLE, "--output", "-o", help="table, json or name")


def _items(admin: str, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = admin_client.request(admin or admin_client.default_admin(), path)["items"]
    return items


def ps(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="one line per type, with counts"),
    output: Output = OUTPUT,
    admin: str = ADMIN,
) -> None:
    """Sync state of every connected Envoy and agent."""
    answer = admin_client.request(admin or admin_client.default_admin(), "/proxies")
    items = answer["items"]
    certificate = answer.get("certificate")
    if output is Output.JSON:
        write_json("ProxyStatus", {"items": items, "certificate": certificate})
        return
    if certificate and certificate["error"]:
        sys.stderr.write(f"the former certificate is in force: {certificate['error']}\n")
    if output is Output.NAME:
        write_names(item["node_id"] for item in items)
        return
    if verbose:
        rows = [
            (
                item["node_id"],
                entry["type"],
                entry["state"],
                entry["held"],
                entry["subscribed"],
                len(entry["withheld"]),
            )
            for item in items
            for entry in item["types"]
        ]
        write_table(("NAME", "TYPE", "STATE", "RESOURCES", "NAMED", "WITHHELD"), rows)
    else:
        write_table(
            ("NAME", "KIND", "NODE", "TYPES"),
            [
                (
                    item["node_id"],
                    item["kind"],
                    item["node"],
                    ", ".join(f"{entry['type']} {entry['state']}" for entry in item["types"]) or "-",
                )
                for item in items
            ],
        )
    for item in items:
        for entry in item["types"]:
            _explain(item["node_id"], entry)
    if verbose:
        for row in admin_client.request(admin or admin_client.default_admin(), "/services")["listeners"]:
            sys.stderr.write(f"{row['object']}: {row['plane']}: {'; '.join(row['reasons'])}\n")


def _explain(node_id: str, entry: dict[str, Any]) -> None:
    for nack in entry["nacked"]:
        sys.stderr.write(f"{node_id}: {entry['type']} {nack['name']} was refused: {nack['error']}\n")
    for waiting in entry["withheld"]:
        reasons = "; ".join(waiting["reasons"])
        sys.stderr.write(f"{node_id}: {entry['type']} {waiting['name']} is withheld: {reasons}\n")


def services(output: Output = OUTPUT, admin: str = ADMIN) -> None:
    """Which plane carries each service port and raw listener, and why."""
    answer = admin_client.request(admin or admin_client.default_admin(), "/services")
    items, listeners = answer["items"], answer["listeners"]
    if output is Output.JSON:
        write_json("Services", {"items": items, "listeners": listeners})
    elif output is Output.NAME:
        write_names(f"{item['host']}:{item['port']}" for item in items)
    else:
        write_table(
            ("SERVICE", "PORT", "ADDRESS", "PLANE", "ENDPOINTS", "WHY"),
            [
                (
                    item["host"],
                    item["port"],
                    item["address"] or "-",
                    item["plane"],
                    item["endpoints"],
                    "; ".join(item["reasons"]) or "-",
                )
                for item in items
            ]
            + [_listener_row(item) for item in listeners],
        )


def _listener_row(item: dict[str, Any]) -> tuple[Any, ...]:
    """A raw listener as a row of `services`."""
    address, _, port = item["address"].rpartition(":")
    reasons = "; ".join(item["reasons"])
    return (item["object"], port or "-", address or "-", item["plane"], item["endpoints"], reasons)


def objects(output: Output = OUTPUT, admin: str = ADMIN) -> None:
    """State of every manifest object, with what was found."""
    answer = admin_client.request(admin or admin_client.default_admin(), "/objects")
    items = answer["items"]
    if output is Output.JSON:
        write_json("Objects", {"items": items, "sources": answer["sources"]})
    elif output is Output.NAME:
        write_names(item["object"] for item in items)
    else:
        write_table(
            ("OBJECT", "STATE", "LOCATION", "REASON"),
            [(item["object"], item["state"], item["location"] or "-", _why(item)) for item in items],
        )
        for source in answer["sources"]:
            for found in source["diagnostics"]:
                sys.stderr.write(f"{found['location'] or source['path']}: {source['state']}: {found['message']}\n")


def _why(item: dict[str, Any]) -> str:
    """The reason of the state, else what was found."""
    return item["detail"] or "; ".join(entry["message"] for entry in item["diagnostics"]) or "-"


def confirm(admin: str = ADMIN) -> None:
    """Accept a mass deletion that the control plane is holding back."""
    answer = admin_client.request(admin or admin_client.default_admin(), "/confirm", method="POST")
    sys.stdout.write(f"{answer['confirmed']} held objects confirmed\n")


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.command()(ps)
    app.command("proxy-status", hidden=True)(ps)
    app.command()(services)
    app.command()(objects)
    app.command()(confirm)
