"""The C programs beside this module, compiled when they are first needed; a C compiler is all that takes."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


@functools.cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    """Kept by the cache, and so removed at the end of the process."""
    return tempfile.TemporaryDirectory(prefix="xdsbpf-load-")


@functools.cache
def built(name: str, *libraries: str) -> Path:
    """The program of `<name>.c`, with those libraries; built once per process.

    Raises: CalledProcessError, the compiler's words on stderr.
    """
    compiler = shutil.which("cc") or shutil.which("clang") or "cc"
    found = Path(_directory().name) / name
    subprocess.run(
        [compiler, "-O2", "-o", str(found), str(HERE / f"{name}.c"), *(f"-l{library}" for library in libraries)],
        check=True,
    )
    return found
