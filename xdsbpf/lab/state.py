"""`lab.json`: what a lab consists of and which processes were started, written before anything is made.

Input and output: `LabRecord`. Written by `bringup` and `lab` (rename, so that it is never half a file); read
by every later command. Since it is written first, a crash at any point leaves a record of all that may exist.
"""

from __future__ import annotations

import msgspec

from xdsbpf.errors import ConfigError
from xdsbpf.lab.layout import Layout
from xdsbpf.lab.plan import LabPlan
from xdsbpf.lab.processes import ProcessRecord


class LabRecord(msgspec.Struct, frozen=True):
    """Everything needed to use, inspect and remove a lab. `paths` are absolute."""

    plan: LabPlan
    paths: tuple[str, ...]
    bare: bool
    ready: bool = False
    processes: tuple[ProcessRecord, ...] = ()

    def process(self, role: str) -> ProcessRecord | None:
        return next((record for record in self.processes if record.role == role), None)

    def with_process(self, record: ProcessRecord) -> LabRecord:
        """The record with this process in the place of an earlier one of the same role."""
        others = tuple(known for known in self.processes if known.role != record.role)
        return msgspec.structs.replace(self, processes=(*others, record))


def write_record(layout: Layout, record: LabRecord) -> None:
    """Replace `lab.json` atomically."""
    draft = layout.record.with_suffix(".new")
    draft.write_bytes(msgspec.json.encode(record))
    draft.replace(layout.record)


def read_record(layout: Layout) -> LabRecord | None:
    """The record of a lab, or None if there is none or it cannot be read (an older version's, say)."""
    try:
        return msgspec.json.decode(layout.record.read_bytes(), type=LabRecord)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def require_record(layout: Layout) -> LabRecord:
    """The record of a lab that is up. Raises: ConfigError."""
    record = read_record(layout)
    if record is None:
        raise ConfigError(f"there is no lab {layout.name}", hint=f"xdsbpf lab up -f PATH… --name {layout.name}")
    return record
