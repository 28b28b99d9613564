"""An agent that dials mutual TLS: whom it trusts, who it may be, and certificates that change."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509

from tests.authority import Authority, write_files
from tests.unit.serve import serve_rig
from tests.unit.serve.serve_rig import MESH, Rig, until
from xdsbpf.agent import client
from xdsbpf.agent.bootstrap import BootstrapOptions, build_bootstrap
from xdsbpf.agent.client import DatapathClient
from xdsbpf.agent.credentials import Credentials, remove_sets
from xdsbpf.agent.enroller import Enroller
from xdsbpf.agent.envoy import EnvoyOptions, EnvoySupervisor
from xdsbpf.agent.loop import AgentLoop
from xdsbpf.agent.received import Received
from xdsbpf.agent.reconcile import Reconciler
from xdsbpf.datapath.address import address16
from xdsbpf.datapath.memory import MemoryTables
from xdsbpf.errors import ConfigError
from xdsbpf.node import NodeAgentConfig, _until, run
from xdsbpf.xds import certificates
from xdsbpf.xds.tls import TlsFiles

NODE1, NODE2 = "spiffe://cluster.local/node/node1", "spiffe://cluster.local/node/node2"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "POLL_S", 0.02)
    monkeypatch.setattr(client, "_LAST_BACKOFF", 0.3)


class NoHooks:
    def attach_veth(self, ifindex: int) -> None: ...

    def detach_veth(self, ifindex: int) -> None: ...

    def veths(self) -> tuple[int, ...]:
        return ()


class Agent:
    """Node1's agent over tables in memory."""

    def __init__(self, xds: str, files: TlsFiles, directory: Path, name: str = "") -> None:
        changed = asyncio.Event()
        received = Received("node1")
        self.kernel = MemoryTables()
        self.credentials = Credentials(files, xds, name, directory / "envoy" / "tls")
        self.credentials.install()
        node_id = "agent~127.0.0.1~node1~cluster.local"
        self.client = DatapathClient(xds, node_id, received, changed, self.credentials)
        enroller = Enroller(directory, changed)
        envoy = EnvoySupervisor(EnvoyOptions("node1", xds, directory / "envoy", directory, None, 1, "x", False))
        reconciler = Reconciler(self.kernel, NoHooks())
        self.loop = AgentLoop(received, reconciler, self.client, enroller, envoy, changed)
        self.stop = asyncio.Event()
        services = (self.client.run(), self.credentials.run(), enroller.run(), envoy.run(), self.loop.run())
        self.services = _until(self.stop, *services)

    @property
    def serial(self) -> str:
        return self.credentials.status().serial


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[Agent]:
    task = asyncio.create_task(agent.services)
    try:
        yield agent
    finally:
        agent.stop.set()
        async with asyncio.timeout(5):
            await task


@asynccontextmanager
async def serving(directory: Path, authority: Authority, transport: str = "grpcio") -> AsyncIterator[Rig]:
    (directory / "server").mkdir()
    files = write_files(directory / "server", authority)
    async with serve_rig.running(
        directory / "mesh", {"mesh.yaml": MESH}, directory / "xds.sock", transport=transport, tls=files
    ) as rig:
        yield rig


def address(rig: Rig) -> str:
    return rig.plane.bound[1]


def issued(directory: Path, authority: Authority, *uris: str) -> TlsFiles:
    (directory / "node").mkdir(exist_ok=True)
    return write_files(directory / "node", authority, *uris)


def serial_of(files: TlsFiles) -> int:
    return x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number


@pytest.mark.parametrize("transport", ["grpcio", "fast"])
async def test_an_agent_is_served_as_its_node_and_refused_as_another_until_its_files_are_right(
    tmp_path: Path, transport: str
) -> None:
    authority = Authority()
    async with serving(tmp_path, authority, transport) as rig:
        async with running(Agent(address(rig), issued(tmp_path, authority, NODE2), tmp_path)) as agent:
            await until(lambda: "PERMISSION_DENIED" in agent.client.state)
            assert f"{NODE2} claims 'agent~127.0.0.1~node1~cluster.local': that is node 'node1'" in agent.client.state
            assert rig.plane.access.refused["PERMISSION_DENIED"] > 0
            assert not agent.loop.synced
            assert dict(agent.kernel.frontends.items()) == {}
            issued(tmp_path, authority, "spiffe://elsewhere/node/node1")
            await until(lambda: "UNAUTHENTICATED" in agent.client.state)
            assert "is not of the trust domain cluster.local" in agent.client.state
            issued(tmp_path, authority, NODE1)
            await until(lambda: agent.loop.synced)
            assert agent.client.state == "connected"
            assert len(dict(agent.kernel.frontends.items())) == 2
        assert rig.plane.server.status() is not None


