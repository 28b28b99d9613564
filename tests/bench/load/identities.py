"""Certificates for a benchmark over mutual TLS: the server's, and one for each client, as the node that it says it is.

In: a directory, how many clients. Out: PEM files in it, as socket.h and the server read them.
"""

from __future__ import annotations

from pathlib import Path

from tests.authority import Authority, write_files
from xdsbpf.xds.tls import TlsFiles


def write(directory: Path, clients: int) -> Path:
    """Make the files; about 0.3 ms a client. Returns the directory."""
    authority = Authority()
    write_files(directory, authority)
    for number in range(clients):
        certificate, key = authority.issue(f"spiffe://cluster.local/node/n{number:06}")
        (directory / f"{number:06}.pem").write_bytes(certificate + key)
    return directory


def server_files(directory: Path) -> TlsFiles:
    """The files of the server."""
    return TlsFiles(directory / "cert.pem", directory / "key.pem", directory / "ca.pem")
