"""The files of one side of mutual TLS: read and checked as a whole, before anything uses them.

PEM files in, a `Material` with their bytes out, or a ConfigError that names the file and what is wrong with it. Used
by the server's transports and by the node agent, at start and at every reload, so that broken files never replace
working ones. Never logs a key.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from xdsbpf.errors import ConfigError


class TlsFiles(msgspec.Struct, frozen=True):
    """PEM files: our certificate chain and key, and the authorities that the peer's certificate must come from."""

    certificate: Path
    key: Path
    authorities: Path


class Material(msgspec.Struct, frozen=True):
    """What the files held: a chain, its key, authorities; and for the status the names, the end (seconds since the
    epoch) and the serial number (hexadecimal) of the chain's first certificate."""

    certificate: bytes
    key: bytes
    authorities: bytes
    names: tuple[str, ...]
    not_after: float
    serial: str


def fingerprint(files: TlsFiles) -> tuple[tuple[int, ...], ...]:
    """Changes when a file is replaced, rewritten or given other rights, or a link to it moves; no file is zeros."""
    return tuple(_fingerprint(path) for path in (files.certificate, files.key, files.authorities))


def read_material(files: TlsFiles, now: float) -> Material:
    """Read and check all three files; `now` is in seconds since the epoch.

    Raises: ConfigError if one cannot be read, is no PEM of its kind, the key is another certificate's, or the
    certificate is not valid at `now`.
    """
    certificate, key, trusted = (_read(path) for path in (files.certificate, files.key, files.authorities))
    leaf = _certificates(files.certificate, certificate)[0]
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{files.key} is no private key without a password: {error}") from error
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*spki) != leaf.public_key().public_bytes(*spki):
        raise ConfigError(f"cannot use {files.certificate} with {files.key}: the key is another certificate's")
    starts, ends = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    if not starts <= now < ends:
        span = f"{date_text(starts)} to {date_text(ends)}"
        raise ConfigError(f"cannot use {files.certificate}: it is valid from {span}, and now it is {date_text(now)}")
    authorities = b"".join(found.public_bytes(Encoding.PEM) for found in _certificates(files.authorities, trusted))
    return Material(certificate, key, authorities, _names(leaf), ends, f"{leaf.serial_number:x}")


def has_ended(certificate: bytes, now: float) -> bool:
    """Whether a PEM certificate is over at `now`; what cannot be read is."""
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp() <= now
    except ValueError:
        return True


def date_text(seconds: float) -> str:
    """Seconds since the epoch as people read them, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _certificates(path: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError(f"{path} holds no PEM certificate: {error}") from error


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names by which the peer knows us, as far as they are text."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    uris = found.get_values_for_type(x509.UniformResourceIdentifier)
    return (*uris, *found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress)))


def _fingerprint(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return (0,) * 5
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
