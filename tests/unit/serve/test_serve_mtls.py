"""The mutual TLS listener of a control plane, over both transports: who gets what, and certificates that change."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import hpack
import pytest
from cryptography import x509
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse
from envoy.service.load_stats.v3.lrs_pb2 import LoadStatsRequest
from envoy.service.status.v3.csds_pb2 import ClientStatusRequest, ClientStatusResponse
from google.protobuf import json_format
from grpc import aio

from tests.authority import SERVER, Authority, write_files
from tests.waiting import until
from tests.web_client import Client
from xdsbpf.errors import ConfigError
from xdsbpf.model.names import CLUSTER, SECRET
from xdsbpf.serve import ControlPlane, ServeConfig
from xdsbpf.web.metrics import Metrics
from xdsbpf.web.rest import rest_app
from xdsbpf.xds import certificates, peers, protocol
from xdsbpf.xds.h2 import frames
from xdsbpf.xds.peers import AllowRule
from xdsbpf.xds.tls import TlsFiles

pytestmark = pytest.mark.parametrize("transport", ["grpcio", "fast"])

MESH = "spiffe://cluster.local"
NODE, EDGE, OTHER = f"{MESH}/node/node1", f"{MESH}/ns/edge/sa/one", f"{MESH}/ns/edge/sa/two"
NODE_ID = "node~10.0.0.1~node1~cluster.local"
CSDS = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus"
LRS = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
DEADLINE_S = 20.0
T = "type.googleapis.com/envoy"
RESOURCES = f"""nodes: [edge-1]
resources:
- "@type": {T}.extensions.transport_sockets.tls.v3.Secret
  name: top-secret
  generic_secret: {{secret: {{inline_string: hunter2}}}}
- "@type": {T}.config.cluster.v3.Cluster
  name: edge
  type: STATIC
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "POLL_S", 0.02)


class Plane:
    """A control plane with a mutual TLS listener, and its clients."""

    def __init__(self, directory: Path, plane: ControlPlane, authority: Authority, files: TlsFiles) -> None:
        self.directory = directory
        self.plane = plane
        self.authority = authority
        self.files = files

    @property
    def address(self) -> str:
        return self.plane.bound[1]

    async def ask(
        self,
        channel: aio.Channel,
        node_id: str,
        type_url: str = CLUSTER,
        *names: str,
    ) -> DeltaDiscoveryResponse:
        """The first response to a delta request for these names. Raises: AioRpcError."""
        # The request goes with the call: a write to a call that was refused at once would hide its status.
        request = protocol.encode_request(type_url, node_id=node_id, subscribe=names)
        call = channel.unary_stream(protocol.DELTA_ADS)(request)
        raw = await asyncio.wait_for(call.read(), DEADLINE_S)
        assert isinstance(raw, bytes)
        return DeltaDiscoveryResponse.FromString(raw)

    async def code(self, channel: aio.Channel, node_id: str) -> tuple[grpc.StatusCode, str]:
        """Status of that request; OK if it is answered."""
        try:
            await self.ask(channel, node_id)
        except aio.AioRpcError as error:
            return error.code(), str(error.details())
        return grpc.StatusCode.OK, ""

    async def unary(self, method: str, *uris: str, request: bytes = b"") -> tuple[grpc.StatusCode, bytes]:
        async with self.authority.channel(self.address, *uris) as channel:
            try:
                return grpc.StatusCode.OK, await channel.unary_unary(method)(request, timeout=DEADLINE_S)
            except aio.AioRpcError as error:
                return error.code(), b""


