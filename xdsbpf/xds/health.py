"""gRPC health checking (grpc.health.v1): whether this server is ready to serve each of its services.

In: the names of the services, and the moments at which the server becomes ready and begins to drain. Out: handlers for
`Check`, `List` and `Watch`, whichever transport carries them. Owned by the composition root; knows nothing of xDS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListResponse

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.transport import Call, Handler

SERVICE: Final = "grpc.health.v1.Health"

MAX_WATCHES: Final = 1_000
"""Whoever has a certificate may watch for as long as it likes, and nobody else counts it. Single checks go on."""

_SERVING: Final[int] = HealthCheckResponse.SERVING
_NOT_SERVING: Final[int] = HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final[int] = HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Health of all services together: they are served from one store, so they become ready at once."""

    def __init__(self, services: Iterable[str]) -> None:
        """`services` are full names; the empty name, for the server as a whole, and this service are added."""
        self._services = frozenset((*services, SERVICE, ""))
        self._is_serving = False
        self._is_draining = False
        self._changed = asyncio.Event()
        self._watches = 0

    def handlers(self) -> Mapping[str, Handler]:
        """Method path -> handler."""
        return {
            f"/{SERVICE}/Check": self._check,
            f"/{SERVICE}/List": self._list,
            f"/{SERVICE}/Watch": self._watch,
        }

    def set_serving(self, is_serving: bool) -> None:
        """Say so to everyone who asks or watches from now on."""
        if is_serving != self._is_serving:
            self._is_serving = is_serving
            self._wake()

    def drain(self) -> None:
        """Not serving from now on; whoever watches is told and sent away, so that no watch delays the end."""
        self._is_serving, self._is_draining = False, True
        self._wake()

    def _wake(self) -> None:
        # Every watcher holds the event that it waits for: this wakes them all, once.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return _UNKNOWN
        return _SERVING if self._is_serving else _NOT_SERVING

    async def _check(self, call: Call) -> None:
        service = await _service_asked(call)
        status = self._status(service)
        if status == _UNKNOWN:
            raise ProtocolError("NOT_FOUND", f"there is no service {service!r} here")
        await call.write(_encode(status))

    async def _list(self, call: Call) -> None:
        await call.read()
        statuses = {name: HealthCheckResponse(status=self._status(name)) for name in self._services}
        await call.write(HealthListResponse(statuses=statuses).SerializeToString(deterministic=True))

    async def _watch(self, call: Call) -> None:
        """The status now and whenever it changes; a service that is not here may yet come, so the call stays open."""
        if self._watches >= MAX_WATCHES:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"{MAX_WATCHES} watches are open: check from time to time")
        self._watches += 1
        try:
            await self._tell(call, await _service_asked(call))
        finally:
            self._watches -= 1

    async def _tell(self, call: Call, service: str) -> None:
        last: int | None = None
        while True:
            changed, status = self._changed, self._status(service)
            if status != last:
                await call.write(_encode(status))
                last = status
            if self._is_draining:
                raise ProtocolError("UNAVAILABLE", "the server is stopping")
            await changed.wait()


async def _service_asked(call: Call) -> str:
    data = await call.read()
    try:
        return str(HealthCheckRequest.FromString(data or b"").service)
    except DecodeError as error:
        raise ProtocolError("INVALID_ARGUMENT", f"not a HealthCheckRequest: {error}") from error


def _encode(status: int) -> bytes:
    return bytes(HealthCheckResponse(status=status).SerializeToString())
