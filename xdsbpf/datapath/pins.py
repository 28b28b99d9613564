"""The pin directory: bpffs, its directories, and whether what lies there is ours to adopt.

Layout: <root>/v<ABI>/<map> and <root>/v<ABI>/links/<link>. Used by loader and attach. Security:
whoever can write there decides what the kernel enforces, so anything not root's alone is refused.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from pathlib import Path

from xdsbpf.datapath import abi
from xdsbpf.errors import AdoptRefused, DatapathError

_BPFFS = Path("/sys/fs/bpf")
_BPF_FS_MAGIC = 0xCAFE4A11
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
LINKS = "links"


def layout_directory(root: Path) -> Path:
    """Where this ABI's maps are pinned."""
    return root / f"v{abi.AbiVersion.VERSION:d}"


def is_bpffs(path: Path) -> bool:
    """Is `path`, or its nearest parent that exists, on a BPF file system?"""
    existing = next(place for place in (path, *path.parents) if place.exists())
    # struct statfs starts with the type as a word; 256 bytes are more than any libc's struct.
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(existing), buffer):
        raise DatapathError("statfs", ctypes.get_errno(), str(existing))
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF == _BPF_FS_MAGIC


def make_directories(root: Path) -> Path:
    """Create <root>/v<ABI>/links, mounting bpffs at /sys/fs/bpf if there is none; the layout directory.

    Raises AdoptRefused when a directory of it exists and is not root's alone.
    """
    if not root.is_absolute() or ".." in root.parts:
        raise DatapathError("pin root", 0, f"{root} is not an absolute path")
    if root.is_relative_to(_BPFFS):
        _mount_once()
    if not is_bpffs(root):
        raise DatapathError("pin root", 0, f"{root} is on no BPF file system", hint="use a path below /sys/fs/bpf")
    directory = layout_directory(root)
    for path in (root, directory, directory / LINKS):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(path, directory=True)
    return directory


def check_owner(path: Path, *, directory: bool = False) -> None:
    """AdoptRefused unless `path` is root's alone (a pinned object, or one of our directories).

    bpffs pins are made 0600 by the kernel; symbolic links are never followed.
    """
    status = path.lstat()
    kind_fits = stat.S_ISDIR(status.st_mode) if directory else stat.S_ISREG(status.st_mode)
    if status.st_uid != 0 or not kind_fits or status.st_mode & 0o077:
        found = f"owner {status.st_uid}, mode {stat.filemode(status.st_mode)}"
        hint = "find out who made it, remove it, and start again"
        raise AdoptRefused("adopt", 0, f"{path} is not root's alone ({found})", hint=hint)


def _mount_once() -> None:
    # Locked: of two agents that start together, a second mount would hide what the first pinned.
    directory = os.open(_BPFFS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        if is_bpffs(_BPFFS):
            return
        libc = ctypes.CDLL(None, use_errno=True)
        flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        if libc.mount(b"bpf", os.fsencode(_BPFFS), b"bpf", flags, b"mode=0700"):
            raise DatapathError("mount", ctypes.get_errno(), f"bpffs at {_BPFFS}", hint="needs root and /sys")
    finally:
        os.close(directory)
