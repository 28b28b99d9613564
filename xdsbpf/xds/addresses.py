"""Listening addresses of the xDS server: plaintext on loopback TCP or a unix socket and nowhere else, TLS on any TCP.

In: what the user wrote (`127.0.0.1:15010`, `[::1]:15010`, `localhost:15010`, `unix:/run/xds.sock`). Out: the
target string for gRPC. Called by the transports before anything is bound. Pure.
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
    host, port, ip = _tcp(address, _HINT)
    if ip is None:
        return f"127.0.0.1:{port}"
    if not ip.is_loopback:
        hint = f"{_HINT}; other machines connect with mutual TLS"
        raise ConfigError(f"plaintext xDS does not listen on {address}: it is not loopback", hint=hint)
    return f"{host}:{port}"


def tls_target(address: str) -> str:
    """The gRPC target of a listening address with TLS; `:PORT` is every IPv4 address.

    Raises: ConfigError for what is not HOST:PORT with an IP address.
    """
    if address.startswith(":"):
        address = f"0.0.0.0{address}"
    host, port, ip = _tcp(address, "use 0.0.0.0:PORT, [::]:PORT or one address of this machine")
    return f"127.0.0.1:{port}" if ip is None else f"{host}:{port}"


def _tcp(address: str, hint: str) -> tuple[str, int, ipaddress.IPv4Address | ipaddress.IPv6Address | None]:
    """Host as written, port, and the address that the host is: None for `localhost`. Raises: ConfigError."""
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"{address!r} is not HOST:PORT", hint=hint)
    if host == "localhost":
        return host, int(port), None
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError as error:
        raise ConfigError(f"{address!r}: {host!r} is not an IP address", hint=hint) from error
    if bracketed != (ip.version == 6):
        raise ConfigError(f"{address!r} is not HOST:PORT", hint=hint)
    return host, int(port), ip


def _unix_target(address: str) -> str:
    path = address.removeprefix("unix:").removeprefix("//")
    if not path.startswith("/") or len(path.encode()) > _MAX_UNIX_PATH or "\0" in path:
        raise ConfigError(
            f"{address!r} is not unix:/PATH with an absolute path of at most {_MAX_UNIX_PATH} bytes",
            hint=_HINT,
        )
    return f"unix:{path}"
