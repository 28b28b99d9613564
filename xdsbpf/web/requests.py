"""What the HTTP endpoints of the control plane share: reading requests within limits, refusing browsers, errors.

In: requests of starlette. Out: bytes, or an HTTPException, which `http_error` answers as JSON. Called by `web.admin`
and `web.rest`.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request. Raises: HTTPException(413) for more than `limit` bytes, as soon as that is known."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise HTTPException(413, f"a request may have {limit} bytes")
    except ClientDisconnect as error:
        raise HTTPException(400, "the client has gone") from error
    return bytes(body)


def refuse_browsers(request: Request) -> None:
    """A page in a browser on this machine can send requests here too. Raises: HTTPException(403)."""
    if "origin" in request.headers:
        raise HTTPException(403, "browsers may not ask for that")


async def http_error(_: Request, error: Exception) -> Response:
    """{"error": text}, with the status of an HTTPException."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)
