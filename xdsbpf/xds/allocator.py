"""What the C library does with freed memory: large blocks go back to the kernel at once, not into a heap that stays.

Used by the composition roots, once, before threads begin. Left alone, glibc raises its limit for blocks of their own
with every large block that is freed: a hundred requests of a megabyte would leave a hundred megabytes in heaps for
good. No part of the server's logic; nothing depends on it.
"""

from __future__ import annotations

import ctypes
from typing import Final

GRPC_BYTES: Final = 64 << 10
"""gRPC reads sockets into blocks of it, and its threads free them in heaps of their own."""
H2_BYTES: Final = 320 << 10
"""uvloop takes and frees 256 KiB for every read from TLS: they must not be mapped each time, which costs 20 us."""
_M_MMAP_THRESHOLD: Final = -3  # malloc.h


def return_large_blocks(large_bytes: int) -> bool:
    """Map each block from that size on alone, and unmap it when it is freed.

    False where the C library has no such setting (it is not glibc).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, large_bytes) == 1
