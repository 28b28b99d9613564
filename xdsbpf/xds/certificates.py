"""Certificate reload: looks at the files of one side of mutual TLS, and hands on what is new and sound.

In: the files, looked at about once a second. Out: `use(material)` for connections from then on; files that cannot be
used change nothing, and are logged and visible (`status`) until they can be. Owned by the composition roots of the
control plane and, through `agent.credentials`, of the node agent.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog

from xdsbpf.errors import ConfigError
from xdsbpf.xds.tls import Material, TlsFiles, fingerprint, read_material

POLL_S: Final = 1.0
"""How often the files are looked at: three `stat` calls."""

log = structlog.get_logger(__name__)


class CertificateStatus(msgspec.Struct, frozen=True):
    """What is in force: its names, its end (seconds since the epoch), why newer files are not ("" if they are), and
    its serial number (hexadecimal)."""

    names: tuple[str, ...]
    not_after: float
    error: str
    serial: str


class Certificates:
    """The certificate in force and its files. Raises: ConfigError at once if the files cannot be used."""

    def __init__(self, files: TlsFiles, now: Callable[[], float] = time.time) -> None:
        self._files = files
        self._now = now
        self._seen = fingerprint(files)
        self.material = read_material(files, now())
        self.reloads: Counter[str] = Counter()
        """"taken" and "refused" reloads, for the metrics."""
        self._error = ""

    def status(self) -> CertificateStatus:
        """For people to look at."""
        return CertificateStatus(self.material.names, self.material.not_after, self._error, self.material.serial)

    async def watch(self, use: Callable[[Material], Awaitable[None]]) -> None:
        """Look again and again until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.look(use)

    async def look(self, use: Callable[[Material], Awaitable[None]]) -> None:
        """Take what has changed since the last look, if it can be used.

        The three files are replaced one after the other: a certificate that does not fit its key yet is refused, and
        looked at again when the next file changes. What cannot be used is also tried again without a change: a
        certificate may begin later, a disk may have room again.
        """
        seen = fingerprint(self._files)
        is_changed = seen != self._seen
        if not is_changed and not self._error:
            return
        try:
            material = read_material(self._files, self._now())
            await use(material)
        except ConfigError as error:
            if is_changed:
                self._error = str(error)
                self.reloads["refused"] += 1
                log.error("tls.certificate_refused", error=str(error), until=self.material.not_after)
        else:
            self.material, self._error = material, ""
            self.reloads["taken"] += 1
            log.info("tls.certificate_loaded", names=material.names, until=material.not_after)
        # What was read may be newer than what was seen, never older: at worst it is read once more.
        self._seen = seen
