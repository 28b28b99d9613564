"""The node's certificate for mutual TLS: for the agent's own dials, and as files for the node's Envoy.

In: three PEM files, looked at about once a second. Out: credentials for the next dial, and a checked copy of the files
in the run directory, replaced as a whole, which Envoy watches. What cannot be used changes nothing and is visible
(`problems`). Owned by the composition root; must never log a key or hand one to anybody but by its path.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc

from xdsbpf._pb.xdsbpf.agent.v1 import agent_pb2
from xdsbpf.control_plane_cluster import ClientTls, secret_documents, server_name
from xdsbpf.errors import ConfigError
from xdsbpf.xds.certificates import Certificates
from xdsbpf.xds.tls import Material, TlsFiles, date_text

CERTIFICATE: Final = "cert.pem"
KEY: Final = "key.pem"
AUTHORITIES: Final = "ca.pem"
_CURRENT: Final = "current"
_SET: Final = "set-"


class Credentials:
    """What proves to the control plane that this is the node, and what the control plane must prove."""

    def __init__(
        self, files: TlsFiles, xds: str, name: str, directory: Path, now: Callable[[], float] = time.time
    ) -> None:
        """Read and check the files; nothing is written before `install`.

        `name`: what must stand in the server's certificate, "" for the host of `xds`. `directory`: where Envoy's copy
        goes. Raises: ConfigError if the files cannot be used, or for a name or an address that gRPC cannot check.
        """
        self._certificates = Certificates(files, now)
        self._directory = directory
        self._now = now
        self._xds = xds
        self.envoy = envoy_files(directory, name)
        self.server_name = server_name(xds, self.envoy)
        # gRPC compares DNS names and addresses only, and would refuse every server.
        if self.server_name.startswith("spiffe://"):
            raise ConfigError(
                f"the agent cannot check the server name {self.server_name!r}: it is no DNS name and no address",
                hint="give the control plane's certificate a DNS name or an address, and name that",
            )

    def install(self) -> None:
        """Put the files in force for Envoy, and those that tell it where they are.

        Raises: ConfigError if they cannot be written.
        """
        write_set(self._directory, self._certificates.material)
        for name, document in secret_documents(self._xds, self.envoy).items():
            draft = self._directory / f"{name}.new"
            draft.write_text(json.dumps(document, indent=2) + "\n")
            # The move is what a running Envoy watches for.
            draft.replace(self._directory / name)

    async def run(self) -> None:
        """Take replaced files, until cancelled."""
        await self._certificates.watch(self._use)

    def channel(self) -> grpc.ChannelCredentials:
        """For one dial: what is in force now. TLS 1.2 at least, which is gRPC's own minimum."""
        material = self._certificates.material
        return grpc.ssl_channel_credentials(material.authorities, material.key, material.certificate)

    def status(self) -> agent_pb2.Certificate:
        """What is in force, why newer files are not, and what became of replaced ones so far."""
        found, reloads = self._certificates.status(), self._certificates.reloads
        return agent_pb2.Certificate(
            serial=found.serial,
            names=found.names,
            not_after=int(found.not_after),
            error=found.error,
            taken=reloads["taken"],
            refused=reloads["refused"],
        )

    def problems(self) -> list[str]:
        """What somebody should do something about."""
        status, found = self._certificates.status(), []
        if status.error:
            found.append(f"the former certificate stays in force: {status.error}")
        if status.not_after <= self._now():
            found.append(f"the certificate in force ended at {date_text(status.not_after)}: no new connection succeeds")
        return found

    async def _use(self, material: Material) -> None:
        write_set(self._directory, material)


def envoy_files(directory: Path, name: str) -> ClientTls:
    """The paths that Envoy is told, of what `write_set` makes."""
    certificate, key, authorities = (str(directory / file) for file in (CERTIFICATE, KEY, AUTHORITIES))
    return ClientTls(certificate, key, authorities, name, str(directory))


def write_set(directory: Path, material: Material) -> None:
    """Replace certificate, key and authorities in a directory as one, readable by their owner only.

    `cert.pem` is a link to `current/cert.pem`, and `current` a link that is moved: so nobody who reads them sees a
    certificate beside another one's key, and the move in `directory` is what Envoy watches for. Raises: ConfigError.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=_SET, dir=directory))
        files = {CERTIFICATE: material.certificate, KEY: material.key, AUTHORITIES: material.authorities}
        for name, data in files.items():
            descriptor = os.open(fresh / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
        _link(directory / _CURRENT, fresh.name)
        for name in files:
            if not (directory / name).is_symlink():
                _link(directory / name, f"{_CURRENT}/{name}")
        for former in directory.glob(f"{_SET}*"):
            if former != fresh:
                shutil.rmtree(former)
    except OSError as error:
        raise ConfigError(f"cannot write the files of Envoy's certificate in {directory}: {error.strerror}") from error


def remove_sets(directory: Path) -> None:
    """Leave no key behind; again is a no-op."""
    if directory.exists():
        shutil.rmtree(directory)


def _link(link: Path, target: str) -> None:
    draft = link.with_name(f"{link.name}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)
