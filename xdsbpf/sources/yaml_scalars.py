"""Text of a scalar -> the integer that the model keeps (durations, percentages, times).

Pure functions; they return None for text that has no meaning, and `yaml_walk` reports it.
"""

from __future__ import annotations

import datetime
import re
from decimal import Decimal
from typing import Final

_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST: Final = 64
MAX_NANOSECONDS: Final = 2**63 - 1


def duration_ns(text: str) -> int | None:
    """Nanoseconds of a Go duration (`1m30s`, `250ms`, `1.5h`, `-1s`, `0`); None if it is none.

    None also above 2**63-1 ns (292 years), where Go refuses it too. Parts below 1 ns are cut off.
    """
    if len(text) > _LONGEST:
        return None
    sign, rest = (-1, text[1:]) if text[:1] == "-" else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    total, position = Decimal(0), 0
    while position < len(rest):
        term = _TERM.match(rest, position)
        if term is None:
            return None
        total += Decimal(term.group(1)) * _UNITS[term.group(2)]
        position = term.end()
    if position == 0 or total > MAX_NANOSECONDS:
        return None
    return sign * int(total)


def scaled(value: float, factor: int) -> int:
    """`value * factor` rounded to an integer through the shortest decimal form of the float."""
    return int((Decimal(repr(value)) * factor).to_integral_value())


_RFC3339: Final = re.compile(r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(\.\d{1,9})?([Zz]|[-+]\d{2}:\d{2})", re.ASCII)


def timestamp(text: str) -> str | None:
    """An RFC 3339 time, moved to UTC if it has an offset, so that text order is time order."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    offset = "+00:00" if zone in "Zz" else zone
    try:
        moment = datetime.datetime.fromisoformat(f"{day}T{clock}{offset}").astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction or ''}Z"
