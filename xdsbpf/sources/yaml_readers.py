"""Readers of single scalar nodes: the value that the model keeps, or BAD after reporting why not.

Every reader has the signature (walk, node, path) -> value | BAD; `yaml_walk` picks them by type.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Final

from yaml.nodes import Node, ScalarNode

from xdsbpf.model import codes
from xdsbpf.sources.yaml_findings import Path, Walk, describe
from xdsbpf.sources.yaml_nodes import TAG_STR, Scalar, TextError, scalar_value
from xdsbpf.sources.yaml_scalars import duration_ns, scaled, timestamp

Reader = Callable[[Walk, Node, Path], object]


class _Bad:
    """What a reader returns after it reported a mistake."""


BAD: Final = _Bad()

_INT64: Final = 2**63


def suggestion(word: str, known: tuple[str, ...] | list[str]) -> str:
    """`did you mean X?` for a near miss, else nothing. Compares at most 64 characters."""
    exact = [name for name in known if name.lower() == word.lower()]
    near = exact or difflib.get_close_matches(word[:64], known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


def _scalar(walk: Walk, node: Node, path: Path, expected: str) -> Scalar | _Bad:
    if not isinstance(node, ScalarNode):
        walk.report(codes.WRONG_TYPE, path, node, f"expected {expected}, found {describe(node)}")
        return BAD
    try:
        return scalar_value(node)
    except TextError as err:
        walk.report(codes.BAD_TAG, path, node, err.message, "leave the tag out")
        return BAD


def read_string(walk: Walk, node: Node, path: Path) -> object:
    """A string; `yes`, `1.0` and the like without quotes are none."""
    if isinstance(node, ScalarNode) and node.tag == TAG_STR:
        return node.value
    value = _scalar(walk, node, path, "a string")
    if isinstance(value, str | _Bad):
        return value
    kind = "a truth value" if isinstance(value, bool) else "null" if value is None else "a number"
    text = describe(node)
    walk.report(codes.WRONG_TYPE, path, node, f"expected a string, found {kind}: {text}", f'quote it: "{text}"')
    return BAD


def shared_reader(reader: Reader, share: Callable[[Any], object]) -> Reader:
    """Reader of a value of which one copy is kept."""

    def read(walk: Walk, node: Node, path: Path) -> object:
        value = reader(walk, node, path)
        return value if value is BAD else share(value)

    return read


def read_bool(walk: Walk, node: Node, path: Path) -> object:
    """true or false in any YAML 1.1 spelling."""
    value = _scalar(walk, node, path, "true or false")
    if isinstance(value, bool | _Bad):
        return value
    hint = "remove the quotes" if isinstance(value, str) and value in ("true", "false") else ""
    walk.report(codes.WRONG_TYPE, path, node, f"expected true or false, found {describe(node)}", hint)
    return BAD


def int_reader(low: int | None, high: int | None) -> Reader:
    """Reader of an integer within the closed range; without one, what fits 64 bits."""
    least = -_INT64 if low is None else low
    most = _INT64 - 1 if high is None else high

    def read(walk: Walk, node: Node, path: Path) -> object:
        value = _scalar(walk, node, path, "an integer")
        if isinstance(value, _Bad):
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            hint = "remove the quotes" if isinstance(value, str) and value.isdecimal() else ""
            walk.report(codes.WRONG_TYPE, path, node, f"expected an integer, found {describe(node)}", hint)
            return BAD
        if not least <= value <= most:
            walk.report(codes.OUT_OF_RANGE, path, node, f"expected {least} to {most}, found {describe(node)}")
            return BAD
        return value

    return read


def read_int_or_string(walk: Walk, node: Node, path: Path) -> object:
    """A port number or a port name."""
    value = _scalar(walk, node, path, "a number or a name")
    if isinstance(value, str | _Bad) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    walk.report(codes.WRONG_TYPE, path, node, f"expected a number or a name, found {describe(node)}")
    return BAD


def choice_reader(allowed: tuple[str, ...]) -> Reader:
    """Reader of one word out of `allowed`."""
    names = ", ".join(allowed)

    def read(walk: Walk, node: Node, path: Path) -> object:
        value = _scalar(walk, node, path, f"one of {names}")
        if isinstance(value, _Bad):
            return value
        if isinstance(value, str) and value in allowed:
            return allowed[allowed.index(value)]  # one copy of the word
        hint = suggestion(value, allowed) if isinstance(value, str) else ""
        walk.report(codes.BAD_CHOICE, path, node, f"expected one of {names}, found {describe(node)}", hint)
        return BAD

    return read


def read_duration(walk: Walk, node: Node, path: Path) -> object:
    """Nanoseconds of `7s`, `1m30s` or `250ms`."""
    value = _scalar(walk, node, path, "a duration")
    if isinstance(value, _Bad):
        return value
    text = "0" if value == 0 and not isinstance(value, bool) else value
    nanoseconds = duration_ns(text) if isinstance(text, str) else None
    if nanoseconds is not None:
        return nanoseconds
    hint = "give it a unit, for example 10s, 1m30s or 250ms"
    walk.report(codes.BAD_FORMAT, path, node, f"expected a duration, found {describe(node)}", hint)
    return BAD


def _number(walk: Walk, node: Node, path: Path, expected: str) -> float | _Bad:
    value = _scalar(walk, node, path, expected)
    if isinstance(value, _Bad):
        return value
    finite = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    if finite and isinstance(value, int | float):
        return value
    hint = "remove the quotes" if isinstance(value, str) else ""
    walk.report(codes.WRONG_TYPE, path, node, f"expected {expected}, found {describe(node)}", hint)
    return BAD


def read_percent(walk: Walk, node: Node, path: Path) -> object:
    """Millionths of a percentage: 100.0 -> 1_000_000. Istio: 0, or 0.0001 to 100."""
    value = _number(walk, node, path, "a percentage")
    if isinstance(value, _Bad):
        return value
    if value != 0 and not 0.0001 <= value <= 100:
        message = f"expected 0, or 0.0001 to 100 percent, found {describe(node)}"
        walk.report(codes.BAD_PERCENT, path, node, message)
        return BAD
    return scaled(value, 10_000)


def read_decimal(walk: Walk, node: Node, path: Path) -> object:
    """Millionths of a number: 1.5 -> 1_500_000."""
    value = _number(walk, node, path, "a number")
    return value if isinstance(value, _Bad) else scaled(value, 1_000_000)


def read_timestamp(walk: Walk, node: Node, path: Path) -> object:
    """An RFC 3339 time in UTC."""
    value = _scalar(walk, node, path, "a time")
    if isinstance(value, _Bad):
        return value
    moment = timestamp(value) if isinstance(value, str) else None
    if moment is not None:
        return moment
    hint = "for example 2024-05-01T12:00:00Z"
    walk.report(codes.BAD_FORMAT, path, node, f"expected an RFC 3339 time, found {describe(node)}", hint)
    return BAD
