"""One walk over YAML nodes along a struct type: every mistake, and the frozen struct if there is none.

`read_struct(cls, node, walk)` compiles the type once (msgspec.inspect) into nested readers, which
collect in `walk` all unknown fields, duplicate keys, missing fields, wrong types, bad choices and
ranges with line and column. Conventions of the result are those of `model/scalars.py`. Called by
`yaml_reader`; it knows nothing about files or the catalog.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect as types
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from xdsbpf.errors import InvariantError
from xdsbpf.model import codes
from xdsbpf.model.meta import Manifest, ObjectMeta
from xdsbpf.model.sharing import shared_labels, shared_text
from xdsbpf.sources.yaml_findings import MAX_ITEMS, Path, Walk, describe
from xdsbpf.sources.yaml_nodes import PLAIN, TAG_STR, is_null, resolve_plain
from xdsbpf.sources.yaml_readers import (
    BAD,
    Reader,
    choice_reader,
    int_reader,
    read_bool,
    read_decimal,
    read_duration,
    read_int_or_string,
    read_percent,
    read_string,
    read_timestamp,
    shared_reader,
    suggestion,
)

S = TypeVar("S", bound=msgspec.Struct)

_BY_EXTRA: Final[dict[str, Reader]] = {
    "duration": read_duration,
    "percent": read_percent,
    "decimal": read_decimal,
    "timestamp": read_timestamp,
}

_SHARED: Final[dict[str, Callable[[Any], object]]] = {"shared": shared_text, "shared labels": shared_labels}

_OBJECT_FIELDS: Final = frozenset({"apiVersion", "kind", "status"})
_METADATA_FIELDS: Final = frozenset(
    {
        "clusterName",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
    }
)
"""Standard fields that every object may have and that xdsbpf does not read."""


def read_struct(cls: type[S], node: Node, walk: Walk, path: Path = None) -> S | None:
    """The struct that `node` describes, or None if it cannot be built; `walk.failed` says if it counts.

    A struct may come back beside errors that do not hinder it, such as an unknown field.
    """
    value = _struct_reader(cls)(walk, node, path)
    return value if isinstance(value, cls) else None


def entries(walk: Walk, node: MappingNode, path: Path) -> list[tuple[str, Node, Node]]:
    """(key, key node, value node) of a mapping, duplicates reported, `<<` merged as in YAML 1.1."""
    found: dict[str, tuple[str, Node, Node]] = {}
    merged: list[Node] = []
    for key_node, value in node.value:
        if isinstance(key_node, ScalarNode) and key_node.tag == PLAIN and key_node.value == "<<":
            merged.append(value)
            continue
        key = _key(walk, key_node, path)
        if key is None:
            continue
        if key in found:
            message = f"the key {key} is given twice in the same mapping"
            walk.report(codes.DUPLICATE_KEY, (path, key), key_node, message, "remove one of the two")
        found[key] = (key, key_node, value)
    for source in merged:
        _merge(walk, source, path, found)
    return list(found.values())


def _merge(walk: Walk, source: Node, path: Path, found: dict[str, tuple[str, Node, Node]]) -> None:
    mappings = source.value if isinstance(source, SequenceNode) else [source]
    for mapping in mappings:
        if not isinstance(mapping, MappingNode):
            walk.report(codes.WRONG_TYPE, path, mapping, f"`<<` merges mappings, found {describe(mapping)}")
        elif walk.enter(mapping, path, len(mapping.value)):
            for entry in entries(walk, mapping, path):
                found.setdefault(entry[0], entry)
            walk.leave()


def _key(walk: Walk, node: Node, path: Path) -> str | None:
    if not isinstance(node, ScalarNode):
        walk.report(codes.WRONG_TYPE, path, node, f"expected a name as key, found {describe(node)}")
        return None
    text = str(node.value)
    if node.tag == PLAIN and isinstance(resolve_plain(text), bool | None):
        message = f"expected a string as key, found {describe(node)}, which is no string in YAML"
        walk.report(codes.WRONG_TYPE, path, node, message, f'quote it: "{text}"')
        return None
    if node.tag not in (PLAIN, TAG_STR):
        walk.report(codes.BAD_TAG, path, node, f"the YAML tag {node.tag!r} is not supported for a key")
        return None
    return text


class _FieldPlan(msgspec.Struct, frozen=True):
    attribute: str
    reader: Reader
    required: bool


@cache
def _struct_reader(cls: type[msgspec.Struct]) -> Reader:
    info = types.type_info(cls)
    if not isinstance(info, types.StructType):
        raise InvariantError(f"{cls.__name__} is no struct")
    plans = {field.encode_name: _FieldPlan(field.name, _reader(field.type), field.required) for field in info.fields}
    known = tuple(plans)
    required = tuple((name, plan.attribute) for name, plan in plans.items() if plan.required)
    ignored: frozenset[str] = frozenset()
    if issubclass(cls, Manifest):
        ignored = _OBJECT_FIELDS - plans.keys()
    elif cls is ObjectMeta:
        ignored = _METADATA_FIELDS

    def read(walk: Walk, node: Node, path: Path) -> object:
        if not isinstance(node, MappingNode):
            walk.report(codes.WRONG_TYPE, path, node, f"expected a mapping, found {describe(node)}")
            return BAD
        if not walk.enter(node, path, len(node.value)):
            return BAD
        values: dict[str, object] = {}
        good = True
        for key, key_node, value_node in entries(walk, node, path):
            plan = plans.get(key)
            if plan is None:
                if walk.strict and key not in ignored:
                    hint = suggestion(key, known) or f"known here: {', '.join(known[:12])}"
                    walk.report(codes.UNKNOWN_FIELD, (path, key), key_node, f"unknown field {key}", hint)
            elif not is_null(value_node):
                value = plan.reader(walk, value_node, (path, key))
                values[plan.attribute] = value
                good = good and value is not BAD
        for name, attribute in required:
            if attribute not in values:
                walk.report(codes.MISSING_FIELD, (path, name), node, f"the field {name} is required")
                good = False
        walk.leave()
        return cls(**values) if good else BAD

    return read


def _list_reader(item: Reader, least: int) -> Reader:
    def read(walk: Walk, node: Node, path: Path) -> object:
        if not isinstance(node, SequenceNode):
            message = f"expected a list, found {describe(node)}"
            walk.report(codes.WRONG_TYPE, path, node, message, "start each entry with -")
            return BAD
        size = len(node.value)
        if size < least:
            walk.report(codes.EMPTY_LIST, path, node, "the list is empty", "leave the field out instead")
            return BAD
        if size > MAX_ITEMS:
            walk.report(codes.LIMIT, path, node, f"a list of {size} entries, more than {MAX_ITEMS}")
            return BAD
        if not walk.enter(node, path, size):
            return BAD
        values = []
        good = True
        for index, entry in enumerate(node.value):
            if is_null(entry):
                walk.report(codes.NULL_ENTRY, (path, index), entry, "the entry is null", "remove it")
                value: object = BAD
            else:
                value = item(walk, entry, (path, index))
            good = good and value is not BAD
            values.append(value)
        walk.leave()
        return tuple(values) if good else BAD

    return read


def _pairs_reader(item: Reader) -> Reader:
    def read(walk: Walk, node: Node, path: Path) -> object:
        if not isinstance(node, MappingNode):
            walk.report(codes.WRONG_TYPE, path, node, f"expected a mapping, found {describe(node)}")
            return BAD
        if len(node.value) > MAX_ITEMS:
            walk.report(codes.LIMIT, path, node, f"{len(node.value)} entries, more than {MAX_ITEMS}")
            return BAD
        if not walk.enter(node, path, len(node.value)):
            return BAD
        pairs = []
        good = True
        for key, _, value_node in entries(walk, node, path):
            if is_null(value_node):
                walk.report(codes.NULL_ENTRY, (path, key), value_node, "the value is null", "remove the key")
                value: object = BAD
            else:
                value = item(walk, value_node, (path, key))
            good = good and value is not BAD
            pairs.append((key, value))
        walk.leave()
        return tuple(sorted(pairs, key=_first)) if good else BAD

    return read


def _first(pair: tuple[str, object]) -> str:
    return pair[0]


def _reader(type_: types.Type) -> Reader:
    """Reader of a field type. Raises: InvariantError for a type the conventions do not know."""
    if isinstance(type_, types.Metadata):
        name = (type_.extra or {}).get("yaml")
        if name in _SHARED:
            return shared_reader(_reader(type_.type), _SHARED[name])
        return _BY_EXTRA[name] if isinstance(name, str) else _reader(type_.type)
    if isinstance(type_, types.UnionType):
        return _union_reader(tuple(part for part in type_.types if not isinstance(part, types.NoneType)))
    if isinstance(type_, types.StructType):
        return _struct_reader(type_.cls)
    if isinstance(type_, types.VarTupleType):
        item = type_.item_type
        if isinstance(item, types.TupleType) and len(item.item_types) == 2:
            return _pairs_reader(_reader(item.item_types[1]))
        return _list_reader(_reader(item), type_.min_length or 0)
    if isinstance(type_, types.LiteralType):
        return choice_reader(tuple(str(value) for value in type_.values))
    if isinstance(type_, types.IntType):
        return int_reader(type_.ge, type_.le)
    if isinstance(type_, types.StrType):
        return read_string
    if isinstance(type_, types.BoolType):
        return read_bool
    raise InvariantError(f"no reader for the type {type_!r}")


def _union_reader(parts: tuple[types.Type, ...]) -> Reader:
    if len(parts) == 1:
        return _reader(parts[0])
    if {type(part) for part in parts} == {types.IntType, types.StrType}:
        return read_int_or_string
    raise InvariantError(f"no reader for the union {parts!r}")
