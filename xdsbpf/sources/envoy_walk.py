"""One walk over YAML nodes along a protobuf message type: every mistake, and the message if there is none.

The JSON mapping of proto3 (https://protobuf.dev/programming-guides/json/), field by field and with positions:
both spellings of field names, enums by name or number, Anys by their `@type`. Leaves with a mapping of their own
(durations, wrappers, structs) go through protobuf's own parser. Called by `envoy_reader`.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from xdsbpf.model import codes
from xdsbpf.model.names import TYPE_PREFIX
from xdsbpf.sources.envoy_types import encode_newer, find_type
from xdsbpf.sources.yaml_findings import Path, Walk, describe
from xdsbpf.sources.yaml_nodes import TAG_STR, Scalar, TextError, is_null, scalar_value
from xdsbpf.sources.yaml_readers import BAD, suggestion
from xdsbpf.sources.yaml_walk import entries

ANY: Final = "google.protobuf.Any"
_BY_PROTOBUF: Final = frozenset(
    f"google.protobuf.{name}"
    for name in (
        *("Duration", "Timestamp", "FieldMask", "Struct", "Value", "ListValue", "BoolValue", "StringValue"),
        *("BytesValue", "DoubleValue", "FloatValue", "Int32Value", "Int64Value", "UInt32Value", "UInt64Value"),
    )
)
"""Messages whose JSON is no object of their fields."""
_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS: Final = frozenset({FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT})


def read_any(walk: Walk, node: Node, path: Path) -> tuple[str, Message | bytes] | None:
    """(type URL, message) of a mapping with `@type`; bytes for a type that only envoy-data-plane has.

    None after a report. Fields are read even where others are wrong, so that all mistakes are found at once.
    """
    if not isinstance(node, MappingNode):
        walk.report(codes.WRONG_TYPE, path, node, f"expected a mapping with @type, found {describe(node)}")
        return None
    type_url = type_url_of(node)
    if not type_url:
        walk.report(codes.ENVOY_TYPE, path, node, "the @type is missing", f"for example {TYPE_PREFIX}envoy.…")
        return None
    name = type_url.rpartition("/")[2]
    descriptor = find_type(name)
    if descriptor is None:
        return _read_newer(walk, node, path, type_url, name)
    message = GetMessageClass(descriptor)()
    if name in _BY_PROTOBUF:
        content = next((value for key, _, value in entries(walk, node, path) if key == "value"), None)
        if content is not None:
            _parse_leaf(walk, content, (path, "value"), message)
    else:
        read_message(walk, node, path, message, inside_any=True)
    return type_url, message


def type_url_of(node: MappingNode) -> str:
    """The `@type` of a mapping, with the usual prefix if it has none; "" if it has no `@type`."""
    for key, value in node.value:
        if isinstance(key, ScalarNode) and key.value == "@type" and isinstance(value, ScalarNode):
            return str(value.value) if "/" in value.value else f"{TYPE_PREFIX}{value.value}"
    return ""


def read_message(walk: Walk, node: Node, path: Path, message: Message, *, inside_any: bool = False) -> None:
    """Fill `message` from a mapping; mistakes go to `walk`."""
    descriptor = message.DESCRIPTOR
    if descriptor.full_name == ANY:
        packed = read_any(walk, node, path)
        if packed is not None:
            any_message: Any = message
            any_message.type_url = packed[0]
            any_message.value = encode(packed[1])
        return
    if descriptor.full_name in _BY_PROTOBUF:
        _parse_leaf(walk, node, path, message)
        return
    if not isinstance(node, MappingNode):
        walk.report(codes.WRONG_TYPE, path, node, f"expected a mapping, found {describe(node)}")
        return
    if not walk.enter(node, path, len(node.value)):
        return
    fields = _fields(descriptor)
    written: dict[str, str] = {}
    for key, key_node, value in entries(walk, node, path):
        if inside_any and key == "@type":
            continue
        field = fields.get(key)
        if field is None:
            hint = suggestion(key, tuple(fields)) or f"{descriptor.name} has {', '.join(_names(descriptor))}"
            walk.report(codes.UNKNOWN_FIELD, (path, key), key_node, f"{descriptor.name} has no field {key}", hint)
        elif field.name in written:
            message_text = f"the field {field.name} is given twice, as {written[field.name]} and as {key}"
            walk.report(codes.DUPLICATE_KEY, (path, key), key_node, message_text, "remove one of the two")
        elif not is_null(value) or _takes_null(field):
            written[field.name] = key
            _check_choice(walk, key_node, (path, key), field, written)
            _read_field(walk, value, (path, key), message, field)
    walk.leave()


def encode(packed: Message | bytes) -> bytes:
    """Deterministic bytes of what `read_any` returned."""
    return packed if isinstance(packed, bytes) else packed.SerializeToString(deterministic=True)


def plain_value(walk: Walk, node: Node, path: Path) -> Any:
    """JSON value of a node; None after a report."""
    if isinstance(node, ScalarNode):
        value = _scalar(walk, node, path)
        return None if value is BAD else value
    if not walk.enter(node, path, len(node.value)):
        return None
    result: Any = None
    if isinstance(node, SequenceNode):
        result = [plain_value(walk, item, (path, index)) for index, item in enumerate(node.value)]
    elif isinstance(node, MappingNode):
        result = {key: plain_value(walk, item, (path, key)) for key, _, item in entries(walk, node, path)}
    walk.leave()
    return result


def _read_newer(
    walk: Walk, node: MappingNode, path: Path, type_url: str, name: str
) -> tuple[str, Message | bytes] | None:
    value = plain_value(walk, node, path)
    if walk.failed:
        return None
    value.pop("@type")
    try:
        body = encode_newer(name, value)
    except ValueError as error:
        walk.report(codes.WRONG_TYPE, path, node, f"{name}: {error}")
        return None
    if body is None:
        text = f"the type {name} is not known: neither xds-protos nor envoy-data-plane has it"
        walk.report(codes.ENVOY_TYPE, (path, "@type"), node, text, "check its spelling, or install newer packages")
        return None
    return type_url, body


def _fields(descriptor: Any) -> dict[str, Any]:
    """Fields by both spellings. Descriptors keep their lists; a dict per message costs more than the walk's rest."""
    found = _FIELDS.get(descriptor.full_name)
    if found is None:
        found = {field.json_name: field for field in descriptor.fields}
        found.update((field.name, field) for field in descriptor.fields)
        _FIELDS[descriptor.full_name] = found
    return found


