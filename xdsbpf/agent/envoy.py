"""Supervisor of the node's Envoy: writes its bootstrap, starts it in the proxy's cgroup, keeps it running.

Envoy outlives the agent (it has a session of its own), and the next agent adopts it by its pid file.
The composition root runs `EnvoySupervisor.run`; nothing here speaks xDS.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import os
import subprocess
import time
from pathlib import Path

import msgspec
import structlog

from xdsbpf.agent import process
from xdsbpf.agent.bootstrap import BootstrapOptions, build_bootstrap
from xdsbpf.agent.process import ProcessRecord
from xdsbpf.control_plane_cluster import ClientTls
from xdsbpf.errors import ConfigError
from xdsbpf.unix_http import UnixConnection

_LOG = structlog.get_logger()
_FIRST_BACKOFF, _LAST_BACKOFF = 0.1, 5.0
_LONG_ENOUGH = 10.0
_DRAIN_SECONDS = 5
_ADMIN_TIMEOUT = 2.0
_CONNECTED = "control_plane.connected_state"
# The shell joins the cgroup first: a socket keeps the cgroup that it was created in. Envoy asks the kernel
# for a SIGTERM when its parent dies (PR_SET_PDEATHSIG), so it must have lost its parent before it runs:
# it waits for the end of standard input, which comes when the shell that forked it has been reaped.
_JOIN_AND_START = """
echo $$ > "$0" || exit 1
exec 3<&0
{ read -r go; exec "$@" </dev/null; } <&3 3<&- >&2 &
echo $!
"""


class EnvoyOptions(msgspec.Struct, frozen=True):
    """How Envoy is run. `binary` None: the user runs it, only the bootstrap is written. `tls`: the paths of its
    certificate for the control plane, None for plaintext."""

    node: str
    xds: str
    directory: Path
    cgroup: Path
    binary: Path | None
    concurrency: int
    domain: str
    strict: bool
    tls: ClientTls | None = None


class EnvoySupervisor:
    """One Envoy process, started again with backoff when it ends."""

    def __init__(self, options: EnvoyOptions) -> None:
        """Nothing is started before `configure` and `run`."""
        self._options = options
        self._proxy_address: bytes | None = None
        self._configured = asyncio.Event()
        self._changed = asyncio.Event()
        self._record: ProcessRecord | None = None
        self.restarts = 0

    @property
    def pid(self) -> int:
        """Process id of Envoy, 0 if it does not run (or is the user's)."""
        return self._record.pid if self._record else 0

    @property
    def admin_socket(self) -> Path:
        """Envoy's admin interface (0600)."""
        return self._options.directory / "admin.sock"

    @property
    def _pid_file(self) -> Path:
        return self._options.directory / "envoy.pid"

    def configure(self, proxy_address: bytes) -> None:
        """Set the proxy's address (16 bytes); another one than before restarts Envoy."""
        if proxy_address == self._proxy_address or not any(proxy_address):
            return
        if self._proxy_address is not None:
            self._changed.set()
        self._proxy_address = proxy_address
        self._configured.set()

    async def run(self) -> None:
        """Adopt or start Envoy, and start it again when it ends; returns only when cancelled."""
        await self._configured.wait()
        backoff = _FIRST_BACKOFF
        while True:
            started = time.monotonic()
            digest = self._write_bootstrap()
            if self._options.binary is None:
                await self._changed.wait()
                self._changed.clear()
                continue
            self._record = await self._adopted(digest) or self._started(self._options.binary, digest)
            if await self._ended_by_itself(self._record):
                self.restarts += 1
                _LOG.error("envoy.process_ended", pid=self._record.pid)
                self._record = None
                if time.monotonic() - started > _LONG_ENOUGH:
                    backoff = _FIRST_BACKOFF
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, _LAST_BACKOFF)

    async def stop(self) -> None:
        """End Envoy, also one that an earlier agent started; returns when it has ended."""
        record = self._record or process.read_record(self._pid_file)
        if record is not None:
            await process.end_process(record, _DRAIN_SECONDS + 1)
            _LOG.info("envoy.process_stopped", pid=record.pid)
        self._record = None
        self._pid_file.unlink(missing_ok=True)

    async def state(self) -> str:
        """`LIVE` once Envoy serves; otherwise what it is waiting for."""
        if self._options.binary is None:
            return "off"
        if not self._configured.is_set():
            return "waiting for node configuration"
        if self._record is None:
            return "not running"
        try:
            return (await self.admin("/ready")).strip()
        except (OSError, TimeoutError, EOFError):
            return "STARTING"

    async def has_control_plane(self) -> bool:
        """Whether Envoy has its stream to the control plane; also True while there is no Envoy to ask."""
        if self._record is None:
            return True
        try:
            answer = await self.admin(f"/stats?filter=^{_CONNECTED}$")
        except (OSError, TimeoutError, EOFError):
            return True
        return answer.strip() != f"{_CONNECTED}: 0"

    async def admin(self, path: str) -> str:
        """Body of a GET on Envoy's admin interface. Raises: OSError, TimeoutError, EOFError."""
        return await asyncio.to_thread(self._get, path)

    def _get(self, path: str) -> str:
        # HTTP/1.1: Envoy's admin interface answers 426 to HTTP/1.0.
        connection = UnixConnection(str(self.admin_socket), _ADMIN_TIMEOUT)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode(errors="replace")
        except http.client.HTTPException as error:
            raise EOFError(str(error)) from error
        finally:
            connection.close()

    def _write_bootstrap(self) -> str:
        options = self._options
        options.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = build_bootstrap(
            BootstrapOptions(
                node=options.node,
                proxy_address=self._proxy_address or bytes(16),
                xds=options.xds,
                admin_socket=self.admin_socket,
                domain=options.domain,
                strict=options.strict,
                tls=options.tls,
            )
        )
        (options.directory / "bootstrap.json").write_text(text)
        return hashlib.sha256(text.encode()).hexdigest()

    async def _adopted(self, digest: str) -> ProcessRecord | None:
        """The Envoy of an earlier agent if it runs with this very bootstrap; another one is ended."""
        record = process.read_record(self._pid_file)
        if record is None:
            return None
        if record.digest != digest:
            _LOG.warning("envoy.bootstrap_changed", pid=record.pid)
            await process.end_process(record, _DRAIN_SECONDS + 1)
            return None
        _LOG.info("envoy.process_adopted", pid=record.pid)
        return record

    def _started(self, binary: Path, digest: str) -> ProcessRecord:
        options = self._options
        self.admin_socket.unlink(missing_ok=True)
        arguments = [
            *("-c", str(options.directory / "bootstrap.json")),
            *("--concurrency", str(options.concurrency), "--use-dynamic-base-id"),
            *("--drain-time-s", str(_DRAIN_SECONDS), "--drain-strategy", "immediate"),
            *("--parent-shutdown-time-s", str(2 * _DRAIN_SECONDS), "--log-level", "warning"),
        ]
        command = ["/bin/sh", "-c", _JOIN_AND_START, str(options.cgroup / "cgroup.procs"), str(binary)]
        wait, go = os.pipe()
        try:
            with (options.directory / "envoy.log").open("ab") as log:
                shell = subprocess.run(
                    command + arguments,
                    stdin=wait,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    cwd="/",
                    check=False,
                )
            if shell.returncode:
                raise ConfigError(f"Envoy cannot join the cgroup {options.cgroup}")
            pid = int(shell.stdout)
            record = ProcessRecord(pid, process.start_time(pid) or 0, digest)
        finally:
            os.close(wait)
            os.close(go)
        process.write_record(self._pid_file, record)
        _LOG.info("envoy.process_started", pid=pid, binary=str(binary))
        return record

    async def _ended_by_itself(self, record: ProcessRecord) -> bool:
        """Wait for the end of Envoy (True), or end it because its bootstrap is out of date (False)."""
        ended = asyncio.create_task(process.wait_for_end(record))
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait((ended, changed), return_when=asyncio.FIRST_COMPLETED)
            by_itself = ended.done()
            if not by_itself:
                self._changed.clear()
                await process.end_process(record, _DRAIN_SECONDS + 1)
        finally:
            ended.cancel()
            changed.cancel()
        return by_itself
