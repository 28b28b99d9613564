"""Certificates of a lab whose agents and Envoys dial mutual TLS: one authority, and three files for each party.

In: who a party is. Out: `cert.pem`, `key.pem` and `ca.pem` in a directory, each moved into place, readable by their
owner. Called by `bringup` and the tests. The authority's key is never written: it ends with the command that made it.
"""

from __future__ import annotations

import datetime
import ipaddress
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from xdsbpf.lab.layout import CONTROL_PLANE, PartyFiles

LIFETIME = datetime.timedelta(days=365)
_CLOCK_SKEW = datetime.timedelta(minutes=5)


class Authority:
    """A certificate authority in memory."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        builder = self._builder(self._name, self._key.public_key()).add_extension(constraints, True)
        self.pem = _pem(builder.sign(self._key, hashes.SHA256()))
        """Its own certificate."""

    def issue(self, uri: str, address: str = "") -> tuple[bytes, bytes]:
        """(certificate, key) for a SPIFFE id, and an IP address if it is a server's, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
        if address:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        # Without a subject the names must be critical (RFC 5280, 4.2.1.6).
        builder = self._builder(x509.Name([]), key.public_key())
        certificate = builder.add_extension(x509.SubjectAlternativeName(names), True).sign(self._key, hashes.SHA256())
        private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return _pem(certificate), key.private_bytes(serialization.Encoding.PEM, *private)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + LIFETIME)
        )


def write_files(files: PartyFiles, certificate: bytes, key: bytes, authorities: bytes) -> None:
    """Replace all three, one after the other, as a user's tool would."""
    files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, data in ((files.authorities, authorities), (files.certificate, certificate), (files.key, key)):
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        draft.replace(path)


def node_id(trust_domain: str, node: str) -> str:
    """The SPIFFE id that entitles to be a node's agent and Envoy."""
    return f"spiffe://{trust_domain}/node/{node}"


def control_plane_id(trust_domain: str) -> str:
    """The SPIFFE id of a lab's control plane."""
    return f"spiffe://{trust_domain}/ns/xdsbpf/sa/{CONTROL_PLANE}"


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
