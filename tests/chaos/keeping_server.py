"""The benchmarks' server with a fault: every stream keeps the last request that it was sent.

Run as `python -m tests.chaos.keeping_server KIND`. A test of memory must see what this costs.
"""

from __future__ import annotations

from tests.bench.load import subject
from xdsbpf.xds.exchange import Exchange
from xdsbpf.xds.open_stream import OpenStream

_kept: dict[OpenStream, bytes] = {}
_take = Exchange._take


def _keep(exchange: Exchange, stream: OpenStream, data: bytes) -> float:
    _kept[stream] = data
    return _take(exchange, stream, data)


if __name__ == "__main__":
    Exchange._take = _keep  # type: ignore[method-assign]
    subject.main()
