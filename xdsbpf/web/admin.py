"""The admin endpoint: read-only JSON on a unix socket or loopback, and Prometheus metrics.

GET /ready      200 once inputs are in and the xDS server listens, else 503
GET /services   which plane carries each service port and raw listener, and why
GET /proxies    sync state of every client, and the certificate in force (`xdsbpf ps`)
GET /objects    every object's state and the files' states, with their findings
GET /loads      load that clients reported, by cluster
GET /locate     ?ref=Kind/namespace/name path (repeatable): where that is written
GET /config     ?node=ID[&type=cds,eds][&body=1]: every resource of a client, with its state (`xdsbpf pc`)
GET /debug/whynot  ?node=ID&resource=NAME[&type=cds]: why a client does not have a resource, or that it has; a node's
                name stands for its agent and its Envoy
GET /metrics    Prometheus text
POST /distribution  {"objects": [{"kind", "namespace", "name", "group", "digest"}], "connected_only": false}: whether
                they are in force everywhere, and who is in the way (`xdsbpf wait`); `digest` "" for one to be gone
POST /diff      {"manifests": [[name, text]], "envoy_resources": [[name, text]], "deletes": false, "proxy": "",
                "metadata": {}, "bodies": false}: what applying or deleting these would change in both planes
POST /confirm   accept a mass deletion that is being held

Errors are JSON: {"error": text}.
"""

from __future__ import annotations

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from xdsbpf.model.names import SHORT_TYPES
from xdsbpf.report.config import config_rows
from xdsbpf.report.distribution import Awaited, Distributor
from xdsbpf.report.listeners import listener_rows
from xdsbpf.report.objects import find_reference, object_row, object_states, source_rows
from xdsbpf.report.proxies import proxy_rows
from xdsbpf.report.services import service_rows
from xdsbpf.report.whynot import whynot_rows
from xdsbpf.serve import ControlPlane
from xdsbpf.web.difference import diff_endpoint
from xdsbpf.web.metrics import Metrics
from xdsbpf.web.requests import http_error, read_body, refuse_browsers
from xdsbpf.xds.pacing import unhurried

MAX_REFERENCES = 10_000
"""References that one request to /locate may name."""
MAX_BODY_BYTES = 32 << 20
NOBODY = "no client with the node id {!r} is connected, and none of a node of that name"


class Question(msgspec.Struct, frozen=True):
    """What `xdsbpf wait` asks of /distribution."""

    objects: tuple[Awaited, ...]
    connected_only: bool = False


def admin_app(control_plane: ControlPlane) -> Starlette:
    """The ASGI application over a running control plane."""
    metrics_of = Metrics(control_plane)
    distributor = Distributor(
        control_plane.compiler, control_plane.catalog, control_plane.server, control_plane.barriers
    )

    async def ready(_: Request) -> Response:
        if control_plane.ready.is_set():
            return JSONResponse({"ready": True, "listen": list(control_plane.bound)})
        return JSONResponse({"ready": False}, status_code=503)

    async def services(_: Request) -> Response:
        compiler = control_plane.compiler
        return JSONResponse({"items": service_rows(compiler), "listeners": listener_rows(compiler)})

    async def proxies(_: Request) -> Response:
        clients = await control_plane.server.streams.look()
        rows = proxy_rows(clients, control_plane.compiler, control_plane.catalog)
        certificates = control_plane.certificates
        certificate = None if certificates is None else certificates.status()
        # Of a large mesh this is megabytes: the encoder takes a tenth of the time that json does.
        document = msgspec.json.encode({"items": rows, "certificate": certificate})
        return Response(document, media_type="application/json")

    async def objects(_: Request) -> Response:
        plane = control_plane
        states = object_states(plane.compiler, plane.catalog, await plane.server.streams.look())
        items = [object_row(entry, plane.catalog) async for entry in unhurried(states)]
        document = msgspec.json.encode({"items": items, "sources": source_rows(plane.catalog)})
        return Response(document, media_type="application/json")

    async def loads(_: Request) -> Response:
        rows = [msgspec.to_builtins(row) for row in control_plane.load_reports.rows()]
        return JSONResponse({"items": rows, "reports": control_plane.load_reports.reports})

    async def locate(request: Request) -> Response:
        catalog = control_plane.catalog
        references = request.query_params.getlist("ref")
        if not references or len(references) > MAX_REFERENCES:
            raise HTTPException(400, "name what to locate: ?ref=Kind/namespace/name path, at most 10000 times")
        items = [{"ref": ref, "location": find_reference(catalog, ref)} for ref in references]
        return JSONResponse({"items": items})

    async def config(request: Request) -> Response:
        node, plane = request.query_params.get("node", ""), control_plane
        shorts = [short for short in request.query_params.get("type", "").split(",") if short]
        if not node or any(short not in SHORT_TYPES for short in shorts):
            raise HTTPException(400, f"ask /config?node=ID, with type= some of {', '.join(SHORT_TYPES)} if you like")
        types = {SHORT_TYPES[short] for short in shorts}
        with_body = bool(request.query_params.get("body"))
        items = await config_rows(plane.server, plane.compiler, plane.catalog, node, types, with_body=with_body)
        if items is None:
            raise HTTPException(404, NOBODY.format(node))
        return JSONResponse({"items": items})

    async def whynot(request: Request) -> Response:
        node, name = request.query_params.get("node", ""), request.query_params.get("resource", "")
        short = request.query_params.get("type", "")
        if not node or not name or (short and short not in SHORT_TYPES):
            types = ", ".join(SHORT_TYPES)
            raise HTTPException(400, f"ask /debug/whynot?node=ID&resource=NAME, with type= one of {types} if you like")
        plane, type_url = control_plane, SHORT_TYPES.get(short, "")
        items = whynot_rows(plane.server, plane.compiler, plane.catalog, node, name, type_url)
        if not items:
            raise HTTPException(404, NOBODY.format(node))
        return JSONResponse({"items": items})

    async def distribution(request: Request) -> Response:
        refuse_browsers(request)
        try:
            question = msgspec.json.decode(await read_body(request, MAX_BODY_BYTES), type=Question)
        except msgspec.DecodeError as error:
            raise HTTPException(400, f"not a question as `xdsbpf wait` puts it: {error}") from error
        found = await distributor.look(question.objects, connected_only=question.connected_only)
        return JSONResponse(msgspec.to_builtins(found))

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(await metrics_of.text(), media_type=CONTENT_TYPE_LATEST)

    async def confirm(request: Request) -> Response:
        refuse_browsers(request)
        return JSONResponse({"confirmed": control_plane.confirm()})

    return Starlette(
        routes=[
            Route("/ready", ready),
            Route("/services", services),
            Route("/proxies", proxies),
            Route("/objects", objects),
            Route("/loads", loads),
            Route("/locate", locate),
            Route("/config", config),
            Route("/debug/whynot", whynot),
            Route("/distribution", distribution, methods=["POST"]),
            Route("/diff", diff_endpoint(control_plane), methods=["POST"]),
            Route("/metrics", metrics),
            Route("/confirm", confirm, methods=["POST"]),
        ],
        exception_handlers={HTTPException: http_error, 500: _defect},
    )


async def _defect(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=500)
