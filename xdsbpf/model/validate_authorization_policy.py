from __future__ import annotations

from xdsbpf.diagnostics import Diagnostic
from xdsbpf.model.authorization_policy import AuthorizationPolicy


def validate_authorization_policy(manifest: AuthorizationPolicy) -> tuple[Diagnostic, ...]:
    return ()
