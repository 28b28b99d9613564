"""HTTP client of the control plane's admin endpoint (a unix socket or a loopback port)."""

from __future__ import annotations

import http.client
import json
import os
from typing import Any

from xdsbpf.cli.exits import CommandError, Exit
from xdsbpf.unix_http import UnixConnection

DEFAULT_ADMIN = "127.0.0.1:15014"


def default_admin() -> str:
    """`XDSBPF_ADMIN`, else the running lab's socket if there is exactly one, else the default port."""
    from pathlib import Path

    chosen = os.environ.get("XDSBPF_ADMIN")
    if chosen:
        return chosen
    labs = sorted(Path("/run/xdsbpf-lab").glob("*/admin.sock"))
    return f"unix:{labs[0]}" if len(labs) == 1 else DEFAULT_ADMIN


def request(address: str, path: str, *, method: str = "GET", body: Any = None, timeout_s: float = 10.0) -> Any:
    """JSON answer of `method path`; a `body` is sent as JSON.

    Raises: CommandError(UNREACHABLE) when nothing answers at `address`; with the server's own text,
    CommandError(USAGE) if it does not understand the request, CommandError(FAILURE) for any other error.
    """
    try:
        connection = _connection(address, timeout_s)
    except http.client.InvalidURL as error:
        raise CommandError(f"--admin {address!r} is not host:port or unix:PATH", Exit.USAGE) from error
    try:
        connection.request(method, path, body=None if body is None else json.dumps(body).encode())
        response = connection.getresponse()
        text = response.read()
        answer = json.loads(text) if text else {}
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise CommandError(
            f"the control plane does not answer at {address}: {reason}",
            Exit.UNREACHABLE,
            hint="is `xdsbpf serve` running? --admin or XDSBPF_ADMIN names its admin address",
        ) from error
    finally:
        connection.close()
    if response.status >= 400:
        reason = answer.get("error", "") if isinstance(answer, dict) else ""
        if reason and response.status < 500:
            raise CommandError(reason, Exit.USAGE if response.status == 400 else Exit.FAILURE)
        raise CommandError(f"{method} {path}: {response.status} {reason}".rstrip())
    return answer


def _connection(address: str, timeout_s: float) -> http.client.HTTPConnection:
    if address.startswith("unix:"):
        return UnixConnection(address.removeprefix("unix:"), timeout_s)
    return http.client.HTTPConnection(address, timeout=timeout_s)
