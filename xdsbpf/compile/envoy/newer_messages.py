"""Two extension messages that Envoy knows and xds-protos lacks, declared here field by field.

    envoy.extensions.filters.listener.set_filter_state.v3.Config   on_accept = 1, repeated FilterStateValue
    envoy.extensions.formatter.cel.v3.Cel                          cel_config = 1, CelExpressionConfig

Both live in a package of ours, because the second exists in xds-protos without its field; only their
bytes leave, in an Any with Envoy's type URL. A test decodes them with another library, and Envoy itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from envoy.config.core.v3.cel_pb2 import CelExpressionConfig
from envoy.extensions.filters.common.set_filter_state.v3.value_pb2 import FilterStateValue
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

from xdsbpf.model.names import TYPE_PREFIX

SET_FILTER_STATE_TYPE: Final = TYPE_PREFIX + "envoy.extensions.filters.listener.set_filter_state.v3.Config"
CEL_TYPE: Final = TYPE_PREFIX + "envoy.extensions.formatter.cel.v3.Cel"
PACKAGE: Final = "xdsbpf.compile.envoy"
FILE: Final = "xdsbpf/compile/envoy/newer_messages.proto"


def _declare() -> None:
    file = FileDescriptorProto(name=FILE, package=PACKAGE, syntax="proto3")
    for name, field, label, type_ in (
        ("SetFilterState", "on_accept", FieldDescriptorProto.LABEL_REPEATED, FilterStateValue.DESCRIPTOR),
        ("Cel", "cel_config", FieldDescriptorProto.LABEL_OPTIONAL, CelExpressionConfig.DESCRIPTOR),
    ):
        file.dependency.append(type_.file.name)
        file.message_type.add(name=name).field.add(
            name=field,
            number=1,
            label=label,
            type=FieldDescriptorProto.TYPE_MESSAGE,
            type_name=f".{type_.full_name}",
        )
    Default().Add(file)


_declare()
_SetFilterState = GetMessageClass(Default().FindMessageTypeByName(f"{PACKAGE}.SetFilterState"))
_Cel = GetMessageClass(Default().FindMessageTypeByName(f"{PACKAGE}.Cel"))


def set_filter_state(values: Iterable[FilterStateValue]) -> Any:
    """Configuration of the listener filter that sets filter state when a connection is accepted."""
    message = _SetFilterState(on_accept=list(values))
    return Any(type_url=SET_FILTER_STATE_TYPE, value=message.SerializeToString(deterministic=True))


def cel_formatter() -> Any:
    """Configuration of the `%CEL(...)%` formatter with string functions."""
    message = _Cel(cel_config=CelExpressionConfig(enable_string_functions=True))
    return Any(type_url=CEL_TYPE, value=message.SerializeToString(deterministic=True))
