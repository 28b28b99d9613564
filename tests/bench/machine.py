"""What every benchmark says of the machine it ran on."""

from __future__ import annotations

import os
import platform
import resource
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any


def describe() -> dict[str, Any]:
    """Cores, kernel, Python and the versions of the libraries on the hot path."""
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("protobuf", "grpcio", "xds-protos", "msgspec")},
    }


def rss_mb() -> float:
    """Resident memory of this process now, in MiB."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return pages * resource.getpagesize() / 2**20


def percentiles_us(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and max in microseconds."""
    ordered = sorted(seconds)
    return {
        "p50": round(statistics.median(ordered) * 1e6, 1),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e6, 1),
        "max": round(ordered[-1] * 1e6, 1),
    }