async def test_a_replaced_certificate_is_taken_without_a_new_stream_and_used_at_the_next_dial(tmp_path: Path) -> None:
    """The server only counts handshakes and looks at certificates, and ends every connection but the first."""
    authority = Authority()
    (tmp_path / "server").mkdir()
    server_files = write_files(tmp_path / "server", authority)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(server_files.authorities))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(server_files.certificate, server_files.key)
    context.set_alpn_protocols(["h2"])
    seen: list[int] = []
    writers: list[asyncio.StreamWriter] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        seen.append(x509.load_der_x509_certificate(found).serial_number)
        writers.append(writer)
        writer.write(b"\0\0\0\4\0\0\0\0\0")  # SETTINGS: without it gRPC does not take the connection for ready
        await reader.read()

    server = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=context)
    try:
        xds = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        files = issued(tmp_path, authority, NODE1)
        async with running(Agent(xds, files, tmp_path)) as agent:
            await until(lambda: seen)
            first, after = serial_of(files), serial_of(issued(tmp_path, authority, NODE1))
            await until(lambda: int(agent.serial, 16) == after)
            assert agent.credentials.status().taken >= 1
            assert set(seen) == {first}
            count = len(seen)
            for _ in range(10):  # more than a backoff of the first dial
                await asyncio.sleep(0.02)
            assert len(seen) == count, "the stream of the former certificate stays"
            writers[-1].transport.abort()
            await until(lambda: after in seen)
    finally:
        for writer in writers:
            writer.transport.abort()
        server.close()


async def test_a_server_of_another_authority_or_name_is_not_believed(tmp_path: Path) -> None:
    authority, other = Authority(), Authority()
    async with serving(tmp_path, authority) as rig:
        files = issued(tmp_path, authority, NODE1)
        files.authorities.write_bytes(other.pem)
        async with running(Agent(address(rig), files, tmp_path)) as deceived:
            await until(lambda: "UNAVAILABLE" in deceived.client.state)
            assert "Tls handshake failed" in deceived.client.state
        issued(tmp_path, authority, NODE1)
        async with running(Agent(address(rig), files, tmp_path, "xds.example.com")) as deceived:
            await until(lambda: "UNAVAILABLE" in deceived.client.state)
            assert "Hostname Verification" in deceived.client.state
        assert rig.plane.server.status() == ()
        async with running(Agent(address(rig), files, tmp_path, "127.0.0.1")) as agent:
            await until(lambda: agent.loop.synced)


@pytest.mark.parametrize("what", ["key", "expired", "garbage", "missing", "ca"])
async def test_files_that_cannot_be_used_later_change_nothing_and_are_reported(tmp_path: Path, what: str) -> None:
    authority = Authority()
    async with serving(tmp_path, authority) as rig:
        files = issued(tmp_path, authority, NODE1)
        async with running(Agent(address(rig), files, tmp_path)) as agent:
            await until(lambda: agent.loop.synced)
            serial = agent.serial
            match what:
                case "key":
                    files.key.write_bytes(authority.issue(NODE1)[1])
                case "expired":
                    write_files(tmp_path / "node", authority, NODE1, life=datetime.timedelta(seconds=-1))
                case "garbage":
                    files.certificate.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
                case "missing":
                    files.key.unlink()
                case "ca":
                    files.authorities.write_text("")
            await until(lambda: agent.credentials.status().error)
            (problem,) = agent.credentials.problems()
            assert problem.startswith("the former certificate stays in force: ")
            assert str(tmp_path / "node") in problem
            envoys = agent.credentials.envoy
            held = TlsFiles(Path(envoys.certificate), Path(envoys.key), Path(envoys.ca))
            if what != "expired":
                assert agent.serial == serial
                assert f"{serial_of(held):x}" == serial
            assert agent.client.state == "connected"
            issued(tmp_path, authority, NODE1)
            await until(lambda: not agent.credentials.problems())
            await until(lambda: serial_of(held) == serial_of(files))


async def test_a_certificate_that_begins_later_is_taken_when_it_has_begun(tmp_path: Path) -> None:
    authority, now = Authority(), [time.time() - 1.5 * 3600]
    files = issued(tmp_path, authority, NODE1)
    credentials = Credentials(files, "127.0.0.1:1", "", tmp_path / "tls", lambda: now[0])
    now[0] -= 3600  # before certificates of this authority begin
    second = serial_of(issued(tmp_path, authority, NODE1))
    watching = asyncio.create_task(credentials.run())
    try:
        await until(lambda: "it is valid from" in credentials.status().error)
        now[0] += 3600
        await until(lambda: int(credentials.status().serial, 16) == second)
    finally:
        watching.cancel()
    assert (credentials.status().error, credentials.status().taken) == ("", 1)
    assert credentials.status().refused <= 3, "once for a change, however often it is tried"


