"""The benchmarks' server with shorter limits for clients that answer no PING: the same mechanism, only sooner.

Run as `python -m tests.bench.load.short_limits KIND`. A row that was measured on it says so.
"""

from __future__ import annotations

from tests.bench.load import subject
from xdsbpf.xds import grpcio
from xdsbpf.xds.h2 import server
from xdsbpf.xds.h2.limits import Timing

KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 6.0, 4.0


def shorten() -> None:
    """From now on in this process; before a server is made."""
    timeout_ms = int(KEEPALIVE_TIMEOUT_S * 1e3)
    shorter = {
        "grpc.keepalive_time_ms": int(KEEPALIVE_S * 1e3),
        "grpc.keepalive_timeout_ms": timeout_ms,
        "grpc.http2.ping_timeout_ms": timeout_ms,
    }
    grpcio._OPTIONS[:] = [(name, shorter.get(name, value)) for name, value in grpcio._OPTIONS]
    server.Timing = lambda **given: Timing(  # type: ignore[assignment,misc]
        keepalive_s=KEEPALIVE_S, keepalive_timeout_s=KEEPALIVE_TIMEOUT_S, **given
    )


if __name__ == "__main__":
    shorten()
    subject.main()
