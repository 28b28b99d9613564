"""The admin endpoint: read-only JSON on a unix socket or loopback, and Prometheus metrics.

GET /ready      200 once inputs are in and the xDS server listens, else 503
GET /services   which plane carries each service port, and why
GET /proxies    sync state of every client (`xdsbpf ps`)
GET /objects    every object's state, with its findings
GET /locate     ?ref=Kind/namespace/name path (repeatable): where that is written
GET /metrics    Prometheus text
POST /confirm   accept a mass deletion that is being held
"""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from xdsbpf.report.objects import find_reference, object_rows
from xdsbpf.report.proxies import proxy_rows
from xdsbpf.report.services import service_rows
from xdsbpf.serve import ControlPlane


def admin_app(control_plane: ControlPlane) -> Starlette:
    """The ASGI application over a running control plane."""

    async def ready(_: Request) -> Response:
        if control_plane.ready.is_set():
            return JSONResponse({"ready": True, "listen": list(control_plane.bound)})
        return JSONResponse({"ready": False}, status_code=503)

    async def services(_: Request) -> Response:
        return JSONResponse({"items": service_rows(control_plane.compiler)})

    async def proxies(_: Request) -> Response:
        return JSONResponse({"items": proxy_rows(control_plane.server.status())})

    async def objects(_: Request) -> Response:
        return JSONResponse({"items": object_rows(control_plane.compiler, control_plane.catalog)})

    async def locate(request: Request) -> Response:
        catalog = control_plane.catalog
        items = [{"ref": ref, "location": find_reference(catalog, ref)} for ref in request.query_params.getlist("ref")]
        return JSONResponse({"items": items})

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def confirm(_: Request) -> Response:
        return JSONResponse({"confirmed": control_plane.confirm()})

    return Starlette(
        routes=[
            Route("/ready", ready),
            Route("/services", services),
            Route("/proxies", proxies),
            Route("/objects", objects),
            Route("/locate", locate),
            Route("/metrics", metrics),
            Route("/confirm", confirm, methods=["POST"]),
        ]
    )
