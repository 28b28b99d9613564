"""`plugins`: what is installed beside xdsbpf and takes part in what Envoys get."""

from __future__ import annotations

from typing import Any

import typer

from xdsbpf.cli.tables import NO_HEADERS, Output, write_document, write_names, write_table

OUTPUT = typer.Option(Output.TABLE, "--output", "-o", help="table, json, yaml or name")


def plugins(output: Output = OUTPUT, no_headers: bool = NO_HEADERS) -> None:
    """List the plug-ins that are installed.

    In the order in which they are applied.
    """
    from xdsbpf.compile.plugins import patched_types
    from xdsbpf.sources.plugins import load_plugins

    items: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "version": entry.version,
            "distribution": entry.distribution,
            "patches": [type_url.rpartition("/")[2] for type_url in patched_types((entry,))],
            "adds": entry.plugin.adds is not None,
        }
        for entry in load_plugins()
    ]
    if write_document(output, "Plugins", {"items": items}):
        return
    if output is Output.NAME:
        write_names(str(item["name"]) for item in items)
    else:
        rows = [
            (
                item["name"],
                item["version"],
                item["distribution"],
                ", ".join(name.rpartition(".")[2] for name in item["patches"]) or "-",
                "yes" if item["adds"] else "no",
            )
            for item in items
        ]
        write_table(("NAME", "VERSION", "DISTRIBUTION", "PATCHES", "ADDS"), rows, no_headers=no_headers)


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(plugins)
