"""Mutual TLS for the HTTP/2 transport: contexts, and who is at the other end of a socket.

Checked PEM in, an `ssl.SSLContext` out; an accepted transport in, a `Peer` out. Called by `server` and `protocol`.
Whether that peer may do what it asks for is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import Any

from xdsbpf.errors import ConfigError
from xdsbpf.xds.tls import Material
from xdsbpf.xds.transport import Peer


def server_context(material: Material) -> ssl.SSLContext:
    """A context that asks for HTTP/2 and a client certificate. Raises: ConfigError for what OpenSSL does not take."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # RFC 9113 section 9.2.2 forbids most others with TLS 1.2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # Security: a resumed session would keep a certificate that the present authorities no longer vouch for.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.set_alpn_protocols(["h2"])
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        _load_chain(context, material)
        context.load_verify_locations(cadata=material.authorities.decode("ascii"))
    except ssl.SSLError as error:
        raise ConfigError(f"the certificate, its key or the authorities of clients cannot be used: {error}") from error
    return context


def _load_chain(context: ssl.SSLContext, material: Material) -> None:
    """`ssl` takes a chain from a file only: the bytes that were checked go through memory, never through a disk."""
    descriptor = os.memfd_create("xdsbpf-tls")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(material.key + b"\n" + material.certificate)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def peer_of(transport: asyncio.Transport) -> tuple[Peer, str]:
    """The other end, and why it must be refused ("" if not)."""
    address = _address(transport.get_extra_info("socket"), transport.get_extra_info("peername"))
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if tls is None:
        return Peer(address), ""
    if tls.selected_alpn_protocol() != "h2":
        return Peer(address, (), True), "the client did not choose HTTP/2 by ALPN"
    names: Any = (tls.getpeercert() or {}).get("subjectAltName", ())
    return Peer(address, tuple(value for kind, value in names if kind == "URI"), True), ""


def _address(sock: socket.socket | None, name: Any) -> str:
    """As gRPC writes it."""
    match sock.family if sock is not None else None:
        case socket.AF_INET:
            return f"ipv4:{name[0]}:{name[1]}"
        case socket.AF_INET6:
            return f"ipv6:[{name[0]}]:{name[1]}"
        case _:
            return "unix:"
