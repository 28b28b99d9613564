"""The load reporting service (LRS): asks every client for its load and counts what comes.

One call a client: the first request holds the node, the one answer says what to report and how often, then the client
only sends (xds-server rule 56). Bound to a transport by the composition root.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
from envoy.service.load_stats.v3.lrs_pb2 import LoadStatsRequest, LoadStatsResponse
from google.protobuf.message import DecodeError

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.load_reports import LoadReports, clusters_named
from xdsbpf.xds.peers import Authorize
from xdsbpf.xds.protocol import readable_error
from xdsbpf.xds.request import node_of
from xdsbpf.xds.transport import Call, Handler

SERVICE: Final = "envoy.service.load_stats.v3.LoadReportingService"
INTERVAL_S: Final = 10
"""How often clients are asked to report."""
_ALL_CLUSTERS: Final = "envoy.lrs.supports_send_all_clusters"

log = structlog.get_logger(__name__)


class LoadReporting:
    """Serves LRS into one `LoadReports`."""

    def __init__(self, reports: LoadReports, admit: Authorize, interval_s: int = INTERVAL_S) -> None:
        self._reports = reports
        self._admit = admit
        self._interval_s = interval_s

    def handlers(self) -> Mapping[str, Handler]:
        """Method path -> handler."""
        return {f"/{SERVICE}/StreamLoadStats": self._stream}

    async def _stream(self, call: Call) -> None:
        first = await _next_request(call)
        if first is None:
            return
        try:
            said, metadata = node_of(first.node)
            node_id = self._admit(call.peer, said, metadata)
        except ProtocolError as error:
            identity = ", ".join(call.peer.identities)
            log.warning(
                "lrs.stream_refused", peer=call.peer.address, identity=identity, error=readable_error(str(error))
            )
            raise
        self._reports.open(call)
        log.info("lrs.stream_opened", node=node_id)
        try:
            await call.write(self._answer(first))
            request: LoadStatsRequest | None = first
            while request is not None:
                self._reports.add(call, request)
                request = await _next_request(call)
        finally:
            self._reports.close(call)
            log.info("lrs.stream_closed", node=node_id)

    def _answer(self, first: LoadStatsRequest) -> bytes:
        answer = LoadStatsResponse()
        answer.load_reporting_interval.seconds = self._interval_s
        if _ALL_CLUSTERS in first.node.client_features:
            answer.send_all_clusters = True
        else:
            answer.clusters.extend(clusters_named(first))
        return bytes(answer.SerializeToString(deterministic=True))


async def _next_request(call: Call) -> LoadStatsRequest | None:
    data = await call.read()
    if data is None:
        return None
    try:
        return LoadStatsRequest.FromString(data)
    except DecodeError as error:
        raise ProtocolError("INVALID_ARGUMENT", f"not a LoadStatsRequest: {error}") from error
