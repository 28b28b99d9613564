"""`ps`, `why`, `services`, `objects`, `confirm`: what a running control plane says of itself."""

from __future__ import annotations

import sys
import urllib.parse
from collections.abc import Iterator
from typing import Any, Final

import typer

from xdsbpf.cli import admin_client
from xdsbpf.cli.exits import CommandError
from xdsbpf.cli.tables import NO_HEADERS, Output, format_age, write_document, write_names, write_table

ADMIN = typer.Option("", "--admin", help="admin address of the control plane: host:port or unix:PATH")
OUTPUT = typer.Option(Output.TABLE, "--output", "-o", help="table, json, yaml or name")

SHOWN: Final = 3
WORST_FIRST: Final = ("NACKED", "STALE", "PENDING", "SYNCED", "NOT-SENT")


def _ask(admin: str, path: str) -> dict[str, Any]:
    answer: dict[str, Any] = admin_client.request(admin or admin_client.default_admin(), path)
    return answer


def ps(
    node: str = typer.Argument("", help="only this client: its node id, or a node's name for its agent and Envoy"),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="every type: versions, ages, what is refused and why"),
    output: Output = OUTPUT,
    no_headers: bool = NO_HEADERS,
    admin: str = ADMIN,
) -> None:
    """Show what Envoys and agents have taken over.

    SYNCED: it has everything and said so. PENDING: something is on its way or withheld. NACKED: it refuses something.
    STALE: it has not answered for 60 s. NOT-SENT: there is nothing of that type for it.
    """
    answer = _ask(admin, "/proxies")
    certificate = answer.get("certificate")
    items = [item for item in answer["items"] if node in ("", item["node_id"], item["node"])]
    if node and not items:
        raise CommandError(f"no client {node!r} is connected", hint="xdsbpf ps lists the node ids of all that are")
    if write_document(output, "ProxyStatus", {"items": items, "certificate": certificate}):
        return
    if certificate and certificate["error"]:
        sys.stderr.write(f"the former certificate is in force: {certificate['error']}\n")
    if output is Output.NAME:
        write_names(item["node_id"] for item in items)
    elif verbose:
        _write_types(items, no_headers=no_headers)
        listeners = [
            (row["object"], row["plane"], "; ".join(row["reasons"])) for row in _ask(admin, "/services")["listeners"]
        ]
        if listeners:
            sys.stdout.write("\n")
            write_table(("LISTENER", "PLANE", "WHY"), listeners, no_headers=no_headers)
    else:
        rows = [
            (
                item["node_id"],
                item["kind"],
                item["node"] or "-",
                worst_state(item),
                format_age(item["connected_s"]),
                ", ".join(f"{entry['type']} {entry['state']}" for entry in item["types"]) or "-",
            )
            for item in items
        ]
        write_table(("NAME", "KIND", "NODE", "STATE", "CONNECTED", "TYPES"), rows, no_headers=no_headers)
        for name, what, why, _ in _troubles(items):
            sys.stderr.write(f"{name}: {what}: {why}\n")


def worst_state(item: dict[str, Any]) -> str:
    """The state of a client as a whole: the worst of its types."""
    states = {entry["state"] for entry in item["types"]}
    return next((state for state in WORST_FIRST if state in states), "NOT-SENT")


def _write_types(items: list[dict[str, Any]], *, no_headers: bool) -> None:
    rows = [
        (
            item["node_id"],
            entry["type"],
            entry["state"],
            entry["version"] or "-",
            entry["acked_version"] or "-",
            f"{entry['accepted']}/{entry['held']}",
            format_age(entry["sent_age_s"]),
            format_age(entry["acked_age_s"]),
            entry["error"] or "-",
        )
        for item in items
        for entry in item["types"]
    ]
    header = ("NAME", "TYPE", "STATE", "SENT-VERSION", "ACKED-VERSION", "ACCEPTED", "SENT", "ACKED", "ERROR")
    write_table(header, rows, no_headers=no_headers)
    troubles = [(name, what, first_places(where), why) for name, what, why, where in _troubles(items)]
    if troubles:
        sys.stdout.write("\n")
        write_table(("NAME", "RESOURCE", "MANIFEST", "WHY"), troubles, no_headers=no_headers)


def first_places(manifests: list[str]) -> str:
    """One place per object, as many as a table has room for; `-o json` has them all."""
    places = {written.split(" ")[1]: written for written in reversed(manifests) if " " in written}
    first = [" ".join(written.split(" ")[:2]) for written in reversed(places.values())]
    more = f" and {len(first) - SHOWN} more" if len(first) > SHOWN else ""
    return ", ".join(first[:SHOWN]) + more or "-"


