"""`xdsbpf serve` as a process: signals, sockets, refusals, exit codes."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from serve_rig import MESH

from xdsbpf.model.names import CLUSTER
from xdsbpf.unix_http import UnixConnection
from xdsbpf.xds import protocol

DEADLINE_S = 30.0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Serve:
    """One process; its manifests and sockets are in `directory`."""

    def __init__(self, directory: Path, *arguments: str, xds: str = "", admin: str = "") -> None:
        self.xds, self.admin = directory / "xds.sock", directory / "admin.sock"
        manifests = directory / "m"
        manifests.mkdir(exist_ok=True)
        (manifests / "mesh.yaml").write_text(MESH)
        addresses = ["--listen", xds or f"unix:{self.xds}", "--admin", admin or f"unix:{self.admin}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xdsbpf", "serve", "-f", str(manifests), *addresses, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        connection = UnixConnection(str(self.admin), 10)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.process.stderr
        try:
            return self.get("/ready")[0] == 200
        except OSError:
            return False

    def ended(self) -> tuple[int, str]:
        """Exit code and standard error."""
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors


@contextmanager
def serving(directory: Path, *arguments: str) -> Iterator[Serve]:
    serve = Serve(directory, *arguments)
    try:
        until(serve.is_ready)
        yield serve
    finally:
        serve.process.kill()
        serve.process.communicate()


def errors_of(text: str) -> str:
    """Standard error without the log lines."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("{"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("transport", ["grpcio", "fast"])
def test_a_signal_ends_it_with_0_and_leaves_no_socket(tmp_path: Path, number: signal.Signals, transport: str) -> None:
    with serving(tmp_path, "--transport", transport) as serve:
        assert serve.xds.exists()
        serve.process.send_signal(number)
        code, errors = serve.ended()
        assert code == 0, errors
        assert errors_of(errors) == ""
        assert not serve.xds.exists()
        assert not serve.admin.exists()


def test_the_admin_socket_is_for_its_owner_only_and_the_umask_is_left_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as serve:
        assert serve.admin.stat().st_mode & 0o777 == 0o600
        assert serve.xds.stat().st_mode & 0o777 == 0o660
        status = Path(f"/proc/{serve.process.pid}/status").read_text()
        mask = next(line.split()[1] for line in status.splitlines() if line.startswith("Umask"))
        own = next(
            line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask")
        )
        assert mask == own


def test_a_second_one_on_the_same_sockets_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path) as serve:
        for other in (Serve(tmp_path), Serve(tmp_path, admin=f"unix:{tmp_path}/other.sock")):
            code, errors = other.ended()
            assert code == 64
            assert "another process listens there" in errors
            assert "hint:" in errors
            assert "Traceback" not in errors
        assert serve.is_ready()
        assert serve.xds.exists()
    assert not (tmp_path / "other.sock").exists()


def test_the_fast_transport_serves_clients(tmp_path: Path) -> None:
    with serving(tmp_path, "--transport", "fast") as serve:
        with grpc.insecure_channel(f"unix:{serve.xds}") as channel:
            stream = channel.stream_stream(protocol.DELTA_ADS)
            first = protocol.encode_request(CLUSTER, node_id="node~127.0.0.1~node1~cluster.local")
            got = protocol.decode_response(next(stream(iter([first]), timeout=DEADLINE_S)))
        assert got.type_url == CLUSTER
        assert serve.is_ready()


def test_an_unknown_transport_is_refused(tmp_path: Path) -> None:
    code, errors = Serve(tmp_path, "--transport", "quick").ended()
    assert code == 64
    assert "fast or grpcio" in errors


@pytest.mark.parametrize("which", ["xds", "admin"])
def test_a_taken_port_is_refused(tmp_path: Path, which: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, errors = Serve(tmp_path, **{which: address}).ended()
    assert code == 64
    assert "cannot listen on" in errors
    assert "Traceback" not in errors


def test_sockets_of_a_killed_process_are_replaced(tmp_path: Path) -> None:
    with serving(tmp_path) as serve:
        serve.process.kill()
        serve.process.wait()
        assert serve.xds.exists()
        assert serve.admin.exists()
    with serving(tmp_path) as again:
        assert again.is_ready()


def test_a_file_in_the_place_of_a_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "admin.sock").write_text("precious")
    code, errors = Serve(tmp_path).ended()
    assert code == 64
    assert "is not a socket" in errors
    assert (tmp_path / "admin.sock").read_text() == "precious"


@pytest.mark.parametrize(
    "addresses",
    [{"xds": "0.0.0.0:0"}, {"xds": "[::]:0"}, {"admin": "0.0.0.0:0"}, {"admin": "10.1.2.3:80"}, {"admin": "unix:x"}],
)
def test_an_address_that_others_could_reach_is_refused(tmp_path: Path, addresses: dict[str, str]) -> None:
    code, errors = Serve(tmp_path, **addresses).ended()
    assert code == 64
    assert "xdsbpf: error:" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "xds.sock").exists()


def test_a_missing_path_exits_65(tmp_path: Path) -> None:
    code, errors = Serve(tmp_path, "-f", str(tmp_path / "nowhere")).ended()
    assert code == 65
    assert "nowhere" in errors


def test_the_admin_endpoint_answers_on_loopback_too(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = Serve(tmp_path, admin=f"localhost:{port}")

    def services() -> list[object]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/services")
            answer = json.loads(connection.getresponse().read())
        except OSError:
            return []
        finally:
            connection.close()
        items: list[object] = answer["items"]
        return items

    try:
        until(lambda: len(services()) == 2)
    finally:
        serve.process.terminate()
        assert serve.ended()[0] == 0
