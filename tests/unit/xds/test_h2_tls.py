"""Mutual TLS: who gets in, what the handlers learn of them, and new certificates without a lost stream."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc import aio
from h2_wire import hello

from tests.unit.xds.h2_serving import ECHO, WHO, Served
from xdsbpf.errors import ConfigError
from xdsbpf.xds.h2.limits import Timing
from xdsbpf.xds.h2.server import H2Transport
from xdsbpf.xds.h2.tls import TlsFiles

CLIENT = "spiffe://cluster.local/ns/a/sa/b"


class Authority:
    """A certificate authority of the test."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = (
            self._builder(self.name, self.key).add_extension(constraints, True).sign(self.key, hashes.SHA256())
        )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    def issue(self, *uris: str) -> tuple[bytes, bytes]:
        """(certificate, key) for 127.0.0.1 and these URIs, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        names = x509.SubjectAlternativeName([address, *(x509.UniformResourceIdentifier(uri) for uri in uris)])
        certificate = self._builder(x509.Name([]), key).add_extension(names, True).sign(self.key, hashes.SHA256())
        return pem(certificate), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def channel(self, address: str, *uris: str, trusted: Authority | None = None) -> aio.Channel:
        certificate, key = self.issue(*uris)
        credentials = grpc.ssl_channel_credentials(pem((trusted or self).certificate), key, certificate)
        return aio.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)])


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def write_files(directory: Path, authority: Authority) -> TlsFiles:
    """A server certificate of that authority, whose clients get in."""
    files = TlsFiles(directory / "cert.pem", directory / "key.pem", directory / "ca.pem")
    certificate, key = authority.issue("spiffe://cluster.local/ns/x/sa/control")
    files.certificate.write_bytes(certificate)
    files.key.write_bytes(key)
    files.client_ca.write_bytes(pem(authority.certificate))
    return files


@asynccontextmanager
async def serving(files: TlsFiles, timing: Timing | None = None) -> AsyncIterator[tuple[H2Transport, str]]:
    transport = H2Transport(Served().handlers(), timing=timing)
    address = await transport.start_tls("127.0.0.1:0", files)
    try:
        yield transport, address
    finally:
        await transport.stop(0.0)


async def test_a_handler_learns_the_names_of_the_verified_certificate(tmp_path: Path) -> None:
    authority = Authority()
    async with serving(write_files(tmp_path, authority)) as (_, address), authority.channel(address, CLIENT) as channel:
        assert await channel.unary_unary(WHO)(b"") == repr(("ipv4", (CLIENT,), True)).encode()


async def test_large_messages_pass(tmp_path: Path) -> None:
    authority = Authority()
    async with serving(write_files(tmp_path, authority)) as (_, address), authority.channel(address) as channel:
        assert await channel.unary_unary(ECHO)(b"x" * 2_000_000) == b"x" * 2_000_000


async def test_a_certificate_of_another_authority_or_none_is_refused(tmp_path: Path) -> None:
    authority, other = Authority(), Authority()
    async with serving(write_files(tmp_path, authority)) as (_, address):
        for channel in (
            other.channel(address, CLIENT, trusted=authority),
            aio.secure_channel(address, grpc.ssl_channel_credentials(pem(authority.certificate))),
            aio.insecure_channel(address),
        ):
            async with channel:
                with pytest.raises(aio.AioRpcError) as caught:
                    await channel.unary_unary(WHO)(b"", timeout=5)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with authority.channel(address, CLIENT) as control:
            assert b"spiffe" in await control.unary_unary(WHO)(b"")


@pytest.mark.parametrize(("protocols", "is_served"), [(["h2"], True), (["http/1.1"], False), ([], False)])
async def test_a_client_must_choose_http2(tmp_path: Path, protocols: list[str], is_served: bool) -> None:
    authority = Authority()
    certificate, key = authority.issue(CLIENT)
    (tmp_path / "client.pem").write_bytes(certificate + key)
    files = write_files(tmp_path, authority)
    context = ssl.create_default_context(cafile=str(files.client_ca))
    context.load_cert_chain(tmp_path / "client.pem")
    if protocols:
        context.set_alpn_protocols(protocols)
    async with serving(files) as (_, address):
        reader, writer = await asyncio.open_connection(*address.split(":"), ssl=context)
        try:
            writer.write(hello())
            got = await asyncio.wait_for(reader.read(9), 5)
        except ConnectionError:
            got = b""
        finally:
            writer.close()
        assert bool(got) is is_served


async def test_new_certificates_are_for_new_connections_and_old_streams_live_on(tmp_path: Path) -> None:
    before, after = Authority(), Authority()
    files = write_files(tmp_path, before)
    async with serving(files) as (transport, address), before.channel(address, CLIENT) as channel:
        stream = channel.stream_stream(ECHO)()
        await stream.write(b"1")
        assert await stream.read() == b"1"
        write_files(tmp_path, after)
        await transport.reload_tls()
        async with after.channel(address, CLIENT) as fresh:
            assert b"spiffe" in await fresh.unary_unary(WHO)(b"")
        async with before.channel(address, CLIENT, trusted=after) as outdated:
            with pytest.raises(aio.AioRpcError):
                await outdated.unary_unary(WHO)(b"", timeout=5)
        await stream.write(b"2")
        assert await stream.read() == b"2"


async def test_certificates_that_cannot_be_read_change_nothing(tmp_path: Path) -> None:
    authority = Authority()
    files = write_files(tmp_path, authority)
    async with serving(files) as (transport, address):
        _, wrong_key = authority.issue()
        files.key.write_bytes(wrong_key)
        with pytest.raises(ConfigError, match=r"cannot use .*cert.pem"):
            await transport.reload_tls()
        async with authority.channel(address, CLIENT) as channel:
            assert b"spiffe" in await channel.unary_unary(WHO)(b"")
    files.client_ca.unlink()
    with pytest.raises(ConfigError):
        await H2Transport({}).start_tls("127.0.0.1:0", files)


async def test_a_handshake_that_is_not_finished_is_given_up(tmp_path: Path) -> None:
    files = write_files(tmp_path, Authority())
    async with serving(files, Timing(handshake_s=0.2)) as (_, address):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
