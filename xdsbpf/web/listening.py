"""Serving an HTTP application: on a unix socket, or on loopback.

In: an ASGI application and the address that the user wrote. The sockets are bound here, since the HTTP server
would open a unix socket to everybody. Called by `xdsbpf serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette

from xdsbpf.errors import ConfigError
from xdsbpf.unix_listener import bind_unix

ADMIN_MODE: Final = 0o600
REST_MODE: Final = 0o660
"""As the sockets of xDS over gRPC have."""
STOP_WITHIN_S: Final = 1
"""Requests in progress get that long when the process stops."""


class _Server(uvicorn.Server):
    """The process owns the signals; uvicorn would take them over."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind_admin(address: str) -> socket.socket:
    """A socket for the admin endpoint, which only its owner may use; see `_bind`."""
    return _bind(address, "--admin", ADMIN_MODE)


def bind_rest(address: str) -> socket.socket:
    """A socket for xDS by polling; see `_bind`."""
    return _bind(address, "--rest-listen", REST_MODE)


def _bind(address: str, option: str, mode: int) -> socket.socket:
    """A socket bound to `unix:PATH` (with that mode) or a loopback `host:port`.

    Raises: ConfigError for any other address, or one that is taken.
    """
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:").removeprefix("//"))
        if not path.is_absolute():
            raise ConfigError(f"{option} {address!r} is not unix:/PATH with an absolute path")
        return bind_unix(path, mode)
    host, _, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
    except ValueError:
        ip = None
    if ip is None or not ip.is_loopback or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(
            f"{option} {address!r} is not a loopback host:port or unix:PATH",
            hint="it has no authentication, so it never leaves the machine",
        )
    listener = socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((str(ip), int(port)))
    except OSError as error:
        listener.close()
        hint = f"choose another {option} address"
        raise ConfigError(f"cannot listen on {address}: {error.strerror}", hint=hint) from error
    return listener


async def serve_http(app: Starlette, listener: socket.socket) -> None:
    """Serve until cancelled; ends connections, closes the socket and removes its file."""
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=STOP_WITHIN_S,
    )
    server = _Server(settings)
    name = listener.getsockname()
    serving = asyncio.create_task(server.serve([listener]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
    finally:
        listener.close()
        if isinstance(name, str):
            Path(name).unlink(missing_ok=True)
