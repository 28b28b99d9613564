"""A blocking HTTP client over a unix socket: the standard library has everything but the address family.

Used by the command line, the agent and the lab for admin endpoints (the control plane's, Envoy's).
"""

from __future__ import annotations

import http.client
import socket


class UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 to the server that listens on the unix socket `path`."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
