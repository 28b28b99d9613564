"""Plain aligned tables, JSON and YAML-free structured output, as istioctl and kubectl print them."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


class Output(enum.StrEnum):
    """Formats of `-o`."""

    TABLE = "table"
    JSON = "json"
    NAME = "name"


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns padded with three spaces, upper-case header, no boxes, no trailing blanks."""
    lines = [[str(cell) for cell in header], *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def write_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on standard output."""
    sys.stdout.write(format_table(header, rows) + "\n")


def write_json(kind: str, body: dict[str, Any]) -> None:
    """Print `{"apiVersion": "xdsbpf.io/v1", "kind": kind, …}`: the stable shape of every `-o json`."""
    document = {"apiVersion": "xdsbpf.io/v1", "kind": kind, **body}
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_names(names: Iterable[str]) -> None:
    """Print one name a line."""
    for name in names:
        sys.stdout.write(name + "\n")
