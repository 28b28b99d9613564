"""Calls an ASGI application in this process and this loop, as a server would."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from starlette.applications import Starlette


class Answer(NamedTuple):
    """An HTTP response."""

    status_code: int
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class Client:
    """Requests to one application."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    async def get(self, path: str) -> Answer:
        return await self.request("GET", path)

    async def post(self, path: str, body: bytes | str, **headers: str) -> Answer:
        raw = body.encode() if isinstance(body, str) else body
        return await self.request("POST", path, body=raw, **headers)

    async def request(self, method: str, path: str, *, body: bytes = b"", **headers: str) -> Answer:
        """An application that raises has answered 500 before."""
        plain, _, query = path.partition("?")
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": plain,
            "raw_path": plain.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "scheme": "http",
            "server": ("localhost", 80),
            "client": None,
        }
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        try:
            await self._app(scope, receive, send)
        except RuntimeError:
            assert sent
            assert sent[0]["status"] == 500
        body = b"".join(message.get("body", b"") for message in sent)
        return Answer(sent[0]["status"], body.decode())
