"""A certificate authority for tests: certificates with SPIFFE names, and the files that servers and clients read."""

from __future__ import annotations

import datetime
import ipaddress
import os
import time
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc import aio

from xdsbpf.xds.tls import Material, TlsFiles, read_material

SERVER = "spiffe://cluster.local/ns/istio-system/sa/xdsbpf"
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
HOUR = datetime.timedelta(hours=1)


class Authority:
    """A certificate authority of the test."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = (
            self._builder(self.name, self.key, HOUR).add_extension(constraints, True).sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """The authority's own certificate."""
        return pem(self.certificate)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, life: datetime.timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * HOUR)
            .not_valid_after(now + life)
        )

    def issue(self, *uris: str, life: datetime.timedelta = HOUR) -> tuple[bytes, bytes]:
        """(certificate, key) for 127.0.0.1 and these URIs, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        names = x509.SubjectAlternativeName([address, *(x509.UniformResourceIdentifier(uri) for uri in uris)])
        builder = self._builder(x509.Name([]), key, life).add_extension(names, True)
        certificate = builder.sign(self.key, hashes.SHA256())
        return pem(certificate), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def credentials(
        self, *uris: str, trusted: Authority | None = None, life: datetime.timedelta = HOUR
    ) -> grpc.ChannelCredentials:
        """A client's, with a certificate for these URIs; the server's must be of `trusted`."""
        certificate, key = self.issue(*uris, life=life)
        return grpc.ssl_channel_credentials((trusted or self).pem, key, certificate)

    def channel(
        self, address: str, *uris: str, trusted: Authority | None = None, life: datetime.timedelta = HOUR
    ) -> aio.Channel:
        """A client's channel with such credentials."""
        return aio.secure_channel(address, self.credentials(*uris, trusted=trusted, life=life), _OWN_CONNECTION)

    def blocking_channel(self, address: str, *uris: str) -> grpc.Channel:
        """The same without an event loop."""
        return grpc.secure_channel(address, self.credentials(*uris), _OWN_CONNECTION)

    def material(self, *uris: str) -> Material:
        """A certificate (a server's by default) as a server takes it, without files."""
        certificate, key = self.issue(*(uris or (SERVER,)))
        ends = x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
        return Material(certificate, key, self.pem, uris or (SERVER,), ends, "1")


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def write_files(directory: Path, authority: Authority, *uris: str, life: datetime.timedelta = HOUR) -> TlsFiles:
    """A certificate of that authority (a server's by default), its key and the authority, each replaced by a rename."""
    files = TlsFiles(directory / "cert.pem", directory / "key.pem", directory / "ca.pem")
    certificate, key = authority.issue(*(uris or (SERVER,)), life=life)
    for path, data in ((files.certificate, certificate), (files.key, key), (files.authorities, authority.pem)):
        scratch = path.with_suffix(".new")
        scratch.write_bytes(data)
        os.replace(scratch, path)
    return files


def material(files: TlsFiles) -> Material:
    """What the files hold now."""
    return read_material(files, time.time())