def _troubles(items: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, list[str]]]:
    """(client, type and resource, what is wrong, manifests) of each refused or withheld resource."""
    for item in items:
        for entry in item["types"]:
            for nack in entry["nacked"]:
                why = f"refused in version {nack['version']}: {nack['error']}"
                yield item["node_id"], f"{entry['type']} {nack['name']}", why, nack["manifests"]
            for waiting in entry["withheld"]:
                why = f"withheld: {'; '.join(waiting['reasons'])}"
                yield item["node_id"], f"{entry['type']} {waiting['name']}", why, []


def why(
    node: str = typer.Argument(help="node id of a client, or a node's name for its agent and its Envoy"),
    resource: str = typer.Argument(help="name of a resource, as `xdsbpf translate` prints it"),
    type_: str = typer.Option("", "--type", help="only this type: lds, rds, vhds, cds, eds, frontend, …"),
    output: Output = OUTPUT,
    admin: str = ADMIN,
) -> None:
    """Tell why a client does not have a resource.

    Or that it has it, and in either case which manifest lines the resource comes from.
    """
    query = urllib.parse.urlencode({"node": node, "resource": resource, "type": type_})
    items = _ask(admin, f"/debug/whynot?{query}")["items"]
    if write_document(output, "Whynot", {"items": items}):
        return
    if output is Output.NAME:
        write_names(item["node"] for item in items)
        return
    for item in items:
        sys.stdout.write(f"{item['node']} {item['type']}: {item['answer']}\n")
        for place in item["manifests"]:
            sys.stdout.write(f"  from {place}\n")


def services(output: Output = OUTPUT, no_headers: bool = NO_HEADERS, admin: str = ADMIN) -> None:
    """Show which plane carries which service.

    The kernel (L4) or the node's Envoy (L7), by service port and by raw listener, and why.
    """
    answer = _ask(admin, "/services")
    items, listeners = answer["items"], answer["listeners"]
    if write_document(output, "Services", {"items": items, "listeners": listeners}):
        return
    if output is Output.NAME:
        write_names(f"{item['host']}:{item['port']}" for item in items)
        return
    rows = [
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
    rows += [_listener_row(item) for item in listeners]
    write_table(("SERVICE", "PORT", "ADDRESS", "PLANE", "ENDPOINTS", "WHY"), rows, no_headers=no_headers)


def _listener_row(item: dict[str, Any]) -> tuple[Any, ...]:
    """A raw listener as a row of `services`."""
    address, _, port = item["address"].rpartition(":")
    reasons = "; ".join(item["reasons"])
    return (item["object"], port or "-", address or "-", item["plane"], item["endpoints"], reasons)


def objects(output: Output = OUTPUT, no_headers: bool = NO_HEADERS, admin: str = ADMIN) -> None:
    """Show where every manifest object ended.

    APPLIED, PENDING, REJECTED, NOT-ENFORCED or SHADOWED-BY, with the reason.
    """
    answer = _ask(admin, "/objects")
    items = answer["items"]
    if write_document(output, "Objects", {"items": items, "sources": answer["sources"]}):
        return
    if output is Output.NAME:
        write_names(item["object"] for item in items)
        return
    rows = [(item["object"], item["state"], item["location"] or "-", _reason(item)) for item in items]
    write_table(("OBJECT", "STATE", "LOCATION", "REASON"), rows, no_headers=no_headers)
    for source in answer["sources"]:
        for found in source["diagnostics"]:
            sys.stderr.write(f"{found['location'] or source['path']}: {source['state']}: {found['message']}\n")


def _reason(item: dict[str, Any]) -> str:
    """The reason of the state, else what was found."""
    return item["detail"] or "; ".join(entry["message"] for entry in item["diagnostics"]) or "-"


def confirm(admin: str = ADMIN) -> None:
    """Let a mass deletion happen that is held.

    When most objects of a file vanish at once, they stay in force until this is called or the file is deleted.
    """
    answer = admin_client.request(admin or admin_client.default_admin(), "/confirm", method="POST")
    sys.stdout.write(f"{answer['confirmed']} held objects confirmed\n")


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.command()(ps)
    app.command("proxy-status", hidden=True)(ps)
    app.command()(why)
    app.command()(services)
    app.command()(objects)
    app.command()(confirm)
