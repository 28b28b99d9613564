"""What the stand-ins of Bookinfo's services call: by app and version label, as the sample application does.

Input: a request to a stand-in. Output: extra fields of its answer. productpage calls details and reviews,
reviews v2 and v3 call ratings, and the user's header is passed on, so that routes, delays and faults between
them can be seen end to end. Called by `standin`; every other app has no calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from xdsbpf.lab.exchange import Closed, failure_name, fetch
from xdsbpf.lab.http1 import BadMessage, Message

CALL_TIMEOUT = 10.0
"""Seconds that a stand-in waits for another; above the 7 s of the sample's delay fault."""

PASSED_ON = ("end-user", "x-request-id", "traceparent", "tracestate", "b3", "user-agent", "authorization")

Calls = Callable[[Message], Awaitable[dict[str, Any]]]


def calls_of(app: str, version: str, env: Mapping[str, str]) -> tuple[str, Calls] | None:
    """(path prefix, calls) of a Bookinfo service that calls others, else None.

    `env` may rename a callee as in the sample application (DETAILS_HOSTNAME, RATINGS_SERVICE_PORT, ...).
    """

    def host(service: str) -> str:
        return env.get(f"{service.upper()}_HOSTNAME", service)

    def port(service: str) -> int:
        return int(env.get(f"{service.upper()}_SERVICE_PORT", "9080"))

    async def page(request: Message) -> dict[str, Any]:
        headers = passed_on(request)
        details, reviews = await asyncio.gather(
            _call(host("details"), port("details"), "/details/0", headers),
            _call(host("reviews"), port("reviews"), "/reviews/0", headers),
        )
        return {"details": details, "reviews": reviews}

    async def rated(request: Message) -> dict[str, Any]:
        return {"ratings": await _call(host("ratings"), port("ratings"), "/ratings/0", passed_on(request))}

    if app == "productpage":
        return "/productpage", page
    if app == "reviews" and version != "v1":
        return "/reviews", rated
    return None


def passed_on(request: Message) -> list[tuple[str, str]]:
    """Headers that a service copies to its own calls."""
    return [(name, value) for name, value in request.headers if name in PASSED_ON or name.startswith("x-b3-")]


async def _call(host: str, port: int, path: str, headers: list[tuple[str, str]]) -> dict[str, Any]:
    """One call as the page shows it: status 0 and `error` when there was no answer."""
    begun = time.monotonic()
    outcome: dict[str, Any]
    try:
        answer = await fetch(host, port, path, [("host", f"{host}:{port}"), *headers], CALL_TIMEOUT)
    except (OSError, Closed, BadMessage) as error:
        outcome = {"status": 0, "error": failure_name(error)}
    else:
        outcome = {"status": answer.status, "body": _body(answer)}
    return outcome | {"seconds": round(time.monotonic() - begun, 4)}


def _body(answer: Message) -> Any:
    try:
        return msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return answer.body.decode("utf-8", "replace")[:500]
