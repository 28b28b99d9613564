"""`xdsbpf pc …`: the resources of one connected client, as the control plane has sent them."""

from __future__ import annotations

import urllib.parse
from typing import Any, Final

import typer

from xdsbpf.cli import admin_client
from xdsbpf.cli.status import ADMIN, OUTPUT, first_places
from xdsbpf.cli.tables import NO_HEADERS, Output, write_document, write_names, write_table

app = typer.Typer(help="Show the resources of one Envoy or agent.", no_args_is_help=True)

NODE = typer.Argument(help="node id of a client, or a node's name for its agent and its Envoy")
NAME = typer.Option("", "--name", help="only resources whose name has this in it")

WHAT: Final = {
    "cluster": (("cds",), "Show the clusters of a client."),
    "listener": (("lds",), "Show the listeners of a client."),
    "route": (("rds", "vhds"), "Show the route configurations and virtual hosts of a client."),
    "endpoint": (("eds",), "Show the endpoints of a client."),
    "secret": (("sds",), "Show which secrets a client has, without their contents."),
    "extension": (("ecds",), "Show the extension configurations of a client."),
    "datapath": (("node", "identity", "policy", "backends", "frontend"), "Show the datapath resources of an agent."),
    "all": ((), "Show all resources of a client."),
}
"""Command -> types and help."""


def show(types: tuple[str, ...], node: str, name: str, output: Output, admin: str, *, no_headers: bool) -> None:
    """Print the resources of these types ((): all)."""
    wants_body = output in (Output.JSON, Output.YAML)
    query = urllib.parse.urlencode({"node": node, "type": ",".join(types), "body": "1" if wants_body else ""})
    answer = admin_client.request(admin or admin_client.default_admin(), f"/config?{query}", timeout_s=60)
    items = [item for item in answer["items"] if name in item["name"]]
    if write_document(output, "ProxyConfig", {"items": items}):
        return
    if output is Output.NAME:
        write_names(item["name"] for item in items)
        return
    several = len({item["node"] for item in items}) > 1
    header = ("TYPE", "NAME", "STATE", "VERSION", "MANIFEST", "ERROR")
    rows = [_row(item, several) for item in items]
    write_table(("NODE", *header) if several else header, rows, no_headers=no_headers)


def _row(item: dict[str, Any], several: bool) -> tuple[str, ...]:
    version, error = item["version"] or "-", item["error"] or "-"
    row = (item["type"], item["name"], item["state"], version, first_places(item["manifests"]), error)
    return (item["node"], *row) if several else row


def _command(types: tuple[str, ...], text: str) -> Any:
    def command(
        node: str = NODE,
        name: str = NAME,
        output: Output = OUTPUT,
        no_headers: bool = NO_HEADERS,
        admin: str = ADMIN,
    ) -> None:
        show(types, node, name, output, admin, no_headers=no_headers)

    command.__doc__ = (
        f"{text}\n\n    ACKED: it has it. SENT: not answered yet. NACKED: it refuses it. WITHHELD: it waits for the"
        " node's Envoy. REQUESTED: on its way. MISSING: the client asked for it, and there is no such thing."
    )
    return command


for _name, (_types, _text) in WHAT.items():
    app.command(_name)(_command(_types, _text))