@asynccontextmanager
async def serving(
    directory: Path, transport: str, files: TlsFiles, authority: Authority, errors: tuple[str, ...] = ()
) -> AsyncIterator[Plane]:
    raw = directory / "raw"
    raw.mkdir()
    (raw / "edge.yaml").write_text(RESOURCES)
    config = ServeConfig(
        paths=(),
        envoy_paths=(raw,),
        listen=(f"unix:{directory}/xds.sock",),
        listen_tls=("127.0.0.1:0",),
        tls=files,
        transport=transport,
        allow=(AllowRule(EDGE, "edge-1"), AllowRule(OTHER, "edge-2")),
        admins=(f"{MESH}/ns/ops/sa/*",),
        resource_errors=errors,
    )
    plane = ControlPlane(config)
    task = asyncio.create_task(plane.run())
    try:
        ready = asyncio.create_task(plane.ready.wait())
        await asyncio.wait((task, ready), timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        assert plane.ready.is_set(), task
        yield Plane(directory, plane, authority, files)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def served(directory: Path, transport: str, errors: tuple[str, ...] = ()) -> AsyncIterator[Plane]:
    authority = Authority()
    async with serving(directory, transport, write_files(directory, authority), authority, errors) as plane:
        yield plane


async def test_a_node_is_served_as_itself_and_refused_as_another(tmp_path: Path, transport: str) -> None:
    async with served(tmp_path, transport) as plane, plane.authority.channel(plane.address, NODE) as channel:
        assert (await plane.code(channel, NODE_ID))[0] is grpc.StatusCode.OK
        code, text = await plane.code(channel, NODE_ID.replace("node1", "node2"))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert f"{NODE} claims 'node~10.0.0.1~node2~cluster.local': that is node 'node2'" in text
        assert "it may claim agent~<ip>~node1~cluster.local or node~<ip>~node1~cluster.local" in text
        assert plane.plane.access.refused == {"PERMISSION_DENIED": 1}
        assert (await plane.code(channel, NODE_ID))[0] is grpc.StatusCode.OK, "on the same connection"


async def test_with_the_check_broken_another_node_is_served(
    tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal above comes from that check and nothing else."""
    monkeypatch.setattr(peers.PeerRules, "_not_that_node", lambda *_: "")
    async with served(tmp_path, transport) as plane, plane.authority.channel(plane.address, NODE) as channel:
        assert (await plane.code(channel, NODE_ID.replace("node1", "node2")))[0] is grpc.StatusCode.OK


async def test_the_local_listener_beside_it_trusts_its_peers(tmp_path: Path, transport: str) -> None:
    async with served(tmp_path, transport) as plane, aio.insecure_channel(plane.plane.bound[0]) as channel:
        assert (await plane.code(channel, NODE_ID))[0] is grpc.StatusCode.OK
        assert (await plane.code(channel, "edge-1"))[0] is grpc.StatusCode.OK


@pytest.mark.parametrize(
    "uris",
    [(), (NODE, EDGE), ("spiffe://other.domain/node/node1",), ("https://cluster.local/node/node1",)],
)
async def test_a_certificate_without_one_name_of_the_mesh_is_nobody(
    tmp_path: Path, transport: str, uris: tuple[str, ...]
) -> None:
    async with served(tmp_path, transport) as plane:
        async with plane.authority.channel(plane.address, *uris) as channel:
            code, _ = await plane.code(channel, NODE_ID)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        async with plane.authority.channel(plane.address, NODE) as channel:
            assert (await plane.code(channel, NODE_ID))[0] is grpc.StatusCode.OK


async def test_the_handshake_refuses_who_is_expired_foreign_or_without_a_certificate(
    tmp_path: Path, transport: str
) -> None:
    async with served(tmp_path, transport) as plane:
        own, other, address = plane.authority, Authority(), plane.address
        refused = [
            own.channel(address, NODE, life=datetime.timedelta(seconds=-1)),
            other.channel(address, NODE, trusted=own),
            aio.secure_channel(address, grpc.ssl_channel_credentials(own.pem)),
            aio.insecure_channel(address),
        ]
        for channel in refused:
            async with channel:
                assert (await plane.code(channel, NODE_ID))[0] is grpc.StatusCode.UNAVAILABLE
        async with own.channel(address, NODE) as channel:
            assert (await plane.code(channel, NODE_ID))[0] is grpc.StatusCode.OK


async def test_a_secret_of_another_looks_exactly_like_one_that_does_not_exist(tmp_path: Path, transport: str) -> None:
    async with served(tmp_path, transport) as plane:
        async with plane.authority.channel(plane.address, EDGE) as channel:
            entitled = await plane.ask(channel, "edge-1", SECRET, "top-secret")
            assert b"hunter2" in entitled.resources[0].resource.value
        answers = []
        async with plane.authority.channel(plane.address, OTHER) as channel:
            for name in ("top-secret", "nop-secret"):
                answer = await plane.ask(channel, "edge-2", SECRET, name)
                assert list(answer.removed_resources) == [name]
                answer.ClearField("nonce")
                answers.append(answer.SerializeToString().replace(name.encode(), b"NAME"))
            assert answers[0] == answers[1]
            assert (await plane.code(channel, "edge-1"))[0] is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("errors", [(), ("edge-*",)], ids=["untold", "told"])
async def test_a_secret_of_another_looks_missing_whichever_way_it_is_asked_for(
    tmp_path: Path, transport: str, errors: tuple[str, ...]
) -> None:
    """State of the world, a stream of its own, one fetch, a poll, the status of the client; beside its owner.

    Also for clients that are told what does not exist.
    """
    sds = "/envoy.service.secret.v3.SecretDiscoveryService"
    delta_request = protocol.encode_request
    async with served(tmp_path, transport, errors) as plane:
        poller = Client(rest_app(plane.plane.server.handlers, lambda: True))

        async def answers(channel: aio.Channel, node_id: str, name: str) -> dict[str, bytes]:
            """What comes, the name and nonces aside; of state of the world, the types and errors that come."""
            asked = DiscoveryRequest(type_url=SECRET, resource_names=[name])
            asked.node.id = node_id
            found = {}
            call = channel.stream_stream(f"{sds}/DeltaSecrets")()
            await call.write(delta_request(SECRET, node_id=node_id, subscribe=[name]))
            response = DeltaDiscoveryResponse.FromString(await asyncio.wait_for(call.read(), DEADLINE_S))
            response.ClearField("nonce")
            found["delta"] = response.SerializeToString()
            whole = channel.stream_stream(protocol.SOTW_ADS)()
            await whole.write(asked.SerializeToString())
            await whole.write(DiscoveryRequest(type_url=CLUSTER).SerializeToString())
            await whole.done_writing()  # what is owed comes before the end
            responses = []
            while (data := await asyncio.wait_for(whole.read(), DEADLINE_S)) is not aio.EOF:
                answer = DiscoveryResponse.FromString(data)
                responses.append((answer.type_url, [str(error) for error in answer.resource_errors]))
            found["sotw"] = repr(responses).encode()
            found["fetch"] = await channel.unary_unary(f"{sds}/FetchSecrets")(asked.SerializeToString())
            polled = (await poller.post("/v3/discovery:secrets", json_format.MessageToJson(asked))).json()
            polled.pop("versionInfo")  # a hash, of the name as well
            found["poll"] = repr(polled).encode()
            request = ClientStatusRequest()
            request.node_matchers.add().node_id.exact = node_id
            admin = f"{MESH}/ns/ops/sa/alice"
            status = ClientStatusResponse.FromString(
                (await plane.unary(CSDS, admin, request=request.SerializeToString()))[1]
            )
            found["status"] = b"".join(one.SerializeToString() for one in status.config[0].generic_xds_configs)
            call.cancel()
            return {way: text.replace(name.encode(), b"NAME") for way, text in found.items()}

        async with plane.authority.channel(plane.address, EDGE) as owner:
            entitled = await answers(owner, "edge-1", "top-secret")
        async with plane.authority.channel(plane.address, OTHER) as channel:
            other = await answers(channel, "edge-2", "top-secret")
            missing = await answers(channel, "edge-2", "nop-secret")
        assert other == missing
        assert {way for way in other if entitled[way] == other[way]} == set(), (
            "the owner gets something else, every way"
        )
        assert (SECRET in other["sotw"].decode()) is bool(errors)
        for way in ("delta", "sotw", "fetch", "poll"):
            assert (b"no such resource" in other[way]) is bool(errors)
            assert b"no such resource" not in entitled[way]


async def test_only_an_administrator_sees_what_others_are_served(tmp_path: Path, transport: str) -> None:
    async with served(tmp_path, transport) as plane, plane.authority.channel(plane.address, EDGE) as channel:
        stream = channel.stream_stream(protocol.DELTA_ADS)()
        await stream.write(protocol.encode_request(CLUSTER, node_id="edge-1"))
        await asyncio.wait_for(stream.read(), DEADLINE_S)
        request = ClientStatusRequest().SerializeToString()
        refused, _ = await plane.unary(CSDS, EDGE, request=request)
        assert refused is grpc.StatusCode.PERMISSION_DENIED
        code, data = await plane.unary(CSDS, f"{MESH}/ns/ops/sa/alice", request=request)
        assert code is grpc.StatusCode.OK
        assert [config.node.id for config in ClientStatusResponse.FromString(data).config] == ["edge-1"]


async def test_health_is_for_every_certificate_and_reflection_for_the_mesh(tmp_path: Path, transport: str) -> None:
    async with served(tmp_path, transport) as plane:
        stranger = "spiffe://other.domain/probe"
        assert (await plane.unary(HEALTH, stranger))[0] is grpc.StatusCode.OK
        assert (await plane.unary(REFLECTION, stranger))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert (await plane.unary(REFLECTION, NODE))[0] is grpc.StatusCode.OK


async def test_load_is_reported_by_who_may_be_that_node(tmp_path: Path, transport: str) -> None:
    async with served(tmp_path, transport) as plane, plane.authority.channel(plane.address, EDGE) as channel:
        answers = {}
        for node_id in ("edge-1", "edge-2"):
            request = LoadStatsRequest()
            request.node.id = node_id
            call = channel.stream_stream(LRS)()
            await call.write(request.SerializeToString())
            try:
                await asyncio.wait_for(call.read(), DEADLINE_S)
                answers[node_id] = grpc.StatusCode.OK
            except aio.AioRpcError as error:
                answers[node_id] = error.code()
        assert answers == {"edge-1": grpc.StatusCode.OK, "edge-2": grpc.StatusCode.PERMISSION_DENIED}


async def test_new_files_are_for_new_connections_and_streams_live_on(tmp_path: Path, transport: str) -> None:
    async with served(tmp_path, transport) as plane, plane.authority.channel(plane.address, NODE) as channel:
        before, after = plane.authority, Authority()
        stream = channel.stream_stream(protocol.DELTA_ADS)()
        await stream.write(protocol.encode_request(CLUSTER, node_id=NODE_ID))
        await asyncio.wait_for(stream.read(), DEADLINE_S)
        write_files(tmp_path, after)
        await until(lambda: plane.plane.certificates and plane.plane.certificates.reloads["taken"])
        async with after.channel(plane.address, NODE) as fresh:
            assert (await plane.code(fresh, NODE_ID))[0] is grpc.StatusCode.OK
        async with before.channel(plane.address, NODE, trusted=after) as outdated:
            assert (await plane.code(outdated, NODE_ID))[0] is grpc.StatusCode.UNAVAILABLE
        await stream.write(protocol.encode_request(CLUSTER, subscribe=["nosuch"]))
        assert await asyncio.wait_for(stream.read(), DEADLINE_S), "the old stream goes on"


@pytest.mark.parametrize("what", ["key", "expired", "garbage", "missing", "ca"])
async def test_files_that_cannot_be_used_change_nothing_and_are_told(tmp_path: Path, transport: str, what: str) -> None:
    async with served(tmp_path, transport) as plane:
        own_files = plane.plane.certificates
        assert own_files is not None
        own = plane.authority
        match what:
            case "key":
                plane.files.key.write_bytes(own.issue(SERVER)[1])
            case "expired":
                write_files(tmp_path, own, life=datetime.timedelta(seconds=-1))
            case "garbage":
                plane.files.certificate.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
            case "missing":
                plane.files.key.unlink()
            case "ca":
                plane.files.authorities.write_text("")
        await until(lambda: own_files.reloads["refused"])
        assert own_files.reloads["taken"] == 0 or what == "expired"
        assert str(tmp_path) in own_files.status().error
        assert 'xdsbpf_tls_reloads_total{result="refused"}' in (text := (await Metrics(plane.plane).text()).decode())
        assert "xdsbpf_tls_files_refused 1.0" in text
        async with own.channel(plane.address, NODE) as channel:
            assert (await plane.code(channel, NODE_ID))[0] is grpc.StatusCode.OK
        write_files(tmp_path, own)
        await until(lambda: not own_files.status().error)
        async with own.channel(plane.address, NODE) as channel:
            assert (await plane.code(channel, NODE_ID))[0] is grpc.StatusCode.OK


def raw_call(
    address: str, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[str, ssl.SSLSession | None]:
    """One request over a TLS session of our own making: its grpc-status, or "no connection"; and its ticket."""
    host, _, port = address.rpartition(":")
    fields = {":method": "POST", ":scheme": "https", ":path": protocol.DELTA_ADS, ":authority": host}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    request = protocol.encode_request(CLUSTER, node_id=NODE_ID)
    out = frames.PREFACE + frames.settings({})
    out += frames.frame(frames.HEADERS, frames.END_HEADERS, 1, hpack.Encoder().encode(fields))
    out += frames.frame(frames.DATA, frames.END_STREAM, 1, b"\0" + len(request).to_bytes(4, "big") + request)
    decoder = hpack.Decoder()
    with (
        socket.create_connection((host, int(port)), DEADLINE_S) as plain,
        context.wrap_socket(plain, server_hostname=host, session=session) as wrapped,
    ):
        try:
            wrapped.sendall(out)
            with wrapped.makefile("rb") as answer:
                while head := answer.read(frames.HEADER_BYTES):
                    payload = answer.read(int.from_bytes(head[:3], "big"))
                    if head[3] == frames.HEADERS:
                        got = dict(decoder.decode(payload))
                        if "grpc-status" in got:
                            return str(got["grpc-status"]), wrapped.session
        except OSError:
            pass
        return "no connection", wrapped.session


async def test_a_resumed_session_does_not_outlive_its_certificate(tmp_path: Path, transport: str) -> None:
    async with served(tmp_path, transport) as plane:
        life = datetime.timedelta(seconds=1.5)
        certificate, key = plane.authority.issue(NODE, life=life)
        ends = x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
        (tmp_path / "client.pem").write_bytes(certificate + key)
        context = ssl.create_default_context(cafile=str(plane.files.authorities))
        context.load_cert_chain(tmp_path / "client.pem")
        context.set_alpn_protocols(["h2"])
        status, session = await asyncio.to_thread(raw_call, plane.address, context, None)
        assert status == "0"
        status, session = await asyncio.to_thread(raw_call, plane.address, context, session)
        assert status == "0"
        await until(lambda: time.time() > ends + 1.0)
        assert (await asyncio.to_thread(raw_call, plane.address, context, session))[0] in ("16", "no connection")
        assert (await asyncio.to_thread(raw_call, plane.address, context, None))[0] == "no connection"


async def test_files_that_cannot_be_used_at_the_start_are_an_error(tmp_path: Path, transport: str) -> None:
    files = write_files(tmp_path, Authority())
    config = ServeConfig(paths=(tmp_path,), listen=(), listen_tls=("127.0.0.1:0",), tls=files, transport=transport)
    ControlPlane(config)
    files.key.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"key\.pem is no private key"):
        ControlPlane(config)


async def test_a_handshake_that_never_comes_does_not_hold_up_the_others(tmp_path: Path, transport: str) -> None:
    async with served(tmp_path, transport) as plane:
        host, _, port = plane.address.rpartition(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(50)]
        async with plane.authority.channel(plane.address, NODE) as channel:
            assert (await plane.code(channel, NODE_ID))[0] is grpc.StatusCode.OK
        for _, writer in silent:
            writer.close()