_FIELDS: Final[dict[str, dict[str, Any]]] = {}


def _names(descriptor: Any) -> list[str]:
    return [field.name for field in descriptor.fields][:12]


def _takes_null(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name == "google.protobuf.Value"


def _check_choice(walk: Walk, node: Node, path: Path, field: FieldDescriptor, written: dict[str, str]) -> None:
    """Of a oneof at most one may be given."""
    if field.containing_oneof is None:
        return
    others = [other.name for other in field.containing_oneof.fields if other.name != field.name]
    for other in others:
        if other in written:
            text = f"{field.name} and {other} exclude each other ({field.containing_oneof.name})"
            walk.report(codes.ENVOY_CHOICE, path, node, text, "keep one of them")


def _read_field(walk: Walk, node: Node, path: Path, message: Message, field: FieldDescriptor) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _read_map(walk, node, path, getattr(message, field.name), field)
    elif field.is_repeated:
        _read_list(walk, node, path, getattr(message, field.name), field)
    elif field.message_type is not None:
        target = getattr(message, field.name)
        target.SetInParent()
        read_message(walk, node, path, target)
    else:
        value = _read_scalar(walk, node, path, field)
        if value is not BAD:
            setattr(message, field.name, value)


def _read_list(walk: Walk, node: Node, path: Path, target: Any, field: FieldDescriptor) -> None:
    if not isinstance(node, SequenceNode):
        walk.report(codes.WRONG_TYPE, path, node, f"expected a list, found {describe(node)}", "start each entry with -")
        return
    if not walk.enter(node, path, len(node.value)):
        return
    for index, item in enumerate(node.value):
        if field.message_type is not None:
            read_message(walk, item, (path, index), target.add())
        else:
            value = _read_scalar(walk, item, (path, index), field)
            if value is not BAD:
                target.append(value)
    walk.leave()


def _read_map(walk: Walk, node: Node, path: Path, target: Any, field: Any) -> None:
    if not isinstance(node, MappingNode):
        walk.report(codes.WRONG_TYPE, path, node, f"expected a mapping, found {describe(node)}")
        return
    if not walk.enter(node, path, len(node.value)):
        return
    key_field, value_field = (_fields(field.message_type)[name] for name in ("key", "value"))
    for text, key_node, item in entries(walk, node, path):
        key = _read_scalar(walk, key_node, (path, text), key_field) if key_field.cpp_type in _INTEGERS else text
        if key is BAD:
            continue
        if value_field.message_type is not None:
            entry = target[key]
            entry.SetInParent()
            read_message(walk, item, (path, text), entry)
        else:
            value = _read_scalar(walk, item, (path, text), value_field)
            if value is not BAD:
                target[key] = value
    walk.leave()


def _parse_leaf(walk: Walk, node: Node, path: Path, message: Message) -> None:
    """Durations, wrappers and the like: as protobuf reads them."""
    value = plain_value(walk, node, path)
    if walk.failed and value is None:
        return
    try:
        json_format.ParseDict(value, message)
    except (json_format.ParseError, TypeError, ValueError) as error:
        name = message.DESCRIPTOR.name
        walk.report(codes.WRONG_TYPE, path, node, f"expected a {name}, found {describe(node)}", _reason(error))


def _reason(error: Exception) -> str:
    """What protobuf says, without the parts that the position says better."""
    return str(error).partition(" at ")[0].rstrip(".").replace("Failed to parse value field: ", "")


def _scalar(walk: Walk, node: ScalarNode, path: Path) -> Scalar | object:
    try:
        return scalar_value(node)
    except TextError as error:
        walk.report(codes.BAD_TAG, path, node, error.message, "leave the tag out")
        return BAD


def _read_scalar(walk: Walk, node: Node, path: Path, field: Any) -> Any:
    if not isinstance(node, ScalarNode):
        walk.report(codes.WRONG_TYPE, path, node, f"expected {_kind(field)}, found {describe(node)}")
        return BAD
    value = str(node.value) if node.tag == TAG_STR else _scalar(walk, node, path)
    if value is BAD:
        return BAD
    converted = _convert(value, field)
    if converted is BAD:
        hint = ""
        if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
            values = [entry.name for entry in field.enum_type.values]
            hint = suggestion(str(value), values) or f"one of {', '.join(values[:12])}"
        elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            hint = f'quote it: "{node.value}"'
        walk.report(codes.WRONG_TYPE, path, node, f"expected {_kind(field)}, found {describe(node)}", hint)
    return converted


def _convert(value: object, field: Any) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return value if isinstance(value, bool) else BAD
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if not isinstance(value, str):
            return BAD
        return _decoded(value) if field.type == FieldDescriptor.TYPE_BYTES else value
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        if isinstance(value, str):
            named = field.enum_type.values_by_name.get(value)
            return BAD if named is None else named.number
        return value if isinstance(value, int) and value in field.enum_type.values_by_number else BAD
    if isinstance(value, bool):
        return BAD
    return _number(value, kind)


def _decoded(text: str) -> Any:
    """Base64 in either alphabet, padded or not, as the JSON mapping allows."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return BAD


def _number(value: object, kind: int) -> Any:
    if not isinstance(value, int | float | str):
        return BAD
    try:
        number = float(value) if kind in _FLOATS else int(value)
    except (OverflowError, ValueError):
        return BAD
    if kind in _FLOATS:
        return number
    low, high = _INTEGERS[kind]
    return number if low <= number <= high and (isinstance(value, str) or number == value) else BAD


def _kind(field: Any) -> str:
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return f"a {field.enum_type.name}"
    if field.type == FieldDescriptor.TYPE_BYTES:
        return "base64"
    if field.cpp_type in _INTEGERS:
        low, high = _INTEGERS[field.cpp_type]
        return f"a whole number from {low} to {high}"
    if field.cpp_type in _FLOATS:
        return "a number"
    return "true or false" if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else "a string"
