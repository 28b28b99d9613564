"""Telling a client at once that what it asks for does not exist: the `resource_errors` of a response (xRFC TP3).

In: names that a request asked for and that are not there. Out: the bytes that say so, to be put behind a response of
either variant. No client announces that it reads them, so the operator says which do (`serve --resource-errors`).
Used by the encoders of `xds.response` and `xds.delta`. Pure (xds-server rule 15).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from xdsbpf.model.globs import glob_matches
from xdsbpf.xds import protocol

# Fields of envoy/service/discovery/v3/discovery.proto: (number << 3) | type.
_DELTA_ERRORS, _SOTW_ERRORS = b"\x4a", b"\x3a"
_RESOURCE_NAME, _ERROR_DETAIL, _NAME = b"\x0a", b"\x12", b"\x0a"
_STATUS: Final = b"\x08\x05" + protocol.field(b"\x12", b"no such resource")  # google.rpc.Status, NOT_FOUND
ERROR_BYTES: Final = len(_STATUS) + 16
"""More than what an error takes beside its name."""


def is_told(globs: Iterable[str], node_id: str) -> bool:
    """Whether a client is one that the operator knows to read errors."""
    return any(glob_matches(glob, node_id) for glob in globs)


def delta_errors(names: Iterable[str]) -> bytes:
    """The field of a DeltaDiscoveryResponse, once for each name."""
    return _errors(_DELTA_ERRORS, names)


def sotw_errors(names: Iterable[str]) -> bytes:
    """The field of a DiscoveryResponse, once for each name."""
    return _errors(_SOTW_ERRORS, names)


def _errors(tag: bytes, names: Iterable[str]) -> bytes:
    # Security: what a client may not see has the same text as what is not there.
    return b"".join(
        protocol.field(
            tag,
            protocol.field(_RESOURCE_NAME, protocol.field(_NAME, name.encode()))
            + protocol.field(_ERROR_DETAIL, _STATUS),
        )
        for name in names
    )
