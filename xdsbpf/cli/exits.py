"""Exit codes and the one way in which a command fails (users-and-dependencies 3.2)."""

from __future__ import annotations

import enum
import sys
from typing import NoReturn

from xdsbpf.errors import XdsbpfError


class Exit(enum.IntEnum):
    """Exit codes of every command; the numbers follow sysexits.h and istioctl."""

    OK = 0
    FAILURE = 1
    USAGE = 64
    BAD_INPUT = 65
    UNREACHABLE = 69
    NOT_PERMITTED = 77
    FINDINGS = 79


class CommandError(XdsbpfError):
    """Ends the command with `code` after its message has been printed."""

    code: Exit

    def __init__(self, message: str, code: Exit = Exit.FAILURE, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


def report_error(error: XdsbpfError) -> None:
    """`xdsbpf: error: …` and its hint, on standard error."""
    sys.stderr.write(f"xdsbpf: error: {error}\n")
    if error.hint:
        sys.stderr.write(f"  hint: {error.hint}\n")


def fail(message: str, code: Exit = Exit.FAILURE, *, hint: str = "") -> NoReturn:
    """Stop the command."""
    raise CommandError(message, code, hint=hint)
