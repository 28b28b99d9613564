"""Two extension messages that Envoy knows and xds-protos lacks, declared here field by field.

    envoy.extensions.filters.listener.set_filter_state.v3.Config   on_accept = 1, repeated FilterStateValue
    envoy.extensions.formatter.cel.v3.Cel                          cel_config = 1, CelExpressionConfig

The first is registered under its own name, so that JSON can show what is in an Any of it. The second
exists in xds-protos, without its field: it is declared in a package of ours, only its bytes leave, and
JSON shows it empty. A test decodes the first with another library; Envoy itself proves both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any as MessageClass
from typing import Final

from envoy.config.core.v3.cel_pb2 import CelExpressionConfig
from envoy.extensions.filters.common.set_filter_state.v3.value_pb2 import FilterStateValue

# Imported for its registration: without it JSON cannot show an Any of it.
from envoy.extensions.formatter.cel.v3 import cel_pb2
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

from xdsbpf.model.names import TYPE_PREFIX

LISTENER_FILTER_PACKAGE: Final = "envoy.extensions.filters.listener.set_filter_state.v3"
SET_FILTER_STATE_TYPE: Final = f"{TYPE_PREFIX}{LISTENER_FILTER_PACKAGE}.Config"
CEL_TYPE: Final = TYPE_PREFIX + cel_pb2.Cel.DESCRIPTOR.full_name


def _declare(package: str, name: str, field: str, type_: MessageClass, label: int) -> MessageClass:
    """A message class with one field, number 1."""
    file = FileDescriptorProto(
        name=f"{package.replace('.', '/')}/{name.lower()}.proto",
        package=package,
        syntax="proto3",
        dependency=[type_.DESCRIPTOR.file.name],
    )
    file.message_type.add(name=name).field.add(
        name=field,
        number=1,
        label=label,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        type_name=f".{type_.DESCRIPTOR.full_name}",
    )
    Default().Add(file)
    return GetMessageClass(Default().FindMessageTypeByName(f"{package}.{name}"))


_REPEATED: Final = FieldDescriptorProto.LABEL_REPEATED
_OPTIONAL: Final = FieldDescriptorProto.LABEL_OPTIONAL
_Config = _declare(LISTENER_FILTER_PACKAGE, "Config", "on_accept", FilterStateValue, _REPEATED)
CEL_MESSAGE: Final = "xdsbpf.compile.envoy.Cel"
_Cel = _declare("xdsbpf.compile.envoy", "Cel", "cel_config", CelExpressionConfig, _OPTIONAL)


def set_filter_state(values: Iterable[FilterStateValue]) -> Any:
    """Configuration of the listener filter that sets filter state when a connection is accepted."""
    message = _Config(on_accept=list(values))
    return Any(type_url=SET_FILTER_STATE_TYPE, value=message.SerializeToString(deterministic=True))


def cel_formatter() -> Any:
    """Configuration of the `%CEL(...)%` formatter with string functions."""
    message = _Cel(cel_config=CelExpressionConfig(enable_string_functions=True))
    return Any(type_url=CEL_TYPE, value=message.SerializeToString(deterministic=True))
