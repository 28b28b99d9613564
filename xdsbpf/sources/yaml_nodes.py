"""YAML text -> nodes with positions, and what a scalar means.

`compose` turns the text of one chunk into PyYAML nodes with the C parser; `scalar_value` resolves
plain scalars as kubectl does (YAML 1.1 booleans, no base-60 numbers, no dates); `find` walks a
field path. Called by `yaml_reader`, `yaml_walk` and `positions`; it knows nothing about kinds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, TypeAlias

import yaml
from yaml._yaml import CParser
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from xdsbpf.errors import XdsbpfError

PLAIN: Final = "plain"
"""Tag of a scalar written without quotes and without a tag: its type follows from its text."""

TAG_STR: Final = "tag:yaml.org,2002:str"
TAG_MAP: Final = "tag:yaml.org,2002:map"
TAG_SEQ: Final = "tag:yaml.org,2002:seq"
_TYPED_TAGS: Final = frozenset(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))

# Above what an object may have (32): a document of kind List adds levels of its own.
MAX_COMPOSE_DEPTH: Final = 64

Scalar: TypeAlias = bool | int | float | str | None
Segment: TypeAlias = str | int


class TextError(XdsbpfError):
    """The text is not YAML; line and column count from 1 within the composed text."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


class _Composer(CParser):
    """CParser without PyYAML's resolver (types are decided on demand) and with a bound on depth."""

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        self._depth = 0

    def resolve(self, kind: type[Node], value: object, implicit: tuple[bool, bool] | bool) -> str:  # noqa: ARG002
        """Tag of an untagged node; called by the C parser."""
        if kind is ScalarNode:
            return PLAIN if isinstance(implicit, tuple) and implicit[0] else TAG_STR
        return TAG_MAP if kind is MappingNode else TAG_SEQ

    def descend_resolver(self, parent: Node | None, index: object) -> None:  # noqa: ARG002
        """Called on the way into every node. Security: the C parser recurses, so bound it here."""
        self._depth += 1
        if self._depth > MAX_COMPOSE_DEPTH:
            mark = parent.start_mark if parent is not None else None
            line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
            raise TextError(f"nested deeper than {MAX_COMPOSE_DEPTH} levels", line, column)

    def ascend_resolver(self) -> None:
        """Called on the way out of every node."""
        self._depth -= 1


def compose(text: str) -> Iterator[Node]:
    """Root nodes of the documents in `text`, empty documents left out. Raises: TextError."""
    try:
        composer = _Composer(text)
        while composer.check_node():
            node = composer.get_node()
            if node is not None and not is_null(node):
                yield node
    except yaml.reader.ReaderError as err:
        line = text.count("\n", 0, err.position) + 1
        raise TextError(f"{err.reason} (byte or character {err.character!r})", line, 1) from err
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        parts = [part for part in (err.context, err.problem) if part]
        raise TextError(": ".join(parts), line, column) from err
    except yaml.YAMLError as err:
        raise TextError(str(err), 1, 1) from err


_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
_FALSE: Final = frozenset({"n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
_MAY_BE_TYPED: Final = frozenset("0123456789+-.~nNyYoOtTfF")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INT: Final = re.compile(r"([-+]?)(0x[0-9a-fA-F]+|0b[01]+|0o?[0-7]+|[1-9][0-9]*|0)")
# No number of a manifest is longer; int() on a million digits would be slow.
_LONGEST_NUMBER: Final = 64


def resolve_plain(text: str) -> Scalar:
    """Value of an unquoted scalar as kubectl reads it.

    `on`, `yes` and `y` are true; `010` and `0o10` are 8; `12:30:45` and `2024-01-01` stay strings.
    """
    if text and text[0] not in _MAY_BE_TYPED:
        return text
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if len(text) > _LONGEST_NUMBER:
        return text
    digits = text.replace("_", "") if text[0] != "_" else text
    whole = _INT.fullmatch(digits)
    if whole is not None:
        return _int_value(whole.group(1), whole.group(2))
    if _FLOAT.fullmatch(digits) is not None:
        return float(digits)
    if text.lower() in (".inf", "+.inf", "-.inf", ".nan"):
        return float(text.lower().replace(".", "", 1))
    return text


def _int_value(sign: str, digits: str) -> int:
    if digits[:2] in ("0x", "0b", "0o"):
        value = int(digits, 0)
    elif len(digits) > 1 and digits[0] == "0":
        value = int(digits, 8)
    else:
        value = int(digits)
    return -value if sign == "-" else value


def scalar_value(node: ScalarNode) -> Scalar:
    """Value of a scalar node. Raises: TextError for a tag that manifests have no use for."""
    if node.tag == PLAIN:
        return resolve_plain(node.value)
    if node.tag == TAG_STR:
        return str(node.value)
    if node.tag in _TYPED_TAGS:
        return resolve_plain(node.value)
    raise TextError(f"the YAML tag {node.tag!r} is not supported", node.start_mark.line + 1, node.start_mark.column + 1)


def is_null(node: Node) -> bool:
    """Whether the node is an unquoted null (or nothing at all)."""
    return isinstance(node, ScalarNode) and node.tag != TAG_STR and node.value in _NULL


def child(node: Node, segment: Segment) -> tuple[Node, Node] | None:
    """(node that marks the place, value) of a mapping key or a list index, or None.

    The place of a scalar field is its value; that of a mapping or list is its key.
    """
    if isinstance(node, MappingNode):
        found = None
        for key, value in node.value:
            if isinstance(key, ScalarNode) and key.value == str(segment):
                found = (value if isinstance(value, ScalarNode) and value.value else key, value)
        return found
    if isinstance(node, SequenceNode) and isinstance(segment, int) and 0 <= segment < len(node.value):
        item = node.value[segment]
        return item, item
    return None


def find(root: Node, path: tuple[Segment, ...]) -> Node:
    """Node that marks the place of `path`, or of its nearest parent that exists.

    A field of a protobuf message may be written as `typed_config` or as `typedConfig`.
    """
    place = current = root
    for segment in path:
        step = child(current, segment)
        if step is None and isinstance(segment, str) and "_" in segment:
            head, *rest = segment.split("_")
            step = child(current, head + "".join(part.capitalize() for part in rest))
        if step is None:
            break
        place, current = step
    return place


_SEGMENT: Final = re.compile(r"\.?([^.\[\]]+)|\[([^\[\]]*)\]")


def parse_path(path: str) -> tuple[Segment, ...]:
    """Split `spec.http[2].match[0].headers[end-user]`; numbers in brackets are list indexes.

    Text that is no path ends the result early: the nearest parent is still found.
    """
    segments: list[Segment] = []
    position = 0
    while position < len(path):
        match = _SEGMENT.match(path, position)
        if match is None:
            break
        name, bracket = match.group(1), match.group(2)
        if name is not None:
            segments.append(name)
        else:
            segments.append(int(bracket) if bracket.isdecimal() and len(bracket) < 10 else bracket)
        position = match.end()
    return tuple(segments)
