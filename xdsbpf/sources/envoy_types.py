"""Type names of Envoy's API -> descriptors, loaded when a file names them.

xds-protos has a thousand modules; only the packages of the types that occur are imported. For a type that it
lacks, `encode_newer` asks envoy-data-plane, which follows Envoy more closely. Called by `envoy_walk`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from typing import Any, Final

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import Default

from xdsbpf.model.names import TYPE_PREFIX

_ROOTS: Final = frozenset({"envoy", "google", "opentelemetry", "udpa", "xds"})
"""Where a package may be imported from: a file decides the name."""
NEWER: Final = "envoy_data_plane"


def find_type(name: str) -> Descriptor | None:
    """The descriptor of a full message name, or None if xds-protos lacks it."""
    found = _registered(name)
    if found is None and _import_package(name):
        found = _registered(name)
    return found


def encode_newer(name: str, value: dict[str, Any]) -> bytes | None:
    """The bytes of proto3 JSON of a type that only envoy-data-plane has, or None if it has none either.

    Raises: ValueError with the reason if the value does not fit the type.
    """
    cls = _newer_class(name)
    if cls is None:
        return None
    _load_nested(value)
    try:
        return bytes(cls.from_dict(value))
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # it has no exception of its own
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        raise ValueError(text.splitlines()[0] if text else type(error).__name__) from error


def _registered(name: str) -> Descriptor | None:
    try:
        return Default().FindMessageTypeByName(name)
    except KeyError:
        return None


@functools.cache
def _import_package(name: str) -> bool:
    """Import every message module of the package that a type is in; its name may be nested."""
    parts = name.split(".")
    if parts[0] not in _ROOTS or not all(part.isidentifier() for part in parts):
        return False
    for end in range(len(parts) - 1, 1, -1):
        package = ".".join(parts[:end])
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        if spec is None or spec.submodule_search_locations is None:
            continue
        for module in pkgutil.iter_modules(spec.submodule_search_locations, f"{package}."):
            if module.name.endswith("_pb2"):
                importlib.import_module(module.name)
        return True
    return False


@functools.cache
def _newer_class(name: str) -> Any:
    parts = name.split(".")
    if parts[0] not in _ROOTS or not all(part.isidentifier() for part in parts):
        return None
    try:
        module = importlib.import_module(".".join((NEWER, *parts[:-1])))
    except ModuleNotFoundError:
        return None
    return getattr(module, parts[-1], None)


def _load_nested(value: Any) -> None:
    """Import what Anys inside the value need: envoy-data-plane knows only types that were imported."""
    if isinstance(value, dict):
        type_url = value.get("@type")
        if isinstance(type_url, str):
            _newer_class(type_url.removeprefix(TYPE_PREFIX))
        for item in value.values():
            _load_nested(item)
    elif isinstance(value, list):
        for item in value:
            _load_nested(item)
