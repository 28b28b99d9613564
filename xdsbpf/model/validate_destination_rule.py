from __future__ import annotations

from xdsbpf.diagnostics import Diagnostic
from xdsbpf.model.destination_rule import DestinationRule


def validate_destination_rule(manifest: DestinationRule) -> tuple[Diagnostic, ...]:
    return ()
