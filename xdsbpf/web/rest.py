"""xDS by polling: the Fetch methods over HTTP/1.1, in proto3 JSON, for an Envoy with REST sources.

POST /v3/discovery:{listeners,routes,scoped-routes,clusters,endpoints,secrets,runtime,extension_configs} with a
DiscoveryRequest: 200 with a DiscoveryResponse, or 304 if its `version_info` is the one that the client names. What a
client sees is decided where it is for gRPC: a request becomes a `Call` of the Fetch method of its type. There is no
aggregated service and no delta, and a client that refuses something cannot say so.

Errors are JSON: {"error": text, "hint": text}. Called by `xdsbpf serve --rest-listen`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from xdsbpf.errors import ProtocolError
from xdsbpf.report.translation import AnyTypes
from xdsbpf.web.requests import http_error, read_body, refuse_browsers
from xdsbpf.xds.services import METHODS, Variant
from xdsbpf.xds.transport import Handler, Peer, Take

MAX_BODY_BYTES: Final = 16 << 20
"""Of a request: some hundred thousand names."""

AT_A_TIME: Final = 4
"""Answers that are made at a time: of a large mesh one has tens of megabytes, and a fleet polls in the same second."""

NOUNS: Final = {
    "FetchListeners": "listeners",
    "FetchRoutes": "routes",
    "FetchScopedRoutes": "scoped-routes",
    "FetchClusters": "clusters",
    "FetchEndpoints": "endpoints",
    "FetchSecrets": "secrets",
    "FetchRuntime": "runtime",
    "FetchExtensionConfigs": "extension_configs",
}
"""gRPC method -> what its HTTP path ends with, as the services' `google.api.http` options have it."""

_HTTP_STATUS: Final = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
}


class _Call:
    """A unary call whose one message is there already."""

    def __init__(self, method: str, peer: Peer, message: bytes) -> None:
        self.method = method
        self.peer = peer
        self.answer = b""
        self._message: bytes | None = message

    async def read(self) -> bytes | None:
        message, self._message = self._message, None
        return message

    async def read_all(self, handle: Take) -> None:
        while (message := await self.read()) is not None:
            handle(message)

    def write_now(self, message: bytes) -> bool:
        self.answer = message
        return True

    async def write(self, message: bytes) -> None:
        self.answer = message


def rest_app(handlers: Mapping[str, Handler], is_ready: Callable[[], bool]) -> Starlette:
    """The ASGI application over the gRPC handlers of a server; it answers 503 until that is ready."""
    turns = asyncio.Semaphore(AT_A_TIME)
    routes = [
        Route(f"/v3/discovery:{noun}", _endpoint(path, handlers[path], is_ready, turns), methods=["POST"])
        for path, noun in _paths().items()
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: http_error, ProtocolError: _refused})


def _paths() -> dict[str, str]:
    """gRPC method path of every Fetch method -> its noun."""
    fetching = (path for path, method in METHODS.items() if method.variant is Variant.FETCH)
    return {path: NOUNS[path.rpartition("/")[2]] for path in fetching}


def _endpoint(
    path: str, handler: Handler, is_ready: Callable[[], bool], turns: asyncio.Semaphore
) -> Callable[[Request], Awaitable[Response]]:
    async def fetch(request: Request) -> Response:
        refuse_browsers(request)
        if not is_ready():
            raise HTTPException(503, "the control plane is not ready: it has not read all of its input yet")
        asked = _parse(await read_body(request, MAX_BODY_BYTES))
        call = _Call(path, _peer(request), asked.SerializeToString())
        async with turns:
            await handler(call)
            answer = DiscoveryResponse.FromString(call.answer)
            answer.version_info = _version(answer)
            if answer.version_info == asked.version_info:
                return Response(status_code=304)
            # Of a large mesh it takes long, and nothing else has this message.
            return Response(await asyncio.to_thread(_json, answer), media_type="application/json")

    return fetch


def _parse(body: bytes) -> DiscoveryRequest:
    """Fields that a newer Envoy has and this schema has not are left out. Raises: HTTPException(400)."""
    try:
        return json_format.Parse(body, DiscoveryRequest(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(400, f"the body is no DiscoveryRequest in proto3 JSON: {error}") from error


def _version(answer: DiscoveryResponse) -> str:
    """A hash of all there is; a `version:` of a file, which SotW would show, does not tell that."""
    found = hashlib.blake2b(digest_size=8)
    for resource in answer.resources:
        found.update(b"%d %s" % (len(resource.value), resource.value))
    for error in answer.resource_errors:
        found.update(b"-%s" % error.resource_name.name.encode())
    return found.hexdigest()


def _json(answer: DiscoveryResponse) -> str:
    """Raises: HTTPException(500) for a resource of a type whose schema is not known here."""
    try:
        return json_format.MessageToJson(answer, descriptor_pool=AnyTypes(), indent=None)  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise HTTPException(500, f"a resource of {answer.type_url} cannot be written as JSON: {error}") from error


def _peer(request: Request) -> Peer:
    client = request.client
    return Peer("unix:" if client is None or not client.host else f"ipv4:{client.host}:{client.port}")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ProtocolError)
    body = {"error": str(error)} | ({"hint": error.hint} if error.hint else {})
    return JSONResponse(body, status_code=_HTTP_STATUS.get(error.status, 500))