async def test_a_certificate_that_ends_in_force_is_a_problem(tmp_path: Path) -> None:
    files = issued(tmp_path, Authority(), NODE1)
    now = [time.time()]
    credentials = Credentials(files, "127.0.0.1:1", "", tmp_path / "tls", lambda: now[0])
    assert credentials.problems() == []
    now[0] += 7200
    (problem,) = credentials.problems()
    assert "ended at 20" in problem


def test_files_that_cannot_be_used_are_refused_before_anything_is_touched(tmp_path: Path) -> None:
    authority, state = Authority(), tmp_path / "state"

    def start(xds: str, name: str = "") -> None:
        run(
            NodeAgentConfig(
                node="node1",
                xds=xds,
                cgroup_root=tmp_path,
                state_dir=state,
                envoy=False,
                tls=files,
                tls_server_name=name,
            )
        )

    files = issued(tmp_path, authority, NODE1)
    with pytest.raises(ConfigError, match="no cgroup v2 directory"):  # the control: nothing is wrong with the files
        start("xds.example.com:15012")
    for xds, name, reason in (
        ("xds.example.com", "", "no address of a control plane"),
        ("https://xds.example.com:1", "", "no address of a control plane"),
        ("unix:/run/x.sock", "", "takes no mutual TLS"),
        ("xds.example.com:1", "spiffe://cluster.local/ns/a/sa/b", "cannot check the server name"),
    ):
        with pytest.raises(ConfigError, match=reason):
            start(xds, name)
    files.key.write_bytes(authority.issue(NODE1)[1])
    with pytest.raises(ConfigError, match="the key is another certificate's"):
        start("xds.example.com:15012")
    files.key.unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        start("xds.example.com:15012")
    write_files(tmp_path / "node", authority, NODE1, life=datetime.timedelta(seconds=-1))
    with pytest.raises(ConfigError, match="it is valid from"):
        start("xds.example.com:15012")
    assert not state.exists()


def test_envoys_copy_is_the_owners_alone_and_changes_as_a_whole(tmp_path: Path) -> None:
    directory, authority = tmp_path / "envoy" / "tls", Authority()
    before = os.umask(0)
    try:
        for _ in range(3):
            files = issued(tmp_path, authority, NODE1)
            credentials = Credentials(files, "127.0.0.1:1", "", directory)
            credentials.install()
            assert Path(credentials.envoy.key).read_bytes() == files.key.read_bytes()
            assert Path(credentials.envoy.certificate).read_bytes() == files.certificate.read_bytes()
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o700
    (current,) = directory.glob("set-*")
    assert {path.stat().st_mode & 0o777 for path in current.iterdir()} == {0o600}
    assert (directory / "current").readlink() == Path(current.name)
    assert not list(directory.glob("*.new"))
    remove_sets(directory)
    remove_sets(directory)
    assert not directory.exists()


def test_envoys_copy_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "envoy").write_text("a file where a directory should be")
    credentials = Credentials(issued(tmp_path, Authority(), NODE1), "127.0.0.1:1", "", tmp_path / "envoy" / "tls")
    with pytest.raises(ConfigError, match="cannot write the files of Envoy's certificate"):
        credentials.install()


def envoy_options(directory: Path, credentials: Credentials, *, strict: bool = False) -> BootstrapOptions:
    """Of a node's Envoy that dials with these credentials."""
    return BootstrapOptions(
        node="node1",
        proxy_address=address16(bytes((10, 88, 255, 1))),
        xds="xds.example.com:15012",
        admin_socket=directory / "admin.sock",
        strict=strict,
        tls=credentials.envoy,
    )


def test_envoy_is_told_paths_and_whom_to_believe(tmp_path: Path) -> None:
    credentials = Credentials(issued(tmp_path, Authority(), NODE1), "xds.example.com:15012", "", tmp_path / "tls")
    credentials.install()
    text = build_bootstrap(envoy_options(tmp_path, credentials))
    (cluster,) = json.loads(text)["static_resources"]["clusters"]
    assert cluster["type"] == "STRICT_DNS"
    context = cluster["transport_socket"]["typed_config"]
    assert context["sni"] == "xds.example.com"
    told = "".join(path.read_text() for path in (tmp_path / "tls").glob("*.json")) + text
    assert '"exact": "xds.example.com"' in told
    assert f'"filename": "{tmp_path}/tls/key.pem"' in told
    assert "PRIVATE" not in told


@pytest.mark.envoy
def test_envoy_accepts_its_bootstrap_with_mutual_tls(envoy: str, tmp_path: Path) -> None:
    credentials = Credentials(issued(tmp_path, Authority(), NODE1), "xds.example.com:15012", "", tmp_path / "tls")
    credentials.install()
    options = envoy_options(tmp_path, credentials, strict=True)
    (tmp_path / "bootstrap.json").write_text(build_bootstrap(options))
    command = [envoy, "-c", str(tmp_path / "bootstrap.json"), "--mode", "validate", "--log-level", "warning"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr.lower()
