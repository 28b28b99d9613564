"""What every command prints with `-o`: plain aligned tables, JSON, YAML and names, as istioctl and kubectl do."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer

NO_HEADERS = typer.Option(False, "--no-headers", help="tables without their headers")


class Output(enum.StrEnum):
    """Formats of `-o` for lists of things that have names."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class Format(enum.StrEnum):
    """Formats of `-o` for everything else."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns padded with three spaces, upper-case header, no boxes, no trailing blanks."""
    lines = [[str(cell) for cell in header], *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def write_table(header: Sequence[str], rows: Iterable[Sequence[object]], *, no_headers: bool = False) -> None:
    """Print a table on standard output; without its header for scripts that take it apart."""
    _, *lines = text = format_table(header, rows).split("\n")
    sys.stdout.writelines(line + "\n" for line in (lines if no_headers else text))


def write_document(output: Output | Format, kind: str, body: dict[str, Any]) -> bool:
    """Print `{"apiVersion": "xdsbpf.io/v1", "kind": kind, …}` if `output` is JSON or YAML; returns whether it was.

    This is the stable shape of every `-o json`: fields may be added to it.
    """
    if output not in (Output.JSON, Output.YAML):
        return False
    text = json.dumps({"apiVersion": "xdsbpf.io/v1", "kind": kind, **body}, indent=2, ensure_ascii=False)
    if output == Output.JSON:
        sys.stdout.write(text + "\n")
        return True
    import yaml

    # Through JSON: an Any of a body is an OrderedDict, which no YAML writer takes.
    sys.stdout.write(yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True))
    return True


def format_age(seconds: float | None) -> str:
    """`0.4s`, `12s`, `3m20s`, `2h5m`, `3d4h`; `-` for what never happened."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    whole = int(seconds)
    for size, unit, smaller, rest in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            remainder = whole % size // smaller
            return f"{whole // size}{unit}{remainder}{rest}" if remainder else f"{whole // size}{unit}"
    return f"{whole}s"


def write_names(names: Iterable[str]) -> None:
    """Print one name a line."""
    for name in names:
        sys.stdout.write(name + "\n")
