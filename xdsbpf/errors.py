"""The exception tree.

    XdsbpfError
      ConfigError         start-up flags, environment, files named on the command line: exit 64/65
      SourceError         a source cannot be read now; supervised and retried
      ProtocolError       a peer broke xDS; closes that one stream, carries the gRPC status name
      DatapathError       a kernel call failed; carries errno and the call
        FeatureUnsupported, VerifierError, LayoutMismatch, MapFull, AdoptRefused
      InvariantError      a bug in us: keep the last good state, say so loudly

A user's mistake in a manifest is never an exception: it is a `Diagnostic`.
"""

from __future__ import annotations

import os


class XdsbpfError(Exception):
    """Root of every error that xdsbpf raises on purpose; `hint` says what to do next."""

    hint: str

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(XdsbpfError):
    """The process was started with something it cannot use."""


class SourceError(XdsbpfError):
    """A source of manifests cannot be read at the moment."""


class ProtocolError(XdsbpfError):
    """A peer broke the xDS protocol.

    `status` is the gRPC status name its stream is closed with (`INVALID_ARGUMENT`, ...).
    """

    status: str

    def __init__(self, status: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class DatapathError(XdsbpfError):
    """A kernel call failed: `call` names it, `errno` is the positive error number (0 if none)."""

    call: str
    errno: int

    def __init__(self, call: str, errno: int, detail: str = "", *, hint: str = "") -> None:
        text = f"{call}: {os.strerror(errno)}" if errno else call
        super().__init__(f"{text}: {detail}" if detail else text, hint=hint)
        self.call = call
        self.errno = errno


class FeatureUnsupported(DatapathError):
    """The running kernel lacks something that we need."""


class VerifierError(DatapathError):
    """The verifier refused a program; `log` is its whole output, the message its last useful line."""

    log: str

    def __init__(self, program: str, errno: int, log: str, *, hint: str = "") -> None:
        lines = [line for line in log.splitlines() if line.strip() and not line.startswith("processed ")]
        last = lines[-1] if lines else "no verifier log"
        super().__init__(f"load {program}", errno, f"{last} ({max(len(lines) - 1, 0)} lines omitted)", hint=hint)
        self.log = log


class LayoutMismatch(DatapathError):
    """Compiled-in ABI and generated Python ABI (or a pinned map) differ."""


class MapFull(DatapathError):
    """A BPF map has no room for another entry."""


class AdoptRefused(DatapathError):
    """A pinned object is not ours to adopt (owner, mode, type or layout)."""


class InvariantError(XdsbpfError):
    """Something that must never happen did."""
