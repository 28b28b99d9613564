"""POST /diff of the admin endpoint: what a change would make different, computed beside the running control plane.

In: the texts of manifests and raw resources. Out: the rows of `report.difference` as JSON. The comparison runs in a
thread, one at a time, over a copy of what is in force; what is served waits for it at most as threads wait for one
another. Called by `web.admin`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from xdsbpf.diagnostics import Severity
from xdsbpf.errors import ProtocolError
from xdsbpf.report.difference import Base, Difference, Proxy, difference, finding_rows, resource_rows
from xdsbpf.serve import ControlPlane
from xdsbpf.sources.catalog import Catalog
from xdsbpf.sources.loading import load_texts
from xdsbpf.sources.positions import Layered
from xdsbpf.sources.report import format_lines
from xdsbpf.web.requests import read_body, refuse_browsers
from xdsbpf.xds.pacing import unhurried

MAX_BODY_BYTES = 32 << 20


class Question(msgspec.Struct, frozen=True):
    """What `xdsbpf diff` asks: files as (name, text), applied or `deletes`; `proxy` "" for everybody."""

    manifests: tuple[tuple[str, str], ...] = ()
    envoy_resources: tuple[tuple[str, str], ...] = ()
    deletes: bool = False
    proxy: str = ""
    metadata: dict[str, Any] = {}
    bodies: bool = False


def diff_endpoint(control_plane: ControlPlane) -> Callable[[Request], Awaitable[Response]]:
    """The handler of /diff."""
    comparing = asyncio.Lock()  # each comparison has a mesh of its own in memory

    async def diff(request: Request) -> Response:
        refuse_browsers(request)
        try:
            question = msgspec.json.decode(await read_body(request, MAX_BODY_BYTES), type=Question)
        except msgspec.DecodeError as error:
            raise HTTPException(400, f"not a question as `xdsbpf diff` puts it: {error}") from error
        catalog, config = control_plane.catalog, control_plane.config
        async with comparing:
            views = control_plane.client_views.in_use
            base = Base(catalog.manifests(), config.settings, config.plugins, views)
            changed, found = await asyncio.to_thread(_compare, base, question)
        locator = Layered(changed, catalog)
        answer = {
            "resources": [row async for row in unhurried(resource_rows(found, locator))],
            "planes": msgspec.to_builtins(found.planes),
            "diagnostics": finding_rows(found, locator),
        }
        encoded = await asyncio.to_thread(msgspec.json.encode, answer)
        return Response(encoded, media_type="application/json")

    return diff


def _compare(base: Base, question: Question) -> tuple[Catalog, Difference]:
    """In a thread of its own. Raises: HTTPException(400) for invalid texts, or a proxy that is not served."""
    manifests = ((name, text.encode()) for name, text in question.manifests)
    changed = load_texts(manifests, ((name, text.encode()) for name, text in question.envoy_resources))
    errors = [found for found in changed.diagnostics() if found.severity is Severity.ERROR]
    if errors:
        raise HTTPException(400, format_lines(errors, changed)[0])
    proxy = Proxy(question.proxy, question.metadata) if question.proxy else None
    try:
        found = difference(base, changed, is_deletion=question.deletes, proxy=proxy, with_bodies=question.bodies)
    except ProtocolError as error:
        raise HTTPException(400, f"--proxy: {error}") from error
    return changed, found
