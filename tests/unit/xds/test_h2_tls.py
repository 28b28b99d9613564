"""Mutual TLS: who gets in, what the handlers learn of them, and new certificates without a lost stream."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc import aio
from h2_wire import hello

from tests.authority import Authority, material, write_files
from tests.unit.xds.h2_serving import ECHO, WHO, Served
from xdsbpf.xds.h2.limits import Timing
from xdsbpf.xds.h2.server import H2Transport
from xdsbpf.xds.tls import TlsFiles

CLIENT = "spiffe://cluster.local/ns/a/sa/b"


@asynccontextmanager
async def serving(files: TlsFiles, timing: Timing | None = None) -> AsyncIterator[tuple[H2Transport, str]]:
    transport = H2Transport(Served().handlers(), timing=timing)
    (address,) = await transport.start((), ["127.0.0.1:0"], material(files))
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
            aio.secure_channel(address, grpc.ssl_channel_credentials(authority.pem)),
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
    context = ssl.create_default_context(cafile=str(files.authorities))
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
        await transport.use_tls(material(files))
        async with after.channel(address, CLIENT) as fresh:
            assert b"spiffe" in await fresh.unary_unary(WHO)(b"")
        async with before.channel(address, CLIENT, trusted=after) as outdated:
            with pytest.raises(aio.AioRpcError):
                await outdated.unary_unary(WHO)(b"", timeout=5)
        await stream.write(b"2")
        assert await stream.read() == b"2"


async def test_a_handshake_that_is_not_finished_is_given_up(tmp_path: Path) -> None:
    files = write_files(tmp_path, Authority())
    async with serving(files, Timing(handshake_s=0.2)) as (_, address):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
