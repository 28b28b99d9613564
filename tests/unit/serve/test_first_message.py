"""What a large first request costs the server's memory: nothing, if who sends it may be no client (rule 46)."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from test_serve_process import DEADLINE_S, serving

from tests.authority import Authority, write_files
from tests.envoy.node_mesh import free_port
from xdsbpf.model.names import CLUSTER
from xdsbpf.xds import protocol

NODE, NOBODY = "spiffe://cluster.local/node/node1", "spiffe://cluster.local/job/backup"
MESSAGE_MB = 60
"""Just below the limit of those who may be somebody."""
WINDOW_MB = 12
"""More than the windows of a stream that nobody reads."""


@pytest.mark.parametrize("transport", ["grpcio", "fast"])
def test_who_may_be_no_client_fills_no_memory(tmp_path: Path, transport: str) -> None:
    """Beside an entitled one, whose message arrives as a whole: it is refused for its claim, which is in it."""
    authority = Authority()
    files = write_files(tmp_path, authority)
    address = f"127.0.0.1:{free_port()}"
    tls = ["--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--tls-ca", str(files.authorities)]
    request = DeltaDiscoveryRequest(type_url=CLUSTER)
    request.node.id = "edge-1"
    request.node.metadata["ballast"] = "x" * (MESSAGE_MB << 20)
    message = request.SerializeToString()
    del request
    grown = {}
    with serving(tmp_path, "--transport", transport, "--listen-tls", address, *tls) as serve:
        for identity in (NOBODY, NODE):
            with authority.blocking_channel(address, identity) as channel:
                # The connection, and what the first call of all costs, are no part of it.
                assert refusal(channel, protocol.encode_request(CLUSTER, node_id="edge-1")).startswith(identity)
                before = reset_peak(serve.process.pid)
                assert refusal(channel, message).startswith(identity)
                grown[identity] = (peak(serve.process.pid) - before) >> 20
    assert grown[NOBODY] < WINDOW_MB
    assert grown[NODE] > MESSAGE_MB


def refusal(channel: grpc.Channel, message: bytes) -> str:
    """What the server says to a first request."""
    with pytest.raises(grpc.RpcError) as caught:
        next(channel.unary_stream(protocol.DELTA_ADS)(message, timeout=DEADLINE_S))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, caught.value
    return str(caught.value.details())


def reset_peak(pid: int) -> int:
    """Forget the highest resident memory of the process; returns the present one, in bytes (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


def peak(pid: int) -> int:
    """The highest resident memory since then, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10
