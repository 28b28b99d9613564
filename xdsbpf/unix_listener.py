"""Unix sockets to listen on: what a dead process left is replaced, what a living one uses is not.

Used by the xDS server and the admin endpoint before they bind.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from xdsbpf.errors import ConfigError


def claim_unix_path(path: Path) -> None:
    """Make room for a socket at `path`: removes one that nobody listens on.

    Raises: ConfigError if a process listens there, or the file is no socket or cannot be replaced.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot listen on unix:{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"cannot listen on unix:{path}: the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A full backlog must not block us: EAGAIN says that somebody listens, too.
        probe.setblocking(False)
        result = probe.connect_ex(str(path))
    if result == errno.ECONNREFUSED:
        path.unlink(missing_ok=True)
    elif result != errno.ENOENT:
        taken = result in (0, errno.EAGAIN)
        reason = "another process listens there" if taken else os.strerror(result)
        hint = "stop that process, or choose another path" if taken else ""
        raise ConfigError(f"cannot listen on unix:{path}: {reason}", hint=hint)


def bind_unix(path: Path, mode: int) -> socket.socket:
    """A socket bound at `path` (not listening yet) that never had a wider mode than `mode`.

    Raises: ConfigError as `claim_unix_path`, or if the path cannot be bound.
    """
    claim_unix_path(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the file the mode of the socket's inode: no moment in which others may connect.
        os.fchmod(listener.fileno(), mode)
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on unix:{path}: {error.strerror or error}") from error
    return listener
