"""Listening addresses of the plaintext xDS server: loopback TCP or a unix socket, nothing else.

In: what the user wrote (`127.0.0.1:15010`, `[::1]:15010`, `localhost:15010`, `unix:/run/xds.sock`). Out: the
target string for gRPC. Called by `xds.server` before anything is bound. Pure.
"""

from __future__ import annotations

import ipaddress

from xdsbpf.errors import ConfigError

_HINT = "use 127.0.0.1:PORT, [::1]:PORT or unix:/PATH"
_MAX_UNIX_PATH = 107


def listen_target(address: str) -> str:
    """The gRPC target of a listening address (port 0 picks a free one).

    Raises: ConfigError for anything that is reachable from another machine, or not an address.
    """
    if address.startswith("unix:"):
        return _unix_target(address)
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"{address!r} is not HOST:PORT", hint=_HINT)
    if host == "localhost":
        return f"127.0.0.1:{port}"
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError as error:
        raise ConfigError(f"{address!r}: {host!r} is not an IP address", hint=_HINT) from error
    if bracketed != (ip.version == 6):
        raise ConfigError(f"{address!r} is not HOST:PORT", hint=_HINT)
    if not ip.is_loopback:
        raise ConfigError(f"plaintext xDS does not listen on {address}: it is not loopback", hint=_HINT)
    return address


def _unix_target(address: str) -> str:
    path = address.removeprefix("unix:").removeprefix("//")
    if not path.startswith("/") or len(path.encode()) > _MAX_UNIX_PATH or "\0" in path:
        raise ConfigError(
            f"{address!r} is not unix:/PATH with an absolute path of at most {_MAX_UNIX_PATH} bytes",
            hint=_HINT,
        )
    return f"unix:{path}"
